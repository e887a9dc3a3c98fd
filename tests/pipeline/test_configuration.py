"""Settings: read strictly, laid over what the target decides, and written back as TOML."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from latency_tables import made_up_table
from tiny_networks import tiny_network

from edgeclean.accuracy_goal import at_ratio
from edgeclean.config import (
    PipelineSettings,
    check_goal,
    in_new_words,
    non_default,
    overlay,
    place_of_error,
    read_config,
    settings_for,
    settings_from,
    to_toml,
)
from edgeclean.devices.targets import load_target
from edgeclean.errors import UsageError


def test_the_target_decides_what_was_left_open() -> None:
    orin, nano = load_target("orin-nano"), load_target("jetson-nano")
    assert settings_for(orin, {}).ranks.rank_multiple == orin.rank_multiple() == 8
    assert settings_for(nano, {}).export.opset == nano.opset == 13
    assert settings_for(orin, {"ranks": {"rank_multiple": 3}}).ranks.rank_multiple == 3
    assert settings_for(orin, {}).target == "orin-nano"
    with pytest.raises(UsageError, match="opset"):
        settings_for(nano, {"export": {"opset": 17}})


@pytest.mark.parametrize(
    ("default", "written"), [("fp16", "fp16"), ("int8", "int8"), ("tf32", "fp32")]
)
def test_a_file_is_in_the_devices_own_precision(tmp_path: Path, default: str, written: str) -> None:
    path = tmp_path / "board.toml"
    path.write_text(
        'name = "x"\ntitle = "x"\nextends = "orin-nano"\n'
        f'default_precision = {{ value = "{default}", source = "s" }}'
    )
    board = load_target(target_file=path)
    own = settings_for(board, {})
    assert (own.precision.format, own.ranks.rank_multiple) == (
        written,
        board.rank_multiple(default),
    )
    asked = settings_for(board, {"precision": {"format": "fp32"}})
    assert (asked.precision.format, asked.ranks.rank_multiple) == (
        "fp32",
        board.rank_multiple("fp32"),
    )


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"synthesise": {}}, "unknown key 'synthesise'; nearest: synthesize"),
        ({"architecture": "onnx"}, r"'architecture'; docs/reference/settings.md lists all$"),
        ({"purify": {"std": 1}}, "unknown key 'std'; known: mode, "),
        ({"ranks": {"ration": 2}}, "ranks: unknown key 'ration'; nearest: ratio"),
        ({"ranks": {"ratio": "two"}}, "ranks: ratio is 'two'; it must be a number"),
        ({"ranks": {"ratio": True}}, "ratio is True; it must be a number"),
        ({"ranks": {"ratio": 0.5}}, r"ratio is 0\.5; it must be a number from 1 to 10\^6"),
        ({"ranks": {"rank_multiple": 2.0}}, "must be a whole number"),
        ({"ranks": {"rank_multiple": True}}, "must be a whole number"),
        ({"ranks": {"rank-multiple": 2, "rank_multiple": 2}}, "given twice"),
        ({"ranks": {"measure": "flops"}}, "must be one of macs, params"),
        ({"ranks": {"overrides": {"0": [1, 2, 3]}}}, "it must be a list"),
        ({"decompose": {"keep": "conv1"}}, "it must be a list"),
        ({"scale": {"tau": "low"}}, "it must be a number"),
        ({"ranks": 2}, "it must be a table"),
        ({"finetune": {"reestimate": 1}}, "must be true or false"),
        ({"seed": -1}, "from 0 to 2\\^63-1"),
    ],
)
def test_configuration_is_strict(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from(PipelineSettings, entries)


def test_an_error_is_of_the_file_only_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    assert place_of_error(None, {}) == place_of_error(path, {"seed": 3}) == "options"
    assert place_of_error(path, {"seed": -3}) == str(path)


def test_configuration_takes_what_toml_has() -> None:
    settings = settings_from(
        PipelineSettings,
        {
            "ranks": {"ratio": 3, "rank-multiple": 4, "overrides": {"a.b": [3, 4]}},
            "decompose": {"keep": ["x", "y"]},
            "scale": {"tau": 1},
            "export": {"batch": 4},
            "purify": {"unlearn": {"steps": 7}},
        },
    )
    assert (settings.ranks.ratio, settings.ranks.rank_multiple) == (3.0, 4)
    assert type(settings.ranks.ratio) is float
    assert settings.ranks.overrides == {"a.b": (3, 4)}
    assert settings.decompose.keep == ("x", "y")
    assert (settings.scale.tau, settings.export.batch) == (1.0, 4)
    assert settings.purify.unlearn.steps == 7


def test_what_is_not_the_default_survives_toml() -> None:
    settings = settings_from(
        PipelineSettings,
        {
            "seed": 3,
            "target": 'a "quoted"\\\x7f name',
            "ranks": {"least_gain": 1e-300, "overrides": {'layer."1"\n': [3, 4]}},
            "decompose": {"keep": ["ü", "\u202e"]},
            "purify": {"unlearn": {"steps": 7}},
        },
    )
    assert (
        settings_from(PipelineSettings, tomllib.loads(to_toml(non_default(settings)))) == settings
    )
    assert to_toml(non_default(PipelineSettings())) == ""


def test_a_configuration_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(path)
    path.write_text("seed = 1\n[ranks]\nratio = 2\n", encoding="utf-8")
    assert read_config(path) == {"seed": 1, "ranks": {"ratio": 2}}
    for contents in (b"seed = ", b"\xff", b"a = " + b"[" * 5000):
        path.write_bytes(contents)
        with pytest.raises(UsageError, match="not a TOML file"):
            read_config(path)
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="larger than"):
        read_config(path)


def test_overlay_goes_into_tables() -> None:
    under = {"a": {"x": 1, "y": 2}, "b": 1}
    assert overlay(under, {"a": {"y": 3}, "b": {"z": 1}}) == {"a": {"x": 1, "y": 3}, "b": {"z": 1}}
    assert under == {"a": {"x": 1, "y": 2}, "b": 1}


def test_a_word_that_was_renamed_is_read_and_told() -> None:
    told: list[str] = []
    asked = {"purify": {"mode": "deck", "rounds": 2}, "seed": 3}
    entries = in_new_words(asked, told.append)
    assert entries == {"purify": {"mode": "clean-compact", "rounds": 2}, "seed": 3}
    assert asked == {"purify": {"mode": "deck", "rounds": 2}, "seed": 3}
    assert told == ["purify mode 'deck' is called 'clean-compact' now; please write that"]
    assert in_new_words(entries, told.append) == entries
    strange: list[dict[str, Any]] = [{"purify": 3}, {"purify": {"mode": ["deck"]}}, {}]
    for one in strange:
        assert in_new_words(one, told.append) == one
    assert len(told) == 1
    with pytest.raises(UsageError, match="mode is 'deck'; it must be one of guided, clean-compact"):
        settings_from(PipelineSettings, asked)


def test_what_is_true_false_or_left_out_is_written_and_read() -> None:
    settings = settings_from(PipelineSettings, {"finetune": {"reestimate": True}, "jetpack": None})
    assert settings.jetpack is None
    written = to_toml(non_default(settings))
    assert "reestimate = true" in written
    assert settings_from(PipelineSettings, tomllib.loads(written)) == settings


def test_a_target_without_resize_is_not_given_one() -> None:
    listed, asked = load_target("rk3588"), {"ranks": {"forms": ["tucker", "resolution"]}}
    assert settings_for(listed, asked).ranks.forms == ("tucker", "resolution")
    lacking = replace(listed, operators=tuple(one for one in listed.operators if one != "Resize"))
    assert settings_for(lacking, {}).ranks.forms == ("tucker", "hidden", "separable")
    assert settings_for(listed, {}).ranks.may_resize
    with pytest.raises(UsageError, match="does not list it among its operators"):
        settings_for(lacking, asked)


@pytest.mark.parametrize(
    ("target", "asked", "may"),
    [
        ("cpu", {}, True),
        ("jetson", {"ranks": {"ratio": 4.0}}, True),
        ("cpu", {"ranks": {"ratio": 4.0, "measure": "params"}}, False),
        ("cpu", {"ranks": {"speedup": 2.0}}, False),
        ("cpu", {"ranks": {"size_budget": 10**6}}, False),
        ("cpu", {"ranks": {"keep_accuracy": 2.0}}, False),
        ("cpu", {"ranks": {"keep_accuracy": 2.0, "forms": ["tucker", "resolution"]}}, True),
        ("cpu", {"ranks": {"forms": ["tucker", "hidden", "separable"]}}, False),
        ("cpu", {"purify": {"mode": "clean-compact"}}, False),
        ("cortex-m", {}, False),  # what does not fit its flash is the weights
    ],
)
def test_images_may_shrink_where_the_pixels_serve_the_goal(
    target: str, asked: dict[str, Any], may: bool
) -> None:
    assert settings_for(load_target(target), asked).ranks.may_resize is may


def test_ratios_that_a_forecast_compares_are_of_layers_alone() -> None:
    searched = settings_for(load_target("cpu"), {"ranks": {"keep_accuracy": 2.0}})
    assert not at_ratio(searched, 3.0).ranks.may_resize
    asked = {"ranks": {"keep_accuracy": 2.0, "forms": ["tucker", "resolution"]}}
    assert at_ratio(settings_for(load_target("cpu"), asked), 3.0).ranks.may_resize


def test_a_latency_table_has_no_times_of_smaller_images() -> None:
    target = load_target("cpu")
    settings = settings_for(target, {"ranks": {"forms": ["tucker", "resolution"]}})
    table = made_up_table(tiny_network())
    with pytest.raises(UsageError, match="no times of other sizes"):
        check_goal(settings, target, table)
    check_goal(settings_for(target, {}), target, table)  # nobody asked for it: layers alone
