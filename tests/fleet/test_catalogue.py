"""A catalogue says what it means, or is refused in one line before any work."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from fleet_folder import Written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeclean.cli import options as opt
from edgeclean.errors import EdgecleanError, UsageError
from edgeclean.files.text import MOST_OF_A_LINE
from edgeclean.fleet.catalogue import NAME, as_name, read_catalogue
from edgeclean.fleet.plan import NetworkPlan, plan_networks

BASE = '[defaults]\nmodel = "net.toml"\nconfig = "quick.toml"\n'


def planned(path: Path) -> dict[str, NetworkPlan]:
    return {one.name: one for one in plan_networks(read_catalogue(path))}


def test_a_cell_is_a_network_a_target_and_a_goal_in_the_catalogues_order(written: Written) -> None:
    path = written(
        BASE + '[[targets]]\ntarget = "orin-nano"\nprecision = "fp16"\n[[targets]]\nname = "desk"\n'
        '[[goals]]\nratio = 2\n[[goals]]\nsize-budget = "20 kB"\n'
        '[[networks]]\nglob = "*.safetensors"\n[[networks]]\nname = "last"\n'
        'checkpoint = "bad.pth"\ntargets = ["desk"]\ngoals = ["ratio-2"]\n'
    )
    networks = planned(path)
    assert [cell.name for one in networks.values() for cell in one.cells] == [
        *(f"{net}/orin-nano-fp16/{goal}" for net in "a" for goal in ("ratio-2", "size-20_kB")),
        *(f"{net}/desk/{goal}" for net in "a" for goal in ("ratio-2", "size-20_kB")),
        *(f"{net}/orin-nano-fp16/{goal}" for net in "b" for goal in ("ratio-2", "size-20_kB")),
        *(f"{net}/desk/{goal}" for net in "b" for goal in ("ratio-2", "size-20_kB")),
        "last/desk/ratio-2",
    ]
    options = {cell.name: cell.options for cell in networks["a"].cells}
    assert options["a/orin-nano-fp16/ratio-2"].settings.precision.format == "fp16"
    assert options["a/desk/size-20_kB"].settings.ranks.size_budget == 20_000
    assert options["a/desk/ratio-2"].settings.finetune.steps == 3  # of the configuration
    assert len({one.shared for one in options.values()}) == 1
    assert len({one.digest for one in options.values()}) == 4


def test_settings_are_those_of_compress_with_the_same_options(written: Written) -> None:
    path = written(
        BASE + 'seed = 7\nthreads = 2\npurify = "none"\ntau = 0.5\nkeep = ["0"]\neffort = "quick"\n'
        'fail-on-backdoor = true\nmax-size = "1 MB"\n'
        '[[targets]]\ntarget = "xavier-nx"\nopset = 13\nmax-size = 9000\nruntime = "ncnn, mnn"\n'
        '[[goals]]\nratio = 3.0\nmeasure = "params"\n'
        '[[networks]]\ncheckpoint = "a.safetensors"\nseed = 8\n'
    )
    (cell,) = planned(path)["a"].cells
    ranks = opt.rank_goal(3.0, "params", None, None, None, None)
    options = opt.run_options(8, False, "quick") | {"target": "xavier-nx", "jetpack": None}
    options |= {"purify": {"mode": "none"}, "decompose": {"keep": ["0"]}, "scale": {"tau": 0.5}}
    options |= opt.runtime_options("ncnn,mnn")
    options |= {"export": {"opset": 13}, "latency": {"threads": 2}, "ranks": ranks}
    config = path.with_name("quick.toml")
    expected, device = opt.pipeline_settings(config, options, note=lambda _line: None)
    assert cell.options.settings == expected
    assert cell.options.target == device
    assert cell.target == "xavier-nx-ncnn-mnn"
    assert cell.options.threads == 2
    assert cell.options.policy.fail_on_backdoor
    assert cell.options.policy.max_size_bytes == 9000  # the target's wins


def test_a_forecast_is_a_goal_and_a_gate_of_a_fleet_too(written: Written) -> None:
    path = written(
        BASE + "max-expected-drop = 3\n[[goals]]\nkeep-accuracy = 1.5\n[[goals]]\nratio = 2.0\n"
        '[[networks]]\ncheckpoint = "a.safetensors"\nmax-expected-drop = 2\n'
    )
    searched, asked = planned(path)["a"].cells
    assert (searched.goal, asked.goal) == ("keep-1.5", "ratio-2")
    assert searched.options.settings.ranks.keep_accuracy == 1.5
    assert asked.options.settings.ranks.keep_accuracy is None
    assert searched.options.policy.max_expected_drop == 2.0
    assert searched.options.shared == asked.options.shared


def test_a_glob_takes_the_model_file_beside_each_and_no_code_by_it(
    written: Written, folder: Path
) -> None:
    (folder / "b.toml").write_text((folder / "net.toml").read_text("utf-8"), encoding="utf-8")
    (folder / ".hidden.safetensors").write_bytes(b"")
    networks = planned(written(BASE + '[[networks]]\nglob = "*.safe*"\n'))
    assert {name: (one.model, one.named) for name, one in networks.items()} == {
        "a": (folder / "net.toml", True),
        "b": (folder / "b.toml", False),
    }


def test_a_catalogue_may_lie_in_a_folder_whose_name_looks_like_a_pattern(folder: Path) -> None:
    strange = folder / "nets [v2]*"
    (strange / "in [a]").mkdir(parents=True)
    for name in ("net.toml", "net.py", "quick.toml", "a.safetensors"):
        (strange / name).write_bytes((folder / name).read_bytes())
    (strange / "in [a]" / "b.safetensors").write_bytes(b"")
    path = strange / "fleet.toml"
    entries = '[[networks]]\nglob = "*.safetensors"\n[[networks]]\nglob = "in [a]/*"\n'
    path.write_text(BASE + entries, encoding="utf-8")
    found = {name: one.checkpoint for name, one in planned(path).items()}
    assert found == {
        "a": strange / "a.safetensors",
        "b": strange / "in [a]" / "b.safetensors",
    }


def test_a_model_file_that_the_defaults_name_is_the_users_own_also_where_it_lies_beside(
    written: Written, folder: Path
) -> None:
    (folder / "a.toml").write_text((folder / "net.toml").read_text("utf-8"), encoding="utf-8")
    one = '[[networks]]\ncheckpoint = "a.safetensors"\n'
    for name, expected in {"a.toml": ("a.toml", True), "net.toml": ("a.toml", False)}.items():
        found = planned(written(f'[defaults]\nmodel = "{name}"\n{one}'))["a"]
        assert found.model is not None
        assert (found.model.name, found.named) == expected


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[[network]]\n", "networks"),
        ("[[networks]]\ncheckpont = 'a.safetensors'\n", "checkpoint"),
        ("[[networks]]\ncheckpoint = 'missing.pth'\n", "missing.pth"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nglob = '*'\n", "glob"),
        ("[[networks]]\nglob = '*.pt'\n", "matches"),
        ("[[networks]]\nglob = ''\n", "names nothing"),
        ("[[networks]]\nglob = './'\n", "names nothing"),
        ("[[networks]]\ncheckpoint = ''\n", "names nothing"),
        ("[[networks]]\nglob = '*/x'\n", "folder"),
        ("[[networks]]\nglob = 'nowhere/*'\n", "nowhere"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nsha256 = 'ab'\n", "64"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nmodel = 'no.toml'\n", "no.toml"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nname = '../up'\n", "name"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\ntargets = ['b']\n", "there is no target"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nmax-accuracy-drop = 1\n", "evaluate"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nmax-size = 'much'\n", "max-size: size"),
        ("[[networks]]\nglob = 'a.safe*'\n[[goals]]\nsize-budget = 'x'\n", "size-budget: size 'x'"),
        ("[[networks]]\nglob = 'a.safe*'\ntargets = ['cpu', 'cpu']\n", "targets has 'cpu' twice"),
        ("[[networks]]\nglob = 'a.safe*'\n[[networks]]\ncheckpoint = 'a.safetensors'\nname = 'A'\n",
         "'a' and 'A' differ only in case"),
        ("[[targets]]\nname = 'Cpu'\n[[targets]]\n[[networks]]\nglob = 'a.safe*'\n",
         "targets 'Cpu' and 'cpu' differ only in case"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nconfig = 'no'\n", "cannot be read"),
        ("[[networks]]\ncheckpoint = 'a.safetensors'\nseed = nan\n", "seed"),
        ("[[networks]]\nglob = '*.safe*'\n[[networks]]\ncheckpoint = 'a.safetensors'\n", "two"),
        ("[[targets]]\n[[targets]]\ntarget = 'cpu'\n[[networks]]\nglob = 'a.*'\n", "two targets"),
        ("[[targets]]\ntarget = 'toaster'\n[[networks]]\nglob = 'a.safe*'\n", "toaster"),
        ("[[targets]]\nruntime = 'dcnn'\n[[networks]]\nglob = 'a.safe*'\n", "dcnn"),
        ("[[targets]]\nlatency-table = 'no'\n[[networks]]\nglob = 'a.safe*'\n", "no"),
        ("[[goals]]\nratio = 2\nspeedup = 2\n[[networks]]\nglob = 'a.safe*'\n", "speedup"),
        ("[[goals]]\nspeedup = 2\n[[targets]]\ntarget = 'jetson'\n[[networks]]\nglob = 'a.safe*'\n",
         "latency-table"),
        ("defaults = 3\n[[networks]]\nglob = 'a.safe*'\n", "table"),
        ("networks = [1]\n", "table"),
        ("targets = 'cpu'\n", "[[targets]]"),
        ("", "[[networks]]"),
    ],
)  # fmt: skip
def test_what_is_wrong_refuses_the_whole_catalogue_in_one_line(
    written: Written, text: str, word: str
) -> None:
    with pytest.raises(UsageError) as refused:
        planned(written(text))
    message = str(refused.value)
    assert word in message
    assert "catalogue.toml" in message
    assert message.isprintable()
    assert len(message) < MOST_OF_A_LINE


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    key=st.sampled_from(["model", "seed", "keep", "max-size", "glob", "ratio", "target", "x\x1b"]),
    value=st.one_of(
        st.text(max_size=20).map(lambda one: f'"{one.encode("unicode_escape").decode()}"'),
        st.sampled_from(["nan", "-1", "true", "[]", "{}", "0x" + "f" * 3000, '["\\u001b[2J"]']),
    ),
    part=st.sampled_from(["[defaults]", "[[targets]]", "[[goals]]", "[[networks]]"]),
)
def test_any_value_is_taken_or_refused_in_one_printable_line(
    written: Written, key: str, value: str, part: str
) -> None:
    path = written(f'{part}\n"{key}" = {value}\n'.replace("\x1b", "\\u001b"))
    try:
        planned(path)
    except EdgecleanError as error:
        assert str(error).replace(os.fspath(path.parent), "").isprintable()  # noqa: PT017


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=120))
def test_any_text_becomes_a_name_that_no_shell_and_no_folder_trips_over(text: str) -> None:
    name = as_name(text)
    assert NAME.fullmatch(name)
    assert shlex.quote(name) == name
    assert name == as_name(name)
