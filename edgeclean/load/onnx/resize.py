"""ONNX's Resize and Upsample of planes, by the formulas of its operator schema.

Resizing is linear in the pixels and works on each side alone, so that a matrix for each side holds
any of its modes exactly; where torch has the same as a layer, that layer is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edgeclean.load.onnx.modules import Interpolate, Take
from edgeclean.load.onnx.node import NodeView

CUBIC = -0.75


def resize(view: NodeView) -> nn.Module:
    """Convert Resize (from opset 10) and Upsample (before), of height and width.

    Raises:
        InputRejectedError: another axis is resized, or in a mode that is not linear alone.
    """
    before, after = view.shape(), view.shapes[view.node.output[0]]
    _read_sizes(view)
    if len(before) != 4 or len(after) != 4 or before[:2] != after[:2]:
        raise view.refusal(f"{before} to {after}; only height and width may be resized")
    mode = view.attribute("mode", b"nearest")
    where = _coordinates(view)
    plain = ("exclude_outside", "antialias", "keep_aspect_ratio_policy")
    if mode not in (b"nearest", b"linear", b"cubic") or any(
        view.attribute(name, 0) not in (0, b"stretch") for name in plain
    ):
        raise view.refusal(f"mode {mode[:20]!r} with {', '.join(plain)} beside their defaults")
    sides = list(zip(before[2:], after[2:], _scales(view), strict=True))
    if mode == b"nearest":
        return _nearest(view, where, sides)
    layer = _stock(mode, where, before, after, sides)
    if layer is not None:
        return layer
    weights = _linear if mode == b"linear" else _cubic
    a = view.attribute("cubic_coeff_a", CUBIC)
    rows, columns = (
        _matrix([_place(where, *side, index) for index in range(side[1])], side[0], weights, a)
        for side in sides
    )
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
    if where not in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        raise view.refusal(f"coordinate_transformation_mode {where[:40]!r} is not supported")
    return where


def _scales(view: NodeView) -> tuple[float, float]:
    """Return the scales of height and width: those given, or what the sizes make."""
    index = 1 if view.node.op_type == "Upsample" or view.opset < 11 else 2
    given = view.attribute("scales")
    if given is None and view.given(index) and view.constant(index).numel():
        given = view.floats(index).tolist()
    before, after = view.shape(), view.shapes[view.node.output[0]]
    if given is None:
        return after[2] / before[2], after[3] / before[3]
    axes = view.attribute("axes", list(range(4)))
    by_axis = {axis % 4: float(scale) for axis, scale in zip(axes, given, strict=True)}
    return by_axis.get(2, 1.0), by_axis.get(3, 1.0)


def _place(where: str, old: int, new: int, scale: float, index: int) -> float:
    """Return where on the old side, counted in its pixels, a new pixel lies."""
    # In float32, as runtimes do: the middle between two pixels is theirs.
    ratio, half = np.float32(scale), np.float32(0.5)
    if where == "align_corners":
        return 0.0 if new == 1 else float(np.float32(index * (old - 1)) / np.float32(new - 1))
    if where == "asymmetric":
        return float(np.float32(index) / ratio)
    if where == "pytorch_half_pixel" and new == 1:
        return 0.0
    return float((np.float32(index) + half) / ratio - half)


def _nearest(view: NodeView, where: str, sides: list[tuple[int, int, float]]) -> nn.Module:
    default = b"floor" if where == "asymmetric" and view.opset < 11 else b"round_prefer_floor"
    kinds: dict[bytes, Callable[[float], int]] = {
        b"round_prefer_floor": lambda place: math.ceil(place - 0.5),
        b"round_prefer_ceil": lambda place: math.floor(place + 0.5),
        b"floor": math.floor,
        b"ceil": math.ceil,
    }
    rounding = view.attribute("nearest_mode", default)
    if rounding not in kinds:
        raise view.refusal(f"nearest_mode {rounding[:40]!r} is not supported")
    chosen = [
        [
            min(max(kinds[rounding](_place(where, *side, index)), 0), side[0] - 1)
            for index in range(side[1])
        ]
        for side in sides
    ]
    factors = {new / old for old, new, _ in sides}
    repeated = [[index * old // new for index in range(new)] for old, new, _ in sides]
    if chosen == repeated and len(factors) == 1 and min(factors).is_integer():
        return nn.Upsample(scale_factor=min(factors), mode="nearest")
    takes = [Take(axis, torch.tensor(one)) for axis, one in zip((2, 3), chosen, strict=True)]
    return nn.Sequential(*takes)


def _stock(
    mode: bytes,
    where: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    sides: list[tuple[int, int, float]],
) -> nn.Module | None:
    """Return torch's own layer where it computes the same."""
    exact = all(math.isclose(old * scale, new, rel_tol=1e-6) for old, new, scale in sides)
    corners = where == "align_corners"
    if where == "asymmetric" or not exact or (not corners and 1 in after[2:]):
        return None
    kind = "bilinear" if mode == b"linear" else "bicubic"
    return nn.Upsample(size=(after[2], after[3]), mode=kind, align_corners=corners)


def _matrix(
    places: list[float], old: int, weights: Callable[[float, float], dict[int, float]], a: float
) -> Tensor:
    """Return the matrix [new, old] of one side; pixels beyond the rim are those at the rim."""
    matrix = torch.zeros(len(places), old, dtype=torch.float64)
    for row, place in enumerate(places):
        start = math.floor(place)
        for offset, weight in weights(place - start, a).items():
            matrix[row, min(max(start + offset, 0), old - 1)] += weight
    return matrix.float()


def _linear(part: float, _a: float) -> dict[int, float]:
    return {0: 1 - part, 1: part}


def _cubic(part: float, a: float) -> dict[int, float]:
    """Keys 1981, with the coefficient ``a``."""

    def near(x: float) -> float:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return {-1: far(part + 1), 0: near(part), 1: near(1 - part), 2: far(2 - part)}


RESIZES: dict[str, Callable[[NodeView], nn.Module]] = dict.fromkeys(("Resize", "Upsample"), resize)
