"""The child process: its limits, its answers, and what its death is told as.

Whole children are started by test_checkpoint.py and the hostile files; here it is mostly the same
code, in this process.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import pickletools
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxsim
import pytest
import safetensors.torch
import torch
from tiny_networks import tiny_contents

from edgeclean.child import inside, process
from edgeclean.child.inside import READY, ChildLimits, Task
from edgeclean.child.parcel import Parcel, packed, unpacked, untrusted_answer
from edgeclean.child.process import run_child
from edgeclean.errors import InputRejectedError, ToolchainError
from edgeclean.load import torch_file
from edgeclean.load.checkpoint import read_networks, torch_task
from edgeclean.load.isolation import limits_of, parse_isolated, with_limits
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx import guard
from edgeclean.load.onnx.importer import import_onnx

LIMITS = LoadLimits(cpu_seconds=7, memory_bytes=1000)
CHILD_LIMITS = ChildLimits(cpu_seconds=7, memory_bytes=1000, file_bytes=0)
NOTHING = Parcel()


# A process that lowers its own hard limits first, as a batch system would, and then limits itself.
LIMITING = """
import json, resource, sys
from edgeclean.child.inside import ChildLimits, limit_process, mapped_bytes
def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return int(used.ru_utime + used.ru_stime)
hard, limits = json.loads(sys.argv[1]), ChildLimits(**json.loads(sys.argv[2]))
for name, bound in hard.items():
    resource.setrlimit(getattr(resource, name), (bound, bound))
before = mapped_bytes(), seconds()
limit_process(limits, 2**26)
after = mapped_bytes(), seconds()
names = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_CORE")
found = {name: resource.getrlimit(getattr(resource, name)) for name in names}
print(json.dumps([before, after, found]))
"""


def limits_set(hard: dict[str, int], **limits: int) -> Any:
    """What was used before and after, and the limits that a process then has."""
    words = [sys.executable, "-c", LIMITING, json.dumps(hard), json.dumps(limits)]
    ended = subprocess.run(words, capture_output=True, check=True, text=True)
    return json.loads(ended.stdout)


def test_the_limits_are_those_of_the_settings() -> None:
    before, after, found = limits_set({}, cpu_seconds=7, memory_bytes=2**30, file_bytes=0)
    memory, seconds = 2**30 + 5 * 2**26, 1 + 7 + 2
    assert before[0] + memory <= found["RLIMIT_AS"][0] <= after[0] + memory
    assert before[1] + seconds <= found["RLIMIT_CPU"][0] <= after[1] + seconds
    assert found["RLIMIT_AS"][0] == found["RLIMIT_AS"][1]
    assert found["RLIMIT_CPU"][1] == found["RLIMIT_CPU"][0] + 5
    assert found["RLIMIT_FSIZE"] == found["RLIMIT_CORE"] == [0, 0]


def test_a_limit_that_stands_already_is_not_raised() -> None:
    hard = {"RLIMIT_AS": 2**35, "RLIMIT_CPU": 60, "RLIMIT_FSIZE": 4096, "RLIMIT_CORE": 0}
    limits = {"cpu_seconds": 900, "memory_bytes": 2**40, "file_bytes": 2**31}
    _, _, found = limits_set(hard, **limits)
    assert found == {name: [bound, bound] for name, bound in hard.items()}


def test_what_is_mapped_is_known_or_taken_as_much(tmp_path: Path) -> None:
    assert 2**20 < inside.mapped_bytes() < 2**40
    assert inside.mapped_bytes(tmp_path / "no such file") == 64 * 2**30


@pytest.mark.parametrize("good", [True, False])
def test_a_child_answers_on_a_descriptor_of_its_own(
    good: bool, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)} if good else [], stream)
    given = io.BytesIO(b"".join(packed(with_limits(file(stream.getvalue()), LoadLimits()))))
    limited: list[tuple[ChildLimits, int, int]] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=given))
    monkeypatch.setattr(
        inside,
        "limit_process",
        lambda limits, size: limited.append((limits, size, given.tell())),
    )
    settings = {
        "task": "edgeclean.load.checkpoint:torch_task",
        "given_bytes": 1,
        "limits": asdict(CHILD_LIMITS),
    }
    kept = os.dup(1)
    try:
        inside.run(settings, {"confined": 7})
        os.write(1, b"chatter")  # as native code might
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    out, err = capfdbinary.readouterr()
    assert err.endswith(b"chatter")
    assert limited == [(CHILD_LIMITS, 1, 0)], "it limits itself, and before it reads a byte"
    assert out.startswith(READY)
    answer = unpacked(out, len(READY))
    assert answer.facts["confined"] == 7
    if good:
        assert torch.equal(safetensors.torch.load(answer.files["parsed"])["0:w"], torch.ones(2))
    else:
        assert answer.facts["kind"] == "InputRejectedError"
        assert answer.facts["refused"].startswith("the checkpoint is of type list")


def file(contents: bytes) -> Parcel:
    return Parcel(files={"file": contents})


def answering(monkeypatch: pytest.MonkeyPatch, code: str, out: bytes, err: str = "") -> None:
    """A real child that says this, whatever it is given, and ends by that statement."""
    saying = f"import os, signal, sys; os.write(1, {out!r}); os.write(2, {err.encode()!r}); "
    monkeypatch.setattr(process, "_CHILD", saying + code)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "os.kill(os.getpid(), 9)",
            r"^parsing was killed \(SIGKILL\), .*; the limits are memory_b",
        ),
        ("os.kill(os.getpid(), 24)", "^parsing used up its processor time; the limits are memory_"),
        ("os.kill(os.getpid(), 25)", "^parsing wrote more than it may"),
        ("os.kill(os.getpid(), 6)", r"^parsing crashed \(SIGABRT\)"),
        ("os.kill(os.getpid(), 40)", "^parsing was ended by signal 40"),
        ("sys.exit(3)", "^parsing ended with code 3; the limits are .* cpu_seconds 7: why$"),
    ],
)
def test_a_death_is_told(code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "signal.signal(25, signal.SIG_DFL); " + code, READY, "so\nwhy\n")
    with pytest.raises(InputRejectedError, match=words):
        parse_isolated(torch_task, NOTHING, LIMITS)


def test_a_child_knows_nothing_of_its_parents_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real child, which tells what it finds: variables, and whether the folder has a say."""
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger was imported')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LD_LIBRARY_PATH", "A_SECRET"):
        monkeypatch.setenv(name, str(tmp_path))
    telling = (
        "import json, os, sys; said = json.dumps([dict(os.environ), sys.flags.isolated]); "
        "raise SystemExit(said)"
    )
    monkeypatch.setattr(process, "_CHILD", telling)
    with pytest.raises(ToolchainError) as told:
        parse_isolated(torch_task, NOTHING, LIMITS)
    variables, isolated = json.loads(str(told.value).partition("did not start: ")[2])
    assert set(variables) <= {"LC_CTYPE"}, "what Python sets for itself"
    assert isolated == 1


def test_a_parser_runs_in_the_child_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_contents().model

    def never(*_: object, **__: object) -> bytes:
        raise AssertionError("parsed in the process that decides")

    for module, name in (
        *((torch, "load"), (torch_file, "read_pickle"), (pickletools, "genops")),
        *((guard, "check_structure"), (onnxsim, "simplify")),
    ):
        monkeypatch.setattr(module, name, never)
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)}, stream)
    saved = read_networks(stream.getvalue(), "torch-zip", LoadLimits())
    assert torch.equal(saved.networks[()]["w"], torch.ones(2))
    imported = import_onnx(model, LoadLimits(), folder=tmp_path)
    assert imported.input_shape == (3, 8, 8)


def echo(given: Parcel) -> Parcel:
    said = given.files["file"].decode()
    return Parcel(facts={"said": [said, limits_of(given).cpu_seconds, os.getpid()]})


def busy(given: Parcel) -> Parcel:
    """Hold a lock for ever; a file tells that it is held."""
    lock = Path(given.files["file"].decode())
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        lock.with_name("begun").touch()
        while True:
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends a child with its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_parent_that_is_ended_takes_its_child_along(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Long before the child's own limit: what it held is free."""
    code = (
        "import sys; sys.path[:] = sys.argv[2:]\n"
        "from test_child import LoadLimits, busy, file, parse_isolated\n"
        "parse_isolated(busy, file(sys.argv[1].encode()), LoadLimits(cpu_seconds=120))"
    )
    lock, path = tmp_path / "lock", [str(Path(__file__).parent), *sys.path]
    parent = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(lock), *path])
    while not (tmp_path / "begun").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(number)
    assert parent.wait(60) == -number
    with lock.open("a") as free:
        for _ in range(600):
            with suppress(BlockingIOError):
                fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(0.05)
    raise AssertionError("the child works on")


def test_any_function_at_the_top_of_a_module_runs_in_a_child() -> None:
    answer = parse_isolated(echo, file(b"abc"), LoadLimits(cpu_seconds=9))
    said, seconds, number = answer.facts["said"]
    assert (said, seconds) == ("abc", 9)
    assert number != os.getpid()


def made_in_a_function() -> Task:
    def torch_task(given: Parcel) -> Parcel:
        return given

    return torch_task


@pytest.mark.parametrize("task", [made_in_a_function(), lambda given: given])
def test_what_is_not_found_by_its_name_does_not_start(task: Task) -> None:
    with pytest.raises(ToolchainError, match="did not start: AttributeError"):
        parse_isolated(task, NOTHING, LIMITS)


def answer(facts: dict[str, Any]) -> bytes:
    return READY + b"".join(packed(Parcel(facts=facts, files={"x": b"parsed"})))


def test_answers_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "pass", answer({"a": 1}))
    found = parse_isolated(torch_task, NOTHING, LIMITS)
    assert found == Parcel(facts={"a": 1}, files={"x": b"parsed"})
    answering(monkeypatch, "pass", answer({"refused": "why\x1b[31m"}))
    with pytest.raises(InputRejectedError, match=r"^why[^\x1b]+$"):
        parse_isolated(torch_task, NOTHING, LIMITS)
    answering(monkeypatch, "pass", answer({"refused": "", "kind": "MemoryError"}))
    with pytest.raises(InputRejectedError, match=r"^parsing needs more than the limit memory_"):
        parse_isolated(torch_task, NOTHING, LIMITS)
    answering(monkeypatch, "pass", READY + b"?")
    with pytest.raises(InputRejectedError, match=r"^parsing came to no answer$"):
        parse_isolated(torch_task, NOTHING, LIMITS)
    answering(monkeypatch, "sys.exit(1)", b"", "Traceback\nImportError: torch\n")
    with pytest.raises(ToolchainError, match=r"did not start: ImportError: torch"):
        parse_isolated(torch_task, NOTHING, LIMITS)
    answering(monkeypatch, "sys.exit(1)", b"")
    with pytest.raises(ToolchainError, match="no message"):
        parse_isolated(torch_task, NOTHING, LIMITS)


ENDLESS = "\nwhile True: os.write({}, bytes(2**16))"


def test_an_answer_without_end_is_no_answer_and_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, "pass" + ENDLESS.format(1), READY)
    with pytest.raises(InputRejectedError, match=r"parsing ended with code 1.*Broken pipe"):
        parse_isolated(torch_task, NOTHING, LIMITS)


def test_a_child_that_hangs_is_stopped_whatever_it_prints_or_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = ChildLimits(wall_seconds=2)
    given = file(bytes(2**20))
    for hanging in ("import time; time.sleep(600)", "import os" + ENDLESS.format(2)):
        monkeypatch.setattr(process, "_CHILD", hanging)
        tracemalloc.start()
        with pytest.raises(ToolchainError, match=r"^it took too long and was stopped"):
            run_child("a:b", given, short, doing="it", failure=ToolchainError)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**24  # of what it prints, a read of a megabyte and the last words are held


@pytest.mark.parametrize("cut", [0, 7, 8, 20, -1])
def test_a_parcel_that_is_cut_short_is_no_parcel(cut: int) -> None:
    whole = b"".join(packed(Parcel(facts={"a": [1, 2.5]}, files={"x": b"123", "y": b""})))
    assert unpacked(whole) == Parcel(facts={"a": [1, 2.5]}, files={"x": b"123", "y": b""})
    for wrong in (whole[:cut], whole + b"x"):
        with (
            pytest.raises(ToolchainError, match="no parcel"),
            untrusted_answer(ToolchainError("no parcel")),
        ):
            unpacked(wrong)
