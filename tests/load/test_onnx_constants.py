"""No constant is ever dropped: at each place of each operator it is computed with, or refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import TOLERANCE, by_runtime, converted

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.importer import check_batches
from edgeclean.load.onnx.operators import OPERATORS

SHAPE = (2, 4, 4)  # of the images
PLANES = (1, 4, 6, 6)
# What nobody computes from an image is an array; what has a shape alone may be either.
Operand = tuple[int, ...] | np.ndarray
CHANNELS = (4,)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def twice(*shapes: Operand, opset: int = 17, **attributes: Any) -> tuple[Any, ...]:
    return shapes, attributes, opset


TWO = twice(PLANES, (1, 4, 1, 1))
THREE = twice(PLANES, (1, 4, 1, 1), PLANES)
ONE = twice(PLANES)
REDUCED = twice(PLANES, whole(2, 3), opset=18)
CASES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("Add", "Div", "Mul", "Sub"), TWO),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), TWO),
    **dict.fromkeys(("And", "Or", "Xor"), TWO),
    **dict.fromkeys(("Max", "Mean", "Min", "Sum"), THREE),
    **{
        name: ONE
        for name in (
            *("Abs", "Cast", "Celu", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish"),
            *("Identity", "LeakyRelu", "Log", "Neg", "Not", "Reciprocal", "Relu", "Selu"),
            *("Sigmoid", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu"),
            *("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LogSoftmax", "Softmax"),
            *("LpNormalization", "Flatten", "Ceil", "Cos", "Floor", "Round", "Sign", "Sin"),
            *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "IsInf"),
            *("IsNaN", "Sinh", "Tan"),
        )
    },
    **{f"Reduce{kind}": REDUCED for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean")},
    **{f"Reduce{kind}": REDUCED for kind in ("Min", "Prod", "Sum", "SumSquare")},
    "AveragePool": twice(PLANES, kernel_shape=[2, 2]),
    "BatchNormalization": twice(PLANES, CHANNELS, CHANNELS, CHANNELS, CHANNELS),
    "Cast": twice(PLANES, to=TensorProto.FLOAT),
    "Clip": twice(PLANES, (), ()),
    "Concat": twice(PLANES, PLANES, PLANES, axis=1),
    "Conv": twice(PLANES, (5, 4, 3, 3), (5,)),
    "ConvTranspose": twice(PLANES, (4, 5, 3, 3), (5,)),
    "CumSum": twice(PLANES, np.array(1)),
    "DepthToSpace": twice(PLANES, blocksize=2),
    "Dropout": twice(PLANES, np.float32(0.5), np.array(False)),
    "Expand": twice((1, 4, 1, 1), whole(1, 4, 3, 3)),
    "Gather": twice(PLANES, whole(3, 0, 0), axis=1),
    "Gelu": twice(PLANES, opset=20),
    "Gemm": twice((1, 6), (6, 5), (5,)),
    "GroupNormalization": twice(PLANES, CHANNELS, CHANNELS, opset=21, num_groups=2),
    "InstanceNormalization": twice(PLANES, CHANNELS, CHANNELS),
    "LRN": twice(PLANES, size=3),
    "LayerNormalization": twice(PLANES, (6,), (6,)),
    "LpPool": twice(PLANES, kernel_shape=[2, 2]),
    "MatMul": twice((1, 3, 4, 5), (1, 3, 5, 6)),
    "MaxPool": twice(PLANES, kernel_shape=[2, 2]),
    "MeanVarianceNormalization": twice(PLANES, axes=[2, 3]),
    "Mish": twice(PLANES, opset=18),
    "Mod": twice(PLANES, (1, 4, 1, 1), fmod=1),
    "PRelu": twice(PLANES, (4, 1, 1)),
    "Pad": twice(PLANES, whole(0, 0, 1, 1, 0, 0, 1, 1), ()),
    "Pow": twice(PLANES, np.float32(2)),
    "RMSNormalization": twice(PLANES, (6,), opset=23),
    "Reshape": twice(PLANES, whole(1, 2, 2, 36)),
    "Resize": twice(PLANES, np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)),
    "Slice": twice(PLANES, whole(1), whole(3), whole(1), whole(1)),
    "SpaceToDepth": twice(PLANES, blocksize=2),
    "Split": twice(PLANES, whole(2, 2), axis=1),
    "Squeeze": twice((1, 4, 1, 6), whole(2)),
    "Swish": twice(PLANES, opset=24),
    "Tile": twice(PLANES, whole(1, 1, 2, 1)),
    "Transpose": twice(PLANES, perm=[0, 2, 3, 1]),
    "Trilu": twice(PLANES, np.array(1)),
    "Unsqueeze": twice(PLANES, whole(2)),
    "Upsample": twice(PLANES, np.array([1, 1, 2, 2], np.float32), opset=9),
    "Where": twice(PLANES, (1, 4, 1, 1), PLANES),
}
# A matrix that is computed lacks the axis of the batch.
OTHER = {"MatMul": twice((1, 3, 4, 5), (5, 6)), "Gemm": twice((1, 6), (6, 5), (1, 5))}
BOUNDED = {"Acos", "Asin", "Atanh", "Tan"}  # of numbers between -1 and 1 alone
TRUTH = {"And": (0, 1), "Or": (0, 1), "Xor": (0, 1), "Not": (0,), "Where": (0,)}


def built(name: str, case: tuple[Any, ...], constants: tuple[int, ...]) -> ModelProto:
    """The operator behind values of the image, but for some that are constants."""
    operands, attributes, opset = case
    generator = np.random.default_rng(0)
    nodes, weights, names = [], [], []
    for place, operand in enumerate(operands):
        names.append(f"in{place}")
        truth = place in TRUTH.get(name, ())
        if isinstance(operand, tuple) and place not in constants:
            size = int(np.prod(operand))
            matrix = generator.uniform(0.2, 1, (32, size)) / (32 if name in BOUNDED else 1)
            weights += [
                numpy_helper.from_array(matrix.astype(np.float32), f"m{place}"),
                numpy_helper.from_array(np.array([-1, *operand[1:]]), f"s{place}"),
            ]
            nodes += [
                helper.make_node("Flatten", ["image"], [f"f{place}"]),
                helper.make_node("MatMul", [f"f{place}", f"m{place}"], [f"p{place}"]),
                helper.make_node(
                    "Reshape",
                    [f"p{place}", f"s{place}"],
                    [f"v{place}" if truth else f"in{place}"],
                ),
            ]
            if truth:
                weights.append(numpy_helper.from_array(np.float32(9), f"t{place}"))
                nodes.append(
                    helper.make_node("Greater", [f"v{place}", f"t{place}"], [f"in{place}"])
                )
        else:
            numbers = operand
            if isinstance(operand, tuple):
                numbers = generator.uniform(0.2, 1, operand).astype(np.float32)
                numbers = numbers > 0.5 if truth else numbers
            weights.append(numpy_helper.from_array(np.asarray(numbers), f"in{place}"))
    outputs = ["out", "rest"] if name == "Split" else ["out"]
    nodes.append(helper.make_node(name, names, outputs, "tried", **attributes))
    if name in ("And", "Or", "Xor", "Not", "IsInf", "IsNaN") or name.startswith(
        ("Equal", "Greater", "Less")
    ):
        nodes[-1].output[0] = "truth"
        nodes.append(helper.make_node("Cast", ["truth"], ["out"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    shape = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None] * len(shape.dim))
    model.graph.output[0].CopyFrom(out)
    return model


def ways(case: tuple[Any, ...]) -> list[tuple[int, ...]]:
    """Every choice of operands to be constants that leaves one to the image."""
    free = [place for place, operand in enumerate(case[0]) if isinstance(operand, tuple)]
    return [chosen for count in range(len(free)) for chosen in itertools.combinations(free, count)]


TRIED = [
    pytest.param(name, case, chosen, id=f"{name}-{''.join(map(str, chosen)) or 'none'}")
    for table in (CASES, OTHER)
    for name, case in table.items()
    for chosen in ways(case)
]
# With weights that are computed no trainer's graph comes; the batch cannot be told apart.
REFUSED = {"BatchNormalization", "Conv", "ConvTranspose", "GroupNormalization", "Gemm"}
REFUSED |= {"InstanceNormalization", "LayerNormalization", "PRelu", "RMSNormalization"}
REFUSED |= {"Clip", "Pad", *OTHER}


def test_every_operator_is_tried() -> None:
    assert CASES.keys() == OPERATORS.keys()


@pytest.mark.parametrize(("name", "case", "constants"), TRIED)
def test_constants_count_or_are_refused(
    name: str, case: tuple[Any, ...], constants: tuple[int, ...]
) -> None:
    contents = built(name, case, constants).SerializeToString()
    pixels = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    weights = set(ways(case)[-1]) or {1}
    weights -= {2} if case is OTHER["Gemm"] and 0 not in constants else set()  # a sum may be one
    if name in REFUSED and case is not CASES["MatMul"] and not weights <= set(constants):
        with pytest.raises(InputRejectedError):
            check_batches(converted(contents), SHAPE)
        return
    network = converted(contents)
    check_batches(network, SHAPE)
    with torch.no_grad():
        got = network(pixels)
    torch.testing.assert_close(got, by_runtime(contents, pixels), rtol=TOLERANCE, atol=TOLERANCE)
