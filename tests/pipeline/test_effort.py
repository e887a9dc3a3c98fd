"""The levels of effort: lengths and nothing else, in one place, and the user's word is the last."""

from __future__ import annotations

import tomllib
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from edgeclean.config import PipelineSettings, overlay, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.effort import LENGTHS, LEVELS, lengths_of
from edgeclean.errors import UsageError
from edgeclean.networks.state import settings_as_json
from edgeclean.report.report import changed_settings

CPU = load_target("cpu")


def numbers(settings: object, path: str = "") -> dict[str, Any]:
    """Every plain field, by its dotted name."""
    found: dict[str, Any] = {}
    for one in fields(settings):  # type: ignore[arg-type]
        entry = getattr(settings, one.name)
        name = f"{path}{one.name}"
        found |= numbers(entry, f"{name}.") if is_dataclass(entry) else {name: entry}
    return found


def leaves(entries: dict[str, Any], path: str = "") -> list[str]:
    return [
        name
        for key, entry in entries.items()
        for name in (
            leaves(entry, f"{path}{key}.") if isinstance(entry, dict) else [f"{path}{key}"]
        )
    ]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", ["guided", "clean-compact", "none"])
@pytest.mark.parametrize("target", ["cpu", "jetson-nano", "orin-nano"])
def test_every_level_makes_valid_settings_and_is_recorded(
    level: str, mode: str, target: str
) -> None:
    settings = settings_for(load_target(target), {"effort": level, "purify": {"mode": mode}})
    assert settings.effort == level
    assert settings_as_json(settings)["effort"] == level
    said = numbers(settings)
    for name in leaves(lengths_of(level)):
        assert name in said


def test_a_longer_level_is_nowhere_shorter() -> None:
    quick, standard, thorough = (numbers(settings_for(CPU, {"effort": one})) for one in LEVELS)
    changed = {name for level in LEVELS for name in leaves(lengths_of(level))}
    assert changed
    for name in changed:
        assert quick[name] <= standard[name] <= thorough[name], name
    for name in set(standard) - changed - {"effort"}:
        assert quick[name] == standard[name] == thorough[name], name


def test_standard_is_what_the_defaults_say() -> None:
    assert LENGTHS["standard"] == {}
    assert settings_for(CPU, {"effort": "standard"}) == settings_for(CPU, {})
    assert settings_for(CPU, {}).effort == PipelineSettings().effort == "standard"


@pytest.mark.parametrize("level", ["quick", "thorough"])
def test_what_the_user_says_wins(level: str) -> None:
    for name in leaves(lengths_of(level)):
        own: dict[str, Any] = {}
        below = own
        *above, key = name.split(".")
        for table in above:
            below = below.setdefault(table, {})
        below[key] = 7
        settings = settings_for(CPU, overlay({"effort": level}, own))
        assert numbers(settings)[name] == 7, name
        unchanged = numbers(settings_for(CPU, {"effort": level}))
        assert {**numbers(settings), name: unchanged[name]} == unchanged
        below[key.replace("_", "-")] = below.pop(key)  # as a configuration file may spell it
        assert settings_for(CPU, overlay({"effort": level}, own)) == settings


@pytest.mark.parametrize("wrong", ["fast", "Quick", "", 3, ["quick"], {"level": "quick"}, True])
def test_another_level_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(UsageError, match=r"effort is .* must be one of quick, standard, thorough"):
        settings_for(CPU, {"effort": wrong})


@pytest.mark.parametrize("level", LEVELS)
def test_the_report_names_the_level_and_gives_the_same_settings_again(level: str) -> None:
    own = {"scan": {"steps": 100}, "ranks": {"ratio": 3.0}}  # 100 is the default of standard alone
    settings = settings_for(CPU, overlay({"effort": level}, own))
    written = changed_settings(settings)
    assert settings_for(CPU, tomllib.loads(written)) == settings
    untouched = tomllib.loads(changed_settings(settings_for(CPU, {"effort": level})))
    plain = tomllib.loads(changed_settings(settings_for(CPU, {})))
    assert untouched == plain | ({} if level == "standard" else {"effort": level})


def test_two_spellings_in_two_layers_are_one_setting_and_in_one_layer_are_refused() -> None:
    under, over = {"scan": {"bank-candidates": 4}}, {"scan": {"bank_candidates": 5}}
    assert settings_for(CPU, overlay(under, over)).scan.bank_candidates == 5
    assert settings_for(CPU, overlay(over, under)).scan.bank_candidates == 4
    both = {"effort": "quick", "scan": under["scan"] | over["scan"]}
    with pytest.raises(UsageError, match="given twice"):
        settings_for(CPU, both)
