"""ONNX's Resize and Upsample of planes, by the formulas of its operator schema.

Resizing is linear in the pixels and works on each side alone, so that a matrix for each side holds
any of its modes exactly; where torch has the same as a layer, that layer is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgeclean.load.onnx.modules import Interpolate
from edgeclean.load.onnx.moves import Take, Transpose
from edgeclean.load.onnx.node import NodeView

CUBIC = -0.75
_WHERE = (
    *("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"),
    *("half_pixel_symmetric", "tf_half_pixel_for_nn"),
)
Places = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def resize(view: NodeView) -> nn.Module:
    """Convert Resize (from opset 10) and Upsample (before), of height and width.

    These are the last two axes of four, or the two before the channels of an image that is resized
    before it is turned.

    Raises:
        InputRejectedError: another axis is resized, or in a mode that is not linear alone.
    """
    before, after = view.shape(), view.shapes[view.node.output[0]]
    _read_sizes(view)
    if len(before) == len(after) == 4 and before[:2] == after[:2]:
        return _resize_planes(view, 2)
    if len(before) == len(after) == 4 and (before[0], before[3]) == (after[0], after[3]):
        turned, back = Transpose((0, 3, 1, 2)), Transpose((0, 2, 3, 1))
        return nn.Sequential(turned, _resize_planes(view, 1), back)
    raise view.refusal(f"{before} to {after}; only height and width may be resized")


def _resize_planes(view: NodeView, first: int) -> nn.Module:
    """Return the layer for planes [n, c, h, w], which are axis ``first`` and the next here."""
    mode = view.attribute("mode", b"nearest")
    where = _coordinates(view)
    plain = ("exclude_outside", "antialias", "keep_aspect_ratio_policy")
    if mode not in (b"nearest", b"linear", b"cubic") or any(
        view.attribute(name, 0) not in (0, b"stretch") for name in plain
    ):
        raise view.refusal(f"mode {mode[:20]!r} with {', '.join(plain)} beside their defaults")
    before, after = view.shape()[first:], view.shapes[view.node.output[0]][first:]
    sides = list(zip(before[:2], after[:2], _scales(view, first), strict=True))
    if mode == b"nearest":
        return _nearest(view, where, sides)
    layer = _stock(mode, where, sides)
    if layer is not None:
        return layer
    weights = _linear if mode == b"linear" else _cubic
    a = view.attribute("cubic_coeff_a", CUBIC)
    rows, columns = (_matrix(_places(where, *side), side[0], weights, a) for side in sides)
    return Interpolate(rows, columns)


def _read_sizes(view: NodeView) -> None:
    """Read all constants, so that none counts as left out; shapes are inferred from them."""
    for index in range(1, len(view.node.input)):
        if view.given(index):
            view.constant(index)


def _coordinates(view: NodeView) -> str:
    """Return how an output's place is one of the input, in the schema's words."""
    if view.node.op_type == "Upsample" or view.opset < 11:
        return "asymmetric"
    where: str = view.attribute("coordinate_transformation_mode", b"half_pixel").decode("ascii")
    if where not in _WHERE:
        raise view.refusal(f"coordinate_transformation_mode {where[:40]!r} is not supported")
    return where


def _scales(view: NodeView, first: int) -> tuple[float, float]:
    """Return the scales of an axis and the next: those given, or what the sizes make."""
    index = 1 if view.node.op_type == "Upsample" or view.opset < 11 else 2
    given = view.attribute("scales")
    if given is None and view.given(index) and view.constant(index).numel():
        given = view.floats(index).tolist()
    before, after = view.shape(), view.shapes[view.node.output[0]]
    second = first + 1
    if given is None:
        return after[first] / before[first], after[second] / before[second]
    axes = view.attribute("axes", list(range(4)))
    by_axis = {axis % 4: float(scale) for axis, scale in zip(axes, given, strict=True)}
    return by_axis.get(first, 1.0), by_axis.get(second, 1.0)


def _places(where: str, old: int, new: int, scale: float) -> Places:
    """Return where on the old side, counted in its pixels, each of the new pixels lies.

    Raises:
        OverflowError: a pixel lies nowhere.
    """
    # In float32, as runtimes do: the middle between two pixels is theirs.
    index, ratio, half = np.arange(new), np.float32(scale), np.float32(0.5)
    if where == "align_corners":
        span = np.float32(max(1, new - 1))  # a single new pixel is the first old one
        places = (index * (old - 1)).astype(np.float32) / span
    elif where == "asymmetric":
        places = index.astype(np.float32) / ratio
    elif where == "pytorch_half_pixel" and new == 1:
        places = np.zeros(1, np.float32)
    elif where == "tf_half_pixel_for_nn":
        places = (index.astype(np.float32) + half) / ratio
    else:
        places = (index.astype(np.float32) + half) / ratio - half
        if where == "half_pixel_symmetric":  # about the middle, where a scale makes no whole side
            places += np.float32(old / 2) * (1 - np.float32(new) / (ratio * np.float32(old)))
    if not np.isfinite(places).all():
        raise OverflowError("a scale leaves pixels without a place")
    return places.astype(np.float64)


def _nearest(view: NodeView, where: str, sides: list[tuple[int, int, float]]) -> nn.Module:
    default = b"floor" if where == "asymmetric" and view.opset < 11 else b"round_prefer_floor"
    kinds: dict[bytes, Callable[[Places], Places]] = {
        b"round_prefer_floor": lambda places: np.ceil(places - 0.5),
        b"round_prefer_ceil": lambda places: np.floor(places + 0.5),
        b"floor": np.floor,
        b"ceil": np.ceil,
    }
    rounding = view.attribute("nearest_mode", default)
    if rounding not in kinds:
        raise view.refusal(f"nearest_mode {rounding[:40]!r} is not supported")
    chosen = [_within(kinds[rounding](_places(where, *side)), side[0]) for side in sides]
    factors = {new / old for old, new, _ in sides}
    if len(factors) == 1 and min(factors).is_integer() and _repeats(chosen, sides):
        return nn.Upsample(scale_factor=min(factors), mode="nearest")
    takes = [Take(axis, torch.from_numpy(one)) for axis, one in zip((2, 3), chosen, strict=True)]
    return nn.Sequential(*takes)


def _within(pixels: Places, old: int) -> Indices:
    """Return pixels as whole numbers; those beyond the rim are those at the rim."""
    # Before they are whole numbers: a place may be farther off than those reach.
    return np.minimum(np.maximum(pixels, 0), old - 1).astype(np.int64)


def _repeats(chosen: list[Indices], sides: list[tuple[int, int, float]]) -> bool:
    """Return whether each old pixel is repeated, all of them as often."""
    return all(
        np.array_equal(one, np.arange(new) * old // new)
        for one, (old, new, _) in zip(chosen, sides, strict=True)
    )


def _stock(mode: bytes, where: str, sides: list[tuple[int, int, float]]) -> nn.Module | None:
    """Return torch's own layer where it computes the same."""
    (_, height, _), (_, width, _) = sides
    exact = all(math.isclose(old * scale, new, rel_tol=1e-6) for old, new, scale in sides)
    corners = where == "align_corners"
    if (
        where in ("asymmetric", "tf_half_pixel_for_nn")
        or not exact
        or (not corners and 1 in (height, width))
    ):
        return None
    kind = "bilinear" if mode == b"linear" else "bicubic"
    return nn.Upsample(size=(height, width), mode=kind, align_corners=corners)


def _matrix(
    places: Places, old: int, weights: Callable[[Places, float], dict[int, Places]], a: float
) -> Tensor:
    """Return the matrix [new, old] of one side; `cost` counts it before it is made."""
    matrix = torch.zeros(len(places), old, dtype=torch.float64)
    rows = torch.arange(len(places))
    start = np.floor(places)
    for offset, weight in weights(places - start, a).items():
        # At the rim, several weights of one row come to one pixel, one after the other.
        matrix[rows, torch.from_numpy(_within(start + offset, old))] += torch.from_numpy(weight)
    return matrix.float()


def _linear(part: Places, _a: float) -> dict[int, Places]:
    return {0: 1 - part, 1: part}


def _cubic(part: Places, a: float) -> dict[int, Places]:
    """Keys 1981, with the coefficient ``a``."""

    def near(x: Places) -> Places:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Places) -> Places:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return {-1: far(part + 1), 0: near(part), 1: near(1 - part), 2: far(2 - part)}


RESIZES: dict[str, Callable[[NodeView], nn.Module]] = dict.fromkeys(("Resize", "Upsample"), resize)
