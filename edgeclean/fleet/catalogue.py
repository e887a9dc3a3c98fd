"""The catalogue of a fleet: which networks, for which targets, to which goals, behind which gates.

::

    [defaults]                      # of every network
    model = "cifar10.toml"
    max-accuracy-drop = 1.5

    [[targets]]
    target = "cpu"

    [[goals]]
    ratio = 2.0

    [[networks]]
    checkpoint = "resnet20.safetensors"
    sha256 = "2f1c..."              # the only bytes that are taken

    [[networks]]
    glob = "intake/*.pth"           # each match is a network, with the .toml beside it

A cell is one network for one target to one goal. Each key is an option of `edgeclean compress`
by the option's name and means what it means there; a network's own key wins over the defaults', and
a target's over its network's. Paths are relative to the catalogue.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from edgeclean.config import overlay, settings_from
from edgeclean.errors import UsageError
from edgeclean.files.nearest import nearest_or_known
from edgeclean.files.reading import is_folder, is_regular, read_small_toml
from edgeclean.files.text import shown
from edgeclean.gates import read_size
from edgeclean.settings import Settings, setting

E = TypeVar("E", bound=Settings)
MAX_FILE_BYTES = 16 << 20
MOST_NETWORKS = 100_000
MOST_CELLS = 500_000
MOST_ENTRIES = 1_000_000  # of a folder that a glob looks through
MOST_PATH = 4096
REFERENCE = "docs/reference/catalogue.md"
PARTS = ("defaults", "targets", "goals", "networks")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}")
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions(Settings):
    """The options of ``[defaults]``, and of each network.

    Attributes:
        model: the model file. A network without one of its own takes the ``.toml`` beside its
            checkpoint that has its name, which may not name code to run, and the defaults' where
            there is none.
        state_dict: the network to take of a checkpoint that holds several.
        config: a TOML file with any setting of any stage.
        effort: the length of every stage: quick, standard or thorough.
        seed: the seed of every random choice.
        threads: the processor threads of one task; they decide the bytes, the number of tasks side
            by side does not.
        purify: guided, clean-compact or none.
        tau: the clamp on singular values, as a share of the largest.
        keep: layers to leave whole.
        evaluate: labelled images to measure accuracy on: a folder or a pack.
        policy: a file of gates; the gates beside it win over it.
        fail_on_backdoor: refuse a network that the scan suspects.
        max_accuracy_drop: percentage points that may be lost on the labelled images.
        max_expected_drop: percentage points that the forecast may expect to be lost.
        max_size: the most that ``model.onnx`` may have, in bytes or as "2 MiB".
        min_speedup: the least gain in median latency on the machine that builds.
        targets: the names of the targets that it is for; all if none is named.
        goals: the names of the goals; all if none is named.
    """

    model: str | None = setting(None, longest=MOST_PATH)
    state_dict: str | None = setting(None, longest=500)
    config: str | None = setting(None, longest=MOST_PATH)
    effort: str | None = setting(None, longest=80)
    seed: int | None = setting(None, at_least=0, at_most=2**63 - 1)
    threads: int = setting(1, at_least=1, at_most=1024)
    purify: str | None = setting(None, longest=80)
    tau: float | None = setting(None, above=0, at_most=1)
    keep: tuple[str, ...] = setting((), longest=500, entries=(0, 10_000))
    evaluate: str | None = setting(None, longest=MOST_PATH)
    policy: str | None = setting(None, longest=MOST_PATH)
    fail_on_backdoor: bool | None = None
    max_accuracy_drop: float | None = setting(None, at_least=0, at_most=100)
    max_expected_drop: float | None = setting(None, at_least=0, at_most=100)
    max_size: int | str | None = setting(None, at_least=1, at_most=2**63 - 1, longest=40)
    min_speedup: float | None = setting(None, above=0, at_most=10**6)
    targets: tuple[str, ...] = setting((), longest=80, entries=(0, 1000))
    goals: tuple[str, ...] = setting((), longest=80, entries=(0, 1000))

    def check_together(self) -> None:
        """Refuse a size that is none."""
        _check_size("max-size", self.max_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEntry(NetworkOptions):
    """One entry of ``[[networks]]``; it has every key of ``[defaults]`` as well.

    Attributes:
        checkpoint: the file of weights, an ONNX network, or a folder of the Hugging Face hub.
        glob: instead of ``checkpoint``, a pattern over the entries of one folder, such as
            ``intake/*.pth``: each match that is no model file is a network.
        name: the network's name; the checkpoint's without its ending if not given.
        sha256: the hash of the checkpoint's bytes; a network of other bytes fails, and the others
            go on.
    """

    checkpoint: str | None = setting(None, longest=MOST_PATH)
    glob: str | None = setting(None, longest=MOST_PATH)
    name: str | None = setting(None, longest=80)
    sha256: str | None = setting(None, longest=64)

    def check_together(self) -> None:
        """Refuse an entry that names no file, or one name for many."""
        NetworkOptions.check_together(self)
        if (self.checkpoint is None) == (self.glob is None):
            raise UsageError("a network has either checkpoint or glob; give one of the two")
        if self.checkpoint == "" or (self.glob is not None and not Path(self.glob).name):
            raise UsageError("checkpoint or glob names nothing; name a file, or a pattern of files")
        if self.glob is not None and (self.name is not None or self.sha256 is not None):
            raise UsageError("name and sha256 are of one file, and glob is of many; leave them out")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise UsageError(f"sha256 is {shown(self.sha256)}; it must be 64 hexadecimal digits")
        _check_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetEntry(Settings):
    """One entry of ``[[targets]]``.

    Attributes:
        name: the target's name in the names of cells; those of device, runtime and precision
            if not given.
        target: the device, as `edgeclean targets` lists them; ``cpu`` if not given.
        target_file: a target profile of your own.
        jetpack: the release of JetPack of a Jetson.
        runtime: what will run it, such as "openvino, ncnn", or "fastest" of those installed; the
            target's own if not given.
        opset: the ONNX opset; the target has its own.
        precision: fp32, fp16, bf16 or int8.
        latency_table: a table measured on the device.
        max_size: the most that ``model.onnx`` may have; it wins over the network's.
        min_speedup: the least gain in latency; it wins over the network's.
    """

    name: str | None = setting(None, longest=80)
    target: str | None = setting(None, longest=80)
    target_file: str | None = setting(None, longest=MOST_PATH)
    jetpack: str | None = setting(None, longest=80)
    runtime: str | None = setting(None, longest=200)
    opset: int | None = setting(None, at_least=1, at_most=1000)
    precision: str | None = setting(None, longest=80)
    latency_table: str | None = setting(None, longest=MOST_PATH)
    max_size: int | str | None = setting(None, at_least=1, at_most=2**63 - 1, longest=40)
    min_speedup: float | None = setting(None, above=0, at_most=10**6)

    def check_together(self) -> None:
        """Refuse a name that could be no folder's, and a size that is none."""
        _check_name(self.name)
        _check_size("max-size", self.max_size)

    @property
    def runtimes(self) -> list[str]:
        """The names of the runtimes that were asked for."""
        return [] if self.runtime is None else [one.strip() for one in self.runtime.split(",")]

    @property
    def label(self) -> str:
        """The name that it was given, or that of the device, its runtime and the precision."""
        device = self.target or (Path(self.target_file).stem if self.target_file else "cpu")
        words = [device, self.jetpack, *self.runtimes, self.precision]
        return self.name or as_name("-".join(word for word in words if word))


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalEntry(Settings):
    """One entry of ``[[goals]]``: how much smaller or faster; one of the first five.

    Attributes:
        ratio: how many times fewer MACs (or parameters).
        keep_accuracy: percentage points that the forecast may expect to be lost, for the largest
            ratio that keeps within.
        speedup: how many times faster, by a latency table.
        latency_budget_ms: the time that one run may take, by a latency table.
        size_budget: the size that ``model.onnx`` may have, in bytes or as "500kB".
        measure: what the ratio is of: macs or params.
        rank_multiple: the number that ranks are multiples of; the target has its own.
        name: the goal's name in the names of cells; such as ``ratio-2`` if not given.
    """

    ratio: float | None = setting(None, above=0, at_most=10**6)
    keep_accuracy: float | None = setting(None, above=0, at_most=100)
    speedup: float | None = setting(None, above=0, at_most=10**6)
    latency_budget_ms: float | None = setting(None, above=0, at_most=10**9)
    size_budget: int | str | None = setting(None, at_least=1, at_most=2**63 - 1, longest=40)
    measure: str | None = setting(None, longest=80)
    rank_multiple: int | None = setting(None, at_least=1, at_most=4096)
    name: str | None = setting(None, longest=80)

    def check_together(self) -> None:
        """Refuse a name that could be no folder's, and a size that is none."""
        _check_name(self.name)
        _check_size("size-budget", self.size_budget)

    @property
    def label(self) -> str:
        """The name that it was given, or one that says what is asked."""
        asked = {
            "ratio": self.ratio,
            "keep": self.keep_accuracy,
            "speedup": self.speedup,
            "latency-ms": self.latency_budget_ms,
            "size": self.size_budget,
            "multiple": self.rank_multiple,
        }
        words = [
            f"{word}-{number:g}" if isinstance(number, float) else f"{word}-{number}"
            for word, number in asked.items()
            if number is not None
        ]
        words += [self.measure] if self.measure else []
        return self.name or as_name("-".join(words) or "default")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNetwork:
    """A network of the catalogue whose checkpoint is there.

    Attributes:
        name: unique in the catalogue.
        checkpoint: its file or folder.
        model: its model file; None where the checkpoint has to say everything.
        named: whether the catalogue names the model file; one that merely lies beside the
            checkpoint may be a stranger's too, and may not name code.
        entry: its options, the defaults under them.
    """

    name: str
    checkpoint: Path
    model: Path | None
    named: bool
    entry: NetworkEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """A catalogue that was read, its globs resolved.

    Attributes:
        path: the catalogue itself.
        networks: in the catalogue's order, those of a glob by name.
        targets: by name, in the catalogue's order.
        goals: by name, in the catalogue's order.
    """

    path: Path
    networks: tuple[FoundNetwork, ...]
    targets: Mapping[str, TargetEntry]
    goals: Mapping[str, GoalEntry]

    def file(self, text: str | None) -> Path | None:
        """Return the place that a path of the catalogue names; None for none."""
        return None if text is None else self.path.parent / text


def read_catalogue(path: Path) -> Catalogue:
    """Read a catalogue, strictly, and find the files of its networks.

    Raises:
        UsageError: it cannot be read, is over 16 MiB, is not TOML, has an unknown key or a value
            out of range, gives two things one name, or a file that it names is missing.
    """
    entries = read_small_toml(path, MAX_FILE_BYTES, hint="use globs, or several catalogues")
    for key in entries:
        if key not in PARTS:
            hint = nearest_or_known(key, PARTS, otherwise=f"{REFERENCE} lists all")
            raise UsageError(f"{path}: unknown key {shown(key)}; {hint}")
    defaults = entries.get("defaults", {})
    if not isinstance(defaults, Mapping):
        raise UsageError(f"{path}: defaults is {shown(defaults)}; it must be a table")
    common = _options(NetworkOptions, defaults, f"{path}: defaults")
    if common.model is not None and not is_regular(path.parent / common.model):
        raise UsageError(f"{path}: defaults: model names {common.model}, which is no file")
    targets = [_options(TargetEntry, one, place) for place, one in _tables(path, entries, 1)]
    goals = [_options(GoalEntry, one, place) for place, one in _tables(path, entries, 2)]
    networks = [
        found
        for place, one in _tables(path, entries, 3)
        for found in _networks(path.parent, place, one, defaults)
    ]
    if not networks:
        raise UsageError(f"{path}: no [[networks]]; give at least one")
    if len(networks) > MOST_NETWORKS:
        raise UsageError(f"{path}: more than {MOST_NETWORKS} networks; use several catalogues")
    return Catalogue(
        path=path,
        networks=tuple(_by_name(path, "networks", ((one.name, one) for one in networks)).values()),
        targets=_by_name(path, "targets", ((one.label, one) for one in targets or [TargetEntry()])),
        goals=_by_name(path, "goals", ((one.label, one) for one in goals or [GoalEntry()])),
    )


def as_name(text: str) -> str:
    """Return a text as a name: what no name may hold becomes ``_``; at most 80 characters."""
    plain = _NO_NAME.sub("_", text)[:80] or "_"
    return plain if NAME.fullmatch(plain) else f"_{plain[1:]}"


def _options(entry: type[E], keys: Mapping[str, Any], place: str) -> E:
    return settings_from(entry, keys, where=place, listed_in=REFERENCE)


def _tables(
    path: Path, entries: Mapping[str, Any], part: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the tables of a list of tables, each with the place that a refusal begins with."""
    name = PARTS[part]
    listed = entries.get(name, [])
    if not isinstance(listed, list):
        raise UsageError(f"{path}: {name} is {shown(listed)}; write [[{name}]] for each of them")
    for number, one in enumerate(listed):
        if not isinstance(one, Mapping):
            raise UsageError(f"{path}: {name}[{number}] is {shown(one)}; it must be a table")
        yield f"{path}: {name}[{number}]", one


def _networks(
    folder: Path, place: str, own: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[FoundNetwork]:
    """Yield the networks of one entry.

    Raises:
        UsageError: the entry is wrong, or its file is missing, or nothing matches its pattern.
    """
    _options(NetworkEntry, own, place)
    entry = _options(NetworkEntry, overlay(defaults, own), place)
    if entry.checkpoint is not None:
        checkpoints = [folder / entry.checkpoint]
        if not (is_regular(checkpoints[0]) or is_folder(checkpoints[0])):
            raise UsageError(f"{place}: there is no {checkpoints[0]}; name a file or a hub folder")
    else:
        checkpoints = _matches(folder, str(entry.glob), place)
    for checkpoint in checkpoints:
        beside = checkpoint.with_name(f"{checkpoint.stem}.toml")
        given = None if entry.model is None else folder / entry.model
        named = "model" in own or not is_regular(beside)
        if given is not None and not named:  # the defaults may name the very file that lies there
            named = is_regular(given) and given.samefile(beside)
        model = given if named else None
        yield FoundNetwork(
            name=entry.name or as_name(checkpoint.stem),
            checkpoint=checkpoint,
            model=model if named else beside,
            named=named,
            entry=entry,
        )


def _matches(folder: Path, glob: str, place: str) -> list[Path]:
    """Return the entries of one folder that match, by name; hidden and model files do not."""
    pattern = folder / glob
    if _WILD.search(str(Path(glob).parent)) and not is_folder(pattern.parent):
        raise UsageError(
            f"{place}: glob {shown(glob)} has a pattern in its folder; only the last part may be "
            "one: give an entry for each folder"
        )
    try:
        with os.scandir(pattern.parent) as entries:
            names = [entry.name for entry in islice(entries, MOST_ENTRIES + 1)]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no folder can have that name"
        raise UsageError(f"{place}: {pattern.parent} cannot be looked through ({reason})") from None
    if len(names) > MOST_ENTRIES:
        raise UsageError(f"{place}: {pattern.parent} has more than {MOST_ENTRIES} entries")
    matching = fnmatch.filter(names, pattern.name)
    found = [one for one in sorted(matching) if one[0] != "." and not one.endswith(".toml")]
    if not found:
        raise UsageError(f"{place}: nothing in {pattern.parent} matches {shown(pattern.name)}")
    return [pattern.parent / one for one in found]


def _by_name(path: Path, part: str, named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Key the entries by their names, which name folders that may tell no case apart."""
    found: dict[str, Any] = {}
    taken: dict[str, str] = {}
    for name, one in named:
        other = taken.setdefault(name.lower(), name)
        if name in found:
            raise UsageError(
                f"{path}: two {part} are called {shown(name)}, so their cells would be one; give "
                "one of them another name"
            )
        if other != name:
            raise UsageError(
                f"{path}: {part} {shown(other)} and {shown(name)} differ only in case, so their "
                "folders would be one where a filesystem tells none apart; give one of them "
                "another name"
            )
        found[name] = one
    return found


def _check_size(name: str, size: int | str | None) -> None:
    try:
        read_size(0 if size is None else size)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _check_name(name: str | None) -> None:
    if name is not None and NAME.fullmatch(name) is None:
        raise UsageError(
            f"name is {shown(name)}; it must be letters, digits, '.', '_' and '-', at most 80, "
            "and begin with a letter, a digit or '_'"
        )
