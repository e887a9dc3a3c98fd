"""Bring a reduced ONNX graph into the one form that is converted: new, float32 and NCHW.

Each step rewrites the graph in place and says in a few words what it did; together with ONNX
Runtime's answers for the file as it came, which the import is compared with, no step is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
    version_converter,
)

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.onnx.asked import Asked
from edgeclean.load.onnx.einsum import without_einsums_
from edgeclean.load.onnx.elementwise import ELEMENTWISE
from edgeclean.load.onnx.fusions import without_fusions_
from edgeclean.load.onnx.graph import (
    label_of,
    node_label,
    own_opset,
    prune_,
    replace_nodes_,
    shape_of,
    with_shapes,
)
from edgeclean.load.onnx.quantised import QUANTISERS, without_quantisers_
from edgeclean.load.onnx.reductions import REDUCTIONS
from edgeclean.load.onnx.windows import WINDOWS
from edgeclean.load.onnx.writer import GraphWriter

Rounded = Literal["", "float16", "bfloat16", "quantised"]
OLDEST_READ = 9  # opset; older ones are raised to it
# Side outputs that only training, or nobody, reads. (BatchNormalization's mean more than that.)
SIDE_OUTPUTS = frozenset({"Dropout", "LayerNormalization", "MaxPool", "RMSNormalization"})
NARROW = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifted:
    """A graph in the form that is converted.

    Attributes:
        model: the graph; each image of a batch is [channels, height, width], float32.
        notes: what was done, a few words for each step.
        batch: the images that the file takes at once; None where it takes any number.
        channels_last: whether the file takes [n, height, width, channels].
        rounded: what makes the file's own answers others by rounding alone, or "".
    """

    model: ModelProto
    notes: tuple[str, ...]
    batch: int | None
    channels_last: bool
    rounded: Rounded


def lifted(model: ModelProto, asked: Asked) -> Lifted:
    """Bring a reduced model, which is changed, into the form that is converted.

    Raises:
        InputRejectedError: a step cannot be done, or the image's shape is neither fixed nor given.
    """
    own_batch = (shape_of(model.graph.input[0]) or (0,))[0]
    if own_opset(model) < OLDEST_READ and _is_float32(model.graph):
        # The converter knows no side by its name.
        old = takes_channels_last(model.graph)
        set_input(model.graph, image_sides(model.graph, asked, channels_last=old))
        with_broadcast_axes_(model)
    model, raised = raise_opset(model)
    graph, opset = model.graph, own_opset(model)
    with_standardised_weights_(model)
    kinds, narrow = as_float32_(graph)
    with_casts_(model)
    fused = without_fusions_(graph, opset)
    quantised = without_quantisers_(graph, opset)
    products = without_einsums_(graph, opset)
    without_side_outputs_(graph)
    prune_(graph)
    turned = takes_channels_last(graph)
    set_input(graph, image_sides(graph, asked, channels_last=turned))
    order = channels_first_(graph, opset) if turned else ""
    squeezed = with_squeezed_axes_(model, own_batch)
    return Lifted(
        model=model,
        notes=tuple(filter(None, (raised, kinds, fused, quantised, products, order, squeezed))),
        batch=own_batch or None,
        channels_last=turned,
        rounded="quantised" if quantised else narrow,
    )


def _is_float32(graph: GraphProto) -> bool:
    return bool(graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT)


def _way_with(kind: int) -> str:
    """Return what to do where images are whole numbers, as cameras give them."""
    if kind not in (TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64):
        return ""
    return (
        ": export without the Cast of whole numbers, and give what scales pixels in [0, 1] as "
        "--mean and --std"
    )


def image_sides(graph: GraphProto, asked: Asked, *, channels_last: bool) -> tuple[int, ...]:
    """Return the images of a batch (1 where it is free), and their sides in the file's order.

    Raises:
        InputRejectedError: the input is no batch of images, or a side is neither fixed nor given.
    """
    kind = graph.input[0].type.tensor_type.elem_type
    batch, *sides = shape_of(graph.input[0]) or (0,)
    if len(sides) != 3 or kind != TensorProto.FLOAT:
        raise InputRejectedError(
            f"the graph's input has shape {label_of((batch, *sides))} and element type {kind}; it "
            f"must be float32 [n, channels, height, width]{_way_with(kind)}"
        )
    if 0 not in sides:
        return (max(1, batch), *sides)
    if asked.input_shape is None:
        raise InputRejectedError(
            f"the graph's input has shape {label_of((batch, *sides))}; export it with the last "
            "three fixed, or give --input-shape CHANNELSxHEIGHTxWIDTH"
        )
    channels, *plane = asked.input_shape
    given = [*plane, channels] if channels_last else [channels, *plane]
    return (max(1, batch), *(side or one for side, one in zip(sides, given, strict=True)))


def raise_opset(model: ModelProto) -> tuple[ModelProto, str]:
    """Return the model in an opset that is read, by ONNX's own version converter.

    Raises:
        InputRejectedError: the converter cannot.
    """
    opset = own_opset(model)
    if opset >= OLDEST_READ:
        return model, ""
    try:
        raised = version_converter.convert_version(model, OLDEST_READ)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - native code raises many kinds on hostile graphs
        reason = first_line(error)
        raise InputRejectedError(
            f"opset {opset} of domain '', which onnx.version_converter cannot raise to "
            f"{OLDEST_READ} ({reason}); export at opset {OLDEST_READ} or newer"
        ) from None
    return raised, f"opset {opset} is raised to {OLDEST_READ}"


def with_broadcast_axes_(model: ModelProto) -> None:
    """Give the second operands of opset 1 to 6 the axes that follow the one they lie along.

    The version converter gives them one more where that is not the first axis.
    """
    graph = model.graph
    ranks = {one.name: len(one.dims) for one in graph.initializer}
    known = [*graph.input, *with_shapes(model).graph.value_info]
    ranks |= {value.name: len(shape_of(value)) for value in known}
    writer = GraphWriter(graph, own_opset(model))
    for node in graph.node:
        axis = next((one for one in node.attribute if one.name == "axis"), None)
        given = [ranks.get(name, 0) for name in node.input]
        along = any(one.name == "broadcast" and one.i for one in node.attribute)
        if along and axis is not None and len(given) == 2 and all(given):
            first, second = given
            after = first - axis.i % first - second
            if after > 0:
                name = writer.name(node.output[0])
                axes = list(range(second, second + after))
                writer.add("Unsqueeze", [node.input[1]], name, axes=axes)
                node.input[1] = name
            node.attribute.remove(axis)
        writer.nodes.append(node)
    replace_nodes_(graph, writer.nodes)


def as_float32_(graph: GraphProto) -> tuple[str, Rounded]:
    """Make float32 of all other kinds of floating point: weights, casts and declared types.

    Returns:
        What was done, in a few words, and the coarsest kind there was, if coarser than float32.
    """
    found = set()
    for tensor in [*graph.initializer, *_attribute_tensors(graph)]:
        if tensor.data_type in NARROW:
            found.add(tensor.data_type)
            numbers = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
                found.add(attribute.i)
                attribute.i = TensorProto.FLOAT
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in NARROW:
            found.add(value.type.tensor_type.elem_type)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    names = sorted(TensorProto.DataType.Name(kind).lower() for kind in found)
    coarsest: Rounded = ""
    if TensorProto.FLOAT16 in found:
        coarsest = "float16"
    if TensorProto.BFLOAT16 in found:
        coarsest = "bfloat16"
    return (f"{' and '.join(names)} is read as float32" if names else ""), coarsest


def with_standardised_weights_(model: ModelProto) -> None:
    """Write a BatchNormalization of weights in training mode as an InstanceNormalization.

    So code standardises weights [1, outputs, n] (`functional.batch_norm` with ``training=True``).

    Raises:
        InputRejectedError: it is of images, or of several rows of weights.
    """
    graph = model.graph
    of_images = _of_images(graph)
    trained = [
        node for node in graph.node if node.op_type == "BatchNormalization" and _trains(node)
    ]
    known = with_shapes(model).graph.value_info if trained else ()
    rows = {value.name: shape_of(value)[:1] for value in known}
    rows |= {one.name: tuple(one.dims[:1]) for one in graph.initializer}
    for node in trained:
        if of_images.intersection(node.input) or rows.get(node.input[0]) != (1,):
            raise InputRejectedError(
                f"{node_label(node)}: it is in training mode; export the network in evaluation mode"
            )
        kept = {one.name: one.f for one in node.attribute if one.name == "epsilon"}
        made = helper.make_node(
            "InstanceNormalization", node.input[:3], node.output[:1], node.name, **kept
        )
        node.CopyFrom(made)


def _trains(node: NodeProto) -> bool:
    """Return whether a BatchNormalization normalises by the statistics of what it is given."""
    told = any(one.name == "training_mode" and one.i for one in node.attribute)
    return told or any(node.output[1:])


def _of_images(graph: GraphProto) -> set[str]:
    """Return the values that hang on the numbers of the images, not on their shape alone."""
    found = {graph.input[0].name}
    for node in graph.node:
        if found.intersection(node.input) and node.op_type not in ("Shape", "Size"):
            found.update(node.output)
    return found


def with_casts_(model: ModelProto) -> None:
    """Make a Cast of each CastLike, to the type of what it names, where that is known."""
    nodes = [node for node in model.graph.node if node.op_type == "CastLike"]
    if not nodes:
        return
    graph = with_shapes(model).graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    known = [*graph.input, *graph.value_info]
    kinds |= {value.name: value.type.tensor_type.elem_type for value in known}
    for node in nodes:
        kind = kinds.get(node.input[1], 0)
        if kind:
            cast = helper.make_node("Cast", node.input[:1], node.output, node.name, to=kind)
            node.CopyFrom(cast)


def without_side_outputs_(graph: GraphProto) -> None:
    """Remove outputs that only training needs, as a Dropout's mask, where nothing reads them."""
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    for node in graph.node:
        if node.op_type in SIDE_OUTPUTS and not used.intersection(node.output[1:]):
            del node.output[1:]


def channels_first_(graph: GraphProto, opset: int) -> str:
    """Let a graph of images [n, height, width, channels] take [n, channels, height, width].

    The graph gets a Transpose before it, which the simplifier joins with the graph's own.
    """
    name = graph.input[0].name
    writer = GraphWriter(graph, opset)
    inner = writer.add("Transpose", [name], writer.name(name), perm=[0, 2, 3, 1])
    for node in graph.node:
        for index, one in enumerate(node.input):
            if one == name:
                node.input[index] = inner
    replace_nodes_(graph, [*writer.nodes, *graph.node])
    batch, height, width, channels = shape_of(graph.input[0])
    set_input(graph, (batch, channels, height, width))
    return "images are [n, height, width, channels] in the file, [n, channels, height, width] here"


def with_squeezed_axes_(model: ModelProto, batch: int) -> str:
    """Say which axes are squeezed where a graph leaves that to the shapes; the images' is not.

    Args:
        model: with the shape of its input fixed; it is changed.
        batch: the images that the file takes at once; 0 where it takes any number, and where an
            image alone would lose its axis as well.
    """
    graph = model.graph
    of_images = _of_images(graph)
    nodes = [
        node
        for node in graph.node
        if node.op_type == "Squeeze" and not _has_axes(node) and node.input[0] in of_images
    ]
    if not nodes:
        return ""
    several = ModelProto.FromString(model.SerializeToString())
    if not batch:
        set_input(several.graph, (2, *shape_of(several.graph.input[0])[1:]))
    inferred = {value.name: shape_of(value) for value in with_shapes(several).graph.value_info}
    writer = GraphWriter(graph, own_opset(model))
    for node in nodes:
        sides = inferred.get(node.input[0], ())
        axes = [axis for axis, side in enumerate(sides) if side == 1 and axis > 0]
        if not axes:
            node.op_type = "Identity" if sides else "Squeeze"
            continue
        writer.set_axes(node, axes, node.output[0])
    graph.output[0].type.tensor_type.ClearField("shape")  # which may have one axis less
    return f"{len(nodes)} Squeeze without axes leave that of the images"


def _has_axes(node: NodeProto) -> bool:
    return len(node.input) > 1 or any(one.name == "axes" for one in node.attribute)


def takes_channels_last(graph: GraphProto) -> bool:
    """Return whether the image is first put from NHWC to NCHW, before anything looks at planes.

    Where it has one channel, a change of shape does that as well.

    Raises:
        InputRejectedError: it seems to be, but first something is done that tells of no order.
    """
    constants = {tensor.name for tensor in graph.initializer}
    shapes = {one.name: numpy_helper.to_array(one) for one in graph.initializer if one.dims == [4]}
    grey = shape_of(graph.input[0])[3:] == (1,)
    reached, turned = {graph.input[0].name}, False
    for node in graph.node:
        if not reached.intersection(node.input):
            if all(name in constants for name in node.input if name):
                constants.update(node.output)
            continue
        others = [one for one in node.input if one and not (one in reached or one in constants)]
        if node.op_type == "Transpose":
            perm = [n for one in node.attribute if one.name == "perm" for n in one.ints]
            if perm != [0, 3, 1, 2]:
                return False
            turned = True
        elif grey and node.op_type == "Reshape" and _is_of_planes(shapes.get(node.input[1])):
            turned = True
        elif node.op_type in ("Shape", "Size"):
            constants.update(node.output)
        elif node.op_type in _BEFORE_TURNED and not others and _keeps_axes(node):
            reached.update(node.output)
        else:
            _check_order(graph, node, reached)
            return False
    return turned


def _keeps_axes(node: NodeProto) -> bool:
    """Return whether what a node makes has the axes of what it takes, be they of length 1."""
    kept = next((one.i for one in node.attribute if one.name == "keepdims"), 1)
    return bool(kept) or not node.op_type.startswith("Reduce")


def _check_order(graph: GraphProto, unforeseen: NodeProto, reached: set[str]) -> None:
    """Refuse images that seem to be [n, height, width, channels], behind a node that is not known.

    The colours stand last, and the first node that lays out or looks at planes puts them first.
    """
    sides = shape_of(graph.input[0])
    if len(sides) != 4 or sides[3] not in (1, 3, 4) or 0 < sides[1] <= sides[3]:
        return
    for node in graph.node:
        if not reached.intersection(node.input):
            continue
        perm = [n for one in node.attribute if one.name == "perm" for n in one.ints]
        if node.op_type == "Transpose" and perm == [0, 3, 1, 2]:
            raise InputRejectedError(
                f"{node_label(unforeseen)}: it comes before {node_label(node)}, which seems to put "
                "images [n, height, width, channels] into the order [n, channels, height, width]; "
                "write it behind that, or export the network for images [n, channels, height, "
                "width]"
            )
        if node.op_type in _LAYS_OUT:
            return
        reached.update(node.output)


def _is_of_planes(shape: np.ndarray | None) -> bool:
    """Return whether a shape is [n, 1, height, width], of more than a line."""
    return shape is not None and bool(shape[1] == 1 and shape[2] > 1 and shape[3] > 1)


# What a graph may do to an image of any order of axes before it turns it: also crop or resize it,
# put its colours into another order, and scale it by what is computed of it.
_BEFORE_TURNED = frozenset(
    {
        *(*ELEMENTWISE, "CastLike", "Dropout", "Identity", *QUANTISERS),
        *("Concat", "Gather", "Pad", "Resize", "Slice", "Split", "Upsample"),
        *(kind for kind in REDUCTIONS if kind.startswith("Reduce")),  # to scale each image by
    }
)
_LAYS_OUT = frozenset(
    {
        *("BatchNormalization", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
        *("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", *WINDOWS),
    }
)


def set_input(graph: GraphProto, shape: Sequence[int]) -> None:
    """Fix the shape of the images, and forget all shapes that were inferred from another."""
    kind = graph.input[0].type.tensor_type.elem_type
    value = helper.make_tensor_value_info(graph.input[0].name, kind, list(shape))
    graph.input[0].CopyFrom(value)
    del graph.value_info[:]
    output = graph.output[0].type.tensor_type
    for axis in output.shape.dim:
        axis.Clear()


def _attribute_tensors(graph: GraphProto) -> list[TensorProto]:
    return [one.t for node in graph.node for one in node.attribute if one.HasField("t")]
