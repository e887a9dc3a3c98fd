"""The device profiles as they are written down: shipped TOML, and the user's own files.

`edgeclean.devices.targets` joins them into what a device can take.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from edgeclean.errors import UsageError
from edgeclean.files.reading import read_small_toml
from edgeclean.files.schema import first_violation

MAX_TARGET_FILE_BYTES = 2**20
TABLES = frozenset({"gpu", "jetpack"})  # shared by the profiles beside them


@cache
def profile_names() -> tuple[str, ...]:
    """The names of the shipped profiles."""
    folder = resources.files("edgeclean").joinpath("devices/profiles")
    names = (Path(entry.name) for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name.stem for name in names if name.stem not in TABLES))


def shipped_profile(name: str) -> dict[str, Any]:
    """A shipped profile; an alias brings the facts of what it stands for.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in profile_names():
        close = difflib.get_close_matches(name, profile_names(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UsageError(
            f"target {name!r} is not known; {hint}known are {', '.join(profile_names())}"
        )
    profile = _read_table(name)
    if "alias_of" in profile:
        return {**shipped_profile(profile["alias_of"]), **profile}
    return dict(profile)


def read_profile(path: Path) -> dict[str, Any]:
    """The user's own profile, checked, joined with what it extends.

    Raises:
        UsageError: it cannot be read, is not TOML, or does not fit ``schemas/target.schema.json``.
    """
    profile = read_small_toml(path, MAX_TARGET_FILE_BYTES, hint="a profile is a page of TOML")
    violation = first_violation(profile, "target")
    if violation is not None:
        raise UsageError(f"{path} does not describe a target, {violation}")
    base = shipped_profile(profile["extends"]) if "extends" in profile else {}
    base.pop("alias_of", None)
    return {**base, **profile}


def generations() -> list[dict[str, Any]]:
    """Every generation of JetPack, oldest first."""
    table: list[dict[str, Any]] = _read_table("jetpack")["generation"]
    return table


def choose_generation(profile: Mapping[str, Any], jetpack: str | None) -> dict[str, Any] | None:
    """The profile's generation of JetPack that covers a release; None where there is no JetPack.

    Raises:
        UsageError: no generation of this device covers it.
    """
    if "jetpacks" not in profile:
        if jetpack is not None:
            raise UsageError(f"{profile['name']} has no JetPack; leave JetPack {jetpack} out")
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
        f"JetPack {asked} does not exist for {profile['name']}, or is not known; known are "
        f"{', '.join(one['name'] for one in own)}"
    )


def _covers(generation: Mapping[str, Any], release: str) -> bool:
    numbers = release.split(".")
    if not all(number.isascii() and number.isdigit() for number in numbers) or len(numbers) < 2:
        return False
    first, asked = _version(generation["first"]), _version(release)
    return first <= asked and ("last" not in generation or asked <= _version(generation["last"]))


def _version(release: str) -> tuple[int, ...]:
    numbers = [int(number) for number in release.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


def gpu_facts(profile: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the compute capability: precisions and rank multiples, where known."""
    if "compute_capability" not in profile:
        return {}
    table = _read_table("gpu")
    facts = {key: table[key] for key in ("rank_multiples", "default_precision")}
    facts["dla_rank_multiples"] = table["dla_rank_multiples"]
    precisions = table["compute_capability"].get(profile["compute_capability"]["value"])
    return facts if precisions is None else {**facts, "precisions": precisions}


@cache
def _read_table(name: str) -> dict[str, Any]:
    text = resources.files("edgeclean").joinpath(f"devices/profiles/{name}.toml").read_text("utf-8")
    return tomllib.loads(text)
