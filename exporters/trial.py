"""A stranger's network, tried once before it is measured or handed on.

A few hundred bytes of ONNX can ask for gigabytes or days. So the cost is counted first, from
shapes that follow from the operators alone, as for an import (see ``edgeclean.load.onnx.guard``);
then one batch is run. Both happen in a process of its own with limits (see
``edgeclean.load.isolation``), and what passes costs that much at every run: no shape in it depends
on the numbers in an image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx

from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.isolation import limits_of, parse_isolated
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.graph import image_input
from exporters.onnx_check import open_onnx
from exporters.session import OnnxSession

MOST_BATCH = 1024  # images of a fixed batch, whose costs are added up
# They multiply, or compare each with each, and no rule counts that; no image classifier needs them.
UNCOUNTED = frozenset(
    {
        *("Attention", "ConvInteger", "DFT", "DeformConv", "Det", "Einsum", "GRU", "LSTM"),
        *("MatMulInteger", "NonMaxSuppression", "QLinearConv", "QLinearMatMul", "RNN", "STFT"),
    }
)
_DEFAULT_LIMITS = LoadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedNetwork:
    """A network that ran once within the limits.

    Attributes:
        input_shape: channels, height and width of one image.
        batch: images per run, or None where the file leaves it open.
    """

    input_shape: tuple[int, int, int]
    batch: int | None


def try_network(model: bytes, name: str, limits: LoadLimits = _DEFAULT_LIMITS) -> TriedNetwork:
    """Check an ONNX file, count what one image costs, and run one batch of it in a limited process.

    Args:
        model: the ONNX file.
        name: of the file, for the message.
        limits: the most that an image may cost, and its process take.

    Raises:
        InputRejectedError: the file is not plain ONNX of an image network, costs more than the
            limits allow, has shapes that are not fixed, or cannot be run.
    """
    try:
        answer = parse_isolated(run_task, Parcel(files={"model": model}), limits)
    except InputRejectedError as error:
        raise InputRejectedError(f"{name}: {error}") from None
    with untrusted_answer(
        InputRejectedError(f"{name}: the process that tried the network answered nonsense")
    ):
        (channels, height, width) = map(int, answer.facts["input_shape"])
        batch = answer.facts["batch"]
        return TriedNetwork(
            input_shape=(channels, height, width), batch=None if batch is None else int(batch)
        )


def run_task(given: Parcel) -> Parcel:
    """Do as `run_once`; `try_network`'s child process calls this."""
    return Parcel(facts=asdict(run_once(given.files["model"], limits_of(given))))


def run_once(model: bytes, limits: LoadLimits) -> TriedNetwork:
    """Count the cost and run one batch.

    Raises:
        InputRejectedError: see `try_network`.
    """
    proto = open_onnx(model)
    image_input(proto)
    uncounted = sorted(UNCOUNTED & {node.op_type for node in proto.graph.node})
    if uncounted:
        raise InputRejectedError(
            f"the network uses {uncounted[0]}, whose cost is not counted; export it with Conv, "
            "Gemm and MatMul, in int8 between QuantizeLinear and DequantizeLinear"
        )
    batch = _fix_shapes(proto)
    each = min(batch, MOST_BATCH)
    counted = ("activations", "macs", "operands", "reads")  # of one image
    grown = {name: getattr(limits, name) * each for name in counted}
    check_cost(_inferred(proto), replace(limits, **grown))
    session = OnnxSession(model)
    drawn = np.random.default_rng(0)
    images = drawn.standard_normal((batch, *session.input_shape), dtype=np.float32)
    session.run(images)
    return TriedNetwork(input_shape=session.input_shape, batch=session.batch)


def _fix_shapes(proto: onnx.ModelProto) -> int:
    """Forget every shape that the file claims but the input's, fix the batch, and return it."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    (image,) = (value for value in proto.graph.input if value.name not in weights)
    axis = image.type.tensor_type.shape.dim[0]
    if not axis.HasField("dim_value") or axis.dim_value < 1:
        axis.dim_value = 1
    return int(axis.dim_value)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - native code raises many kinds on hostile graphs
        raise InputRejectedError(
            f"the shapes of the network do not fit: {first_line(error)}"
        ) from None
