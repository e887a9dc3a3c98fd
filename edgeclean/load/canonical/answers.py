"""The logits among what a network returns: a tensor, or one of a tuple or dictionary of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line

Path = tuple[int | str, ...]
_MOST_DEPTH = 4
_PROBABILITIES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits: logits.softmax(min(1, logits.dim() - 1)),
    lambda logits: logits.log_softmax(min(1, logits.dim() - 1)),
    torch.sigmoid,
)
_NAMES = ("logits", "logit", "out", "output", "pred", "predictions")  # of the one that is meant


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsAt:
    """The place and the form of the logits in what a network returns.

    Attributes:
        path: the keys and indices that lead to them; empty where the network returns them alone.
        flat: they have trailing axes of one entry, which are dropped.
        single: they are one logit, of the second of two classes.
    """

    path: Path = ()
    flat: bool = False
    single: bool = False

    @property
    def why(self) -> str:
        """What is not as it should be, in words; empty for plain logits."""
        if self.path:
            return f"the logits are member {'.'.join(map(str, self.path))} of what it returns"
        if self.single:
            return "it gives one logit, which is taken for the second of two classes"
        return "its logits have axes of one entry behind the classes" if self.flat else ""


def answer_of(module: nn.Module, images: Float[Tensor, "n c h w"]) -> Any:
    """Run the network, and return what it returns, of whatever type.

    Raises:
        InputRejectedError: it raises, of whatever kind: it does not fit so many images.
    """
    try:
        return module(images)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - code that does not fit raises any
        raise InputRejectedError(
            f"the network does not take {len(images)} images at once ({type(error).__name__}: "
            f"{first_line(error)}); its first dimension must be free"
        ) from None


def way_out(module: nn.Module) -> str:
    """Return what to do about a network that took no image: its shape may be another, or its code.

    Args:
        module: whose forward raised.
    """
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError:
        return (
            "its forward needs other arguments than the image; give --arch a function that returns "
            "the network with a forward of the image alone"
        )
    except Exception:  # noqa: BLE001, S110 - code of any kind, which says nothing of itself
        pass
    return "give its input shape"


def find_logits(answer: object, images: int, classes: int) -> LogitsAt:
    """Find the one member with a row of ``classes`` numbers for each image.

    Args:
        answer: what the network returned.
        images: the number of images that it was given.
        classes: as the user said.

    Raises:
        InputRejectedError: no member fits, or several do and none has a name that tells.
    """
    members = list(_members(answer, ()))
    fitting = [(path, one) for path, one in members if _fits(one, images, classes)]
    single = not fitting and classes == 2
    if single:
        fitting = [(path, one) for path, one in members if _fits(one, images, 1)]
    fitting = _without_copies(fitting)
    named = [one for one in fitting if one[0] and one[0][-1] in _NAMES]
    chosen = named if len(named) == 1 else fitting
    if len(chosen) > 1:
        listed = ", ".join(".".join(map(str, path)) for path, _ in chosen)
        raise InputRejectedError(
            f"the network returns several tensors with {classes} columns (members {listed[:200]}); "
            "give --arch a function that returns the network with a forward of the one that is "
            "meant"
        )
    if not chosen:
        raise InputRejectedError(_misfit(answer, members, images, classes))
    path, tensor = chosen[0]
    return LogitsAt(path=path, flat=tensor.dim() > 2, single=single)


class Logits(nn.Module):
    """A network that returns its logits [n, classes] alone."""

    def __init__(self, network: nn.Module, at: LogitsAt) -> None:
        super().__init__()
        self.network = network
        self.at = at
        if at.single:
            self.register_buffer("one_of_two", torch.tensor([[0.0], [1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images [n, c, h, w]."""
        answer: Any = self.network(images)
        for key in self.at.path:
            named = isinstance(key, str) and not isinstance(answer, Mapping)
            answer = getattr(answer, str(key)) if named else answer[key]
        if self.at.single:
            return functional.linear(answer.reshape(-1, 1), self.one_of_two)  # type: ignore[arg-type]
        flat: Tensor = answer.flatten(1) if self.at.flat else answer
        return flat


def _members(answer: object, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(answer, Tensor):
        yield path, answer
    elif len(path) >= _MOST_DEPTH:
        return
    elif isinstance(answer, Mapping):
        for key, one in answer.items():
            if isinstance(key, str):
                yield from _members(one, (*path, key))
    elif isinstance(answer, list | tuple):
        for index, one in enumerate(answer):
            yield from _members(one, (*path, index))
    elif is_dataclass(answer):
        for field in fields(answer):
            yield from _members(getattr(answer, field.name), (*path, field.name))


def _without_copies(members: list[tuple[Path, Tensor]]) -> list[tuple[Path, Tensor]]:
    """Leave out what is another member once more: as it is, or as probabilities of its logits."""
    distinct: list[tuple[Path, Tensor]] = []
    for path, one in members:
        if not any(torch.equal(one, other) for _, other in distinct):
            distinct.append((path, one))
    return [
        (path, one)
        for path, one in distinct
        if not any(
            other is not one and torch.allclose(one, made(other), rtol=1e-4, atol=1e-6)
            for _, other in distinct
            for made in _PROBABILITIES
        )
    ]


def _fits(tensor: Tensor, images: int, columns: int) -> bool:
    if columns == 1 and tuple(tensor.shape) == (images,):
        return True
    return tuple(tensor.shape[:2]) == (images, columns) and tensor[0].numel() == columns


def _misfit(answer: object, members: list[tuple[Path, Tensor]], images: int, classes: int) -> str:
    if isinstance(answer, Tensor):
        got, more = str(tuple(answer.shape)), ""
    else:
        shapes = ", ".join(str(tuple(one.shape)) for _, one in members[:8]) or "no tensor"
        got, more = type(answer).__name__, f", alone or as a member; the members are {shapes}"
    one = "one image" if images == 1 else f"{images} images"
    return (
        f"for {one} the network gives {got}; with {classes} classes it must give "
        f"({images}, {classes}){more}"
    )
