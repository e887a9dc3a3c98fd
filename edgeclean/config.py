"""The whole configuration of one run: the settings of every stage, and a strict TOML reader.

::

    seed = 7
    [purify]
    mode = "guided"
    [ranks]
    ratio = 2.0

``effort = "quick"`` at its top scales the length of every stage (`effort`); its other keys win.
Each table is a stage, each key a field of its settings class; an unknown one is an error. The
command line and the Python API build the same object.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

from edgeclean.backdoor.purify import PurifySettings
from edgeclean.backdoor.scan import ScanSettings
from edgeclean.compression.clamp import ScaleSettings
from edgeclean.compression.decompose import DecomposeSettings
from edgeclean.compression.finetune import FinetuneSettings
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.plan import RankSettings
from edgeclean.compression.settings import OF_LAYERS
from edgeclean.compression.truncate import TruncateSettings
from edgeclean.devices.targets import Target, load_target, require
from edgeclean.effort import Effort, lengths_of
from edgeclean.errors import UsageError
from edgeclean.files.nearest import nearest_or_known
from edgeclean.files.reading import read_small_toml
from edgeclean.files.text import shown
from edgeclean.images.synthesize import SynthesizeSettings
from edgeclean.load.limits import LoadLimits
from edgeclean.measure.agreement import HeldOutSettings
from edgeclean.measure.latency import LatencySettings
from edgeclean.measure.machine_table import check_table
from edgeclean.measure.runtimes import RuntimeChoice
from edgeclean.networks.compute import Compute
from edgeclean.networks.resized import RESIZE
from edgeclean.networks.state import JsonValue
from edgeclean.settings import MOST_NAME, Settings, checked, fields_of, setting
from exporters.file_size import BYTES_PER_PARAM
from exporters.onnx_exporter import ExportSettings
from exporters.parity import ParitySettings
from exporters.precision.lower import Precision, PrecisionSettings, check_precision

MAX_FILE_BYTES = 1 << 20
DEFAULT_TARGET = "cpu"
REFERENCE = "docs/reference/settings.md"
S = TypeVar("S")
OLD_WORDS = {("purify", "mode"): {"deck": "clean-compact"}}  # still read, and reported


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings(Settings):
    """All settings of `pipeline.compress`.

    Attributes:
        seed: the seed of every random choice; each stage draws from its own generator.
        target: name of the target profile.
        jetpack: release or generation, for targets that have one; None for the profile's default.
        effort: the level that `settings_for` took the stages' lengths from, for the record: the
            lengths themselves are in the stages' settings.
        compute: the device that the stages run on: ``cpu``, or ``cuda`` for this machine's GPU.
        load: the most that the input may cost.
        synthesize: the images that are made from the network.
        scan: the searches for a backdoor.
        purify: the unlearning of found triggers.
        decompose: the choice of layers that are factored.
        scale: the clamp on singular values.
        ranks: the size or speed that the network is to have.
        truncate: the shortfall from the asked ratio that is allowed.
        finetune: the recovery of accuracy.
        forecast: the images that the loss of accuracy is forecast by, and how short a search's
            recoveries are.
        export: the form of the ONNX file.
        parity: the tolerance between the file's outputs and the network's.
        precision: the number format that the file computes in.
        latency: the measurement of both networks.
        runtime: the runtimes that the bundle has files for.
    """

    seed: int = setting(0, at_least=0, at_most=2**63 - 1)
    target: str = setting("cpu", longest=MOST_NAME)
    jetpack: str | None = setting(None, longest=MOST_NAME)
    effort: Effort = "standard"
    compute: Compute = "cpu"
    load: LoadLimits = field(default_factory=LoadLimits)
    synthesize: SynthesizeSettings = field(default_factory=SynthesizeSettings)
    scan: ScanSettings = field(default_factory=ScanSettings)
    purify: PurifySettings = field(default_factory=PurifySettings)
    decompose: DecomposeSettings = field(default_factory=DecomposeSettings)
    scale: ScaleSettings = field(default_factory=ScaleSettings)
    ranks: RankSettings = field(default_factory=RankSettings)
    truncate: TruncateSettings = field(default_factory=TruncateSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    forecast: HeldOutSettings = field(default_factory=HeldOutSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    parity: ParitySettings = field(default_factory=ParitySettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    latency: LatencySettings = field(default_factory=LatencySettings)
    runtime: RuntimeChoice = field(default_factory=RuntimeChoice)


# What differs in this mode: leading ranks of the clamped weights, labels, attacked images and no
# photographs, and Adam's own steps.
_CLEAN_COMPACT: dict[str, Any] = {
    "ranks": {"sensitivity": "energy", "factors": "weights", "forms": ["tucker"]},
    "finetune": {
        "compare": "labels",
        "feature_weight": 0.0,
        "photograph_share": 0.0,
        "adversarial_share": 0.5,
        "optimizer": "adam",
        "relative": False,
        "learning_rate": 2e-3,
    },
}


def settings_for(
    target: Target, entries: Mapping[str, Any], *, where: str = "configuration"
) -> PipelineSettings:
    """Make settings from nested mappings; target and effort decide what they leave open.

    Raises:
        UsageError: see `settings_from`; or the target cannot take what was asked.
    """
    asked = entries.get("precision")
    precision = asked.get("format") if isinstance(asked, Mapping) else None
    # What no file is written in is refused below, with what it may be, whatever the device has.
    of_file = precision if precision in get_args(Precision) else None
    decided: dict[str, Any] = {
        "target": target.name,
        "ranks": {"rank_multiple": target.rank_multiple(of_file)},
        "export": {"opset": target.opset},
        "precision": {"format": _of_a_file(target.default_precision)},
    }
    purify = entries.get("purify")
    if isinstance(purify, Mapping) and purify.get("mode") == "clean-compact":
        decided = overlay(decided, _CLEAN_COMPACT)
    # Of a microcontroller the flash is short, and smaller images leave the weights as they are.
    if target.kind == "mcu" or _lacks_resize(target):
        decided = overlay({"ranks": {"forms": [*OF_LAYERS]}}, decided)
    if target.scales != "channel":
        decided = overlay(decided, {"precision": {"scales": target.scales}})
    decided = overlay(decided, lengths_of(entries.get("effort")))
    settings = settings_from(PipelineSettings, overlay(decided, entries), where=where)
    _check_forms(settings.ranks, target)
    require(target, opset=settings.export.opset)
    check_precision(settings.precision, settings.export, target)
    return settings


def _check_forms(ranks: RankSettings, target: Target) -> None:
    """Refuse a form that puts an operator into the network which the target does not list.

    Raises:
        UsageError: it does.
    """
    if "resolution" in (ranks.forms or ()) and _lacks_resize(target):
        raise UsageError(
            f"--forms resolution puts a {RESIZE} into the network, and {target.name} does not list "
            f"it among its operators; ask for --forms {','.join(OF_LAYERS)}"
        )


def _of_a_file(precision: str) -> str:
    """Return the precision of a file for a device: what is in no file, such as TF32, is fp32."""
    return precision if precision in get_args(Precision) else "fp32"


def _lacks_resize(target: Target) -> bool:
    return bool(target.operators) and RESIZE not in target.operators


def configured(
    entries: Mapping[str, Any], *, target_file: Path | None = None, where: str
) -> tuple[PipelineSettings, Target]:
    """Make settings from nested mappings that may name their target, and look that up.

    Args:
        entries: in present words (`in_new_words`).
        target_file: a profile of the user's own.
        where: the place that a refusal begins with.

    Raises:
        UsageError: see `settings_for` and `load_target`.
    """
    name, jetpack = entries.get("target"), entries.get("jetpack")
    for key, entry in (("target", name), ("jetpack", jetpack)):
        if not isinstance(entry, str | None):
            raise UsageError(f"{where}: {key} is {shown(entry)}; it must be a text")
    if name is None and target_file is None:
        name = DEFAULT_TARGET
    target = load_target(name, jetpack=jetpack, target_file=target_file)
    return settings_for(target, entries, where=where), target


def for_one_target(
    settings: PipelineSettings | None, target: Target | None
) -> tuple[PipelineSettings, Target]:
    """Return settings and the target that they are of, where one or both were not given.

    Raises:
        UsageError: the settings are of another target; or see `load_target`.
    """
    chosen = settings or (PipelineSettings() if target is None else settings_for(target, {}))
    device = target or load_target(chosen.target, jetpack=chosen.jetpack)
    if chosen.target != device.name:
        raise UsageError(
            f"the settings are of the target {chosen.target}, and the target is {device.name}; "
            "make them with settings_for(target, ...)"
        )
    return chosen, device


def check_goal(settings: PipelineSettings, target: Target, table: LatencyTable | None) -> None:
    """Refuse goals that cannot be planned for this target, before anything is loaded.

    Raises:
        UsageError: the table is of another precision or cannot plan a form, there is none and
            none can be measured here, or a size is asked of a precision whose file sizes cannot
            be foretold.
    """
    precision, goal = settings.precision.format, settings.ranks
    if table is not None:
        if "resolution" in (goal.forms or ()):
            raise UsageError(
                "--forms resolution cannot be planned by a latency table, which has no times of "
                "other sizes of images; leave out one of them"
            )
        measured = settings.latency
        check_table(table, precision=precision, threads=measured.threads, batch=measured.batch)
    elif goal.needs_table and (target.runtime != "onnxruntime" or precision != "fp32"):
        raise UsageError(
            f"a goal of time was asked for {target.name} in {precision}, which cannot be measured "
            "here; give --latency-table with one measured there, or ask for --ratio"
        )
    if goal.size_budget is not None and precision not in BYTES_PER_PARAM:
        raise UsageError(
            f"--size-budget cannot be planned for {precision}, whose layers may stay in fp32; ask "
            "for --ratio with --measure params, and refuse larger files with --max-size"
        )


def read_config(path: Path) -> dict[str, Any]:
    """Read the tables and keys of a configuration file, not yet checked.

    Raises:
        UsageError: the file cannot be read, is over 1 MiB, or is not TOML.
    """
    return read_small_toml(path, MAX_FILE_BYTES, hint="it must be a few lines")


def place_of_error(path: Path | None, entries: Mapping[str, Any]) -> str:
    """Return what a refusal begins with: the file, where its entries alone are refused already.

    Args:
        path: the configuration file; None where there is none.
        entries: what it holds, in present words.
    """
    if path is not None:
        try:
            settings_from(PipelineSettings, entries)
        except UsageError:
            return str(path)
    return "options"


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; where both have a value, ``over`` wins."""
    merged = dict(under)
    for key, entry in over.items():
        for twin in (key.replace("-", "_"), key.replace("_", "-")):
            if twin != key and twin not in over and twin in merged:  # the same setting
                merged[key] = merged.pop(twin)
        below = merged.get(key)
        both = isinstance(entry, Mapping) and isinstance(below, Mapping)
        merged[key] = overlay(below, entry) if both else entry  # type: ignore[arg-type]
    return merged


def in_new_words(
    entries: Mapping[str, Any], notify: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Replace renamed words by their present names; call ``notify`` once for each."""
    renamed = dict(entries)
    for (table, key), words in OLD_WORDS.items():
        inside = entries.get(table)
        old = inside.get(key) if isinstance(inside, Mapping) else None
        if isinstance(old, str) and old in words:
            renamed = overlay(renamed, {table: {key: words[old]}})
            notify(f"{table} {key} {old!r} is called {words[old]!r} now; please write that")
    return renamed


def settings_from(
    settings_class: type[S],
    entries: Mapping[str, Any],
    *,
    where: str = "configuration",
    listed_in: str = REFERENCE,
) -> S:
    """Make a settings object from nested mappings: no unknown key, no silent conversion.

    A whole number is taken where a float is asked, a list where a tuple is.

    Args:
        settings_class: the class of the settings.
        entries: the keys with their values.
        where: the place that a refusal begins with.
        listed_in: the page of the documentation that lists all keys.

    Raises:
        UsageError: a key is unknown, a value has the wrong type, or the settings refuse it.
    """
    fields = fields_of(settings_class)
    given: dict[str, Any] = {}
    try:
        for key, entry in entries.items():
            name = key[:MOST_NAME].replace("-", "_")
            if name not in fields:
                as_asked = [one.replace("_", "-") if "-" in key else one for one in fields]
                meant = nearest_or_known(key, as_asked, otherwise=f"{listed_in} lists all")
                raise UsageError(f"unknown key {shown(key)}; {meant}")
            if name in given:
                raise UsageError(f"{key!r} is given twice, with - and with _; keep one")
            hint, limits = fields[name]
            if dataclasses.is_dataclass(hint) and isinstance(entry, Mapping):
                given[name] = settings_from(
                    hint,  # type: ignore[arg-type]
                    entry,
                    where=name,
                    listed_in=listed_in,
                )
            else:
                given[name] = checked(hint, entry, key, limits)  # as the user wrote it
        return settings_class(**given)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def non_default(settings: object, default: object | None = None) -> dict[str, JsonValue]:
    """Return the fields of a settings object that differ from another's, or the defaults."""
    default = type(settings)() if default is None else default
    changed: dict[str, JsonValue] = {}
    for one in dataclasses.fields(settings):  # type: ignore[arg-type]
        mine, theirs = getattr(settings, one.name), getattr(default, one.name)
        if mine == theirs:
            continue
        nested = dataclasses.is_dataclass(mine)
        changed[one.name] = non_default(mine, theirs) if nested else mine
    return changed


def to_toml(entries: Mapping[str, JsonValue], prefix: str = "") -> str:
    """Write nested mappings as TOML that `read_config` reads back, but for None, which it lacks."""
    plain = [
        f"{_toml_key(key)} = {_toml_value(entry)}"
        for key, entry in entries.items()
        if not isinstance(entry, Mapping) and entry is not None
    ]
    blocks = ["\n".join(plain) + "\n"] if plain else []
    for key, entry in entries.items():
        if isinstance(entry, Mapping):
            path = f"{prefix}{_toml_key(key)}"
            inside = to_toml(entry, f"{path}.")
            heading = f"[{path}]\n" if not inside.startswith("[") else ""
            blocks.append(heading + inside)
    return "\n".join(blocks)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else _toml_value(key)


def _toml_value(entry: JsonValue) -> str:
    if isinstance(entry, bool):
        return "true" if entry else "false"
    if isinstance(entry, str):  # TOML forbids one raw character that JSON allows
        return json.dumps(entry, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(entry, Sequence):
        return "[" + ", ".join(_toml_value(part) for part in entry) + "]"
    return repr(entry)
