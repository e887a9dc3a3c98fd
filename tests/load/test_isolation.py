"""The parsing process: its limits, its answers, and what its death is told as.

Whole children are started by test_checkpoint.py and the hostile files; here it is the same code,
in this process.
"""

from __future__ import annotations

import fcntl
import functools
import io
import json
import os
import pickletools
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxsim
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_networks import tiny_contents

from edgeclean.bundle import golden
from edgeclean.bundle.golden import run_golden, run_isolated
from edgeclean.errors import InputRejectedError
from edgeclean.load import child, isolation, torch_file
from edgeclean.load.checkpoint import parse_torch, read_networks
from edgeclean.load.isolation import ACCEPTED, READY, REFUSED, Parser, name_of, parse_isolated
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx import guard
from edgeclean.load.onnx.importer import import_onnx
from exporters.session import OnnxSession

LIMITS = LoadLimits(cpu_seconds=7, memory_bytes=1000)
INFINITE = resource.RLIM_INFINITY


def limits_set(monkeypatch: pytest.MonkeyPatch, hard: int) -> dict[int, tuple[int, int]]:
    """What the process would set itself, where ``hard`` stands already."""
    given: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", given.__setitem__)
    monkeypatch.setattr(
        resource, "getrusage", lambda who: SimpleNamespace(ru_utime=2.5, ru_stime=0.6)
    )
    monkeypatch.setattr(child, "mapped_bytes", lambda: 5000)
    child.limit_process(LIMITS, 2**26)
    return given


def test_the_limits_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, seconds = 5000 + 1000 + 5 * 2**26, 3 + 1 + 7 + 2
    assert limits_set(monkeypatch, INFINITE) == {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_CPU: (seconds, seconds + 5),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }


def test_a_limit_that_stands_already_is_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(limits_set(monkeypatch, 4).values()) == {(4, 4), (0, 0)}


def test_what_is_mapped_is_known_or_taken_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < child.mapped_bytes() < 2**40

    def absent(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert child.mapped_bytes() == 64 * 2**30


@pytest.mark.parametrize("good", [True, False])
def test_a_child_answers_on_a_descriptor_of_its_own(
    good: bool, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stream = io.BytesIO()
    torch.save({"w": torch.ones(2)} if good else [], stream)
    given = io.BytesIO(stream.getvalue())
    limited: list[tuple[LoadLimits, int, int]] = []
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=given))
    monkeypatch.setattr(
        child,
        "limit_process",
        lambda limits, size: limited.append((limits, size, given.tell())),
    )
    settings = {
        "parser": "edgeclean.load.checkpoint:parse_torch",
        "input_bytes": 1,
        "limits": asdict(LoadLimits()),
    }
    kept = os.dup(1)
    try:
        child.run(json.dumps(settings))
        os.write(1, b"chatter")  # as native code might
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    out, err = capfdbinary.readouterr()
    assert err.endswith(b"chatter")
    assert limited == [(LoadLimits(), 1, 0)], "it limits itself, and before it reads a byte"
    if good:
        assert out.startswith(READY + ACCEPTED)
        assert torch.equal(safetensors.torch.load(out[2:])["0:w"], torch.ones(2))
    else:
        assert out.startswith(READY + REFUSED + b"the checkpoint is of type list")


def test_a_child_starts_by_following_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    monkeypatch.setattr(child, "end_with_parent", done.append)
    monkeypatch.setattr(child, "run", done.append)
    settings = json.dumps({"parent": 7})
    child.main(settings)
    assert done == [7, settings]


def answering(monkeypatch: pytest.MonkeyPatch, code: int, out: bytes, err: bytes = b"") -> None:
    ended = subprocess.CompletedProcess([], code, out, err)
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: ended)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, r"parsing killed its process \(SIGKILL\); the limits are memory_bytes"),
        (-24, "parsing used up its processor time"),
        (3, "parsing ended its process with code 3"),
    ],
)
def test_a_death_is_told(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, code, READY + ACCEPTED)
    with pytest.raises(InputRejectedError, match=words):
        parse_isolated(parse_torch, b"", LIMITS)


def test_a_child_knows_nothing_of_its_parents_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real child, which tells what it finds: variables, and whether the folder has a say."""
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger was imported')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "LD_LIBRARY_PATH", "A_SECRET"):
        monkeypatch.setenv(name, str(tmp_path))
    telling = (
        "import json, os, sys; "
        "sys.stdout.write('!+' + json.dumps([dict(os.environ), sys.flags.isolated]))"
    )
    monkeypatch.setattr(isolation, "_CHILD", telling)
    variables, isolated = json.loads(parse_isolated(parse_torch, b"", LIMITS))
    assert set(variables) <= {"LC_CTYPE"}, "what Python sets for itself"
    assert isolated == 1


def test_a_parser_runs_in_the_child_and_nowhere_else(
    tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def echo(contents: bytes, limits: LoadLimits) -> bytes:
    return json.dumps([contents.decode(), limits.cpu_seconds, os.getpid()]).encode()


def busy(contents: bytes, _limits: LoadLimits) -> bytes:
    """Hold a lock for ever; a file tells that it is held."""
    lock = Path(contents.decode())
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
        "from test_isolation import LoadLimits, busy, parse_isolated\n"
        "parse_isolated(busy, sys.argv[1].encode(), LoadLimits(cpu_seconds=120))"
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
    said, seconds, process = json.loads(parse_isolated(echo, b"abc", LoadLimits(cpu_seconds=9)))
    assert (said, seconds) == ("abc", 9)
    assert process != os.getpid()


def made_in_a_function() -> Parser:
    def parse_torch(contents: bytes, limits: LoadLimits) -> bytes:
        return contents

    return parse_torch


@pytest.mark.parametrize(
    "parser",
    [
        made_in_a_function(),
        lambda contents, limits: contents,
        functools.partial(echo, limits=LIMITS),
        LIMITS.check_together,
        bytes,
    ],
    ids=["nested", "lambda", "partial", "method", "class"],
)
def test_what_cannot_be_found_by_its_name_is_refused(
    parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(ValueError, match="give a plain function at the top of a module"):
        parse_isolated(parser, b"", LIMITS)


def test_a_name_is_that_of_the_function_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(parse_torch) == "edgeclean.load.checkpoint:parse_torch"
    assert name_of(run_golden) == "edgeclean.bundle.golden:run_golden"
    monkeypatch.setattr(sys.modules["edgeclean.load.checkpoint"], "parse_torch", echo)
    with pytest.raises(ValueError, match="cannot be found by its name"):
        name_of(parse_torch)


def test_answers_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 0, READY + ACCEPTED + b"parsed")
    assert parse_isolated(parse_torch, b"", LIMITS) == b"parsed"
    answering(monkeypatch, 0, READY + REFUSED + b"why")
    with pytest.raises(InputRejectedError, match=r"^why$"):
        parse_isolated(parse_torch, b"", LIMITS)
    answering(monkeypatch, 0, READY + b"?")
    with pytest.raises(InputRejectedError, match="with code 0"):
        parse_isolated(parse_torch, b"", LIMITS)
    answering(monkeypatch, 1, b"", b"Traceback\nImportError: torch\n")
    with pytest.raises(RuntimeError, match="did not start: ImportError: torch"):
        parse_isolated(parse_torch, b"", LIMITS)
    answering(monkeypatch, 1, b"")
    with pytest.raises(RuntimeError, match="no message"):
        parse_isolated(parse_torch, b"", LIMITS)


def test_a_child_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*words: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("python", 1)

    monkeypatch.setattr(isolation.subprocess, "run", hang)
    with pytest.raises(InputRejectedError, match="took too long and was stopped"):
        parse_isolated(parse_torch, b"", LIMITS)


# A bundle's network.


@pytest.fixture(scope="module")
def model() -> bytes:
    return tiny_contents().model


def directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process what would run in the child."""

    def run(parser: Parser, contents: bytes, limits: LoadLimits) -> bytes:
        assert parser is run_golden
        return parser(contents, limits)

    monkeypatch.setattr(golden, "parse_isolated", run)


IMAGES = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)


def test_a_network_is_run_as_the_runtime_runs_it(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    directly(monkeypatch)
    ran = run_isolated(model, IMAGES)
    assert (ran.graph["opset"], ran.source_sha256) == (17, "ab" * 32)
    assert np.array_equal(ran.logits, OnnxSession(model).predict(IMAGES))


def test_images_of_another_shape_are_refused(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    directly(monkeypatch)
    with pytest.raises(InputRejectedError, match=r"takes images \(3, 8, 8\); the manifest says"):
        run_isolated(model, np.zeros((1, 3, 9, 8), np.float32))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]\n",
        b"{}\n",
        b'{"shape": [2, 2], "graph": {}, "source_sha256": ""}\nx',
        b'{"shape": [1], "graph": 1e999, "source_sha256": ""}\nfour',
        b"[" * 10**5,
    ],
)
def test_a_child_that_was_taken_over_may_answer_anything(
    answer: bytes, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "parse_isolated", lambda *parts: answer)
    with pytest.raises(InputRejectedError, match="answered nonsense"):
        run_isolated(model, IMAGES)


def reshaped(*shape: int) -> bytes:
    """A network whose output is its input under another shape."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])],
        [numpy_helper.from_array(np.array(shape), "shape")],
    )
    opset = helper.make_opsetid("", 13)
    built = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(built.SerializeToString())


def test_a_network_that_fails_or_gives_other_rows_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directly(monkeypatch)
    assert run_isolated(reshaped(-1, 192), IMAGES).logits.shape == (3, 192)
    with pytest.raises(InputRejectedError, match=r"gives float32 \(1, 576\); float32 rows, one"):
        run_isolated(reshaped(1, -1), IMAGES)
    with pytest.raises(InputRejectedError, match="ONNX Runtime cannot run the network"):
        run_isolated(reshaped(-1, 97), IMAGES)


def test_memory_that_does_not_suffice_is_the_childs_to_tell(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(self: OnnxSession, images: object) -> None:
        raise MemoryError

    directly(monkeypatch)
    monkeypatch.setattr(OnnxSession, "predict", exhaust)
    with pytest.raises(MemoryError):
        run_isolated(model, IMAGES)
