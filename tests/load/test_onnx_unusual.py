"""Graphs that are rarely met and in which nothing is wrong: each answers as ONNX Runtime does.

Shapes and constants are computed by operators that no layer needs, images come as cameras give
them, and axes go by themselves.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto
from onnx_graphs import TOLERANCE, by_runtime, images, imported
from onnx_middles import CHANNELS, CLASSES, HEAD, SIDE, Numbers, exported, network, node
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.guard import MOST_COUNTED


def assert_as_the_file(
    model: ModelProto, colours: int = 3, *, turned: bool = False, count: int = 2
) -> None:
    contents = model.SerializeToString()
    module, shape, _, _ = imported(contents)
    assert shape == (colours, SIDE, SIDE)
    pixels = images(count, shape)
    given = pixels.permute(0, 2, 3, 1).contiguous() if turned else pixels
    with torch.no_grad():
        got = module(pixels)
        two = module(images(2, shape))
    assert got.shape == (count, CLASSES)
    assert two.shape == (2, CLASSES)
    expected = by_runtime(contents, given).reshape(count, CLASSES)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def to_shape(*computed: NodeProto) -> tuple[NodeProto, ...]:
    """A head whose Reshape has a computed shape, ``t``."""
    return (
        HEAD[0],
        *computed,
        node("Reshape", ["g", "t"], ["f"]),
        HEAD[2],
    )


COMPUTED: dict[str, tuple[tuple[NodeProto, ...], Numbers]] = {
    "ReduceProd": (
        (
            node("Shape", ["g"], ["s"]),
            node("Slice", ["s", "one", "four"], ["tail"]),
            node("ReduceProd", ["tail"], ["p"], keepdims=1),
            node("Concat", ["minus", "p"], ["t"], axis=0),
        ),
        {"one": [1], "four": [4], "minus": [-1]},
    ),
    "Range": (
        (
            node("Range", ["zero", "two", "one"], ["r2"]),
            node("Mul", ["r2", "size"], ["at"]),
            node("Add", ["at", "minus"], ["t"]),
        ),
        {"zero": 0, "two": 2, "one": 1, "size": CHANNELS + 1, "minus": -1},
    ),
    "CumSum": (
        (node("CumSum", ["v", "axis"], ["t"]),),
        {"v": [-1, CHANNELS + 1], "axis": 0},
    ),
    "ScatterND": (
        (node("ScatterND", ["v", "at", "new"], ["t"]),),
        {"v": [-1, 7], "at": [[1]], "new": [CHANNELS]},
    ),
    "Round, Sign, CastLike": (
        (
            node("Round", ["v"], ["v1"]),
            node("Sign", ["v1"], ["v2"]),
            node("Mul", ["v2", "by"], ["v3"]),
            node("CastLike", ["v3", "like"], ["t"]),
        ),
        {"v": [-0.7, 3.2], "by": [1.0, float(CHANNELS)], "like": [0]},
    ),
    "NonZero": (
        (
            node("NonZero", ["mask"], ["at"]),
            node("Squeeze", ["at", "zeros"], ["at1"]),
            node("Gather", ["v", "at1"], ["t"], axis=0),
        ),
        {"mask": [1, 0, 1], "zeros": [0], "v": [-1, 3, CHANNELS]},
    ),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_shapes_may_be_computed_by_any_arithmetic(name: str) -> None:
    nodes, numbers = COMPUTED[name]
    assert_as_the_file(network(head=to_shape(*nodes), numbers=numbers))


@pytest.mark.parametrize("kind", ["Trilu", "EyeLike"])
def test_constants_may_be_cut_from_others(kind: str) -> None:
    middle = (node(kind, ["ones"], ["cut"]), node("Mul", ["r", "cut"], ["m"]))
    assert_as_the_file(network(middle=middle, numbers={"ones": np.ones((SIDE, SIDE))}))


@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [1, 2, 3]])
def test_planes_or_images_are_brought_to_mean_0_and_variance_1(axes: list[int]) -> None:
    norm = node("MeanVarianceNormalization", ["b"], ["n"], axes=axes)
    # Beside the others: a plane's mean alone would tell nothing, since it is 0.
    before, after = node("Add", ["r", "k"], ["b"]), node("Mul", ["n", "r"], ["m"])
    numbers = {"k": np.linspace(-1, 1, SIDE)}
    assert_as_the_file(network(middle=(before, norm, after), numbers=numbers))


@pytest.mark.parametrize("kind", ["Sin", "Cos", "Sign", "Round", "Floor", "Ceil", "Atan", "Sinh"])
def test_functions_of_each_number(kind: str) -> None:
    scaled = node("Mul", ["r", "five"], ["r5"])
    middle = (scaled, node(kind, ["r5"], ["k"]), node("Add", ["r", "k"], ["m"]))
    # By a number that puts none near where these jump.
    assert_as_the_file(network(middle=middle, numbers={"five": 5.0}))


@pytest.mark.parametrize("opset", [21, 22])
def test_group_norms_of_newer_opsets(opset: int) -> None:
    norm = node("GroupNormalization", ["r", "scale", "shift"], ["m"], num_groups=2)
    numbers = {"scale": np.linspace(0.5, 2, CHANNELS), "shift": np.linspace(-1, 1, CHANNELS)}
    assert_as_the_file(network(middle=(norm,), numbers=numbers, opset=opset))


@pytest.mark.parametrize("like", ["k", "image"])
def test_a_cast_of_numbers_of_the_image_to_their_own_kind_is_none(like: str) -> None:
    """As PyTorch's newer exporter writes it at opsets 18 to 20, to the kind of a constant."""
    middle = (node("CastLike", ["r", like], ["m"]),)
    assert_as_the_file(network(middle=middle, numbers={"k": 1.0}))


class Standardised(nn.Module):
    """A network of convolutions whose weights are standardised, as those of NFNet and BiT are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, CHANNELS, 3), nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        weight = self.conv.weight.reshape(1, CHANNELS, -1)
        weight = functional.batch_norm(weight, None, None, training=True, momentum=0, eps=1e-6)
        planes = functional.conv2d(images, weight.reshape_as(self.conv.weight), self.conv.bias)
        return self.head(planes.relu().mean((2, 3)))


# The exporter is deprecated, warns of the layer in training mode, and is what files are made with.
@pytest.mark.filterwarnings("ignore")
def test_weights_may_be_standardised_as_a_batch_in_training_is() -> None:
    torch.manual_seed(0)
    module = Standardised().eval()
    read, shape, _, _ = imported(exported(module, free=True))
    pixels = images(2, shape)
    with torch.no_grad():
        torch.testing.assert_close(read(pixels), module(pixels), rtol=TOLERANCE, atol=TOLERANCE)


MASKS: dict[str, tuple[tuple[NodeProto, ...], Numbers]] = {
    "added": (
        (node("Add", ["r", "hide"], ["h"]),),
        {"hide": np.triu(np.full((SIDE, SIDE), -np.inf), 1)},
    ),
    "put": (
        (
            node("Cast", ["seen"], ["b"], to=TensorProto.BOOL),
            node("Where", ["b", "r", "none"], ["h"]),
        ),
        {"seen": np.tri(SIDE), "none": -np.inf},
    ),
}


@pytest.mark.parametrize("how", MASKS)
def test_places_are_hidden_from_a_softmax_by_minus_infinity(how: str) -> None:
    nodes, numbers = MASKS[how]
    middle = (*nodes, node("Softmax", ["h"], ["s"], axis=-1), node("Mul", ["s", "r"], ["m"]))
    assert_as_the_file(network(middle=middle, numbers=numbers))


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_no_other_number_that_is_not_finite_is_taken(number: float) -> None:
    middle = (node("Min", ["r", "k"], ["m"]),)
    with pytest.raises(InputRejectedError, match="NaN or infinite numbers"):
        imported(network(middle=middle, numbers={"k": number}).SerializeToString())


TURN = node("Transpose", ["t"], ["x"], perm=[0, 3, 1, 2])
AS_CAMERAS_GIVE: dict[str, tuple[tuple[NodeProto, ...], Numbers]] = {
    "colours in another order": ((node("Gather", ["image", "bgr"], ["t"], axis=3), TURN), {}),
    "colours turned round": (
        (node("Slice", ["image", "last", "far", "three", "last"], ["t"]), TURN),
        {"last": [-1], "far": [-99], "three": [3]},
    ),
    "colours taken apart": (
        (
            node("Split", ["image", "ones"], ["r0", "g0", "b0"], axis=3),
            node("Concat", ["b0", "g0", "r0"], ["t"], axis=3),
            TURN,
        ),
        {"ones": [1, 1, 1]},
    ),
    "resized": (
        (node("Resize", ["image", "", "twice"], ["t"], mode="linear"), TURN),
        {"twice": [1.0, 2.0, 1.5, 1.0]},
    ),
    "by functions of each number": (
        (
            node("Max", ["image", "least"], ["above"]),
            node("Log", ["above"], ["log"]),
            node("Relu", ["log"], ["t"]),
            TURN,
        ),
        {"least": 0.01},
    ),
    "each by its own mean and deviation": (
        (
            node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=1),
            node("Sub", ["image", "mean"], ["d"]),
            node("Mul", ["d", "d"], ["dd"]),
            node("ReduceMean", ["dd"], ["variance"], axes=[1, 2, 3], keepdims=1),
            node("Sqrt", ["variance"], ["deviation"]),
            node("Max", ["deviation", "least"], ["scale"]),
            node("Div", ["d", "scale"], ["t"]),
            TURN,
        ),
        {"least": 0.01},
    ),
}


@pytest.mark.parametrize("name", AS_CAMERAS_GIVE)
def test_channels_last_that_are_changed_before_they_are_turned(name: str) -> None:
    before, numbers = AS_CAMERAS_GIVE[name]
    model = network(
        before=before, numbers={"bgr": [2, 1, 0], **numbers}, shape=("n", SIDE, SIDE, 3)
    )
    assert_as_the_file(model, turned=True)


def test_channels_last_behind_what_tells_of_no_order_are_refused() -> None:
    """Taken for sixteen channels, they were asked sixteen means for, along another axis."""
    before = (node("Softmax", ["image"], ["t"], axis=3), TURN)
    model = network(before=before, shape=("n", SIDE, SIDE, 3))
    with pytest.raises(InputRejectedError, match=r"Softmax node 't': it comes before .* \[n, h"):
        imported(model.SerializeToString())


def test_channels_last_of_one_channel_are_turned_by_a_reshape() -> None:
    before = (node("Reshape", ["image", "planes"], ["x"]),)
    numbers = {"planes": [-1, 1, SIDE, SIDE]}
    model = network(before=before, numbers=numbers, shape=("n", SIDE, SIDE, 1))
    assert_as_the_file(model, 1, turned=True)


def test_planes_of_other_channels_last_are_resized_too() -> None:
    middle = (
        node("Transpose", ["r"], ["last"], perm=[0, 2, 3, 1]),
        node("Resize", ["last", "", "twice"], ["resized"], mode="linear"),
        node("Transpose", ["resized"], ["m"], perm=[0, 3, 1, 2]),
    )
    assert_as_the_file(network(middle=middle, numbers={"twice": [1.0, 1.5, 0.5, 1.0]}))


def test_an_image_alone_is_flattened_whole() -> None:
    head = (HEAD[0], node("Flatten", ["g"], ["f"], axis=0), HEAD[2])
    assert_as_the_file(network(head=head, shape=(1, 3, SIDE, SIDE), out=(1, CLASSES)))


@pytest.mark.parametrize("opset", [11, 17])
def test_a_squeeze_that_leaves_its_axes_to_the_shapes(opset: int) -> None:
    head = (HEAD[0], node("Squeeze", ["g"], ["f"]), HEAD[2])
    assert_as_the_file(network(head=head, opset=opset))


def test_a_squeeze_that_finds_no_axis_changes_nothing() -> None:
    """The file itself fails on one image, whose axis is taken, and not on two."""
    squeezed = imported(network(middle=(node("Squeeze", ["r"], ["m"]),)).SerializeToString())
    plain = imported(network().SerializeToString())
    pixels = images(2, plain.shape)
    with torch.no_grad():
        assert torch.equal(squeezed.module(pixels), plain.module(pixels))


def test_a_squeeze_of_what_is_no_image_is_left_as_it_is() -> None:
    """A side of a shape, as [1], becomes a number; it has no images to keep the axis of."""
    middle = (
        node("Shape", ["r"], ["s"]),
        node("Slice", ["s", "one", "two"], ["side"]),
        node("Squeeze", ["side"], ["number"]),
        node("Sub", ["number", "one0"], ["last"]),
        node("Gather", ["r", "last"], ["plane"], axis=1),  # of three axes
        node("Unsqueeze", ["plane", "one"], ["plane4"]),
        node("Add", ["r", "plane4"], ["m"]),
    )
    assert_as_the_file(network(middle=middle, numbers={"one": [1], "two": [2], "one0": 1}))


def test_a_reshape_of_grey_images_that_are_not_last_turns_nothing() -> None:
    before = (node("Reshape", ["image", "line"], ["x"]),)
    model = network(before=before, numbers={"line": [-1, 1, SIDE, 1]}, shape=("n", 1, SIDE, 1))
    contents = model.SerializeToString()
    module, shape, notes, _ = imported(contents)
    assert (shape, notes) == ((1, SIDE, 1), ())
    pixels = images(2, shape)
    expected = by_runtime(contents, pixels)
    torch.testing.assert_close(module(pixels).detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("after", [(), (node("Unsqueeze", ["flat", "zeros"], ["logits"]),)])
def test_a_squeeze_that_takes_the_axis_of_one_image_too(after: tuple[NodeProto, ...]) -> None:
    head = (
        HEAD[0],
        node("Squeeze", ["g"], ["f"]),
        node("MatMul", ["f", "w2t"], ["flat" if after else "logits"]),
        *after,
    )
    model = network(
        head=head,
        numbers={"zeros": [0]},
        shape=(1, 3, SIDE, SIDE),
        out=(1, CLASSES) if after else (CLASSES,),
    )
    assert_as_the_file(model, count=1)


class Shuffle(nn.Module):
    """As the authors of ShuffleNetV2 write it: the halves of the channels, in turns."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.last = nn.Linear(CHANNELS, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images).relu()
        count, channels, height, width = x.shape
        x = x.reshape(count * channels // 2, 2, height * width).permute(1, 0, 2)
        x = x.reshape(2, -1, channels // 2, height, width)
        return self.last(self.second(torch.cat((x[0], x[1]), 1)).relu().mean((2, 3)))


# The exporter is deprecated, warns of the constants that it makes, and is what files are made with.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("free", [False, True])
def test_channels_that_are_shuffled_along_the_axis_of_the_images(free: bool) -> None:
    torch.manual_seed(0)
    module = Shuffle().eval()
    network, shape, _, _ = imported(exported(module, free=free))
    pixels = images(3, shape)
    with torch.no_grad():
        expected, got = module(pixels), network(pixels)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("count", [MOST_COUNTED + 1, 2**40])
def test_a_range_makes_so_many_numbers(count: int) -> None:
    """Three numbers of a file would become gigabytes of weights."""
    middle = (
        node("Range", ["zero", "count", "one"], ["many"]),
        node("ReduceSum", ["many"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
        node("Add", ["r", "number"], ["m"]),
    )
    model = network(middle=middle, numbers={"zero": 0, "one": 1, "count": count})
    with pytest.raises(InputRejectedError, match=rf"Range node 'many': it makes {count} numbers"):
        imported(model.SerializeToString())


def test_a_range_of_unknown_length_is_refused() -> None:
    middle = (
        node("NonZero", ["mask"], ["places"]),
        node("ReduceMax", ["places"], ["count"], keepdims=0),
        node("Range", ["zero", "count", "one"], ["many"]),
        node("ReduceSum", ["many"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
        node("Add", ["r", "number"], ["m"]),
    )
    numbers = {"zero": 0, "one": 1, "mask": [1, 0, 1]}
    with pytest.raises(InputRejectedError, match="it makes an unknown number of numbers"):
        imported(network(middle=middle, numbers=numbers).SerializeToString())


class Counting(nn.Module):
    """Code that counts along its images: the length of each Range is computed of their shape."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.unfold, self.places = nn.Unfold(3, padding=1), nn.Embedding(2 * SIDE, SIDE // 2)
        self.head = nn.Linear(9 * CHANNELS if how == "Unfold" else CHANNELS, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        planes = self.first(pixels).relu()
        tall, wide = planes.shape[2:]
        if self.how == "Unfold":
            return self.head(self.unfold(planes).mean(2))
        counted = {
            "whole": lambda: torch.arange(wide),
            "float": lambda: torch.arange(wide, dtype=torch.float32),
            "linspace": lambda: torch.linspace(0, 1, wide),
            "product": lambda: torch.arange(tall * wide).view(tall, wide),
            "step": lambda: torch.arange(1, 2 * wide, 2),
            "down": lambda: torch.arange(wide, 0, -1),
            "places": lambda: self.places(torch.arange(tall)),
        }[self.how]()
        return self.head((planes * counted).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    "how", ["whole", "float", "linspace", "product", "step", "down", "places", "Unfold"]
)
def test_a_range_may_be_as_long_as_a_shape_says(how: str, free: bool) -> None:
    torch.manual_seed(0)
    module = Counting(how).eval()
    read, shape, _, _ = imported(exported(module, free=free))
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(
            read(pixels), module(pixels), rtol=TOLERANCE, atol=TOLERANCE, check_dtype=False
        )


@pytest.mark.parametrize("times", [1, 2**20])
@pytest.mark.parametrize("opset", [11, 17])  # axes were attributes, and are inputs
def test_a_range_of_a_computed_length_is_bounded_as_well(times: int, opset: int) -> None:
    """By a Mul of whole numbers, which ONNX's own inference does not follow."""
    axes = ([], {"axes": [0]}) if opset < 13 else (["zeros"], {})
    middle = (
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "last"], ["wide"]),
        node("Cast", ["wide"], ["wide_f"], to=TensorProto.FLOAT),
        node("Mul", ["wide_f", "times"], ["counts_f"]),
        node("Unsqueeze", ["counts_f", *axes[0]], ["row"], **axes[1]),
        node("Squeeze", ["row", *axes[0]], ["count_f"], **axes[1]),
        node("Cast", ["count_f"], ["count"], to=TensorProto.INT64),
        node("Range", ["zero", "count", "one"], ["many"]),
        node("ReduceSum", ["many"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["number"], to=TensorProto.FLOAT),
        node("Add", ["r", "number"], ["m"]),
    )
    numbers = {"zero": 0, "one": 1, "last": 3, "times": float(times), "zeros": [0]}
    contents = network(middle=middle, numbers=numbers, opset=opset).SerializeToString()
    if times == 1:
        read, shape, _, _ = imported(contents)
        pixels = images(3, shape)
        with torch.no_grad():
            torch.testing.assert_close(
                read(pixels), by_runtime(contents, pixels), rtol=TOLERANCE, atol=TOLERANCE
            )
    else:
        with pytest.raises(InputRejectedError, match=f"it makes {SIDE * times} numbers; at most"):
            imported(contents)


@pytest.mark.parametrize("axis", [2, 3, -1])
def test_planes_may_be_laid_out_as_rows_by_flatten(axis: int) -> None:
    """As LeViT does to normalise its tokens."""
    middle = (
        node("Flatten", ["r"], ["rows"], axis=axis),
        node("Softmax", ["rows"], ["shares"], axis=1),
        node("Reshape", ["shares", "planes"], ["m"]),
    )
    contents = network(
        middle=middle, numbers={"planes": [-1, CHANNELS, SIDE, SIDE]}
    ).SerializeToString()
    read, shape, _, _ = imported(contents)
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(
            read(pixels), by_runtime(contents, pixels), rtol=TOLERANCE, atol=TOLERANCE
        )
