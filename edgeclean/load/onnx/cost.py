"""The cost of a checked graph, counted by its shapes alone, before anything of it is built or run.

Every operator, known or not, costs its inputs and outputs. A convolution or pool also reads each
window anew at each of its places, and is padded before; matrices are multiplied; and every node
takes its constants in a copy of its own, as float32. Constants that the importer derives of shapes,
as the matrices of a resizing, count as those in the file do. An operator that multiplies or has
windows needs a rule in `_RULES`; what is built of it is counted again while it runs
(`running_cost`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import ModelProto, NodeProto

from edgeclean.errors import InputRejectedError
from edgeclean.load.bill import Bill, Cost, convolution_cost
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.graph import batch_of, node_label

BYTES = 4  # of a number in the network that is built
# What `resize` holds while it works, in numbers of four bytes: of each new row or column its place,
# weights and indices, which have eight; of each element of a matrix one of eight, and then one.
PER_PLACE = 16
PER_ELEMENT = 3
Shape = tuple[int, ...]


def check_cost(model: ModelProto, limits: LoadLimits) -> None:
    """Refuse a small file that is costly to run: the memory of all its planes, or its arithmetic.

    Raises:
        InputRejectedError: a shape is unknown, or a limit is passed; names the node.
    """
    graph = model.graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known = [*graph.value_info, *graph.input, *graph.output]
    shapes = {value.name: _fixed_shape(value) for value in known} | weights
    repeated = {
        node.output[0]: shape
        for node in graph.node
        if node.op_type == "ConstantOfShape" and (shape := shapes.get(node.output[0])) is not None
    }
    weights |= repeated
    batch = batch_of(model)
    bill = Bill(limits)
    for value in graph.input:
        if value.name not in weights:
            numbers = math.prod(shapes[value.name] or ()) // batch
            bill.add(Cost(outputs=0, reads=numbers, operands=numbers), "the graph's input")
    copied = 0
    for node in graph.node:
        if node.output and node.output[0] in repeated:
            continue  # a weight, counted with the weights
        known_node = _Node(
            node=node,
            constant=[name in weights for name in node.input],
            batch=batch,
            inputs=[shapes.get(name) or () if name else None for name in node.input],
            outputs=[_known(node, shapes.get(name)) for name in node.output if name],
        )
        bill.add(_cost(known_node), f"{node_label(node)}: up to here one image")
        copied += BYTES * sum(math.prod(weights[name]) for name in node.input if name in weights)
        copied += BYTES * _derived(known_node)
        if copied > limits.file_bytes:
            raise InputRejectedError(
                f"{node_label(node)}: up to here the nodes take {copied} bytes of constants, each "
                f"in a copy of its own; the limit file_bytes is {limits.file_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A node with the shapes around it.

    Attributes:
        node: the node itself.
        inputs: the shape of each input; None for one that is left out.
        outputs: the shape of each output.
        constant: whether each input is a weight, whose memory ``file_bytes`` bounds.
        batch: the images that all shapes are for.
    """

    node: NodeProto
    constant: list[bool]
    batch: int
    inputs: list[Shape | None]
    outputs: list[Shape]

    def attribute(self, name: str, default: Any) -> Any:
        for attribute in self.node.attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def input(self, index: int) -> Shape:
        given = self.inputs[index] if index < len(self.inputs) else None
        return () if given is None else given


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extra:
    """What an operator takes beyond its inputs and outputs.

    Attributes:
        macs: multiply-accumulates.
        reads: numbers read, beyond the inputs.
        padded: numbers of a padded copy of the input, 0 where none is made.
        beside: numbers in memory beside all these.
    """

    macs: int = 0
    reads: int = 0
    padded: int = 0
    beside: int = 0


def _cost(node: _Node) -> Cost:
    sizes = [0 if shape is None else math.prod(shape) for shape in node.inputs]
    given = sum(sizes)
    values = sum(size for size, weight in zip(sizes, node.constant, strict=True) if not weight)
    put_out = sum(math.prod(shape) for shape in node.outputs)
    extra = _RULES.get(node.node.op_type, _plain)(node)
    return Cost(
        outputs=-(-(put_out + extra.padded) // node.batch),
        macs=-(-extra.macs // node.batch),
        reads=-(-(given + extra.reads + 2 * extra.padded) // node.batch),
        operands=-(-(values + put_out + 2 * extra.padded + extra.beside) // node.batch),
    )


def _plain(_node: _Node) -> _Extra:
    return _Extra()


def _conv(node: _Node) -> _Extra:
    images, weight, output = node.input(0), node.input(1), node.outputs[0]
    if not len(images) == len(weight) == len(output) or len(images) < 3:
        return _Extra()  # no convolution: its conversion refuses it
    around, copied = _padded(node, images, output, weight[2:])
    groups = max(1, int(node.attribute("group", 1)))
    transposed = node.node.op_type == "ConvTranspose"
    macs, reads, beside = convolution_cost(
        images if transposed else around, weight, output, groups, transposed
    )
    return _Extra(macs=macs, reads=reads, beside=beside, padded=math.prod(around) if copied else 0)


def _pool(node: _Node) -> _Extra:
    images, output = node.input(0), node.outputs[0]
    kernel = tuple(int(side) for side in node.attribute("kernel_shape", images[2:]))
    around, copied = _padded(node, images, output, kernel)
    # PyTorch's layers take no pads of more than half a window: there, too, a copy is padded.
    pads = node.attribute("pads", ())
    copied |= any(2 * pad > side for pad, side in zip(pads, 2 * kernel, strict=False))
    return _Extra(
        reads=math.prod(output) * math.prod(kernel), padded=math.prod(around) if copied else 0
    )


def _matrix(node: _Node) -> _Extra:
    left = node.input(0)
    inner = left[0 if node.attribute("transA", 0) else -1] if left else 1
    return _Extra(macs=math.prod(node.outputs[0]) * inner)


def _padded(node: _Node, images: Shape, output: Shape, kernel: Shape) -> tuple[Shape, bool]:
    """Return the shape of the images with their padding, and whether a copy is padded.

    PyTorch's layers pad both ends alike; where they differ, a copy is padded beforehand.
    """
    axes = len(images) - 2
    strides, dilations = (
        [int(one) for one in node.attribute(name, [1] * axes)] for name in ("strides", "dilations")
    )
    if node.attribute("auto_pad", b"NOTSET").startswith(b"SAME"):
        reaches = zip(output[2:], strides, dilations, kernel, strict=False)
        ends = [(places - 1) * step + wide * (side - 1) + 1 for places, step, wide, side in reaches]
        sides = [max(side, end) for side, end in zip(images[2:], ends, strict=False)]
        return (*images[:2], *sides), sides != list(images[2:])
    pads = [int(one) for one in node.attribute("pads", [0] * 2 * axes)]
    before, after = pads[:axes], pads[axes:]
    sides = [sum(one) for one in zip(images[2:], before, after, strict=False)]
    return (*images[:2], *sides), before != after


def _resized(node: _Node) -> _Extra:
    """What the importer works on while it makes the constants of a resizing."""
    new = sum(node.outputs[0][2:]) if node.outputs else 0
    # Once for all images of a batch.
    return _Extra(beside=node.batch * (PER_PLACE * new + PER_ELEMENT * _matrices(node)))


def _matrices(node: _Node) -> int:
    """Return the numbers of a matrix [new, old] for each side, of which nearest needs none.

    Where torch has a layer for it, none is made, but which those are depends on numbers, and
    planes whose matrices are too large are too large themselves, unless they are mere lines.
    """
    if node.attribute("mode", b"nearest") == b"nearest" or not node.outputs:
        return 0
    sides = zip(node.input(0)[2:], node.outputs[0][2:], strict=False)
    return sum(old * new for old, new in sides)


def _derived(node: _Node) -> int:
    """Return the numbers of constants that are not in the file, and that the importer makes."""
    if _RULES.get(node.node.op_type) is not _resized or not node.outputs:
        return 0
    indices = 2 * sum(node.outputs[0][2:])  # of eight bytes each
    return _matrices(node) or indices


_RULES: dict[str, Callable[[_Node], _Extra]] = {
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("Gemm", "MatMul"), _matrix),
}


def _known(node: NodeProto, shape: Shape | None) -> Shape:
    if shape is None:
        raise InputRejectedError(
            f"{node_label(node)}: the shape of its output is not fixed; export with a fixed image "
            "size"
        )
    return shape


def _fixed_shape(value: onnx.ValueInfoProto) -> Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    if not all(axis.HasField("dim_value") and axis.dim_value >= 0 for axis in tensor.shape.dim):
        return None
    return tuple(axis.dim_value for axis in tensor.shape.dim)
