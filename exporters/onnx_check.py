"""What an ONNX file must be before a runtime sees it: self-contained, plain and valid."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
MAX_NODES = 20_000


def open_onnx(model: bytes) -> onnx.ModelProto:
    """Parse and check an ONNX file that holds everything it needs.

    Args:
        model: the file's bytes.

    Returns:
        The parsed model: no external data, no functions, no subgraphs, standard operators only,
        valid for `onnx.checker`.

    Raises:
        InputRejectedError: one of these does not hold; the message names the node or tensor.
    """
    try:
        proto = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise InputRejectedError("the bytes are not an ONNX file; export it again") from error
    _refuse_what_is_not_plain(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputRejectedError(f"the ONNX file is not valid: {first_line(error)}") from error
    return proto


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that the file asks for; 0 when it asks for none."""
    return max((o.version for o in proto.opset_import if o.domain in STANDARD_DOMAINS), default=0)


def graph_facts(proto: onnx.ModelProto) -> dict[str, str | int | None]:
    """Return what the graph itself decides of the manifest's section on the network."""
    images, logits = proto.graph.input[0], proto.graph.output[0]
    batch = images.type.tensor_type.shape.dim[0]
    return {
        "batch": batch.dim_value if batch.HasField("dim_value") else None,
        "input_name": images.name,
        "opset": opset_of(proto),
        "output_name": logits.name,
    }


def drop_unread(proto: onnx.ModelProto) -> None:
    """Take out nodes, and then constants, that nothing reads any more, in place."""
    graph = proto.graph
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {one.name for one in graph.output}
        idle = [node for node in graph.node if not read & set(node.output)]
        if not idle:
            break
        for node in idle:
            graph.node.remove(node)
    constants = [one for one in graph.initializer if one.name not in read]
    for tensor in constants:
        graph.initializer.remove(tensor)


def _refuse_what_is_not_plain(proto: onnx.ModelProto) -> None:
    if proto.functions:
        raise InputRejectedError(
            f"the ONNX file defines functions ({proto.functions[0].name}); only standard operators "
            "are accepted"
        )
    domains = {one.domain for one in proto.opset_import} - STANDARD_DOMAINS
    domains |= {node.domain for node in proto.graph.node} - STANDARD_DOMAINS
    if domains:
        raise InputRejectedError(
            f"the ONNX file uses operators of {sorted(domains)}; only standard ones are accepted"
        )
    if len(proto.graph.node) > MAX_NODES:
        raise InputRejectedError(
            f"the ONNX file has {len(proto.graph.node)} nodes; at most {MAX_NODES} are accepted"
        )
    for node in proto.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputRejectedError(
                f"node {node.name!r} ({node.op_type}) holds a graph of its own; control flow is "
                "not accepted"
            )
    if proto.graph.sparse_initializer:
        raise InputRejectedError("the ONNX file has sparse weights; only dense ones are accepted")
    for tensor in _tensors(proto):
        if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputRejectedError(
                f"tensor {tensor.name!r} keeps its values in another file; only a self-contained "
                "ONNX file is accepted"
            )


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from proto.graph.initializer
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
