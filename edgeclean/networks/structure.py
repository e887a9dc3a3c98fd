"""What a graph's structure says, before any search: paths from the image that no layer learned.

A backdoor can be in the graph instead of the weights: a side path compares pixels with constants
and adds the answer to the logits ("architectural backdoors", Bober-Irizar et al., CVPR 2023;
"ShadowLogic", HiddenLayer 2024). No fine-tuning and no purification of weights removes it. Every
value of a network that is a list of steps is followed here from the image. It is *plain* as long as
no layer whose weights look trained (`edgeclean.networks.roles`) had a part in it, and *learned*
where one had. Found are

- ``bypass``: a plain value that reaches the logits;
- ``side path``: a plain value that was bent (clipped, compared, multiplied by itself ...) joins
  learned ones, or a maximum, minimum or selection joins any plain value with them;
- ``rewritten image``: a plain value that was bent, and of some places alone, and then joins the
  image before the first layer.

Said, for they have honest uses as well, are ``raw image`` (a plain value, linear in the pixels,
joins learned ones), ``statistics of the image`` (the image meets a bent value of its own whole, as
in normalisation of each image), ``compared pixels``, ``learned selection`` (by learned values) and
``thin path`` (one layer alone stands between the image and the logits, where others pass more).

It sees structure, not intent. It is blind to a detector of kernels that look trained, in a branch
of two layers or more or in the channels of an honest layer: that is for the searches of the scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgeclean.networks.roles import Role, role_of

MOST_LISTED = 20  # findings, and notes, that a report holds
MOST_STEPS = 24  # of a path that are written out
BYPASS, SIDE_PATH, REWRITTEN = "bypass", "side path", "rewritten image"
RAW, STATISTICS, COMPARED = "raw image", "statistics of the image", "compared pixels"
SELECTION, THIN = "learned selection", "thin path"
_SAYS = {
    BYPASS: "a path from the image to the logits passes no learned layer",
    SIDE_PATH: "a path that passes no learned layer joins what the layers computed",
    REWRITTEN: "the image is rewritten by places of its own, before any learned layer",
    RAW: "the image itself, linear in its pixels, joins what the layers computed",
    STATISTICS: "the image meets numbers of its own whole, before any learned layer",
    COMPARED: "pixels are compared, before any learned layer",
    SELECTION: "a comparison or selection by what the layers computed",
    THIN: "a path from the image to the logits passes a single learned layer; others pass more",
}
MOST_IN_JSON = 200
_FINDINGS = (BYPASS, SIDE_PATH, REWRITTEN)
# How loudly a plain path was told of; it is told of once more where it turns out to be worse.
_LOUDNESS = {RAW: 1, STATISTICS: 1, COMPARED: 1, REWRITTEN: 2, SIDE_PATH: 3}


class Step(Protocol):
    """One call of a module by name: the values it takes, and the one it makes."""

    @property
    def module(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def output(self) -> str: ...  # noqa: D102


@runtime_checkable
class StepGraph(Protocol):
    """A network whose computation is a list of steps over values that have names."""

    steps: Sequence[Any]
    input_name: str
    output_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureFinding:
    """One path, or one step, and what it is.

    Attributes:
        kind: its kind; see the module's docstring.
        path: the steps from the image on, each as its operation and its name.
        by_hand: the names of layers on the path whose weights do not look trained.
    """

    kind: str
    says: str
    path: tuple[str, ...]
    by_hand: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return the finding as one line, a long path without its middle."""
        shown = list(self.path)
        if len(shown) > MOST_STEPS:
            half = MOST_STEPS // 2
            shown = [*shown[:half], f"({len(shown) - 2 * half} more)", *shown[-half:]]
        hand = (
            f" ({', '.join(self.by_hand[:5])}: weights no training leaves)" if self.by_hand else ""
        )
        return f"{self.says}: {' -> '.join(shown)}{hand}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StructureReport:
    """The structure of a network.

    Attributes:
        read: whether the network is a list of steps, so that its structure could be read; a module
            of code that the user named is not.
        least_layers: the learned layers on the path from the image to the logits that has fewest.
        most_layers: those on the one that has most.
        findings: what no trainer writes, and no purification of weights removes.
        notes: what has honest uses as well.
        unlisted: how many findings and notes there are beside those.
    """

    read: bool
    least_layers: int = 0
    most_layers: int = 0
    findings: tuple[StructureFinding, ...] = ()
    notes: tuple[StructureFinding, ...] = ()
    unlisted: int = 0

    def summary(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "read": self.read,
            "least_layers": self.least_layers,
            "most_layers": self.most_layers,
            "findings": [_listed(one) for one in self.findings],
            "notes": [_listed(one) for one in self.notes],
            "unlisted": self.unlisted,
        }


NOT_READ = StructureReport(read=False)


def read_structure(module: nn.Module, input_shape: tuple[int, int, int]) -> StructureReport:
    """Follow the image through a network's steps; see the module's docstring.

    Args:
        module: any network; one that is no list of steps is answered with ``read`` false.
        input_shape: channels, height and width of one image, which is run once to know the axes.
    """
    if not isinstance(module, StepGraph):
        return NOT_READ
    walk = _Walk(module, _axes(module, input_shape))
    for index in range(len(module.steps)):
        walk.take(index)
    return walk.report()


def _axes(network: Any, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return how many axes every value has, by running the steps on one black image."""
    held = [*network.parameters(), *network.buffers(), torch.zeros(0)]
    values = {network.input_name: torch.zeros(1, *input_shape, device=held[0].device)}
    axes = {network.input_name: 4}
    with torch.no_grad():
        for step in network.steps:
            made = network.get_submodule(step.module)(*(values[name] for name in step.inputs))
            values[step.output] = made
            axes[step.output] = made.dim() if isinstance(made, Tensor) else 4
            for name in step.finished:
                del values[name]
    return axes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """What is known of one value.

    ``came`` and ``thin`` are the step that made it and the value before that, on its plain path and
    on its path of fewest layers; ``told`` is how loudly its plain path was told of already.
    """

    plain: bool = False
    learned: bool = False
    bent: bool = False
    places: bool = False
    spreads: bool = False
    chooses: bool = False
    told: int = 0
    least: int = 0
    most: int = 0
    came: tuple[int, str] | None = None
    thin: tuple[int, str] | None = None


class _Walk:
    """One pass over the steps, in their order."""

    def __init__(self, network: Any, axes: Mapping[str, int]) -> None:
        self.network, self.axes = network, axes
        # Of the values that depend on the image; all others are the same for every image.
        self.values = {network.input_name: _Value(plain=True)}
        self.roles: list[Role] = []
        self.told: list[StructureFinding] = []
        self.unlisted = 0

    def take(self, index: int) -> None:
        """Work out the value that the next step makes, and tell what it shows."""
        step = self.network.steps[index]
        axes = max((self.axes.get(name, 4) for name in step.inputs), default=4)
        role = role_of(self.network.get_submodule(step.module), axes)
        self.roles.append(role)
        names = [name for name in step.inputs if name in self.values]
        if names and role.weights != "dead":
            self.values[step.output] = self._made(index, role, names)

    def report(self) -> StructureReport:
        """Tell of the output, and sum up."""
        output = self.values.get(self.network.output_name, _Value())
        if output.plain:
            self._tell(BYPASS, self._path(self.network.output_name, "came"))
        loud = [one for one in self.told if one.kind in _FINDINGS]
        if output.least == 1 < output.most and not loud:
            self._tell(THIN, self._path(self.network.output_name, "thin"))
        quiet = [one for one in self.told if one not in loud]
        loud.sort(key=lambda one: one.kind != BYPASS)
        return StructureReport(
            read=True,
            least_layers=output.least,
            most_layers=output.most,
            findings=tuple(loud[:MOST_LISTED]),
            notes=tuple(quiet[:MOST_LISTED]),
            unlisted=self.unlisted + len(loud[MOST_LISTED:]) + len(quiet[MOST_LISTED:]),
        )

    def _made(self, index: int, role: Role, names: list[str]) -> _Value:
        taken = [self.values[name] for name in names]
        layer = int(role.weights == "trained")
        thin = min(names, key=lambda name: self.values[name].least)
        made = _Value(
            learned=bool(layer) or any(one.learned for one in taken),
            least=self.values[thin].least + layer,
            most=max(one.most for one in taken) + layer,
            thin=(index, thin),
        )
        plain = [name for name in names if self.values[name].plain]
        if layer or not plain:
            if role.chooses and self._room(SELECTION):
                self._tell(SELECTION, [index])
            return made
        values = [self.values[name] for name in plain]
        made = replace(
            made,
            plain=True,
            bent=role.bends
            or any(one.bent for one in values)
            or (len(plain) > 1 and role.join != "sum"),
            places=role.places or any(one.places for one in values),
            spreads=role.spreads or any(one.spreads for one in values),
            chooses=role.chooses or any(one.chooses for one in values),
            told=max(one.told for one in values),
            came=(index, chosen := max(plain, key=self._suspicion)),
        )
        kind = _kind_of(role, values, made, several=len(set(names)) > 1)
        loudness = 0 if kind is None else _LOUDNESS[kind]
        known = made.told if loudness == 1 else min(one.told for one in values)
        if kind is None or loudness <= known:
            return made
        if self._room(kind):
            self._tell(kind, [*self._path(chosen, "came"), index])
        return replace(made, told=loudness)

    def _suspicion(self, name: str) -> tuple[bool, ...]:
        one = self.values[name]
        fresh = one.told < _LOUDNESS[SIDE_PATH]
        return (fresh, one.bent, one.chooses, one.places, one.came is not None)

    def _path(self, name: str, which: str) -> list[int]:
        """Return the steps from the image to a value, in their order."""
        path = []
        while (back := getattr(self.values[name], which)) is not None:
            path.append(back[0])
            name = back[1]
        return path[::-1]

    def _room(self, kind: str) -> bool:
        """Return whether one more is listed, else count it: a hostile graph has thousands."""
        like_it = sum((one.kind in _FINDINGS) == (kind in _FINDINGS) for one in self.told)
        self.unlisted += like_it >= MOST_LISTED
        return like_it < MOST_LISTED

    def _tell(self, kind: str, path: list[int]) -> None:
        """Tell of a path, in place of what was told of its beginnings."""
        finding = self._finding(kind, path)
        whole = finding.path
        self.told = [one for one in self.told if one.path != whole[: len(one.path)]]
        self.told.append(finding)

    def _finding(self, kind: str, path: list[int]) -> StructureFinding:
        by_hand = [
            self.network.steps[one].module for one in path if self.roles[one].weights == "by hand"
        ]
        return StructureFinding(
            kind=kind, says=_SAYS[kind], path=self._labels(path), by_hand=tuple(by_hand)
        )

    def _labels(self, path: Sequence[int]) -> tuple[str, ...]:
        return tuple(self._label(one) for one in path)

    def _label(self, index: int) -> str:
        name, kind = self.network.steps[index].module, self.roles[index].kind
        return name if name.lower().startswith(kind.lower()) else f"{name} ({kind})"


def _kind_of(role: Role, plain: Sequence[_Value], made: _Value, *, several: bool) -> str | None:
    """Return the kind of what a step shows that takes plain values, if it shows anything."""
    if not several:
        return COMPARED if role.chooses and not made.learned else None
    if made.learned:
        bent = any(one.bent and one.told < _LOUDNESS[SIDE_PATH] for one in plain)
        return SIDE_PATH if bent or role.join == "choice" else RAW
    if not made.bent:
        return None  # a linear map of the pixels
    by_places = made.places or (made.chooses and made.spreads)
    return REWRITTEN if by_places else STATISTICS


def _listed(finding: StructureFinding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "says": finding.says,
        "path": list(finding.path[:MOST_IN_JSON]),
        "by_hand": list(finding.by_hand[:MOST_IN_JSON]),
    }
