"""Checks of an untrusted ONNX graph: first as it came, then as the simplifier left it.

The parsing process runs `parse_onnx`: structure, then ONNX's own checker, then ``onnxsim`` on the
in-memory model (constants folded, identities and shape arithmetic gone, BatchNorm kept), then the
cost of running it. The parent gets bytes back and treats these as untrusted too. Every text in the
file must be UTF-8 (`check_texts`): protocol buffers return bytes where a name is none, and code
that reads names expects text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
import onnxsim
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import MIB, LoadLimits
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.doubles import check_doubles
from edgeclean.load.onnx.node import node_label
from edgeclean.load.onnx.operators import OPERATORS

MIN_OPSET = 9
MAX_AXES = 8
# Shape arithmetic and constants that exporters leave in a graph and the simplifier folds away.
FOLDED = frozenset(
    {
        "Cast",
        "Constant",
        "ConstantOfShape",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
        "Shape",
        "Size",
        "Where",
    }
)
TYPES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
}
COMPLETE, NEEDS_FILES = b"M", b"F"
FREE_GROWTH, GROWTH = (
    16 * MIB,
    4,
)  # of the file, as constants are folded: half numbers to whole ones


def parse_onnx(contents: bytes, limits: LoadLimits) -> bytes:
    """Check a model; runs in the parsing process.

    Returns:
        ``M`` and the simplified model, or ``F`` alone where weights lie in other files: their
        numbers must be put into the model first, and the whole be parsed once more.

    Raises:
        InputRejectedError: naming the node or tensor and what about it is refused.
    """
    model = read_model(contents)
    check_structure(model, limits)
    external = external_tensors(model)
    for tensor in external:
        external_location(tensor)
    if external:
        return NEEDS_FILES
    name, shape = image_input(model)
    try:
        onnx.checker.check_model(model)
        simplified, _ = onnxsim.simplify(
            model,
            check_n=0,
            skip_fuse_bn=True,
            overwrite_input_shapes={name: [1, *shape]},
        )
        inferred = onnx.shape_inference.infer_shapes(simplified, strict_mode=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - native code raises many kinds on hostile graphs
        raise InputRejectedError(f"not a valid ONNX model ({_first_line(error)})") from None
    check_structure(inferred, limits)
    check_cost(inferred, limits)
    grown, most = inferred.ByteSize(), FREE_GROWTH + GROWTH * len(contents)
    if grown > most:
        raise InputRejectedError(
            f"with its constants computed the graph has {grown} bytes, of a file of "
            f"{len(contents)}; at most {most} are read"
        )
    return COMPLETE + bytes(inferred.SerializeToString())


def read_model(contents: bytes) -> ModelProto:
    """Parse the protocol buffer, with no external file read.

    Raises:
        InputRejectedError: the bytes are not one.
    """
    try:
        model = onnx.load_model_from_string(contents)
    except Exception as error:  # noqa: BLE001 - the parser's exceptions share no public base
        raise InputRejectedError(f"not an ONNX file ({_first_line(error)})") from None
    check_texts(model)
    return model


def check_texts(message: Message) -> None:
    """Refuse a text, anywhere in the file, that is no UTF-8.

    Raises:
        InputRejectedError: names the field.
    """
    for field, value in message.ListFields():
        values = [value] if isinstance(value, str | bytes | Message) else value
        if field.type == FieldDescriptor.TYPE_STRING:
            if not all(isinstance(one, str) for one in values):
                raise InputRejectedError(
                    f"not an ONNX file (the bytes of a {field.name} are no text in UTF-8)"
                )
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in values:  # as deep as protocol buffers allow, which is 100
                check_texts(one)


def check_structure(model: ModelProto, limits: LoadLimits) -> None:
    """Refuse what an image classifier's graph does not need.

    Raises:
        InputRejectedError: functions, training graphs, custom domains, control flow, operators
            outside the allow-list, too many nodes, odd tensors.
    """
    if model.functions or model.training_info:
        raise InputRejectedError(
            "the ONNX file holds functions or training graphs; export for inference, without them"
        )
    for opset in model.opset_import:
        newest = onnx.defs.onnx_opset_version()
        if opset.domain not in ("", "ai.onnx") or not MIN_OPSET <= opset.version <= newest:
            raise InputRejectedError(
                f"opset {opset.version} of domain {opset.domain[:60]!r}; only ONNX's own, "
                f"{MIN_OPSET} to {newest}, is read"
            )
    graph = model.graph
    if len(graph.node) > limits.onnx_nodes:
        raise InputRejectedError(
            f"the graph has {len(graph.node)} nodes; the limit onnx_nodes is {limits.onnx_nodes}"
        )
    if graph.sparse_initializer:
        raise InputRejectedError("the graph has sparse weights; only dense ones are read")
    for node in graph.node:
        _check_node(node)
    tensors = list(all_tensors(model))
    if len(tensors) > limits.entries:
        raise InputRejectedError(
            f"the graph has {len(tensors)} tensors; the limit entries is {limits.entries}"
        )
    check_doubles(model, tensors)
    _check_tensors(tensors, limits)
    image_input(model)


def image_input(model: ModelProto) -> tuple[str, tuple[int, int, int]]:
    """Return the name of the one input, and the channels, height and width that it fixes.

    Raises:
        InputRejectedError: there is not exactly one input [n, c, h, w] and one output.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise InputRejectedError(
            f"the graph has {len(inputs)} inputs and {len(model.graph.output)} outputs; an image "
            "classifier has one each"
        )
    tensor = inputs[0].type.tensor_type
    sides = [axis.dim_value for axis in tensor.shape.dim]
    if tensor.elem_type != TensorProto.FLOAT or len(sides) != 4 or min(sides[1:]) < 1:
        raise InputRejectedError(
            f"the graph's input has shape {sides} (0: not fixed) and element type "
            f"{tensor.elem_type}; it must be float32 [n, channels, height, width], the last three "
            "fixed"
        )
    return inputs[0].name, (sides[1], sides[2], sides[3])


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """List the tensors whose numbers lie in other files."""
    return [
        tensor
        for tensor in all_tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]


def external_location(tensor: TensorProto) -> str:
    """Return the name of the file with the tensor's numbers, in the model's own folder.

    Raises:
        InputRejectedError: it is a path, not a plain name.
    """
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    location = locations[0] if len(locations) == 1 else ""
    if (
        not 0 < len(location) <= 255
        or location in (".", "..")
        or not location.isprintable()
        or any(mark in location for mark in "/\\:")
    ):
        raise InputRejectedError(
            f"tensor {tensor.name[:80]!r} keeps its numbers in {location[:80]!r}; only a plain "
            "name of a file beside the model is read"
        )
    return location


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of the graph: weights, and those in attributes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _check_node(node: NodeProto) -> None:
    if node.domain not in ("", "ai.onnx"):
        raise InputRejectedError(
            f"{node_label(node)}: domain {node.domain[:60]!r}; only ONNX's own operators are read"
        )
    if node.op_type not in OPERATORS and node.op_type not in FOLDED:
        raise InputRejectedError(
            f"{node_label(node)}: the operator {node.op_type[:40]} is not supported; supported "
            f"are {', '.join(sorted(OPERATORS))}"
        )
    allowed = (
        AttributeProto.FLOAT,
        AttributeProto.INT,
        AttributeProto.STRING,
        AttributeProto.TENSOR,
        AttributeProto.FLOATS,
        AttributeProto.INTS,
    )
    for attribute in node.attribute:
        # The declared type and the filled field may differ: a graph hides in neither.
        hidden = attribute.HasField("g") or attribute.graphs or attribute.ref_attr_name
        if attribute.type not in allowed or hidden or attribute.HasField("sparse_tensor"):
            raise InputRejectedError(
                f"{node_label(node)}: attribute {attribute.name[:60]!r} is not a number, text, "
                "dense tensor or list of numbers"
            )


def _check_tensors(tensors: Iterable[TensorProto], limits: LoadLimits) -> None:
    total = 0
    for tensor in tensors:
        label = f"tensor {tensor.name[:80]!r}"
        if tensor.data_type not in TYPES:
            raise InputRejectedError(
                f"{label} has element type {tensor.data_type}; only float16/32/64, int32/64 and "
                "bool are read"
            )
        if len(tensor.dims) > MAX_AXES or any(side < 0 for side in tensor.dims):
            raise InputRejectedError(
                f"{label} has shape {list(tensor.dims)[:10]}; at most {MAX_AXES} axes, none "
                "negative, are read"
            )
        total += math.prod(tensor.dims) * TYPES[tensor.data_type]
        if total > limits.file_bytes:
            raise InputRejectedError(
                f"{label}: up to here the tensors claim {total} bytes; the limit file_bytes is "
                f"{limits.file_bytes}"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
