"""Hostile values in settings files and options: one short printable line, never a traceback."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from command_line import Said, Terminal
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_checkpoint import OPTIONS
from typer.main import get_command

from edgeclean import cli
from edgeclean.config import PipelineSettings
from edgeclean.files.text import MOST_OF_A_LINE
from edgeclean.gates import Policy
from edgeclean.load.model_file import KEYS

COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
MODEL = {
    "architecture": '"net.py:make"',
    "input-shape": "[3, 12, 12]",
    "classes": "4",
    "mean": "[0.5, 0.5, 0.5]",
    "std": "[0.25, 0.25, 0.25]",
}
TARGET = {
    "name": '"mine"',
    "title": '"mine"',
    "extends": '"cpu"',
    "kind": '"cpu"',
    "opset": '{ value = 17, source = "me" }',
    "precisions": '{ value = ["fp32"], source = "me" }',
    "rank_multiples": '{ value = { fp32 = 1 }, source = "me" }',
    "memory_gb": '{ value = [4], source = "me" }',
    "chip": '{ value = "x", source = "me" }',
    "compute_capability": '{ value = "8.7", source = "me" }',
    "dla_cores": '{ value = 0, source = "me" }',
}
SIMPLE = [
    *("0", "-1", "true", "false", "nan", "-inf", "inf", "1e308", "-0.0", "5e-324", "[]", "{}"),
    *('""', "[[]]", "{ a = {} }", "[{}]", "2020-01-01", "07:32:00", "2020-01-01T07:32:00Z"),
    *(f"0x{'f' * 20_000}", f"-{'9' * 4000}", f"0b{'1' * 65}", "9223372036854775808", "'''\n\n'''"),
    *(f'"{"x" * 60_000}"', f"[{'1,' * 9000}]", "[" * 50 + "]" * 50, '"\\u001b[2J\\u202e\\u0000"'),
    *(
        '"\\U000E0001\\uFEFF\\u2028"',
        "{ 'a\\b' = 1 }",
        '"nan"',
        '"0x10"',
        "[nan]",
        "[true]",
        "[0x1" + "0" * 99 + "]",
    ),
]
VALUES = st.one_of(
    st.sampled_from(SIMPLE),
    st.lists(st.sampled_from(SIMPLE), min_size=1, max_size=3).map(
        lambda some: f"[{', '.join(some)}]"
    ),
    st.tuples(st.sampled_from(["value", "a", '"\\u001b"']), st.sampled_from(SIMPLE)).map(
        lambda pair: f'{{ {pair[0]} = {pair[1]}, source = "me" }}'
    ),
    st.text(max_size=30).map(lambda text: json.dumps(text)),
)
FAST = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def dotted(owner: type = PipelineSettings, above: str = "") -> Iterator[str]:
    """Every key of a configuration file."""
    hints = get_type_hints(owner)
    for one in dataclasses.fields(owner):
        name = f"{above}{one.name}"
        yield name
        if dataclasses.is_dataclass(hints[one.name]):
            yield from dotted(hints[one.name], f"{name}.")


def judged(said: Said, codes: tuple[int, ...]) -> None:
    """What every refusal is; 0 where the value was a good one."""
    assert said.code in codes, said
    assert said.err.isprintable() or said.err.count("\n") == len(said.err.splitlines())
    for line in said.err.splitlines():
        assert line.isprintable()
        assert len(line) < MOST_OF_A_LINE + 10
    if said.code:
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert errors == said.err.splitlines()[-1:]


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@FAST
@given(key=st.sampled_from(KEYS), value=VALUES)
@example(key="classes", value=f"0x{'f' * 20_000}")
@example(key="mean", value=f"[0x{'f' * 20_000}, 0, 0]")
@example(key="classes.a", value=".".join("a" * 60))
def test_a_model_file(
    terminal: Terminal, source: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.chdir(source.parent)
    entries = {**MODEL, key: value}
    if "." in key:
        del entries[key.partition(".")[0]]
    text = "\n".join(f"{one} = {entry}" for one, entry in entries.items())
    path = written(source.parent / "hostile.toml", text)
    judged(terminal("inspect", "missing.pth", "--model", path), (2, 3))


@FAST
@given(key=st.sampled_from(sorted(dotted())), value=VALUES)
@example(key="scan.steps", value=f"0x{'f' * 20_000}")
def test_a_configuration(
    terminal: Terminal, source: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.chdir(source.parent)
    path = written(source.parent / "hostile.toml", f"{key} = {value}\n")
    judged(terminal("inspect", "missing.pth", *OPTIONS, "--config", path), (2, 3, 7))


@FAST
@given(
    key=st.sampled_from([one.name for one in dataclasses.fields(Policy)]),
    value=VALUES,
    ranks=st.booleans(),
)
@example(key="max_size", value=f"0x{'f' * 20_000}", ranks=False)
@example(key='"layer"', value=f"[0x{'f' * 20_000}, 1]", ranks=True)
def test_a_policy_and_ranks(
    terminal: Terminal,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: str,
    ranks: bool,
) -> None:
    monkeypatch.chdir(source.parent)
    path = written(source.parent / "hostile.toml", f"{key} = {value}\n")
    option = "--ranks-file" if ranks else "--policy"
    words = ("compress", "missing.pth", *OPTIONS, "-o", "hostile", "--no-cache", option, path)
    judged(terminal(*words), (2, 3))
    assert not Path("hostile").exists()


@FAST
@given(key=st.sampled_from(sorted(TARGET)), value=VALUES, as_json=st.booleans())
@example(key="opset", value=f'{{ value = 0x{"f" * 20_000}, source = "me" }}', as_json=False)
@example(key="memory_gb", value='{ value = [inf], source = "me" }', as_json=True)
def test_a_target(
    terminal: Terminal,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: str,
    as_json: bool,
) -> None:
    monkeypatch.chdir(source.parent)
    text = "\n".join(f"{one} = {entry}" for one, entry in {**TARGET, key: value}.items())
    path = written(source.parent / "hostile.toml", text)
    said = terminal("targets", "--target-file", path, *(["--json"] if as_json else []))
    judged(said, (0, 2))
    assert re.sub(r"\n", "", said.out).isprintable()


def texts() -> list[tuple[str, str]]:
    """Every option and argument that takes words of the user's own."""
    found = []
    for name, command in COMMANDS.items():
        hints = get_type_hints(inspect.unwrap(command.callback))
        for one in command.params:
            kinds = {hints.get(one.name), *get_args(hints.get(one.name))}
            if kinds & {str, list[str]} or one.name == "system":
                found.append((name, "" if one.param_type_name == "argument" else one.opts[0]))
    return found


HOSTILE = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(
        [
            *(
                "9" * 5000,
                "0x" + "f" * 20_000,
                "nan",
                "-inf",
                "1e999",
                "",
                " ",
                "-",
                "--",
                "\x1b[2J",
            ),
            *("\u202egnp.exe", "\udcff\udc80", "x" * 100_000, "\n\n", "a:b", ".py:make", "%s%n{0}"),
            *(
                "3x" * 9000,
                "1," * 9000,
                "[]",
                "ssh://",
                "ssh://\x1b[2J@h",
                "../../etc/passwd",
                "$(id)",
            ),
        ]
    ),
)


@pytest.mark.parametrize(("command", "option"), texts())
@settings(FAST, max_examples=12)
@given(value=HOSTILE)
def test_an_option(
    terminal: Terminal,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    option: str,
    value: str,
) -> None:
    monkeypatch.chdir(source.parent)
    names = {one.name for one in COMMANDS[command].params}
    words: list[str] = [command]
    if "checkpoint" in names:
        words += ["missing.pth", *(one for one in OPTIONS if not one.startswith(f"{option}="))]
    if "bundle" in names:
        words += ["missing"]
    needed = {one.name for one in COMMANDS[command].params if one.required}
    words += ["-o", "hostile"] * ("output" in needed) + ["--key", "no.pem"] * ("key" in needed)
    words += [f"{option}={value}"] if option else ["--", value]
    said = terminal(*words)
    judged(said, (0, 2, 3, 7) if command in ("targets", "integrations", "parts") else (2, 3, 7))
    assert not Path("hostile").exists()
