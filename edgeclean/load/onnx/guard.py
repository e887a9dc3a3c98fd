"""Checks of an untrusted ONNX graph: first as it came, then as the simplifier left it.

The parsing process runs `parse_onnx`: size and operators, ONNX's own checker, what brings the graph
into one form (`lift`), then ``onnxsim`` on the in-memory model (constants folded, identities and
shape arithmetic gone, BatchNorm kept), then the cost of running it. The parent gets bytes back and
treats these as untrusted too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

import onnx
import onnxsim
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.isolation import limits_of
from edgeclean.load.limits import MIB, LoadLimits
from edgeclean.load.onnx.asked import FILE, NOTHING, Asked, question_of
from edgeclean.load.onnx.batch import batch_first_
from edgeclean.load.onnx.boxes import write_boxes_
from edgeclean.load.onnx.branches import take_branches_
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.doubles import check_doubles
from edgeclean.load.onnx.einsum import product_of
from edgeclean.load.onnx.functions import without_attention, without_functions
from edgeclean.load.onnx.fusions import FUSIONS, MICROSOFT
from edgeclean.load.onnx.graph import (
    OWN_DOMAINS,
    image_input,
    is_external,
    node_label,
    own_opset,
    read_model,
    reduce_,
    shape_of,
    with_shapes,
)
from edgeclean.load.onnx.lift import lifted
from edgeclean.load.onnx.operators import OPERATORS
from edgeclean.load.onnx.quantised import QUANTISERS
from edgeclean.load.onnx.shape_numbers import Numbers, ShapeNumbers
from edgeclean.load.onnx.uniform import hold_, kind_of, release_, uniform_shape

MAX_AXES = 8
# Shape arithmetic and constants that exporters leave in a graph and the simplifier folds away.
FOLDED = frozenset(
    {
        *("CastLike", "Constant", "ConstantOfShape", "EyeLike", "NonZero"),
        *("Range", "ScatterElements", "ScatterND", "Shape", "Size"),
    }
)
MOST_COUNTED = 2**20  # numbers that a Range makes of three
_LABELS = "its answer is a label; export the network up to its logits"
_SAME_NUMBERS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_WHOLE = "quantise by QuantizeLinear and DequantizeLinear in pairs (QDQ), or export it in float"
_UNROLLED = "give --arch and a checkpoint instead, or export the network without it"
_WRITE_OTHERWISE = (
    "write it with others (docs/guides/own-network.md lists them), or give --arch and a checkpoint"
)
# What is no classifier's, or has another form that is read.
WAYS_OUT = {
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK", "Hardmax", "OneHot", "ZipMap"), _LABELS),
    **dict.fromkeys(("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger"), _WHOLE),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd"), _WHOLE),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), f"recurrent layers are not read; {_UNROLLED}"),
    **dict.fromkeys(("If", "Loop", "Scan"), f"control flow is not read; {_UNROLLED}"),
    "Attention": "export at opset 22 or older, which has it as MatMul and Softmax",
    "Einsum": "write it as a MatMul (torch.matmul, with permute and reshape around it)",
    "GridSample": "warp images before the network, or give --arch and a checkpoint",
    "NonMaxSuppression": "it belongs to a detector; only classifiers are read",
}
TYPES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.FLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
    TensorProto.BFLOAT16: 2,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT16: 2,
    TensorProto.UINT16: 2,
}
NOTES = "edgeclean.notes"  # the entry of the answer's metadata that says what was done
# Of the file, as constants are folded: half numbers to whole ones, and some beside.
FREE_GROWTH, GROWTH = 16 * MIB, 4


def parse_task(given: Parcel) -> Parcel:
    """Do as `parse_onnx`, and answer no file where that needs others; runs in that process."""
    model = parse_onnx(given.files[FILE], limits_of(given), question_of(given))
    return Parcel(files={} if model is None else {FILE: model})


def parse_onnx(contents: bytes, limits: LoadLimits, asked: Asked = NOTHING) -> bytes | None:
    """Check a model and bring it into the form that is converted.

    Args:
        contents: the file.
        limits: the most that it may cost.
        asked: what the user said of it.

    Returns:
        The simplified model, or None where weights lie in other files: their numbers must be put
        into the model first, and the whole be parsed once more.

    Raises:
        InputRejectedError: naming the node or tensor and what about it is refused.
    """
    model = without_functions(read_model(contents), limits)
    check_size(model, limits)
    external = external_tensors(model)
    for tensor in external:
        external_location(tensor)
    if external:
        return None
    model = without_attention(model, limits)
    take_branches_(model)
    chosen = reduce_(model, asked)
    check_size(model, limits)
    check_operators(model, as_it_came=True)
    try:
        _declare_output_(model)
        onnx.checker.check_model(model)
        lift = lifted(model, asked)
        inferred = _simplified(lift.model)
    except (MemoryError, InputRejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - native code raises many kinds on hostile graphs
        raise InputRejectedError(f"not a valid ONNX model ({first_line(error)})") from None
    check_structure(inferred, limits)
    check_cost(inferred, limits)
    notes = [note for note in (chosen, *lift.notes) if note]
    inferred.metadata_props.add(key=NOTES, value=json.dumps(notes))
    grown, most = inferred.ByteSize(), FREE_GROWTH + GROWTH * len(contents)
    if grown > most:
        raise InputRejectedError(
            f"with its constants computed the graph has {grown} bytes, of a file of "
            f"{len(contents)}; at most {most} are read"
        )
    return bytes(inferred.SerializeToString())


def _declare_output_(model: ModelProto) -> None:
    """Say of what type and shape the output is where the file does not, as runtimes allow."""
    output = model.graph.output[0]
    if output.type.tensor_type.elem_type and output.type.tensor_type.HasField("shape"):
        return
    (found,) = with_shapes(model).graph.output
    kind = found.type.tensor_type.elem_type or TensorProto.FLOAT
    free = [None] * len(shape_of(found))
    output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, kind, free))


def _simplified(model: ModelProto) -> ModelProto:
    """Return the model with all constants folded and all shapes inferred."""
    held = hold_(model.graph)
    output = model.graph.output[0]
    declared = shape_of(output)
    output.type.tensor_type.ClearField("shape")  # what the file says of it may be wrong
    ranges = [node for node in model.graph.node if node.op_type == "Range"]
    inferred = with_shapes(model)
    if ranges:
        _check_ranges(ranges, inferred, need_all=False)
        inferred = with_shapes(model, data_prop=True)  # which counts each Range out
        _check_ranges(ranges, inferred, need_all=True)
    rank = len(shape_of(inferred.graph.output[0]) or declared)
    # Neither what the file says of its output, which may be of another batch, nor nothing at all.
    free = onnx.helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [None] * rank)
    output.CopyFrom(free)
    simplified, _ = onnxsim.simplify(model, check_n=0, skip_fuse_bn=True)
    release_(simplified, held)
    del simplified.metadata_props[:]
    simplified = with_shapes(simplified, strict_mode=True)
    if write_boxes_(simplified):
        simplified = with_shapes(simplified, strict_mode=True)
    batch_first_(simplified)
    return with_shapes(simplified, strict_mode=True)


def _check_ranges(ranges: list[NodeProto], inferred: ModelProto, *, need_all: bool) -> None:
    """Refuse a Range of a length that is large, or unknown: its numbers are folded into weights.

    Args:
        ranges: the nodes.
        inferred: the model with the shapes of its values.
        need_all: whether an unknown length is refused as well.
    """
    known = {value.name: value for value in inferred.graph.value_info}
    numbers = ShapeNumbers(inferred)
    for node in ranges:
        count = sum(shape_of(known[node.output[0]])[:1]) if node.output[0] in known else 0
        count = count if count > 0 else _counted([numbers.of(name) for name in node.input])
        if count > MOST_COUNTED or (need_all and count == 0):
            raise InputRejectedError(
                f"{node_label(node)}: it makes {count or 'an unknown number of'} numbers; at most "
                f"{MOST_COUNTED}, which the image's shape tells, are read"
            )


def _counted(given: list[Numbers | None]) -> int:
    """Return how many numbers a Range makes of start, limit and step; 0 where it is not known."""
    if len(given) != 3 or any(one is None or one.size != 1 for one in given):
        return 0
    start, limit, step = (float(one.item()) for one in given if one is not None)
    if not math.isfinite(start + limit) or not math.isfinite(step) or step == 0:
        return 0
    count = (limit - start) / step
    return math.ceil(count) if 0 < count < 2**53 else 0


def check_structure(model: ModelProto, limits: LoadLimits) -> None:
    """Refuse what an image classifier's graph does not need.

    Raises:
        InputRejectedError: as `check_size` and `check_operators`; there is not one image and one
            output.
    """
    check_size(model, limits)
    check_operators(model, as_it_came=False)
    image_input(model)


def check_size(model: ModelProto, limits: LoadLimits) -> None:
    """Refuse parts that no classifier has, and more of the others than the limits allow.

    Raises:
        InputRejectedError: functions, training graphs, too many nodes, odd tensors.
    """
    if model.functions or model.training_info:
        raise InputRejectedError(
            "the ONNX file holds functions or training graphs; export for inference, without them"
        )
    graph = model.graph
    if len(graph.node) > limits.onnx_nodes:
        raise InputRejectedError(
            f"the graph has {len(graph.node)} nodes; the limit onnx_nodes is {limits.onnx_nodes}"
        )
    if graph.sparse_initializer:
        raise InputRejectedError("the graph has sparse weights; only dense ones are read")
    tensors = list(all_tensors(model))
    if len(tensors) > limits.entries:
        raise InputRejectedError(
            f"the graph has {len(tensors)} tensors; the limit entries is {limits.entries}"
        )
    check_doubles(model, tensors)
    _check_tensors(tensors, limits)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    claimed = sum(math.prod(tensor.dims) * TYPES[tensor.data_type] for tensor in tensors)
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.domain in OWN_DOMAINS:
            claimed += TYPES[kind_of(node)] * math.prod(uniform_shape(node, constants) or (0,))
            if claimed > limits.file_bytes:
                raise InputRejectedError(
                    f"{node_label(node)}: up to here the tensors claim {claimed} bytes; the limit "
                    f"file_bytes is {limits.file_bytes}"
                )


def check_operators(model: ModelProto, *, as_it_came: bool) -> None:
    """Refuse operators that no classifier needs; ``as_it_came`` is before they are brought to few.

    Raises:
        InputRejectedError: an opset that is unknown, a custom domain, control flow, an operator
            outside the list, an attribute that hides a graph.
    """
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= own_opset(model) <= newest:
        raise InputRejectedError(
            f"opset {own_opset(model)} of domain ''; 1 to {newest} are read, and 9 or newer is best"
        )
    ends = _ends(model)
    for node in model.graph.node:
        _check_node(node, ends, as_it_came=as_it_came)


def external_tensors(model: ModelProto) -> list[TensorProto]:
    """List the tensors whose numbers lie in other files."""
    return [tensor for tensor in all_tensors(model) if is_external(tensor)]


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


def _ends(model: ModelProto) -> set[str]:
    """Return the outputs, and the values that they are in another shape or type."""
    ends = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if node.op_type in _SAME_NUMBERS and ends.intersection(node.output):
            ends.update(node.input[:1])
    return ends


def _check_node(node: NodeProto, ends: set[str], *, as_it_came: bool) -> None:
    own = node.domain in OWN_DOMAINS
    way = WAYS_OUT.get(node.op_type)
    if way == _LABELS and not ends.intersection(node.output):
        way = None  # among the layers, where no logits lie before it
    if not own and not (as_it_came and node.domain == MICROSOFT and node.op_type in FUSIONS):
        raise InputRejectedError(
            f"{node_label(node)}: domain {node.domain[:60]!r}; "
            f"{way or 'only the operators of ONNX itself are read'}"
        )
    if own and not (
        node.op_type in OPERATORS or node.op_type in FOLDED or (as_it_came and _is_rewritten(node))
    ):
        raise InputRejectedError(
            f"{node_label(node)}: the operator {node.op_type[:40]} is not supported; "
            f"{way or _WRITE_OTHERWISE}"
        )
    axes = {axis for one in node.attribute if one.name == "axes" for axis in one.ints}
    if node.op_type == "MeanVarianceNormalization" and (not axes or 0 in axes):
        raise InputRejectedError(
            f"{node_label(node)}: over axis 0, as by default, it mixes the images of a batch; "
            "write it as an InstanceNormalization (nn.InstanceNorm2d)"
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


def _is_rewritten(node: NodeProto) -> bool:
    """Return whether a node is brought to others, or refused, before anything is converted."""
    if node.op_type == "Einsum":
        return product_of(node) is not None
    return node.op_type == "GatherND" or node.op_type in QUANTISERS


def _check_tensors(tensors: Iterable[TensorProto], limits: LoadLimits) -> None:
    total = 0
    for tensor in tensors:
        label = f"tensor {tensor.name[:80]!r}"
        if tensor.data_type not in TYPES:
            raise InputRejectedError(
                f"{label} has element type {tensor.data_type}; only bool and numbers "
                "of 8 to 64 bits are read"
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
