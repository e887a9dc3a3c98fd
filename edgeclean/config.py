"""One run's whole configuration: the settings of every stage, and a strict TOML reader for them.

::

    seed = 7
    [purify]
    mode = "guided"
    [ranks]
    ratio = 2.0

Each table is a stage, each key a field of its settings class; an unknown one is an error. The
command line and the Python API build the same object.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeclean.compress.clamp import ScaleSettings
from edgeclean.compress.decompose import DecomposeSettings
from edgeclean.compress.plan import RankSettings
from edgeclean.compress.truncate import TruncateSettings
from edgeclean.compute import Compute
from edgeclean.errors import UsageError
from edgeclean.loading.input_guard import LoadLimits
from edgeclean.purification.purify import PurifySettings
from edgeclean.recovery.finetune import FinetuneSettings
from edgeclean.runtime.latency import LatencySettings
from edgeclean.scan import ScanSettings
from edgeclean.small_files import read_small_toml
from edgeclean.states import JsonValue
from edgeclean.synthesis.synthesize import SynthesizeSettings
from edgeclean.targets.targets import Target, require
from exporters.onnx_exporter import ExportSettings
from exporters.parity import ParitySettings
from exporters.precision import PrecisionSettings, check_precision

MAX_FILE_BYTES = 1 << 20
Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """Everything that decides what `pipeline.compress` does.

    Attributes:
        seed: of every random choice; each stage draws from its own generator.
        target: name of the target profile.
        jetpack: release or generation, for targets that have one; None for the profile's default.
        compute: where the stages run: ``cpu``, or ``cuda`` for this machine's GPU.
        load: what the input may cost.
    """

    seed: int = 0
    target: str = "cpu"
    jetpack: str | None = None
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
    export: ExportSettings = field(default_factory=ExportSettings)
    parity: ParitySettings = field(default_factory=ParitySettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    latency: LatencySettings = field(default_factory=LatencySettings)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} was given; it must lie in 0..2^63-1")


# What the deck's way does otherwise: leading ranks of the clamped weights, labels, attacked images.
_THE_DECKS: dict[str, Any] = {
    "ranks": {"sensitivity": "energy", "factors": "weights"},
    "finetune": {"compare": "labels", "feature_weight": 0.0, "adversarial_share": 0.5},
}


def settings_for(
    target: Target, entries: Mapping[str, Any], *, where: str = "configuration"
) -> PipelineSettings:
    """Settings from nested mappings, in which the target decides what they leave open.

    Raises:
        UsageError: see `settings_from`; or the target cannot take what was asked.
    """
    asked = entries.get("precision")
    precision = asked.get("format") if isinstance(asked, Mapping) else None
    decided: dict[str, Any] = {
        "target": target.name,
        "ranks": {
            "rank_multiple": target.rank_multiple(precision if isinstance(precision, str) else None)
        },
        "export": {"opset": target.opset},
    }
    purify = entries.get("purify")
    if isinstance(purify, Mapping) and purify.get("mode") == "deck":
        decided = overlay(decided, _THE_DECKS)
    settings = settings_from(PipelineSettings, overlay(decided, entries), where=where)
    require(target, opset=settings.export.opset)
    check_precision(settings.precision, settings.export, target)
    return settings


def read_config(path: Path) -> dict[str, Any]:
    """The tables and keys of a configuration file, not yet checked.

    Raises:
        UsageError: the file cannot be read, is over 1 MiB, or is not TOML.
    """
    return read_small_toml(path, MAX_FILE_BYTES, hint="it must be a few lines")


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both nested mappings in one; where both say something, ``over`` wins."""
    merged = dict(under)
    for key, entry in over.items():
        below = merged.get(key)
        both = isinstance(entry, Mapping) and isinstance(below, Mapping)
        merged[key] = overlay(below, entry) if both else entry  # type: ignore[arg-type]
    return merged


def settings_from(
    settings_class: type[Settings], entries: Mapping[str, Any], *, where: str = "configuration"
) -> Settings:
    """A settings object from nested mappings, strictly: no unknown key, no silent conversion.

    A whole number is taken where a float is asked, a list where a tuple is.

    Raises:
        UsageError: a key is unknown, a value has the wrong type, or the settings refuse it.
    """
    hints = get_type_hints(settings_class)
    given = {}
    for key, entry in entries.items():
        name = key.replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=3, cutoff=0.5) or sorted(hints)
            raise UsageError(f"{where}: unknown key {key!r}; nearest: {', '.join(near)}")
        if name in given:
            raise UsageError(f"{where}: {key!r} is given twice, with - and with _; keep one")
        given[name] = _convert(hints[name], entry, f"{where}: {key}")
    try:
        return settings_class(**given)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def non_default(settings: object) -> dict[str, JsonValue]:
    """The fields of a settings object that differ from its class's defaults, nested."""
    default = type(settings)()
    changed: dict[str, JsonValue] = {}
    for one in dataclasses.fields(settings):  # type: ignore[arg-type]
        mine, theirs = getattr(settings, one.name), getattr(default, one.name)
        if mine == theirs:
            continue
        changed[one.name] = non_default(mine) if dataclasses.is_dataclass(mine) else mine
    return changed


def to_toml(entries: Mapping[str, JsonValue], prefix: str = "") -> str:
    """Nested mappings as TOML that `read_config` reads back; None, which TOML lacks, is dropped."""
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


def _convert(hint: Any, entry: Any, where: str) -> Any:
    """The entry as the type that is asked, or a UsageError naming both."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return entry
    if dataclasses.is_dataclass(hint) and isinstance(entry, Mapping):
        return settings_from(hint, entry, where=where)  # type: ignore[arg-type]
    if origin is Literal and entry in arguments:
        return entry
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, entry, where)
    if origin is tuple and isinstance(entry, Sequence) and not isinstance(entry, str):
        wanted = arguments[:1] * len(entry) if arguments[1:] == (...,) else arguments
        if len(wanted) == len(entry):
            return tuple(
                _convert(one, part, where) for one, part in zip(wanted, entry, strict=True)
            )
    if origin in (dict, Mapping) and isinstance(entry, Mapping):
        return {str(key): _convert(arguments[1], part, where) for key, part in entry.items()}
    if hint is float and type(entry) in (int, float):
        return float(entry)
    if hint in (int, str, bool) and type(entry) is hint:
        return entry
    raise UsageError(f"{where} is {str(entry)[:80]!r}; it must be {_in_words(hint)}")


def _convert_union(choices: tuple[Any, ...], entry: Any, where: str) -> Any:
    if entry is None and type(None) in choices:
        return None
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(choice, entry, where)
            except UsageError:
                continue
    allowed = " or ".join(_in_words(choice) for choice in choices if choice is not type(None))
    raise UsageError(f"{where} is {str(entry)[:80]!r}; it must be {allowed}")


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if dataclasses.is_dataclass(hint) or get_origin(hint) in (dict, Mapping):
        return "a table"
    if get_origin(hint) is tuple:
        return f"a list ({str(hint).replace('tuple', '')})"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(hint, str(hint))


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)


def _toml_value(entry: JsonValue) -> str:
    if isinstance(entry, bool):
        return "true" if entry else "false"
    if isinstance(entry, str):  # TOML forbids one raw character that JSON allows
        return json.dumps(entry, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(entry, Sequence):
        return "[" + ", ".join(_toml_value(part) for part in entry) + "]"
    return repr(entry)
