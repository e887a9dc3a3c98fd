"""Put the images of a batch along the first axis of every value, wherever a graph moves them.

Attention does: ``qkv.reshape(n, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)`` puts the batch
second, and ``nn.MultiheadAttention`` works on [tokens, n, width] throughout. So a value's axis of
images is followed through the graph, and each node is written for values whose images are first.
Where a shape for one image leaves open which axis that is, the likeliest is taken: the network's
answers to two images at once, and ONNX Runtime's to each, prove it or refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.graph import (
    batch_of,
    node_label,
    own_opset,
    prune_,
    replace_nodes_,
    shape_of,
)
from edgeclean.load.onnx.writer import GraphWriter, set_attribute_

Shape = tuple[int, ...]
# Operators whose answer at a place depends on its operands at that place alone.
POINTWISE = frozenset(
    {
        *("Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu"),
        *("Asinh", "Cosh", "Equal", "Erf", "Exp", "Floor", "Round", "Sign", "Sin", "Sinh"),
        *("Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity"),
        *("LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg"),
        *("Not", "Or", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign"),
        *("Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor"),
        *("Acos", "Acosh", "Asin", "Atan", "Atanh", "IsInf", "IsNaN", "Mod", "Tan"),
    }
)
RESHAPES = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class Images:
    """The images of a value stand at an axis of it, behind ``outer`` entries of it for each."""

    axis: int
    outer: int = 1


FIRST = Images(0)


def batch_first_(model: ModelProto) -> None:
    """Write a graph for values whose images are first, where it moves them elsewhere.

    Args:
        model: simplified, with the shapes of its values; it is changed.

    Raises:
        InputRejectedError: a node is not written so, or the images are not first in the output.
    """
    walk = _Walk(model)
    for node in model.graph.node:
        walk.take(node)
    output = model.graph.output[0].name
    where = walk.images.get(output, FIRST)
    if where.outer != 1 or math.prod(walk.shapes.get(output, ())[: where.axis]) != 1:
        raise walk.refused(walk.made_by[output], f"it moves the batch axis to axis {where.axis}")
    if walk.is_changed:
        del model.graph.value_info[:]
        for axis in model.graph.output[0].type.tensor_type.shape.dim:
            axis.Clear()
        replace_nodes_(model.graph, walk.nodes)
        prune_(model.graph)


class _Walk(GraphWriter):
    """Writes the nodes, and knows where the images of their values are."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        super().__init__(graph, own_opset(model))
        self.batch = batch_of(model)
        known = [*graph.value_info, *graph.input, *graph.output]
        self.shapes: dict[str, Shape] = {one.name: shape_of(one) for one in known}
        self.images = {one.name: FIRST for one in graph.input if one.name not in self.constants}
        self.made_by: dict[str, NodeProto] = {}
        self.is_changed = False
        self._turned: dict[tuple[str, int, int], str] = {}

    def take(self, node: NodeProto) -> None:
        """Write one node, which follows all that it needs."""
        self.made_by.update(dict.fromkeys(node.output, node))
        places = [self.images[name] for name in node.input if name in self.images]
        if not places:
            self.nodes.append(node)
            return
        kind = node.op_type
        if all(place.axis == 0 for place in places) and not self._moves(node, places):
            if len(set(places)) != 1:
                raise self.refused(node, "it joins rows of one order with rows of another")
            self._keep(node, node, places[0])
            return
        rule = _RULES.get(kind)
        if rule is None:
            raise self.refused(node, f"the batch is axis {places[0].axis} of its input")
        self.is_changed = True
        rule(self, node)

    def _moves(self, node: NodeProto, places: Sequence[Images]) -> bool:
        """Return whether a node puts images, which are first, elsewhere."""
        if node.op_type == "GatherND":
            return True
        if node.op_type == "Gemm":
            return node.input[0] not in self.images
        if node.op_type == "Transpose":
            order = self.integers(node, "perm", 1)
            return bool(order) and order[0] != 0
        if places[0] != FIRST:
            return node.op_type in RESHAPES
        before = self.shapes.get(node.input[0], ())
        return (
            node.op_type == "Unsqueeze"
            and before[:1] == (self.batch,)
            and self._added_axes(node)[:1] == [0]
        )

    def _keep(self, node: NodeProto, written: NodeProto, where: Images) -> None:
        self.nodes.append(written)
        self.images.update(dict.fromkeys(filter(None, node.output), where))

    def _added_axes(self, node: NodeProto) -> list[int]:
        rank = len(self.shape(node, node.output[0]))
        return sorted(axis % rank for axis in self.integers(node, "axes", 1))

    def refused(self, node: NodeProto, why: str) -> InputRejectedError:
        """Return the error that names a node and the way out."""
        return InputRejectedError(
            f"{node_label(node)}: {why}; keep the images along the first axis (batch_first=True)"
        )

    def shape(self, node: NodeProto, name: str) -> Shape:
        """Return the shape of a value or constant around a node."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        if name not in self.shapes:
            raise self.refused(node, "a shape around it is not known")
        return self.shapes[name]

    def integers(self, node: NodeProto, name: str, place: int) -> list[int]:
        """Return whole numbers that are an attribute, or a constant at an input; else []."""
        for one in node.attribute:
            if one.name == name:
                return [int(number) for number in one.ints] or [int(one.i)]
        given = self.constants.get(node.input[place]) if place < len(node.input) else None
        return [] if given is None else [int(one) for one in _numbers(given).reshape(-1)]

    def is_matrix(self, name: str) -> bool:
        """Return whether a name is that of a constant of two axes."""
        return name in self.constants and len(self.constants[name].dims) == 2

    def value(self, node: NodeProto) -> tuple[str, Images, Shape]:
        """Return the name, place of images and shape of a node's first input.

        Raises:
            InputRejectedError: it is a constant.
        """
        name = node.input[0]
        if name not in self.images:
            raise self.refused(
                node, "its first input is a constant, beside a batch moved elsewhere"
            )
        return name, self.images[name], self.shape(node, name)

    def write(self, node: NodeProto, where: Images, inputs: Sequence[str] = ()) -> NodeProto:
        """Add a copy of a node, with its own inputs or others, and return it."""
        written: NodeProto = NodeProto.FromString(node.SerializeToString())
        if inputs:
            del written.input[:]
            written.input.extend(inputs)
        self._keep(node, written, where)
        return written

    def reshaped(self, name: str, shape: Sequence[int], output: str = "") -> str:
        """Add a Reshape of a value and return its name."""
        output = output or self.name(name)
        return self.add("Reshape", [name, self.constant(shape, output)], output, output)

    def swapped(self, name: str) -> str:
        """Add a Transpose of the second and third of four axes, and return its name."""
        output = self.name(name)
        return self.add("Transpose", [name], output, output, perm=[0, 2, 1, 3])

    def aligned(self, node: NodeProto, name: str, rank: int, axis: int) -> str:
        """Return an operand with the images, at an axis of ``rank`` axes, put first."""
        shape = self.shape(node, name) if name else ()
        if name in self.images:
            own = self.images[name].axis
            if (len(shape), own) == (rank, axis):
                return name
            padded = (*[1] * (rank - len(shape)), *shape)
            return self.reshaped(name, (padded[axis], *padded[:axis], *padded[axis + 1 :]))
        if len(shape) <= rank - 1 - axis:
            return name  # no longer than the axes behind the images
        if name not in self.constants:
            raise self.refused(node, "a constant stands beside a batch that is moved")
        key = (name, rank, axis)
        if key not in self._turned:
            padded = (*[1] * (rank - len(shape)), *shape)
            turned = np.moveaxis(_numbers(self.constants[name]).reshape(padded), axis, 0)
            self._turned[key] = self.constant(np.ascontiguousarray(turned), name)
        return self._turned[key]

    def common(self, node: NodeProto, rank: int, axes: int) -> Images:
        """Return where the images are in what a node broadcasts to ``rank`` axes.

        An image alone may be read as if its batch were any of its axes of one.

        Raises:
            InputRejectedError: its values have them at no common axis of the first ``axes``.
        """
        values = []
        for name in node.input:
            if name in self.images:
                shape = self.shape(node, name)
                added, own = rank - len(shape), self.images[name]
                values.append(((*[1] * added, *shape), Images(own.axis + added, own.outer)))
        tried = [*sorted({own for _, own in values}, key=lambda one: one.axis)]
        tried += [Images(axis) for axis in range(axes)]
        for where in tried:
            if where.axis < axes and all(
                own == where
                or (where.outer == own.outer == 1 == shape[own.axis] == shape[where.axis])
                for shape, own in values
            ):
                return where
        raise self.refused(node, "the images are at different axes of its inputs")


def _pointwise(walk: _Walk, node: NodeProto) -> None:
    rank = len(walk.shape(node, node.output[0]))
    where = walk.common(node, rank, rank)
    inputs = [walk.aligned(node, name, rank, where.axis) for name in node.input]
    walk.write(node, where, inputs)


def _matmul(walk: _Walk, node: NodeProto) -> None:
    ranks = [len(walk.shape(node, name)) for name in node.input]
    rank = max(ranks)
    own = walk.images.get(node.input[0])
    if own and ranks[1] == 2 and node.input[1] not in walk.images and own.axis < rank - 1:
        walk.write(node, own)  # a linear layer, of whatever rows
        return
    other = walk.images.get(node.input[1])
    if other and other.axis == ranks[1] - 1 > 0 and walk.is_matrix(node.input[0]):
        weight = walk.constant(_turned(walk.constants[node.input[0]]), node.input[0])
        walk.write(node, Images(rank - 1, other.outer), [node.input[1], weight])
        return
    where = walk.common(node, rank, rank - 2)
    inputs = [walk.aligned(node, name, rank, where.axis) for name in node.input]
    walk.write(node, where, inputs)


def _gemm(walk: _Walk, node: NodeProto) -> None:
    """Write turned images times a constant, or a constant times these, by images as rows."""
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    weight, value, *added = node.input
    rows = walk.images.get(weight)
    if rows is not None and rows.axis == 1 == attributes.get("transA", 0):
        if value in walk.images or any(walk.images.get(one, FIRST) != FIRST for one in added):
            raise walk.refused(node, "the images are at different axes of its inputs")
        set_attribute_(walk.write(node, Images(0, rows.outer)), "transA", 0)
        return
    own, turned = walk.images.get(value), attributes.get("transB", 0)
    if own is None or not walk.is_matrix(weight) or own.axis != 1 - turned:
        raise walk.refused(node, "what a constant multiplies does not hold an image in each column")
    inputs = [value, weight]
    for name in filter(None, added):
        if name not in walk.constants:
            raise walk.refused(node, "it adds a value to a batch that is moved")
        bias = _numbers(walk.constants[name])
        bias = bias.reshape((*[1] * (2 - bias.ndim), *bias.shape)).T
        if len(bias) != 1:
            raise walk.refused(node, "it adds another number to each image of a batch")
        inputs.append(walk.constant(np.ascontiguousarray(bias), name))
    written = walk.write(node, Images(1, own.outer), inputs)
    set_attribute_(written, "transA", 0)
    set_attribute_(written, "transB", 1 - attributes.get("transA", 0))


def _transpose(walk: _Walk, node: NodeProto) -> None:
    _, where, shape = walk.value(node)
    order = walk.integers(node, "perm", 1) or list(reversed(range(len(shape))))
    axis = order.index(where.axis)
    inner = [_moved(one, where.axis) for one in order if one != where.axis]
    if inner == sorted(inner):  # nothing but the images has moved
        walk.write(_identity(node), Images(axis, where.outer))
        return
    written = walk.write(node, Images(axis, where.outer))
    set_attribute_(written, "perm", [0, *inner])


def _along_axis(default: int) -> Callable[[_Walk, NodeProto], None]:
    def rule(walk: _Walk, node: NodeProto) -> None:
        _, where, shape = walk.value(node)
        axis = (walk.integers(node, "axis", 99) or [default])[0] % len(shape)
        kind, after = node.op_type, where.axis
        joined = kind.endswith("Softmax") and walk.opset < 13 and axis != len(shape) - 1
        if axis <= after and (joined or kind.endswith("Normalization")):
            raise walk.refused(node, f"the batch is axis {after} of its input, behind axis {axis}")
        inputs = list(node.input)
        if kind == "Concat":
            rank = len(shape)
            where = walk.common(node, rank, rank)
            after = where.axis
            inputs = [walk.aligned(node, one, rank, where.axis) for one in node.input]
        if kind == "Gather" and axis < where.axis:
            after += len(walk.shape(node, node.input[1])) - 1
        written = walk.write(node, Images(after, where.outer), inputs)
        set_attribute_(written, "axis", _moved(axis, where.axis))

    return rule


def _reduction(walk: _Walk, node: NodeProto) -> None:
    _, where, shape = walk.value(node)
    axes = [axis % len(shape) for axis in walk.integers(node, "axes", 1)]
    if not axes or where.axis in axes:
        raise walk.refused(node, "it reduces the batch axis to one")
    kept = (walk.integers(node, "keepdims", 99) or [1])[0]
    after = where.axis - (0 if kept else sum(axis < where.axis for axis in axes))
    written = walk.write(node, Images(after, where.outer))
    walk.set_axes(written, sorted(_moved(axis, where.axis) for axis in axes), node.output[0])


def _slice(walk: _Walk, node: NodeProto) -> None:
    _, where, shape = walk.value(node)
    given = walk.integers(node, "axes", 3)
    axes = given or list(range(len(walk.integers(node, "starts", 1))))
    written = walk.write(node, where)
    inner = [_moved(axis % len(shape), where.axis) for axis in axes]
    walk.set_axes(written, inner, node.output[0])


def _expand(walk: _Walk, node: NodeProto) -> None:
    after = walk.shape(node, node.output[0])
    where = walk.common(node, len(after), len(after))
    value = walk.aligned(node, node.input[0], len(after), where.axis)
    sides = [after[where.axis], *after[: where.axis], *after[where.axis + 1 :]]
    walk.write(node, where, [value, walk.constant(sides, node.output[0])])


def _gather_nd(walk: _Walk, node: NodeProto) -> None:
    """Write GatherND by constant indices as a Gather of the axes that these index, as one."""
    name, where, shape = walk.value(node)
    if node.input[1] not in walk.constants or (walk.integers(node, "batch_dims", 99) or [0])[0]:
        raise walk.refused(node, "its indices are computed, or one for each image")
    indices = _numbers(walk.constants[node.input[1]])
    indexed = indices.shape[-1]
    sides = np.array(shape[:indexed], np.int64)
    if where.axis < indexed:
        raise walk.refused(node, "it takes images of a batch")
    if ((indices < -sides) | (indices >= sides)).any():
        raise walk.refused(node, f"an index is outside of axes of {shape[:indexed]}")
    steps = np.array([math.prod(shape[one + 1 : indexed]) for one in range(indexed)], np.int64)
    flat = (np.where(indices < 0, indices + sides, indices) * steps).sum(-1)
    rest = [side for axis, side in enumerate(shape) if axis >= indexed and axis != where.axis]
    joined = walk.reshaped(name, (shape[where.axis], math.prod(shape[:indexed]), *rest))
    taken = walk.constant(flat.astype(np.int64), node.output[0])
    written = helper.make_node("Gather", [joined, taken], node.output, node.name, axis=1)
    walk.write(written, Images(where.axis - indexed + flat.ndim, where.outer))


def _reshape(walk: _Walk, node: NodeProto) -> None:
    """Write a Reshape, Flatten, Squeeze or Unsqueeze.

    In memory a value is [before, outer, images, inner, behind]; with its images first it is
    [images, outer, inner, before, behind].
    """
    name, old, before = walk.value(node)
    after = walk.shape(node, node.output[0])
    rows = before[old.axis] // walk.batch
    ahead, behind = math.prod(before[: old.axis]), math.prod(before[old.axis + 1 :])
    new = _new_place(walk, node, old, before, after)
    final = (after[new.axis], *after[: new.axis], *after[new.axis + 1 :])
    new_rows = after[new.axis] // walk.batch
    new_ahead, new_behind = math.prod(after[: new.axis]), math.prod(after[new.axis + 1 :])
    if (rows, ahead) != (new_rows, new_ahead):
        if rows != 1 and ahead != 1:
            name = walk.swapped(walk.reshaped(name, (walk.batch, rows, ahead, behind)))
        if new_rows != 1 and new_ahead != 1:
            name = walk.swapped(walk.reshaped(name, (walk.batch, new_ahead, new_rows, new_behind)))
    walk.reshaped(name, final, node.output[0])
    walk.images[node.output[0]] = new


def _new_place(walk: _Walk, node: NodeProto, old: Images, before: Shape, after: Shape) -> Images:
    """Return where the images are after a change of shape alone.

    Raises:
        InputRejectedError: an axis of the new shape holds them with parts of others.
    """
    ahead = math.prod(before[: old.axis]) * old.outer
    axes = {axis % max(len(before), len(after)) for axis in walk.integers(node, "axes", 1)}
    if node.op_type == "Squeeze" and axes and old.axis not in axes:
        return Images(old.axis - sum(axis < old.axis for axis in axes), old.outer)
    if node.op_type == "Unsqueeze":
        own = [axis for axis in range(len(after)) if axis not in axes]
        return Images(own[old.axis], old.outer)
    found: list[tuple[tuple[bool, ...], Images]] = []
    asked = walk.integers(node, "shape", 1) if node.op_type == "Reshape" else []
    was_last = old.axis == len(before) - 1
    for axis, side in enumerate(after):
        outer, rest = divmod(ahead, max(1, math.prod(after[:axis])))
        if outer and not rest and side and side % (outer * walk.batch) == 0:
            last = axis == len(after) - 1 and axis > 0 and not was_last
            # What exporters leave open is the batch, also where it was split off its rows.
            left_open = axis < len(asked) and asked[axis] == -1
            other = side // outer != before[old.axis] // old.outer and not left_open
            found.append(((last, outer != 1, other), Images(axis, outer)))
    if not found:
        raise walk.refused(node, f"{before} to {after} mixes the batch axis with another")
    return min(found, key=lambda one: one[0])[1]


def _identity(node: NodeProto) -> NodeProto:
    identity: NodeProto = helper.make_node("Identity", node.input, node.output, node.name)
    return identity


def _moved(axis: int, images: int) -> int:
    """Return where an axis is once the images are first."""
    return 0 if axis == images else axis + (axis < images)


def _turned(matrix: TensorProto) -> np.ndarray:
    return np.ascontiguousarray(_numbers(matrix).T)


def _numbers(tensor: TensorProto) -> np.ndarray:
    return np.asarray(numpy_helper.to_array(tensor))


_RULES: Mapping[str, Callable[[_Walk, NodeProto], None]] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(("Concat", "Gather", "Split"), _along_axis(0)),
    **dict.fromkeys(("LogSoftmax", "Softmax"), _along_axis(-1)),
    **dict.fromkeys(("LayerNormalization", "LpNormalization", "RMSNormalization"), _along_axis(-1)),
    **{
        f"Reduce{kind}": _reduction
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")
    },
    "ReduceSumSquare": _reduction,
    "Expand": _expand,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Slice": _slice,
    "Transpose": _transpose,
}
