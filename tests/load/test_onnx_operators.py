"""One ONNX operator at a time computes what it does in ONNX Runtime, to 1e-4."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onnx_graphs import POOL, SIDE, TOLERANCE, WEIGHTS, Node, by_runtime, converted, graph, images
from torch import nn

from edgeclean.load.onnx.modules import Arithmetic

MEANS: dict[str, Any] = {"axes": [2, 3]}
WHERE = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
OPERATOR_CASES: dict[str, tuple[list[Node], int]] = {
    "conv": ([("Conv", ["", "w", "b"], {"strides": [2, 1], "dilations": [1, 2]})], 13),
    "conv-even-padding": ([("Conv", ["", "w"], {"pads": [1, 2, 1, 2]})], 13),
    "conv-uneven-padding": ([("Conv", ["", "w", "b"], {"pads": [0, 1, 2, 3]})], 13),
    "conv-same-upper": ([("Conv", ["", "w"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})], 13),
    "conv-same-lower": ([("Conv", ["", "w"], {"auto_pad": "SAME_LOWER"})], 13),
    "conv-valid": ([("Conv", ["", "w"], {"auto_pad": "VALID"})], 13),
    "conv-groups": ([("Conv", ["", "wg"], {"group": 3})], 13),
    "conv-line": ([("Reshape", ["", "groups"], {}), ("Conv", ["", "w1"], {})], 13),
    "norm": ([("BatchNormalization", ["", "s", "v", "s", "v"], {"epsilon": 0.01})], 13),
    "max-pool": ([("MaxPool", [""], {**POOL, "pads": [1, 0, 1, 0]})], 13),
    "max-pool-uneven": ([("MaxPool", [""], {**POOL, "pads": [0, 0, 1, 1]})], 13),
    "max-pool-ceil": ([("MaxPool", [""], {**POOL, "strides": [2, 3], "ceil_mode": 1})], 13),
    "mean-pool": ([("AveragePool", [""], {**POOL, "pads": [1, 0, 1, 0]})], 13),
    "mean-pool-counted": (
        [("AveragePool", [""], {**POOL, "pads": [0, 0, 1, 1], "count_include_pad": 1})],
        13,
    ),
    "global-pools": ([("GlobalMaxPool", [""], {}), ("Flatten", [""], {})], 13),
    "reduce-mean": ([("ReduceMean", [""], {**MEANS, "keepdims": 0})], 13),
    "reduce-mean-kept": ([("ReduceMean", [""], {"axes": [-1]})], 13),
    "reduce-mean-18": ([("ReduceMean", ["", "axes"], {})], 18),
    "leaky": ([("LeakyRelu", [""], {"alpha": 0.2})], 13),
    "elu": ([("Elu", [""], {"alpha": 0.5})], 13),
    "prelu": ([("PRelu", ["", "slope"], {})], 13),
    "prelu-of-places": ([("PRelu", ["", "places"], {})], 13),
    "prelu-of-columns": ([("PRelu", ["", "row"], {})], 13),
    "prelu-of-planes": ([("PRelu", ["", "slopes"], {})], 13),
    "sigmoid-swish": ([("Sigmoid", [""], {}), ("Mul", ["", "image"], {})], 13),
    "tanh": ([("Tanh", [""], {})], 13),
    "hard-sigmoid": ([("HardSigmoid", [""], {})], 13),
    "hard-sigmoid-sixth": ([("HardSigmoid", [""], {"alpha": 1 / 6})], 13),
    "hard-swish": ([("HardSwish", [""], {})], 14),
    "clip": ([("Clip", ["", "low"], {})], 13),
    "clip-relu6": ([("Clip", ["", "zero", "six"], {})], 13),
    "clip-9": ([("Clip", [""], {"min": -0.1, "max": 0.2})], 9),
    "add-constant": ([("Add", ["row", ""], {})], 13),
    "sub-constant-first": ([("Sub", ["one", ""], {})], 13),
    "div": ([("Add", ["", "one"], {}), ("Div", ["image", ""], {})], 13),
    "concat": ([("Relu", [""], {}), ("Concat", ["", "image"], {"axis": -3})], 13),
    "slice": ([("Slice", ["", "starts", "ends", "axes", "steps"], {})], 13),
    "slice-9": ([("Slice", [""], {"starts": [1], "ends": [-1], "axes": [1]})], 9),
    "pad": ([("Pad", ["", "pads", "low"], {})], 13),
    "pad-9": ([("Pad", [""], {"pads": [0, 0, 1, 0, 0, 1, 0, 2], "value": 0.5})], 9),
    "gemm": (
        [
            ("Flatten", [""], {}),
            ("Gemm", ["", "mt", "b5"], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ],
        13,
    ),
    "matmul": ([("MatMul", ["", "m"], {}), ("Add", ["", "b5"], {})], 13),
    "matmul-flat": (
        [("Flatten", [""], {}), ("MatMul", ["", "mf"], {}), ("Add", ["", "b5"], {})],
        13,
    ),
    "reshape": ([("Reshape", ["", "groups"], {}), ("Transpose", [""], {"perm": [0, 2, 1]})], 13),
    "reshape-batch-1": ([("Reshape", ["", "flat"], {}), ("Relu", [""], {})], 13),
    "unsqueeze": ([("Unsqueeze", ["", "one_i"], {}), ("Squeeze", ["", "one_i"], {})], 13),
    "softmax": ([("Flatten", [""], {}), ("Softmax", [""], {})], 13),
    "log-softmax-11": ([("Flatten", [""], {}), ("LogSoftmax", [""], {})], 11),
    "product-of-values": ([("MatMul", ["", ""], {}), ("Mul", ["", "one"], {})], 13),
    "product-with-a-constant": ([("MatMul", ["ms", ""], {})], 13),
    "conv-transpose": (
        [("ConvTranspose", ["", "wt"], {"strides": [2, 3], "pads": [1, 0, 1, 0]})],
        13,
    ),
    "conv-transpose-uneven": (
        [("ConvTranspose", ["", "wt"], {"strides": [2, 2], "pads": [1, 0, 0, 1]})],
        13,
    ),
    "conv-transpose-more": (
        [("ConvTranspose", ["", "wt"], {"strides": [2, 2], "output_padding": [1, 1]})],
        13,
    ),
    **{
        f"conv-transpose-{mode}": (
            [("ConvTranspose", ["", "wt"], {"strides": [2, 2], "auto_pad": mode})],
            13,
        )
        for mode in ("SAME_UPPER", "SAME_LOWER")
    },
    "conv-transpose-shape": (
        [("ConvTranspose", ["", "wt"], {"strides": [2, 2], "output_shape": [17, 18]})],
        13,
    ),
    **{
        f"{kind}-{mode}": ([(kind, [""], {**POOL, "auto_pad": mode})], 13)
        for kind in ("MaxPool", "AveragePool", "LpPool")
        for mode in ("SAME_UPPER", "SAME_LOWER")
    },
    **{
        f"{kind}-uneven-ceil": (
            [(kind, [""], {**POOL, "strides": [2, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1})],
            13,
        )
        for kind in ("MaxPool", "AveragePool")
    },
    "mean-pool-uneven": ([("AveragePool", [""], {**POOL, "pads": [0, 0, 1, 1]})], 13),
    "pool-of-much-padding": ([("MaxPool", [""], {**POOL, "pads": [2, 1, 2, 1]})], 13),
    "backwards": ([("Slice", ["", "ends_r", "minus_9", "one_i", "minus"], {})], 13),
    "pad-reflect": ([("Pad", ["", "rim"], {"mode": "reflect"})], 13),
    "pad-edge": ([("Pad", ["", "rim"], {"mode": "edge"})], 13),
    "pad-wrap": ([("Pad", ["", "rim"], {"mode": "wrap"})], 19),
    "pad-axes": ([("Pad", ["", "widths", "low", "axes"], {})], 18),
    "old-softmax": ([("Softmax", [""], {"axis": 1})], 11),
    "old-log-softmax": ([("LogSoftmax", [""], {"axis": 2})], 11),
    "split": ([("Gather", ["", "flip"], {"axis": 1}), ("Relu", [""], {})], 13),
    "gather-one": ([("Gather", ["", "zero_i"], {"axis": 2})], 13),
    "selu-own": ([("Selu", [""], {"alpha": 1.2, "gamma": 0.7})], 13),
    "gelu-tanh": ([("Gelu", [""], {"approximate": "tanh"})], 20),
    "swish-own": ([("Swish", [""], {"alpha": 0.3})], 24),
    "crd": (
        [("Conv", ["", "w4"], {}), ("DepthToSpace", [""], {"blocksize": 2, "mode": "CRD"})],
        13,
    ),
    "layer-norm": ([("LayerNormalization", ["", "row", "row"], {"axis": -1})], 17),
    "layer-norm-planes": ([("LayerNormalization", ["", "slope"], {"axis": 1})], 17),
    "upsample-7": ([("Upsample", [""], {"scales": [1.0, 1.0, 2.0, 2.0]})], 7),
    "upsample-linear": ([("Upsample", ["", "scales"], {"mode": "linear"})], 9),
    "resize-10": ([("Resize", ["", "scales"], {})], 10),
    **{
        f"resize-{where}-{rounding}-{scales}": (
            [
                (
                    "Resize",
                    ["", "-", scales],
                    {"coordinate_transformation_mode": where, "nearest_mode": rounding},
                )
            ],
            13,
        )
        for where in (*WHERE, "tf_half_pixel_for_nn")
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for scales in ("scales", "third")
    },
    **{
        f"resize-{where}-{mode}-{scales}": (
            [
                (
                    "Resize",
                    ["", "-", scales],
                    {"coordinate_transformation_mode": where, "mode": mode},
                )
            ],
            19 if where == "half_pixel_symmetric" else 13,
        )
        for where in (*WHERE, "half_pixel_symmetric")
        for mode in ("linear", "cubic")
        for scales in ("scales", "third")
    },
    "dropout": ([("Dropout", [""], {}), ("Identity", [""], {}), ("Relu", [""], {})], 13),
}


@pytest.mark.parametrize("case", OPERATOR_CASES)
def test_operator_computes_what_the_runtime_computes(case: str) -> None:
    nodes, opset = OPERATOR_CASES[case]
    model = graph(nodes, opset=opset, free_batch=case != "reshape-batch-1")
    contents = model.SerializeToString()
    pixels = images(3, (3, SIDE, SIDE)) * 4 - 2
    expected = by_runtime(contents, pixels)
    with torch.no_grad():
        got = converted(contents)(pixels)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_linear_layer_from_matmul_and_add() -> None:
    nodes, _ = OPERATOR_CASES["matmul-flat"]
    network = converted(graph(nodes).SerializeToString())
    (layer,) = (layer for layer in network.children() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(layer.bias.detach(), torch.from_numpy(WEIGHTS["b5"]))
    assert not any(isinstance(layer, Arithmetic) for layer in network.children())
