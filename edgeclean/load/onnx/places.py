"""ONNX operators that move numbers to other places, leave some out, or repeat them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from edgeclean.load.onnx.modules import Concat
from edgeclean.load.onnx.moves import (
    Blocks,
    Expand,
    Pad,
    Reshape,
    Slice,
    Take,
    Tile,
    Transpose,
    Triangle,
)
from edgeclean.load.onnx.node import NodeView

HUGE = 2**31  # ends of slices beyond any axis, such as INT64_MAX


def concat(view: NodeView) -> nn.Module:
    """Convert Concat of values, and of constants at any place among them."""
    axis = view.axis(int(view.attribute("axis")))
    constants = view.constants_of(elementwise=False)
    value = next(place for place in range(len(view.node.input)) if place not in constants)
    rows = view.shape(value)[0]
    for place, number in constants.items():
        if number.dim() != len(view.shape(value)) or number.shape[0] != rows:
            raise view.refusal(
                f"a constant of shape {tuple(number.shape)} beside a value of {view.shape(value)}"
            )
        if rows == view.batch and torch.equal(number, number[:1].expand_as(number)):
            constants[place] = number[:1]
        elif view.batch > 1:
            raise view.refusal("a constant gives each image of a batch other numbers")
    return Concat(axis, len(view.node.input), constants)


def slice_(view: NodeView) -> nn.Module:
    """Convert Slice with constant bounds; one with a step below zero takes its indices."""
    starts, ends = view.integers("starts", 1) or [], view.integers("ends", 2) or []
    axes = view.integers("axes", 3) or list(range(len(starts)))
    steps = view.integers("steps", 4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise view.refusal("bounds of different lengths, or a step of zero")
    cuts, backwards = [], []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if axis in (0, -len(view.shape())) and _is_whole(start, end, step):
            continue
        place = view.axis(axis)
        if step > 0:
            cuts.append((place, start, max(-HUGE, min(end, HUGE)), step))
        else:
            indices = range(view.shape()[place])[slice(start, _below(view, place, end), step)]
            backwards.append(Take(place, torch.tensor(list(indices), dtype=torch.int64)))
    forwards = [Slice(tuple(cuts))] if cuts or not backwards else []
    return _all_of([*forwards, *backwards])


def split(view: NodeView) -> list[nn.Module]:
    """Convert Split: a slice for each output."""
    axis = view.axis(int(view.attribute("axis", 0)))
    sizes = view.integers("split", 1)
    outputs = len(view.node.output)
    side = view.shape()[axis]
    if not sizes:
        each = -(-side // outputs)
        sizes = [min(each, side - each * index) for index in range(outputs)]
    if len(sizes) != outputs or sum(sizes) != side or min(sizes) < 0:
        raise view.refusal(f"parts of {sizes}, for {outputs} outputs and an axis of {side}")
    ends = itertools.accumulate(sizes)
    return [Slice(((axis, end - size, end, 1),)) for size, end in zip(sizes, ends, strict=True)]


def gather(view: NodeView) -> nn.Module:
    """Convert Gather of an axis by constant indices; a single index drops the axis."""
    axis = view.axis(int(view.attribute("axis", 0)))
    indices = view.constant(1).to(torch.int64)
    side = view.shape()[axis]
    if bool(((indices < -side) | (indices >= side)).any()):
        raise view.refusal(f"an index is outside of the axis of {side}")
    taken = Take(
        axis, torch.where(indices < 0, indices + side, indices).reshape(indices.shape or 1)
    )
    if indices.dim():
        return taken
    return nn.Sequential(taken, Reshape(view.shapes[view.node.output[0]][1:]))


def pad(view: NodeView) -> nn.Module:
    """Convert Pad behind the batch axis: by a constant, or of a plane by what it holds."""
    mode = view.attribute("mode", b"constant")
    widths = view.integers("pads", 1) or []
    axes = len(view.shape())
    if view.given(3):
        widths = _scattered(view, widths, view.integers("axes", 3) or [])
    if len(widths) != 2 * axes or widths[0] or widths[axes]:
        raise view.refusal("only constant padding of all axes but the batch axis is supported")
    paired = [(widths[axis], widths[axis + axes]) for axis in reversed(range(1, axes))]
    flat = tuple(width for pair in paired for width in pair)
    if mode == b"constant":
        number = float(view.constant(2)) if view.given(2) else float(view.attribute("value", 0.0))
        return Pad(flat, number)
    if view.given(2):
        view.constant(2)  # means nothing in the other modes
    kinds: dict[bytes, Callable[[tuple[int, int, int, int]], nn.Module]] = {
        b"reflect": nn.ReflectionPad2d,
        b"edge": nn.ReplicationPad2d,
        b"wrap": nn.CircularPad2d,
    }
    if mode not in kinds or axes != 4 or any(flat[4:]) or min(flat) < 0:
        raise view.refusal(
            f"mode {mode[:20]!r}; beside only constant padding, reflect, edge and wrap around "
            "height and width are supported"
        )
    return kinds[mode]((flat[0], flat[1], flat[2], flat[3]))


def reshape(view: NodeView) -> nn.Module:
    """Convert Reshape, Squeeze and Unsqueeze to the inferred shape, the first axis left free.

    Numbers keep their order, so a batch only makes the first axis longer, also where that axis
    holds rows of an image rather than images.
    """
    if view.given(1):
        view.constant(1)
    return Reshape(view.shapes[view.node.output[0]][1:])


def flatten(view: NodeView) -> nn.Module:
    """Convert Flatten behind the batch axis; of one image alone, all its axes are behind.

    At a later axis the axes before it become the first: rows of the images, as `reshape` makes.
    """
    axis = int(view.attribute("axis", 1))
    if axis in (0, -len(view.shape())) and view.shape()[0] == 1:
        return nn.Flatten()
    if view.axis(axis) > 1:
        return Reshape(view.shapes[view.node.output[0]][1:])
    return nn.Flatten()


def transpose(view: NodeView) -> nn.Module:
    """Convert Transpose of the axes behind the batch axis."""
    order = [int(axis) for axis in view.attribute("perm", [])]
    if not order or order[0] != 0:
        raise view.refusal(f"order {order}, which moves the batch axis")
    return Transpose(tuple(order))


def expand(view: NodeView) -> nn.Module:
    """Convert Expand of axes behind the batch axis."""
    view.constant(1)
    before, after = view.shape(), view.shapes[view.node.output[0]]
    if len(before) != len(after) or before[0] != after[0]:
        raise view.refusal(f"{before} to {after}, which changes the batch axis")
    return Expand(after[1:])


def tile(view: NodeView) -> nn.Module:
    """Convert Tile of axes behind the batch axis."""
    times = view.integers("repeats", 1) or []
    if len(times) != len(view.shape()) or times[0] != 1 or min(times) < 1:
        raise view.refusal(f"repeats {times}; the batch axis must stay as it is")
    return Tile(tuple(times[1:]))


def triangle(view: NodeView) -> nn.Module:
    """Convert Trilu of the last two of at least three axes."""
    view.axis(-2)
    diagonal = int(view.constant(1)) if view.given(1) else 0
    return Triangle(diagonal, upper=bool(view.attribute("upper", 1)))


def depth_to_space(view: NodeView) -> nn.Module:
    """Convert DepthToSpace; in the order "CRD" it is torch's PixelShuffle."""
    side = int(view.attribute("blocksize"))
    mode = view.attribute("mode", b"DCR")
    if mode not in (b"DCR", b"CRD"):
        raise view.refusal(f"mode {mode[:20]!r}; DCR and CRD are supported")
    return nn.PixelShuffle(side) if mode == b"CRD" else Blocks(side, to_depth=False)


def space_to_depth(view: NodeView) -> nn.Module:
    """Convert SpaceToDepth."""
    return Blocks(int(view.attribute("blocksize")), to_depth=True)


def dropout(view: NodeView) -> nn.Module:
    """Convert Dropout, which does nothing in evaluation mode.

    Raises:
        InputRejectedError: the graph asks for it in inference as well.
    """
    if view.given(1):
        view.constant(1)
    if view.given(2) and bool(view.constant(2)):
        raise view.refusal("it is in training mode; export the network in evaluation mode")
    return nn.Identity()


def _all_of(modules: list[nn.Module]) -> nn.Module:
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _is_whole(start: int, end: int, step: int) -> bool:
    """Return whether a slice of the batch axis leaves it as it is, at any length."""
    return start == 0 and end >= min(HUGE, 2**31 - 1) and step == 1


def _below(view: NodeView, axis: int, end: int) -> int | None:
    """Return the end of a backward slice as Python means it: None is before the first index."""
    return None if end < -view.shape()[axis] else end


def _scattered(view: NodeView, widths: list[int], axes: list[int]) -> list[int]:
    """Return the widths of all axes where only those of some were given."""
    if len(widths) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise view.refusal(f"{len(widths)} widths for {len(axes)} axes")
    everywhere = [0] * (2 * len(view.shape()))
    for place, axis in enumerate(axes):
        where = view.axis(axis)
        everywhere[where] = widths[place]
        everywhere[where + len(view.shape())] = widths[place + len(axes)]
    return everywhere


PLACES: dict[str, Callable[[NodeView], nn.Module | list[nn.Module]]] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Identity": lambda view: nn.Identity(),
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": reshape,
}
