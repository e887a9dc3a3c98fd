"""Whatever lies at the path that any option names: one line, an exit code of the table, no wait.

The options are those of the command line itself, so a new one is tried without being listed here.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
from command_line import Said, Terminal
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from exhaustive import each_once, exhaustive
from small_checkpoint import OPTIONS
from typer.main import get_command
from users_things import nothing_touched

from edgeclean import cli
from edgeclean.files.text import MOST_OF_A_LINE

COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
NOBODY = 65534
SECONDS = 300  # of a machine that others keep busy; a wait for a pipe has no end


class Place(NamedTuple):
    """An option or argument that takes a path; the option is empty for an argument."""

    command: str
    name: str
    option: str


def places() -> list[Place]:
    found = []
    for command, one in COMMANDS.items():
        hints = get_type_hints(inspect.unwrap(one.callback))
        for parameter in one.params:
            if Path in (hints.get(parameter.name), *get_args(hints.get(parameter.name))):
                argument = parameter.param_type_name == "argument"
                found.append(Place(command, parameter.name, "" if argument else parameter.opts[0]))
            elif parameter.name == "arch":  # FILE.py:callable
                found.append(Place(command, "arch", "--arch"))
    return found


PLACES = places()
WRITTEN = {"output", "depfile", "cache"}


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one, tempfile.TemporaryDirectory() as short:
        one.bind(f"{short}/s")  # the name of a socket has 107 characters at most
        shutil.move(f"{short}/s", path)
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def folder(path: Path) -> Path:
    (path / "mine").mkdir(parents=True)
    (path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path.with_name(f"2{path.name}"))
    path.with_name(f"2{path.name}").symlink_to(path.name)
    return path


def long_loop(path: Path) -> Path:
    (path.parent / "links").mkdir()
    for number in range(64):
        (path.parent / "links" / f"{number}").symlink_to(f"{number + 1}")
    path.symlink_to("links/0")
    return path


def behind_a_file(path: Path) -> Path:
    path.write_text("mine", encoding="utf-8")
    return path / path.name


def text(path: Path) -> Path:
    path.write_text("\x00\x1b[31m mine \udcff".encode("utf-8", "surrogateescape").decode("latin-1"))
    return path


def unreadable(path: Path) -> Path:
    path.write_text("mine", encoding="utf-8")
    path.chmod(0)
    return path


def in_a_closed_folder(path: Path) -> Path:
    path.mkdir()
    (path / path.name).write_text("mine", encoding="utf-8")
    path.chmod(0)
    return path / path.name


KINDS: dict[str, Callable[[Path], Path]] = {
    "pipe": pipe,
    "socket": listening,
    "device": device,
    "folder": folder,
    "loop": loop,
    "long chain": long_loop,
    "behind a file": behind_a_file,
    "text": text,
    "long name": lambda path: path.with_name(f"{'n' * 300}{path.suffix}"),
    "long path": lambda path: path.parent / ("n/" * 3000) / path.name,
    "control characters": lambda path: behind_a_file(path.with_name(f"\x1b[2J\n\u202e{path.name}")),
    "no text": lambda path: behind_a_file(path.with_name(os.fsdecode(b"\xff") + path.name)),
}
CLOSED: dict[str, Callable[[Path], Path]] = {
    "unreadable": unreadable,
    "in a closed folder": in_a_closed_folder,
}
SUFFIXES = {"checkpoint": ".safetensors", "arch": ".py", "against": ".onnx", "evaluate": ".npz"}


def words(place: Path, one: Place, path: Path) -> list[object]:
    """A command line that is right but for the one path."""
    said: list[object] = [one.command]
    names = {parameter.name for parameter in COMMANDS[one.command].params}
    if "bundle" in names:
        said.append(path if one.name == "bundle" else place / "bundle")
    if "checkpoint" in names:
        said.append(path if one.name == "checkpoint" else place / "net.safetensors")
        said += [f"--arch={path}:make", *OPTIONS[1:]] if one.name == "arch" else OPTIONS
    needed = {parameter.name for parameter in COMMANDS[one.command].params if parameter.required}
    if "output" in needed and one.name != "output":
        said += ["-o", place / "out"]
    if "key" in needed and one.name != "key":
        said += ["--key", place / "key.pem"]
    if one.name == "sign_certificate":
        said += ["--sign-key", place / "key.pem"]
    if one.name == "ssh_config":
        said += ["--device", "ssh://nobody@127.0.0.1:1"]
    if one.option and one.name != "arch":
        said += [one.option, path]
    return said


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, source: Path, bundle: Path) -> Iterator[Path]:
    """What the commands need, where everybody may read it."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    shutil.copytree(bundle, place / "bundle")
    shutil.copy(source, place / "net.safetensors")
    shutil.copy(source.parent / "net.py", place / "net.py")
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (place / "key.pem").write_bytes(key)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def spot(ready: Path) -> Iterator[Path]:
    """A folder of its own beside what is ready, with a name for what is bad."""
    spot = ready / "spot"
    spot.mkdir()
    spot.chmod(0o777)
    yield spot
    for path in [spot, *spot.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(spot)


def refused(terminal: Terminal, one: Place, ready: Path, path: Path) -> Said:
    def give_up(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        said = terminal(*words(ready, one, path))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert said.code in ((2,) if one.name in WRITTEN else (2, 3)), said
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w ]+ \.\.\.", line)] == lines[-1:]
    assert lines[-1].startswith("error: ")
    assert lines[-1].isprintable()
    assert len(lines[-1]) < MOST_OF_A_LINE + 10
    return said


def makes_sense(one: Place, kind: str) -> bool:
    if kind == "long chain":  # it leads to a place where nothing is yet
        return one.name in WRITTEN
    return kind == "folder" and one.name == "output" and one.command in ("embed", "build-engine")


def whole_and_slice(kinds: Collection[str]) -> list[Any]:
    """Every kind at every place; at every change each place with one kind, and each kind."""
    return exhaustive(itertools.product(PLACES, kinds), keep=each_once(PLACES, kinds))


def name_of(value: Place | str) -> str:
    return value if isinstance(value, str) else f"{value.command}-{value.name}"


def test_the_options_with_paths_are_found() -> None:
    found = {(one.command, one.name) for one in PLACES}
    assert {("compress", name) for name in ("checkpoint", "policy", "depfile", "cache")} < found
    assert {("verify", "bundle"), ("sign", "key"), ("scan", "output"), ("scan", "arch")} < found
    assert {("bench", "ssh_config"), ("targets", "target_file")} < found


@pytest.mark.parametrize(("one", "kind"), whole_and_slice(KINDS), ids=name_of)
def test_what_is_no_such_file_is_refused_at_once(
    terminal: Terminal,
    ready: Path,
    spot: Path,
    monkeypatch: pytest.MonkeyPatch,
    one: Place,
    kind: str,
) -> None:
    monkeypatch.chdir(ready)
    if makes_sense(one, kind):
        pytest.skip("that is what the option is for")
    path = KINDS[kind](spot / f"bad{SUFFIXES.get(one.name, '.toml')}")
    with nothing_touched(ready):
        refused(terminal, one, ready, path)
    assert not (ready / "out").exists()


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Root sees no difference; the files are made by somebody else then."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize(("one", "kind"), whole_and_slice(CLOSED), ids=name_of)
def test_what_may_not_be_read_is_refused(
    terminal: Terminal,
    ready: Path,
    spot: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_nobody: None,
    one: Place,
    kind: str,
) -> None:
    monkeypatch.chdir(ready)
    if one.command == "bench":
        pytest.skip("it runs a network first, in a process that nobody may start in root's venv")
    path = CLOSED[kind](spot / f"bad{SUFFIXES.get(one.name, '.toml')}")
    refused(terminal, one, ready, path)
    assert not (ready / "out").exists()
