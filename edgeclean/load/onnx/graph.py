"""An untrusted ONNX graph, read and reduced to the part that makes one output of images.

The same reduction is what is converted, and what ONNX Runtime is given to compare with. Every text
in the file must be UTF-8 (`check_texts`): protocol buffers return bytes where a name is none, and
code that reads names expects text.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.onnx.asked import Asked

OWN_DOMAINS = ("", "ai.onnx")
WEIGHTS_APART = 4  # the first IR version whose weights need not be inputs as well
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def read_model(contents: bytes) -> ModelProto:
    """Parse the protocol buffer, with no external file read.

    Raises:
        InputRejectedError: the bytes are not one.
    """
    try:
        model = onnx.load_model_from_string(contents)
    except Exception as error:  # noqa: BLE001 - the parser's exceptions share no public base
        raise InputRejectedError(f"not an ONNX file ({first_line(error)})") from None
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


def reduce_(model: ModelProto, asked: Asked) -> str:
    """Leave one output, what it needs, and the domains that this needs, in place.

    Returns:
        A few words on what was chosen, or "" where there was no choice.

    Raises:
        InputRejectedError: there is not one output that gives logits, or it is not clear which.
    """
    graph = model.graph
    chosen = _output(model, asked)
    others = len(graph.output) - 1
    del graph.output[:]
    graph.output.append(chosen)
    prune_(graph)
    model.ir_version = max(model.ir_version, WEIGHTS_APART)
    used = {node.domain for node in graph.node}
    if not used & set(OWN_DOMAINS):
        used.add("")
    opsets = [
        opset
        for opset in model.opset_import
        if opset.domain in used or (opset.domain in OWN_DOMAINS and used & set(OWN_DOMAINS))
    ]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    del model.metadata_props[:]
    return f"output {chosen.name[:80]!r} is taken, {others} others are left" if others else ""


def prune_(graph: GraphProto) -> None:
    """Remove nodes and weights that the graph's outputs do not need, and inputs with weights."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_by(node))
    if len(kept) != len(graph.node):
        replace_nodes_(graph, kept[::-1])
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
    weights = {tensor.name for tensor in graph.initializer}
    for index in reversed(range(len(graph.input))):
        name = graph.input[index].name
        # Until IR version 4 each weight was an input as well, which a caller might replace.
        if name in weights or (name not in needed and len(graph.input) > 1):
            del graph.input[index]


def replace_nodes_(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Give a graph other nodes, some of which may be its own."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def names_of(graph: GraphProto) -> set[str]:
    """Return the names of all values, be they computed, constant or given."""
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return names | {one.name for one in (*graph.initializer, *graph.input)}


def constants_of(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the tensors that a graph holds, as weights or in nodes, by name."""
    constants = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and [one.name for one in node.attribute] == ["value"]:
            constants[node.output[0]] = node.attribute[0].t
    return constants


def is_external(tensor: TensorProto) -> bool:
    """Return whether a tensor's numbers lie in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def with_shapes(
    model: ModelProto, *, strict_mode: bool = False, data_prop: bool = False
) -> ModelProto:
    """Return the model with the shapes of its values, as far as ``onnx`` infers them.

    It infers none through a GroupNormalization of opset 21, whose output is as its input: as that
    of an InstanceNormalization, which stands in its place meanwhile.
    """
    grouped = [node for node in model.graph.node if node.op_type == "GroupNormalization"]
    for node in grouped:
        node.op_type = "InstanceNormalization"
    outputs = {node.output[0] for node in grouped}
    try:
        inferred = onnx.shape_inference.infer_shapes(
            model, strict_mode=strict_mode, data_prop=data_prop
        )
    finally:
        for node in grouped:
            node.op_type = "GroupNormalization"
    for node in inferred.graph.node:
        if outputs.intersection(node.output):
            node.op_type = "GroupNormalization"
    return inferred


def shape_of(value: ValueInfoProto) -> tuple[int, ...]:
    """Return a declared shape; 0 stands for a side that is not fixed."""
    return tuple(max(0, axis.dim_value) for axis in value.type.tensor_type.shape.dim)


def batch_of(model: ModelProto) -> int:
    """Return the images of one batch, by which the shapes of a simplified model were inferred."""
    weights = {tensor.name for tensor in model.graph.initializer}
    images = next(value for value in model.graph.input if value.name not in weights)
    return max(1, int(images.type.tensor_type.shape.dim[0].dim_value))


def own_opset(model: ModelProto) -> int:
    """Return the version of ONNX's own operators; 1 where none is given."""
    return max(
        (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1
    )


def node_label(node: NodeProto) -> str:
    """Return a node in words, for messages."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type[:40]} node {name[:80]!r}"


def label_of(shape: tuple[int, ...]) -> str:
    """Return a shape in words; n is a side that is not fixed."""
    return "[" + ", ".join(str(side) if side else "n" for side in shape) + "]"


def _output(model: ModelProto, asked: Asked) -> ValueInfoProto:
    """Return the output with the logits."""
    outputs: list[ValueInfoProto] = list(model.graph.output)
    if asked.output is not None:
        named = [value for value in outputs if value.name == asked.output]
        if len(named) != 1:
            raise InputRejectedError(
                f"the graph has no output {asked.output[:80]!r}; it has {_names(outputs)}"
            )
        return named[0]
    if len(outputs) == 1:
        return outputs[0]
    shapes = _output_shapes(model)
    logits = [value for value in outputs if _is_logits(shapes.get(value.name), asked.classes)]
    logits = _heads(model.graph, logits, shapes)
    if len(logits) == 1:
        return logits[0]
    shown = ", ".join(
        f"{value.name[:40]!r} {label_of(shapes[value.name])}"
        if value.name in shapes
        else repr(value.name[:40])
        for value in outputs[:8]
    )
    raise InputRejectedError(
        f"the graph has {_images(model)} inputs and {len(outputs)} outputs, "
        f"{len(logits) or 'none'} of them with a column for each class: {shown}; name the one with "
        "the logits by --arch onnx:NAME"
    )


def _heads(
    graph: GraphProto, logits: list[ValueInfoProto], shapes: dict[str, tuple[int, ...]]
) -> list[ValueInfoProto]:
    """Leave out features, which an output of other columns is computed from; and probabilities.

    Probabilities are computed from an output of the same columns, which are the logits.
    """
    before = {value.name: _ancestors(graph, value.name) for value in logits}
    heads = [
        value
        for value in logits
        if not any(
            value.name in before[other.name] and shapes[value.name][1] != shapes[other.name][1]
            for other in logits
        )
    ]
    return [
        value
        for value in heads
        if not any(other.name in before[value.name] for other in heads if other is not value)
    ]


def _ancestors(graph: GraphProto, name: str) -> set[str]:
    """Return the values that a value is computed from; nodes stand in the order they run in."""
    needed = {name}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_read_by(node))
    return needed - {name}


def _read_by(node: NodeProto) -> set[str]:
    """Return the values that a node reads, also those that the graphs within it capture."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):  # as deep as protocol buffers allow
            names.update(value.name for value in graph.output)
            names.update(*map(_read_by, graph.node))
    return names


def _names(outputs: list[ValueInfoProto]) -> str:
    return ", ".join(repr(value.name[:40]) for value in outputs[:8])


def _images(model: ModelProto) -> int:
    """Return the number of inputs that are no weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return sum(value.name not in weights for value in model.graph.input)


def _is_logits(shape: tuple[int, ...] | None, classes: int | None) -> bool:
    """Return whether an output may be the logits: [n, classes], or that of planes of 1x1."""
    if shape is None or len(shape) < 2 or any(side != 1 for side in shape[2:]):
        return False
    return classes is None or shape[1] in (0, classes)


def _output_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of outputs of floating point, as far as they are declared or inferred."""
    try:
        inferred = with_shapes(model, data_prop=True)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - native code raises many kinds on hostile graphs
        inferred = model
    shapes = {}
    for declared, value in zip(model.graph.output, inferred.graph.output, strict=True):
        best = declared if 0 not in shape_of(declared) and shape_of(declared) else value
        if best.type.tensor_type.elem_type in FLOATS and best.type.tensor_type.HasField("shape"):
            shapes[best.name] = shape_of(best)
    return shapes
