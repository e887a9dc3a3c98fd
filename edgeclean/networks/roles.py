"""The part that one step of a network plays between the image and the logits.

`edgeclean.networks.structure` follows values through a network's steps, and asks of each module:
does it multiply by weights that look trained, does it bend what it is given, does it choose places
of it, and how does it join several values?

Weights look trained unless every output that they make is all but one or two of its inputs, or an
even sum of them: a kernel with one number, an identity, a slice, a shift, a difference, a mean. To
look trained proves nothing: a kernel with more numbers may have been written by hand as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Join = Literal["sum", "product", "choice"]
Weights = Literal["none", "dead", "by hand", "trained"]

TWO_INPUTS = 2.05  # inputs in effect (the inverse participation ratio) of an output that is but two
EVEN = 0.05  # standard deviation over mean of the weights of an even sum
NEGLIGIBLE = 1e-6  # of the largest output's sum of squares
# Numbers of a matrix that are looked at together: as doubles, with what is computed of them, a
# whole one would take a multiple of a file that may hardly have any bytes itself.
AT_ONCE = 2**16

_CONSTANT = re.compile(r"constant(_[0-9]+)?|operand[0-9]+")
_MATRICES = re.compile(r"conv|linear|addmm|mm$|matmul|einsum|bilinear")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules by their class, or by the operation that they name, in lower case.
_STRAIGHT = _names(
    "identity dropout flatten reshape squeeze unsqueeze view transpose permute expand tile repeat "
    "blocks pixelshuffle pixelunshuffle channelshuffle slice select narrow take gather pad "
    "indexselect zeropad2d constantpad2d reflectionpad2d replicationpad2d clone contiguous alias "
    "detach todtype neg cast batchnorm1d batchnorm2d batchnorm3d add sub mul div sum mean concat "
    "cat stack foreachimage avgpool1d avgpool2d adaptiveavgpool1d adaptiveavgpool2d reducesum "
    "reducemean interpolate upsample upsamplingbilinear2d upsamplingnearest2d meanofparts "
    "dividedpool"
)
_PLACES = _names("slice select narrow take gather indexselect")
_SPREADS = _names(
    "avgpool1d avgpool2d adaptiveavgpool1d adaptiveavgpool2d maxpool1d maxpool2d adaptivemaxpool2d "
    "mean sum amax amin interpolate matmul meanofparts maxofparts dividedpool powerpool "
    "softmax logsoftmax "
    "joinedsoftmax layernorm groupnorm instancenorm2d rmsnorm unitnorm"
)
_COMPARISONS = _names(
    "where equal eq greater gt greaterorequal ge less lt lessorequal le notequal ne and or xor not "
    "logicaland logicalor logicalxor logicalnot argmax argmin topk gatherelements"
)
_EXTREMES = _names("max min maximum minimum")
_SUMS = _names("add sub sum mean concat cat stack")
_WORDS = {
    "Clamp": "Clip",
    "ReLU": "Relu",
    "Linear": "Gemm",
    "Conv2d": "Conv",
    "AdaptiveAvgPool2d": "Pool",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The part of one step.

    Attributes:
        kind: the operation in a word, such as "Conv" or "Add".
        weights: "trained", "by hand" (see the module's docstring), "dead" where all are zero, or
            "none" where the step multiplies by no matrix.
        bends: whether it is more than linear in any one value that it takes.
        places: whether it treats places of the plane differently: a slice, a mask, a matrix.
        spreads: whether an output depends on more than one place.
        chooses: whether it compares, or selects by a condition.
        join: how it joins several values.
    """

    kind: str
    weights: Weights
    bends: bool
    places: bool
    spreads: bool
    chooses: bool
    join: Join


def role_of(module: nn.Module, axes: int) -> Role:
    """Return the role of a module that is given a value of so many axes, the batch's included."""
    kind = _kind(module)
    name = re.sub(r"[^a-z0-9]", "", kind.lower())
    weights = _judged(_matrices(module, name))
    matrix = weights != "none"
    chooses = name in _COMPARISONS
    return Role(
        kind=_WORDS.get(kind, kind),
        weights=weights,
        bends=not (name in _STRAIGHT or matrix) or _divides_by_value(module),
        places=matrix
        or any(_varies(one, axes) for one in _constants(module))
        or (name in _PLACES and _cuts_places(module, axes)),
        spreads=matrix or name in _SPREADS or name.startswith("reduce"),
        chooses=chooses,
        join="choice" if chooses or name in _EXTREMES else "sum" if name in _SUMS else "product",
    )


def _kind(module: nn.Module) -> str:
    """Return the operation that a module names, or else its class."""
    named = getattr(module, "operation", None)
    if isinstance(named, str):
        return named if type(module).__name__ != "Reduce" else f"Reduce{named}"
    function = getattr(module, "function", None)
    if callable(function):  # an operator of torch, such as aten.relu.default
        words = str(getattr(function, "__name__", function)).split(".")
        return words[0] if words[0] != "aten" else words[1]
    children = [one for one in module.children() if not isinstance(one, nn.Identity)]
    if isinstance(module, nn.Sequential) and children:
        return _kind(children[-1])
    return type(module).__name__


def _matrices(module: nn.Module, name: str) -> Iterator[Tensor]:
    """Yield every matrix that the module multiplies by, one output a row."""
    if hasattr(module, "function") and not _MATRICES.search(name):
        return  # a sum or product with a parameter, element by element
    if name == "matmul":
        for buffer in ("operand0", "operand1"):
            held = getattr(module, buffer, None)
            if isinstance(held, Tensor) and held.dim() >= 2:
                rows = held if buffer == "operand0" else held.transpose(-1, -2)
                yield rows.reshape(-1, rows.shape[-1])
    for part in module.modules():
        transposed = isinstance(part, nn.modules.conv._ConvTransposeNd)
        for weight in part.parameters(recurse=False):
            if weight.dim() >= 2:
                rows = weight.transpose(0, 1) if transposed else weight
                yield rows.reshape(rows.shape[0], -1)


def _judged(matrices: Iterable[Tensor]) -> Weights:
    kinds = {_looks(matrix.detach()) for matrix in matrices}
    if not kinds:
        return "none"
    return "trained" if "trained" in kinds else "by hand" if "by hand" in kinds else "dead"


def _looks(rows: Tensor) -> Weights:
    blocks = rows.split(max(1, AT_ONCE // max(1, rows.shape[1])))
    powers = [_summed(block, torch.square) for block in blocks]
    power = torch.cat(powers)
    largest = power.max() if power.numel() else power.sum()
    if not largest > 0:
        return "dead"
    kept = [power > NEGLIGIBLE * largest for power in powers]
    simple = (
        _are_simple(block[own], power[own])
        for block, power, own in zip(blocks, powers, kept, strict=True)
    )
    return "by hand" if all(simple) else "trained"


def _are_simple(rows: Tensor, power: Tensor) -> bool:
    """Return whether every row, whose sum of squares is given, is a few inputs or an even sum."""
    # Scaled, for squares of squares of small numbers would vanish.
    length, columns = power.sqrt()[:, None], rows.shape[1]
    in_effect = 1 / _summed(rows, lambda part: (part / length).square().square())
    means = _summed(rows, lambda part: part / length) / columns
    apart = _summed(rows, lambda part: (part / length - means[:, None]).square()) / columns
    even = apart.sqrt() <= EVEN * means.abs()
    return bool(((in_effect <= TWO_INPUTS) | even).all())


def _summed(rows: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return, in doubles, the sum of each row; a row that is long by itself in parts."""
    sums = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(AT_ONCE, 1):
        sums += of(part.double()).sum(1)
    return sums


def _constants(module: nn.Module) -> Iterator[Tensor]:
    """Yield the constants that a module meets its values with, element by element."""
    for name, tensor in [*module.named_buffers(), *module.named_parameters()]:
        if _CONSTANT.fullmatch(name):
            yield tensor.detach()


def _varies(constant: Tensor, axes: int) -> bool:
    """Return whether a constant differs from place to place, not only from channel to channel."""
    if constant.dim() < 1 or constant.numel() < 2:
        return False
    planes = constant.reshape((1,) * max(0, axes - constant.dim()) + tuple(constant.shape))
    if planes.dim() <= 2:
        return bool((planes != planes.flatten()[0]).any())
    inner = planes.flatten(2)
    return bool((inner != inner[:, :, :1]).any())


def _cuts_places(module: nn.Module, axes: int) -> bool:
    """Return whether a slice leaves out places: of planes, one along channels does not."""
    cuts = getattr(module, "cuts", None)
    if isinstance(cuts, tuple):
        return axes < 4 or any(cut[0] != 1 for cut in cuts)
    axis = getattr(module, "axis", None)
    return not (axes == 4 and axis == 1)


def _divides_by_value(module: nn.Module) -> bool:
    """Return whether the value is what a constant is divided by or raised to."""
    operation = getattr(module, "operation", None)
    return operation in ("Div", "Pow") and bool(getattr(module, "constant_first", False))
