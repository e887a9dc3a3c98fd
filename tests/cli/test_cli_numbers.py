"""No option takes NaN, infinity or a number that no machine has; the line names the option."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from command_line import Terminal
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command

from edgeclean import cli
from edgeclean.errors import UsageError
from edgeclean.gates import Policy, read_policy
from edgeclean.load.model_file import (
    MAX_STATISTIC,
    MIN_STD,
    read_model_file,
    spec_from_options,
)

COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
NOT_FINITE = st.sampled_from(["nan", "NaN", "inf", "-inf", "Infinity", "1e999", "-1e400"])
TOO_LONG = st.one_of(
    st.integers(2**63, 10**600).map(str), st.integers(4301, 9000).map(lambda digits: "9" * digits)
)


def options(kind: type) -> list[tuple[str, str]]:
    """Every option of that type, as its command's function declares it."""
    found = []
    for name, command in COMMANDS.items():
        hints = get_type_hints(inspect.unwrap(command.callback))
        names = {key for key, hint in hints.items() if kind in (hint, *get_args(hint))}
        found += [(name, one.opts[0]) for one in command.params if one.name in names]
    return found


FLOATS, WHOLE = options(float), options(int)


def refusal(name: str, option: str, text: str) -> str:
    command = COMMANDS[name]
    words = [f"{option}={text}"]
    for parameter in command.params:
        if parameter.required:
            words += ["x"] if parameter.param_type_name == "argument" else [parameter.opts[0], "x"]
    with pytest.raises((UsageError, typer.BadParameter)) as refused:
        command.make_context(name, words)
    error = refused.value
    return error.format_message() if isinstance(error, typer.BadParameter) else str(error)


def test_the_options_with_numbers_are_found() -> None:
    assert {("compress", "--ratio"), ("compress", "--tau"), ("bench", "--min-speedup")} < {*FLOATS}
    assert {("compress", "--max-accuracy-drop"), ("inspect", "--ratio")} < {*FLOATS}
    assert {("compress", "--opset"), ("scan", "--seed"), ("bench", "--runs")} < {*WHOLE}


@pytest.mark.parametrize(("command", "option"), FLOATS)
@settings(deadline=None)
@given(text=NOT_FINITE)
def test_a_number_that_is_not_finite_is_refused(command: str, option: str, text: str) -> None:
    said = refusal(command, option, text)
    assert option in said
    assert "finite" in said


@pytest.mark.parametrize(("command", "option"), WHOLE)
@settings(deadline=None)
@given(text=TOO_LONG)
def test_a_number_beyond_64_bits_is_refused_and_cut_short(
    command: str, option: str, text: str
) -> None:
    for signed in (text, f"-{text}"):
        said = refusal(command, option, signed)
        assert option in said
        assert len(said) < 300


def test_many_classes_are_the_options_fault_and_not_the_files(
    terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "model.toml").write_text(
        'architecture = "resnet20"\ninput-shape = [3, 32, 32]\nclasses = 10\n'
        "mean = [0.5, 0.5, 0.5]\nstd = [0.2, 0.2, 0.2]\n"
    )
    for classes in ("9" * 600, "1000001"):
        words = ["--model", tmp_path / "model.toml", "--classes", classes]
        said = terminal("inspect", tmp_path / "a.safetensors", *words)
        assert said.code == 2
        assert said.err.startswith("error: --classes is ")
        assert "model.toml" not in said.err
        assert len(said.err) < 300


@settings(deadline=None)
@given(gate=st.sampled_from(["max-accuracy-drop", "min-speedup"]), text=NOT_FINITE)
def test_no_gate_is_passed_by_everything(
    tmp_path_factory: pytest.TempPathFactory, gate: str, text: str
) -> None:
    name, number = gate.replace("-", "_"), float(text)
    with pytest.raises(UsageError, match=name):
        Policy(**{name: number})  # type: ignore[arg-type]
    file = tmp_path_factory.mktemp("policy") / "policy.toml"
    file.write_text(f"{gate} = {number}\n")  # nan and inf are words of TOML
    with pytest.raises(UsageError, match=gate):
        read_policy(file, {})


@settings(deadline=None)
@given(
    key=st.sampled_from(["mean", "std"]),
    number=st.one_of(
        NOT_FINITE.map(float),
        st.floats(min_value=MAX_STATISTIC, exclude_min=True, allow_infinity=False).flatmap(
            lambda x: st.sampled_from([x, -x])
        ),
    ),
    place=st.integers(0, 2),
)
def test_a_model_files_statistics_are_numbers_of_pixels(
    tmp_path_factory: pytest.TempPathFactory, key: str, number: float, place: int
) -> None:
    refused_statistics(tmp_path_factory, key, number, place)


@settings(deadline=None)
@given(number=st.floats(max_value=MIN_STD, exclude_max=True), place=st.integers(0, 2))
def test_a_std_that_is_no_deviation_of_images_is_refused(
    tmp_path_factory: pytest.TempPathFactory, number: float, place: int
) -> None:
    refused_statistics(tmp_path_factory, "std", number, place)


def refused_statistics(
    tmp_path_factory: pytest.TempPathFactory, key: str, number: float, place: int
) -> None:
    from edgeclean.errors import InputRejectedError

    said: dict[str, list[float]] = {"mean": [0.5] * 3, "std": [0.25] * 3}
    said[key][place] = number
    file = tmp_path_factory.mktemp("model") / "model.toml"
    file.write_text(
        'architecture = "resnet20"\ninput-shape = [3, 32, 32]\nclasses = 10\n'
        f"mean = {said['mean']}\nstd = {said['std']}\n"
    )
    with pytest.raises(InputRejectedError, match=f": {key} is "):
        read_model_file(file)
    texts = {name: ",".join(map(repr, numbers)) for name, numbers in said.items()}
    with pytest.raises(UsageError, match=f"--{key} is "):
        spec_from_options(arch="resnet20", input_shape="3x32x32", classes=10, **texts)  # type: ignore[arg-type]
