"""Weights that a state dict keeps in parts, put together as the network computes with them.

Pruning keeps a weight and its mask; weight normalisation (Salimans and Kingma 2016) a length and a
direction; spectral normalisation (Miyato et al. 2018) a weight and the vectors of its largest
singular value. Each has an older form and one of ``torch.nn.utils.parametrizations``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor

# The endings of the parts, with {} for the weight's own name; what is made of them; how it is told.
_Make = Callable[..., Tensor]


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != weight.shape:
        raise ValueError("a mask of another shape")
    return weight * mask.to(weight.dtype)


def _normed(length: Tensor, direction: Tensor) -> Tensor:
    if length.dim() and any(
        side not in (1, whole) for side, whole in zip(length.shape, direction.shape, strict=True)
    ):
        raise ValueError("lengths of another shape")
    axes = [axis for axis in range(direction.dim()) if length.dim() == 0 or length.shape[axis] == 1]
    norm: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    return direction * (length / norm)


def _spectral(weight: Tensor, left: Tensor, right: Tensor | None = None) -> Tensor:
    """Divide a weight by its largest singular value, which two vectors were kept for.

    The file does not say which axis is the matrix's rows: the first but for transposed
    convolutions, or whichever the code asked for. Where several have the length, it is the one
    whose singular vectors these are.
    """
    matrices = [
        weight.movedim(axis, 0).flatten(1)
        for axis, side in enumerate(weight.shape)
        if side == left.numel() and (right is None or right.numel() == weight.numel() // side)
    ]
    tried = sorted((_apart(one, left, right) for one in matrices), key=lambda one: one[0])
    if not tried or (len(tried) > 1 and tried[0][0] >= tried[1][0] / 2):
        raise ValueError("vectors of no axis, or of more than one")
    return weight / tried[0][1]


def _apart(matrix: Tensor, left: Tensor, right: Tensor | None) -> tuple[float, Tensor]:
    """Return how far vectors are from being a matrix's singular ones, and the value they give."""
    if right is None:
        right = torch.nn.functional.normalize(matrix.t() @ left, dim=0, eps=1e-12)
    made = matrix @ right
    return float((torch.nn.functional.normalize(made, dim=0) - left).norm()), left @ made


_FORMS: tuple[tuple[tuple[str, ...], _Make, str], ...] = (
    (("{}_orig", "{}_mask"), _masked, "pruned weights times their masks"),
    (("{}_g", "{}_v"), _normed, "weights of weight normalisation"),
    (
        ("parametrizations.{}.original0", "parametrizations.{}.original1"),
        _normed,
        "weights of weight normalisation",
    ),
    (("{}_orig", "{}_u", "{}_v"), _spectral, "weights of spectral normalisation"),
    (("{}_orig", "{}_u"), _spectral, "weights of spectral normalisation"),
    (
        tuple(f"parametrizations.{{}}.{part}" for part in ("original", "0._u", "0._v")),
        _spectral,
        "weights of spectral normalisation",
    ),
)


_RENAMED = "weights of weight normalisation under its other names"
# The parts of weight normalisation by their names in the older and in the newer form.
_NORMED_PARTS = _FORMS[1][0], _FORMS[2][0]


def whole_names(names: Collection[str]) -> set[str]:
    """Return the names of the weights whose parts are among the names."""
    return {whole for whole, *_ in _parts(names)}


def put_together(
    tensors: Mapping[str, Tensor], needed: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors with the needed weights in place of their parts, and what was done.

    Parts whose shapes do not belong together stay as they are.
    """
    result, counts = dict(tensors), dict[str, int]()
    _rename_parts_(result, needed, counts)
    for whole, parts, make, told in _parts(tensors):
        if whole not in needed or any(part in needed for part in parts):
            continue
        if not all(part in result for part in parts):
            continue  # of a form that was met before
        try:
            weight = make(*(result[part] for part in parts))
        except (ValueError, RuntimeError, IndexError):
            continue
        for part in parts:
            del result[part]
        result[whole] = weight
        counts[told] = counts.get(told, 0) + 1
    return result, tuple(f"{count} {told}" for told, count in counts.items())


def _rename_parts_(
    tensors: dict[str, Tensor], needed: Collection[str], counts: dict[str, int]
) -> None:
    """Give parts the names that the architecture has for them, where it has them in parts too."""
    for given, wanted in (_NORMED_PARTS, _NORMED_PARTS[::-1]):
        before, after = given[0].split("{}")
        for name in list(tensors):
            folder, dot, last = _split(name, before)
            if not last.endswith(after):
                continue
            own = last.removesuffix(after)
            old = [folder + dot + form.format(own) for form in given]
            new = [folder + dot + form.format(own) for form in wanted]
            there = all(one in tensors and one not in needed for one in old)
            if there and all(one in needed for one in new):
                for one, other in zip(old, new, strict=True):
                    tensors[other] = tensors.pop(one)
                counts[_RENAMED] = counts.get(_RENAMED, 0) + 1


def _parts(names: Collection[str]) -> Iterator[tuple[str, tuple[str, ...], _Make, str]]:
    """Yield each weight that is there in parts, its parts, and what makes it of them."""
    for forms, make, told in _FORMS:
        before, after = forms[0].split("{}")
        for name in list(names):
            folder, dot, last = _split(name, before)
            if not (last.endswith(after) and len(last) > len(after)):
                continue
            own = last.removesuffix(after)
            parts = tuple(folder + dot + form.format(own) for form in forms)
            whole = folder + dot + own
            if all(part in names for part in parts) and whole not in names:
                yield whole, parts, make, told


def _split(name: str, before: str) -> tuple[str, str, str]:
    """Return what comes before a layer's own names, a dot if there is one, and the rest."""
    if not before:
        folder, dot, last = name.rpartition(".")
        return folder, dot, last
    if name.startswith(before):
        return "", "", name.removeprefix(before)
    folder, found, last = name.rpartition("." + before)
    return (folder, ".", last) if found else ("", "", "")
