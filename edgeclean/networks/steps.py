"""A network as a list of calls of its own modules: the one form that a foreign graph gets here.

No Python is generated from a graph (as ``torch.fx`` would do): the network is a list of steps over
modules, and the names of both are made plain first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

MOST_NAME = 80  # characters of a module's name that come from a graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module, as a graph lists it: the values it takes, and the one it makes."""

    module: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The call of one module: its inputs, its output's name, and the values no later step takes."""

    module: str
    inputs: tuple[str, ...]
    output: str
    finished: tuple[str, ...]


class Scope(nn.Module):
    """A name that other modules stand under; it is never called itself."""


class StepNetwork(nn.Module):
    """A network that calls its modules in the order of its steps.

    Attributes:
        steps: every call, in the order in which they run; a module may be called by several.
        input_name: the name of the images among the values.
        output_name: the name of the value that `forward` returns.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], calls: Sequence[Call], ends: tuple[str, str]
    ) -> None:
        """Register the modules in their order.

        Args:
            modules: the modules by the names that calls use; a dot stands for one inside another.
            calls: in the order in which they run.
            ends: the names of the images and of the output among the values.
        """
        super().__init__()
        for name, module in modules.items():
            scope: nn.Module = self
            *scopes, last = name.split(".")
            for part in scopes:
                if part not in scope._modules:
                    scope.add_module(part, Scope())
                scope = scope.get_submodule(part)
            scope.add_module(last, module)
        self.steps = _steps(calls, ends[1])
        self.input_name, self.output_name = ends

    def forward(self, images: Tensor) -> Tensor:
        """Return the last step's output for images [n, c, h, w]."""
        values = {self.input_name: images}
        for step in self.steps:
            module = self.get_submodule(step.module)
            values[step.output] = module(*(values[name] for name in step.inputs))
            for name in step.finished:
                del values[name]
        return values[self.output_name]


def plain_name(
    given: str, kind: str, taken: Collection[str], numbers: dict[str, int] | None = None
) -> str:
    """Return a name of [A-Za-z0-9_] alone that no other module has.

    Args:
        given: the name that a graph gives; may hold anything, or nothing.
        kind: stands in for a name without a plain character.
        taken: the names that modules have already.
        numbers: the next number to try behind each name, kept from call to call and changed in
            place: without them, many equal names take the square of their number.
    """
    numbers = {} if numbers is None else numbers
    plain = re.sub(r"[^A-Za-z0-9]+", "_", given).strip("_")[:MOST_NAME]
    base = plain or kind.lower()
    base = base if base[0].isalpha() else f"node_{base}"
    name = base
    while name in taken or name in _TAKEN:
        number = numbers.get(base, 1)
        name, numbers[base] = f"{base}_{number}", number + 1
    return name


def free_name(wanted: str, taken: Collection[str]) -> str:
    """Return a dotted name near ``wanted`` that no module has, nor stands above or below one.

    Args:
        wanted: dotted; anything but letters, digits and underscores between the dots becomes one.
        taken: the dotted names that modules have already.
    """
    parts = [re.sub(r"[^A-Za-z0-9_]", "_", part)[:MOST_NAME] or "_" for part in wanted.split(".")]
    parts = [f"{part}_" if part in _TAKEN else part for part in parts]
    base = name = ".".join(parts)
    above = {base.rsplit(".", cut)[0] for cut in range(1, len(parts))}
    if above & set(taken):  # a module cannot have another inside
        base = name = "_".join(parts)
    scopes = {one[: one.rindex(".")] for one in taken if "." in one}
    scopes |= {scope.rsplit(".", cut)[0] for scope in scopes for cut in range(scope.count(".") + 1)}
    number = 0
    while name in taken or name in scopes:
        number += 1
        name = f"{base}_{number}"
    return name


def _steps(calls: Sequence[Call], output: str) -> tuple[Step, ...]:
    last_use = {name: index for index, call in enumerate(calls) for name in call.inputs}
    return tuple(
        Step(
            module=call.module,
            inputs=call.inputs,
            output=call.output,
            finished=tuple(
                sorted({used for used in call.inputs if last_use[used] == index and used != output})
            ),
        )
        for index, call in enumerate(calls)
    )


# Whatever stands on a network, its own attributes too: no module can have such a name.
_TAKEN = frozenset(dir(StepNetwork({}, (), ("", ""))))
