"""Read device profiles: the shipped TOML files, and the user's own.

`edgeclean.devices.targets` joins them into targets.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from edgeclean.errors import UsageError
from edgeclean.files.reading import read_small_toml
from edgeclean.files.schema import first_violation, validator
from edgeclean.files.text import shown

MAX_TARGET_FILE_BYTES = 2**20
TABLES = frozenset({"converters", "gpu", "jetpack"})  # shared by the profiles beside them
_RELEASE = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4})+")  # of JetPack; no number of any length


@cache
def profile_names() -> tuple[str, ...]:
    """Return the names of the shipped profiles."""
    folder = resources.files("edgeclean").joinpath("devices/profiles")
    names = (Path(entry.name) for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name.stem for name in names if name.stem not in TABLES))


def shipped_profile(name: str) -> dict[str, Any]:
    """Return a shipped profile; an alias has the facts of the profile it stands for.

    Raises:
        UsageError: no shipped profile has this name.
    """
    if name not in profile_names():
        close = difflib.get_close_matches(name, profile_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"target {shown(name)} is not known; {hint}known are {', '.join(profile_names())}"
        )
    profile = _read_table(name)
    if "alias_of" in profile:
        return {**shipped_profile(profile["alias_of"]), **profile}
    return dict(profile)


def read_profile(path: Path) -> dict[str, Any]:
    """Read and check the user's own profile, and join it with the profile it extends.

    Raises:
        UsageError: the file cannot be read, is not TOML, or does not fit
            ``schemas/target.schema.json``.
    """
    profile = read_small_toml(path, MAX_TARGET_FILE_BYTES, hint="a profile is a page of TOML")
    violation = first_violation(profile, "target")
    if violation is not None:
        raise UsageError(f"{path} does not describe a target, {violation}{_nearest_key(profile)}")
    if "alias_of" in profile:
        raise UsageError(
            f"{path} has alias_of, which is for shipped names alone; write extends = "
            f"{shown(profile['alias_of'])}"
        )
    base = shipped_profile(profile["extends"]) if "extends" in profile else {}
    base.pop("alias_of", None)
    return {**base, **profile}


def _nearest_key(profile: Mapping[str, Any]) -> str:
    """Return the key that was probably meant by one that is none, in words; "" where none is."""
    known = validator("target").schema["properties"]
    for key in [key for key in profile if key not in known][:10]:
        close = difflib.get_close_matches(key[:80], known, n=1)
        if close:
            return f"; nearest: {close[0]}"
    return ""


def generations() -> list[dict[str, Any]]:
    """Return every generation of JetPack, oldest first."""
    table: list[dict[str, Any]] = _read_table("jetpack")["generation"]
    return table


def choose_generation(profile: Mapping[str, Any], jetpack: str | None) -> dict[str, Any] | None:
    """Return the profile's generation of JetPack that covers a release; None without JetPack.

    Raises:
        UsageError: no generation of this device covers it.
    """
    if "jetpacks" not in profile:
        if jetpack is not None:
            raise UsageError(f"{profile['name']} has no JetPack; leave JetPack {jetpack[:80]} out")
        return None
    own = [one for one in generations() if one["name"] in profile["jetpacks"]["value"]]
    if not own:
        raise UsageError(
            f"no generation of JetPack that {profile['name']} names is known; known are "
            f"{', '.join(one['name'] for one in generations())}"
        )
    asked = jetpack or profile.get("default_jetpack", own[-1]["name"])
    for generation in own:
        if asked == generation["name"] or _covers(generation, asked):
            return generation
    raise UsageError(
        f"JetPack {asked[:80]} does not exist for {profile['name']}, or is not known; taken are "
        f"the releases {', '.join(map(_releases, own))}"
    )


def gpu_facts(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that follow from the compute capability: precisions, rank multiples."""
    if "compute_capability" not in profile:
        return {}
    table = _read_table("gpu")
    facts = {key: table[key] for key in ("rank_multiples", "default_precision")}
    facts["dla_rank_multiples"] = table["dla_rank_multiples"]
    precisions = table["compute_capability"].get(profile["compute_capability"]["value"])
    return facts if precisions is None else {**facts, "precisions": precisions}


def converter_facts(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that follow from the vendor's converter that a profile names.

    Raises:
        UsageError: no converter has this name.
    """
    if "converter" not in profile:
        return {}
    table = _read_table("converters")
    if profile["converter"] not in table:
        raise UsageError(
            f"target {profile['name']!r} names the converter {shown(profile['converter'])}; known "
            f"are {', '.join(table)}"
        )
    return dict(table[profile["converter"]])


def _releases(generation: Mapping[str, Any]) -> str:
    """Return in words which releases a generation covers."""
    first, last = generation["first"], generation.get("last")
    if last is None:
        return f"{first} and later"
    return first if _version(first) == _version(last) else f"{first} to {last}"


def _covers(generation: Mapping[str, Any], release: str) -> bool:
    if _RELEASE.fullmatch(release) is None:
        return False
    first, asked = _version(generation["first"]), _version(release)
    return first <= asked and ("last" not in generation or asked <= _version(generation["last"]))


def _version(release: str) -> tuple[int, ...]:
    numbers = [int(number) for number in release.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


@cache
def _read_table(name: str) -> dict[str, Any]:
    text = resources.files("edgeclean").joinpath(f"devices/profiles/{name}.toml").read_text("utf-8")
    return tomllib.loads(text)
