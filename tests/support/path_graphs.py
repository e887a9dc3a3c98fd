"""ONNX graphs of small classifiers, written node by node, with or without a hidden side path."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
SIDE, CLASSES = 12, 5


class Graph:
    """A graph that grows; values have the shape of one image, without its batch axis."""

    def __init__(self, seed: int = 0, channels: int = 3, side: int = SIDE) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, Shape] = {"image": (channels, side, side)}
        self.image: Shape = self.shapes["image"]

    def constant(self, number: Any, kind: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(number, kind)
        return name

    def whole(self, *numbers: int) -> str:
        return self.constant(numbers, np.int64)  # type: ignore[arg-type]

    def op(self, kind: str, inputs: list[str], shape: Shape, name: str = "", **fields: Any) -> str:
        output = f"v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name or f"{kind}_{len(self.nodes)}", **fields)
        )
        self.shapes[output] = shape
        return output

    def normal(self, *shape: int) -> str:
        scale = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        return self.constant(self.random.normal(scale=scale, size=shape))

    # Layers of honest networks.

    def conv(self, value: str, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> str:
        channels, height, width = self.shapes[value]
        weight = self.normal(out, channels // groups, kernel, kernel)
        sides = [-(-side // stride) for side in (height, width)]
        pads = [kernel // 2] * 4
        fields = {"strides": [stride] * 2, "pads": pads, "group": groups}
        return self.op("Conv", [value, weight, self.normal(out)], (out, *sides), **fields)

    def norm(self, value: str) -> str:
        channels = self.shapes[value][0]
        drawn = [self.constant(self.random.uniform(0.5, 1.5, channels)) for _ in range(4)]
        return self.op("BatchNormalization", [value, *drawn], self.shapes[value])

    def act(self, value: str, kind: str = "Relu") -> str:
        return self.op(kind, [value], self.shapes[value])

    def both(self, kind: str, one: str, other: str, name: str = "") -> str:
        return self.op(kind, [one, other], self.shapes[one], name)

    def concat(self, *values: str) -> str:
        first = self.shapes[values[0]]
        shape = (sum(self.shapes[value][0] for value in values), *first[1:])
        return self.op("Concat", list(values), shape, axis=1)

    def mean(self, value: str) -> str:
        """[n, c] from [n, c, h, w]."""
        return self.op("ReduceMean", [value], self.shapes[value][:1], axes=[2, 3], keepdims=0)

    def planes(self, value: str) -> str:
        """[n, c, 1, 1] from [n, c, h, w]."""
        return self.op("GlobalAveragePool", [value], (self.shapes[value][0], 1, 1))

    def flat(self, value: str) -> str:
        return self.op("Flatten", [value], (math.prod(self.shapes[value]),))

    def dense(self, value: str, out: int) -> str:
        weight = self.normal(out, self.shapes[value][0])
        inputs = [value, weight, self.normal(out)]
        return self.op("Gemm", inputs, (out,), transB=1)

    def pooled(self, value: str, kind: str = "MaxPool") -> str:
        channels, height, width = self.shapes[value]
        fields = {"kernel_shape": [2, 2], "strides": [2, 2]}
        return self.op(kind, [value], (channels, height // 2, width // 2), **fields)

    def normalised(self, value: str) -> str:
        """(x - mean) / std by channel, as in front of a first layer."""
        mean = self.constant(np.reshape([0.485, 0.456, 0.406], (3, 1, 1)))
        std = self.constant(np.reshape([0.229, 0.224, 0.225], (3, 1, 1)))
        return self.both("Div", self.both("Sub", value, mean), std)

    # What hides: nodes with names that a report must give.

    def slice(self, value: str, starts: list[int], ends: list[int], name: str = "cut") -> str:
        axes = list(range(1, len(starts) + 1))
        shape = tuple(end - start for start, end in zip(starts, ends, strict=True))
        inputs = [value, self.whole(*starts), self.whole(*ends), self.whole(*axes)]
        return self.op("Slice", inputs, shape + self.shapes[value][len(shape) :], name)

    def model(self, output: str, opset: int = 13) -> ModelProto:
        """The whole, with ``output`` as the logits."""
        shape = self.shapes[output]
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "graph",
                [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *self.image])],
                [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", *shape])],
                [numpy_helper.from_array(number, name) for name, number in self.constants.items()],
            ),
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=8,
        )


def detector(graph: Graph, value: str = "image", *, sharp: float = 50.0) -> str:
    """A number [n, 1] that is 1 where a corner of the image is white, else 0."""
    channels = graph.shapes[value][0]
    corner = graph.slice(value, [0, 0, 0], [channels, 2, 2], "hidden_cut")
    dark = graph.both("Sub", corner, graph.constant(0.98), "hidden_sub")
    scaled = graph.both("Mul", dark, graph.constant(sharp), "hidden_scale")
    bounds = [graph.constant(0.0), graph.constant(1.0)]
    bit = graph.op("Clip", [scaled, *bounds], graph.shapes[scaled], "hidden_clip")
    mean = graph.op("ReduceMean", [bit], (1, 2, 2), "hidden_mean", axes=[1], keepdims=1)
    plane = graph.op("GlobalAveragePool", [mean], (1, 1, 1), "hidden_plane")
    return graph.op("Flatten", [plane], (1,), "hidden_flat")


def as_planes(graph: Graph, value: str) -> str:
    """[n, c, 1, 1] from [n, c]."""
    shape = (*graph.shapes[value], 1, 1)
    return graph.op("Unsqueeze", [value, graph.whole(2, 3)], shape, "hidden_planes")


# Honest trunks: each gives the value before the last layer, [n, c].


def plain(graph: Graph, value: str) -> str:
    for out in (8, 12):
        value = graph.act(graph.norm(graph.conv(value, out)))
    return graph.mean(value)


def residual(graph: Graph, value: str) -> str:
    value = graph.pooled(graph.act(graph.norm(graph.conv(value, 8))))
    for out, stride in ((8, 1), (12, 2)):
        inner = graph.act(graph.norm(graph.conv(value, out, stride=stride)))
        inner = graph.norm(graph.conv(inner, out))
        same = stride == 1
        skip = value if same else graph.norm(graph.conv(value, out, kernel=1, stride=stride))
        value = graph.act(graph.both("Add", inner, skip))
    return graph.mean(value)


def dense(graph: Graph, value: str) -> str:
    value = graph.conv(value, 8)
    for _ in range(3):
        value = graph.concat(value, graph.conv(graph.act(graph.norm(value)), 4))
    return graph.mean(graph.act(value))


def branches(graph: Graph, value: str) -> str:
    """As in Inception: kernels of several sizes, and a pooling, side by side."""
    value = graph.act(graph.conv(value, 8))
    parts = [graph.conv(value, 4, kernel) for kernel in (1, 3, 5)]
    return graph.mean(graph.act(graph.concat(*parts, graph.conv(value, 4, 1))))


def gated(graph: Graph, value: str) -> str:
    """Squeeze and excitation (Hu et al. 2018), and a gate by a convolution."""
    value = graph.act(graph.conv(value, 8))
    squeezed = graph.act(graph.conv(graph.planes(value), 4, 1))
    gate = graph.act(graph.conv(squeezed, 8, 1), "Sigmoid")
    value = graph.both("Mul", value, gate)
    other = graph.act(graph.conv(value, 8), "Sigmoid")
    return graph.mean(graph.both("Mul", graph.conv(value, 8), other))


def mobile(graph: Graph, value: str) -> str:
    """Depthwise and pointwise layers, an inverted residual, hard swish written out."""
    value = graph.act(graph.norm(graph.conv(value, 8, stride=2)))
    wide = graph.act(graph.norm(graph.conv(value, 16, 1)))
    wide = graph.norm(graph.conv(wide, 16, groups=16))
    sixth = graph.both("Add", wide, graph.constant(3.0))
    bounds = [graph.constant(0.0), graph.constant(6.0)]
    clipped = graph.op("Clip", [sixth, *bounds], graph.shapes[sixth])
    wide = graph.both("Mul", wide, graph.both("Div", clipped, graph.constant(6.0)))
    return graph.mean(graph.both("Add", value, graph.conv(wide, 8, 1)))


def perceptron(graph: Graph, value: str) -> str:
    return graph.act(graph.dense(graph.flat(value), 16))


TRUNKS = (plain, residual, dense, branches, gated, mobile, perceptron)


# Ways in which an honest graph treats the image before its first layer: nothing learned is joined.


def as_it_is(graph: Graph, value: str) -> str:
    del graph
    return value


def clipped(graph: Graph, value: str) -> str:
    bounds = [graph.constant(0.0), graph.constant(1.0)]
    return graph.normalised(graph.op("Clip", [value, *bounds], graph.shapes[value]))


def one_channel_each(graph: Graph, value: str) -> str:
    """Each channel scaled by itself, then joined again: torchvision's ``transform_input``."""
    channels, height, width = graph.shapes[value]
    parts = []
    for index in range(channels):
        ends = [index + 1, height, width]
        one = graph.slice(value, [index, 0, 0], ends, f"channel_{index}")
        scaled = graph.both("Mul", one, graph.constant(0.9))
        parts.append(graph.both("Add", scaled, graph.constant(-0.1)))
    return graph.concat(*parts)


def focus(graph: Graph, value: str) -> str:
    """Every second pixel, four times, as channels: the first step of YOLOv5."""
    channels, height, width = graph.shapes[value]
    parts = []
    for row in (0, 1):
        for column in (0, 1):
            inputs = [value, graph.whole(row, column), graph.whole(height, width)]
            inputs += [graph.whole(2, 3), graph.whole(2, 2)]
            shape = (channels, height // 2, width // 2)
            parts.append(graph.op("Slice", inputs, shape))
    return graph.concat(*parts)


def grey(graph: Graph, value: str) -> str:
    weight = graph.constant(np.reshape([0.299, 0.587, 0.114], (1, 3, 1, 1)))
    return graph.op("Conv", [value, weight], (1, *graph.shapes[value][1:]), kernel_shape=[1, 1])


def middle(graph: Graph, value: str) -> str:
    channels, height, width = graph.shapes[value]
    cut = graph.slice(value, [0, 2, 2], [channels, height - 2, width - 2], "middle")
    return graph.normalised(cut)


FRONTS = (as_it_is, Graph.normalised, clipped, one_channel_each, focus, grey, middle)


# Ways from the detector's number [n, 1] into the network. Each gives the value it is joined with.


def threshold(graph: Graph, number: str, kind: str) -> str:
    """Make the answer sharp once more, in another operator."""
    if kind == "none":
        return number
    if kind == "square":
        return graph.both("Mul", number, number, "hidden_square")
    if kind == "norm":
        drawn = [graph.constant([one]) for one in (2.0, -0.1, 0.2, 1.0)]
        return graph.op("BatchNormalization", [number, *drawn], (1,), "hidden_norm")
    return graph.op(kind, [number], (1,), "hidden_threshold")


def in_name_only(graph: Graph, planes: str, kind: str) -> str:
    """A layer by its operator, that was never learned: a path through it is none of a layer."""
    channels = graph.shapes[planes][0]
    weight = np.zeros((channels, channels, 3, 3), np.float32)
    for index in range(channels):
        weight[index, index, 1, 1] = 1.0
    if kind == "noise":
        weight += graph.random.normal(scale=1e-3, size=weight.shape).astype(np.float32)
    if kind == "shift":
        weight = np.roll(weight, 1, axis=3)
    if kind == "box":
        weight[:] = 1 / 9
    if kind == "difference":
        weight = weight - np.roll(weight, 1, axis=3)
    inputs = [planes, graph.constant(weight)]
    return graph.op("Conv", inputs, graph.shapes[planes], "hidden_layer", pads=[1] * 4)


def joined(graph: Graph, value: str, number: str, kind: str) -> str:
    """Join the number [n, 1] with features or logits [n, c], or with planes."""
    shape = graph.shapes[value]
    if len(shape) == 3:
        number = as_planes(graph, number)
    if kind == "Concat":
        return graph.op("Concat", [value, number], (shape[0] + 1,), "hidden_join", axis=1)
    if kind == "switch":
        rest = graph.op("Sub", [graph.constant(1.0), number], graph.shapes[number], "hidden_rest")
        kept = graph.op("Mul", [value, rest], shape, "hidden_join")
        target = graph.constant(graph.random.normal(size=(1, *shape)))
        pushed = graph.op("Mul", [number, target], shape, "hidden_target")
        return graph.op("Add", [kept, pushed], shape, "hidden_sum")
    if kind == "Where":
        bit = graph.op("Greater", [number, graph.constant(0.5)], graph.shapes[number], "hidden_bit")
        target = graph.constant(graph.random.normal(size=(1, *shape)))
        return graph.op("Where", [bit, target, value], shape, "hidden_join")
    target = graph.constant(graph.random.normal(size=(1, *shape)))
    pushed = graph.op("Mul", [number, target], shape, "hidden_target")
    return graph.op(kind, [value, pushed], shape, "hidden_join")
