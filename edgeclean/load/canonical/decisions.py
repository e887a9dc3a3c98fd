"""Whether a network's code decides by numbers: such a branch is frozen in all that is written.

A forward that reads a number that hangs on its images and goes on by it, such as an early exit or
an ``if images.mean() > 0``, is another function for other images. What is exported is the one that
the example took; a comparison on images that take the same way sees nothing.

A read whose other answer makes the code raise is a check, such as an assert, and one that changes
nothing is a remark, such as a print: neither stands in anybody's way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from edgeclean.load.canonical.graph import CannotWriteError, DecidesByNumbersError, exported
from edgeclean.load.canonical.trial import running_modules

_Other = Callable[[Any], Any]
# A number beside the one that is read, and some beyond what it may be compared with; none that a
# loop would count to without an end.
_OTHERS: tuple[_Other, ...] = (
    lambda number: number + 1,
    lambda number: type(number)(1000),
    lambda number: type(number)(-1000),
)
_MOST_READS = 32  # each is tried by a pass of its own
_MOST_NODES = 100_000
_ONE_NUMBER = "_local_scalar_dense"  # under bool(), float(), int() and item()
_TWO_TENSORS = ("equal", "allclose")  # that give a bool
_MANY_NUMBERS = ("numpy", "tolist", "__array__")
_BRANCHES = ("cond", "while_loop")
_SOME_OF_MANY = ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim")


def decision(module: nn.Module, images: Float[Tensor, "n c h w"]) -> str | None:
    """Return what in the network's code decides by the images, in words; None where nothing does.

    Args:
        module: in evaluation mode; it is run once, and again with others for each number that it
            reads.
        images: that it takes.
    """
    with torch.no_grad():
        with running_modules(module) as running:
            reads = _Reads(running)
            answer = _run(module, images, reads)
        if reads.found or (reads.picked and _counts_by_numbers(module, images)):
            return reads.found or reads.picked
        if len(reads.places) > _MOST_READS:
            return f"{reads.places[0]} reads numbers {len(reads.places)} times and goes on by them"
        for index, place in enumerate(reads.places):
            if _goes_on_by(module, images, index, answer):
                return f"{place} reads a number and goes on by it"
    return None


def _counts_by_numbers(module: nn.Module, images: Tensor) -> bool:
    """Return whether code goes on by how many there are, which is a number of Python's then."""
    _, channels, height, width = images.shape
    try:
        exported(module, (channels, height, width), _MOST_NODES)
    except DecidesByNumbersError:
        return True
    except CannotWriteError:
        return False
    return False


def _goes_on_by(module: nn.Module, images: Tensor, index: int, answer: list[Tensor]) -> bool:
    """Return whether the answer is another where one read gives another number."""
    for other in _OTHERS:
        try:  # on a copy: the code may keep what it read
            changed = _run(copy.deepcopy(module), images, _Reads([], other=(index, other)))
        except Exception:  # noqa: BLE001, S112 - a check, which would have raised
            continue
        if len(changed) != len(answer) or not all(map(torch.equal, changed, answer)):
            return True
    return False


def _run(module: nn.Module, images: Tensor, reads: _Reads) -> list[Tensor]:
    given = images.clone()
    reads.hang(given)
    with _NumbersTaken(reads), reads:
        answer = module(given)
    return [one for one in tree_leaves(answer) if isinstance(one, Tensor)]


class _Reads(TorchDispatchMode):
    """Sees which tensors hang on the images, and which numbers are read from them.

    Attributes:
        places: what was running at each read of one number.
        found: in words, a decision that needs no second look.
        picked: in words, where how many numbers are picked hangs on the images.
    """

    supports_higher_order_operators = True

    def __init__(
        self, running: list[tuple[str, nn.Module]], other: tuple[int, _Other] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []
        self.found = self.picked = ""
        self._other = (
            other  # the read, by its place in the order, whose answer is not the right one
        )
        self._running = running
        self._hanging = WeakIdKeyDictionary()

    def hang(self, values: Any) -> None:
        """Note that the tensors among the values hang on the images."""
        for one in tree_leaves(values):
            if isinstance(one, Tensor):
                self._hanging[one] = True

    def hangs(self, values: Any) -> bool:
        """Return whether any tensor among the values does."""
        return any(isinstance(one, Tensor) and one in self._hanging for one in tree_leaves(values))

    def where(self) -> str:
        """Return what is running, in words."""
        name = self._running[-1][0] if self._running else ""
        return f"layer {name}" if name else "its forward"

    def __torch_dispatch__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        """Run ``function``; note what hangs on what it was given."""
        all_inputs = (inputs, named or {})
        outputs = function(*inputs, **(named or {}))
        if not self.hangs(all_inputs):
            return outputs
        name = function.name().split("::")[-1].split(".")[0]
        if name == _ONE_NUMBER or name in _TWO_TENSORS:
            self.places.append(self.where())
            if self._other is None or self._other[0] != len(self.places) - 1:
                return outputs
            return not outputs if isinstance(outputs, bool) else self._other[1](outputs)
        if name in _BRANCHES:
            self.found = self.found or f"{self.where()} branches, by torch.{name}"
        if name in _SOME_OF_MANY or (name == "index" and _by_mask(inputs[1])):
            self.picked = f"{self.where()} goes on by how many numbers it picked"
        self.hang((outputs, all_inputs))  # some are changed in place
        return outputs


class _NumbersTaken(TorchFunctionMode):
    """Sees the numbers of a whole tensor taken, which passes the dispatcher by."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        """Run ``function``; remember the first that takes numbers of what hangs on the images."""
        name = getattr(function, "__name__", "")
        if name in _MANY_NUMBERS and not self._reads.found and self._reads.hangs(inputs):
            self._reads.found = f"{self._reads.where()} takes numbers out of a tensor, by {name}()"
        return function(*inputs, **(named or {}))


def _by_mask(indices: Any) -> bool:
    masks = (torch.bool, torch.uint8)
    return any(isinstance(one, Tensor) and one.dtype in masks for one in indices)
