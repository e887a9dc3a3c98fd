"""Whatever a converter or a runtime does, it is one line, and it reached nothing outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import rude_engines as engines
from rude_runtime import rude
from runtime_installed import installed_runtime
from tiny_networks import tiny_network

from edgeclean.child.inside import ChildLimits
from edgeclean.child.parcel import Parcel
from edgeclean.confinement import in_words
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from exporters.confined import run_confined
from exporters.onnx_exporter import export_onnx


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_onnx(tiny_network())


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders lie, with spaces and letters that are not ASCII in its name."""
    folder = tmp_path / "wörk in progress 工作"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_what_behaves_converts_and_runs(model: bytes, own_temporary_folder: Path) -> None:
    exporter = rude(engines.Polite)
    made = exporter.converted(model)
    assert made.files == {"file": model[:10]}
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    found = exporter.load(made.files).run(images)
    np.testing.assert_allclose(found, images.sum((2, 3)), rtol=1e-6)
    assert list(own_temporary_folder.iterdir()) == []


def test_nothing_is_installed_written_elsewhere_or_sent(
    model: bytes, own_temporary_folder: Path
) -> None:
    precious = own_temporary_folder / "precious"
    precious.write_text("kept")
    made = rude(engines.Intruding).converted(model)
    held = made.facts["confined"]
    if held != {"network": True, "writes": True}:
        pytest.skip(f"this kernel confines no more than: {in_words(held)}")
    assert made.files["file"] == b"[]", "what the converter could do"
    assert precious.read_text() == "kept"
    assert [path.name for path in own_temporary_folder.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (
            engines.Crashing,
            r"^rude [\d.]+: converting the network crashed \(SIGSEGV\); .*: half of it",
        ),
        (
            engines.Killed,
            r"was killed \(SIGKILL\), most often because the machine has no memory left",
        ),
        (engines.Lying, "came to no answer"),
        (engines.Nesting, "came to no answer"),
        (engines.Eating, "converting the network needs more than the limit memory_bytes"),
    ],
)
def test_a_converter_that_dies_or_lies_is_one_line_of_code_7(
    engine: type[engines.Polite], words: str, model: bytes, own_temporary_folder: Path
) -> None:
    with pytest.raises(ToolchainError) as refusal:
        rude(engine).converted(model)
    message = str(refusal.value)
    assert re.search(words, message)
    assert "\n" not in message
    assert "root:" not in message
    assert refusal.value.exit_code == 7
    assert list(own_temporary_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "limit", "words"),
    [
        (engines.Hanging, {"wall_seconds": 5}, "took too long and was stopped"),
        (engines.Spinning, {"cpu_seconds": 1}, "used up its processor time"),
        (engines.Writing, {"file_bytes": 2**22}, "wrote more than it may|File too large"),
    ],
)
def test_a_converter_that_takes_too_much_is_ended(
    engine: type[engines.Polite], limit: dict[str, int], words: str, model: bytes
) -> None:
    with pytest.raises(ToolchainError, match=words) as refusal:
        rude(engine, **limit).converted(model)
    _, left, process = str(refusal.value).partition("left behind: ")
    if left:  # what it started is ended with it
        for _ in range(100):
            if not Path(f"/proc/{process}").exists() or _is_dead(int(process)):
                break
            time.sleep(0.05)
        else:
            os.kill(int(process), signal.SIGKILL)
            pytest.fail(f"process {process} is still there")


def _is_dead(process: int) -> bool:
    return ") Z " in Path(f"/proc/{process}/stat").read_text()


def test_a_runtime_that_crashes_when_it_runs_is_one_line(model: bytes) -> None:
    del model
    images = np.zeros((1, 3, 8, 8), np.float32)
    with pytest.raises(ToolchainError, match=r"running it crashed \(SIGABRT\)"):
        rude(engines.Crashing).load({"file": b""}).run(images)


def test_a_refusal_is_one_line_of_code_3_without_escapes(model: bytes) -> None:
    with pytest.raises(InputRejectedError) as refusal:
        rude(engines.Refusing).converted(model)
    assert "that nobody knows" in str(refusal.value)
    assert "\x1b" not in str(refusal.value)
    with pytest.raises(InputRejectedError, match="wrote no file: it does not take the network"):
        rude(engines.Idle).converted(model)


def test_what_is_not_here_or_another_version_is_refused_before_any_work() -> None:
    exporter = rude(engines.Polite)
    exporter.packages = {"numpy": ((1,), (99,)), "no-such-runtime": ((1,), (2,))}  # type: ignore[misc]
    said = r"no-such-runtime is not installed; pip install 'edgeclean\[rude\]', or choose another"
    with pytest.raises(ToolchainError, match=said):
        exporter.require()
    exporter.packages = {"numpy": ((98,), (99,))}  # type: ignore[misc]
    with pytest.raises(ToolchainError, match=r"^numpy [\d.]+ is installed, and 98 or above, below"):
        exporter.converted(b"")
    exporter.packages = {"numpy": ((0,), (1, 2))}  # type: ignore[misc]
    with pytest.raises(ToolchainError, match=r"below 1\.2, is what was tried here"):
        exporter.load({})
    with pytest.raises(UsageError, match="int8 was asked of rude, which is given fp32 here"):
        type(exporter)(type(exporter.settings)(precision="int8")).require()


def test_a_converter_that_installs_and_calls_home_when_imported_cannot() -> None:
    """MNN's own tools do (mnn 3.6.1): imported on purpose, confined they change nothing."""
    installed_runtime("mnn")
    given = Parcel(facts={"module": "MNN.tools.mnnconvert"})
    answer = run_confined("confined_tasks:import_task", given, "importing MNN's tools")
    if answer.facts["confined"] != {"network": True, "writes": True}:
        pytest.skip(f"this kernel confines no more than: {in_words(answer.facts['confined'])}")
    assert answer.facts["packages_before"] == answer.facts["packages_after"]


def _alive(processes: list[int]) -> list[int]:
    """Those that are still there after a moment; they are ended, so that none outlives the test."""
    for _ in range(100):
        left = [one for one in processes if Path(f"/proc/{one}").exists() and not _is_dead(one)]
        if not left:
            return []
        time.sleep(0.05)
    for one in left:
        os.kill(one, signal.SIGKILL)
    return left


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end the group alone")
def test_what_a_task_detached_ends_with_it_and_nobody_elses_process_does() -> None:
    """Also what left the session and its parent, however the task ends."""
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        given = Parcel(facts={"then": "answer"})
        answer = run_confined("confined_tasks:daemon_task", given, "leaving processes")
        assert len(answer.facts["left"]) == 3
        assert _alive(answer.facts["left"]) == []
        for then, words in (("crash", r"crashed \(SIGABRT\)"), ("hang", "took too long")):
            given = Parcel(facts={"then": then})
            limits = ChildLimits(wall_seconds=5)
            with pytest.raises(ToolchainError, match=words) as refusal:
                run_confined("confined_tasks:daemon_task", given, "leaving processes", limits)
            left = json.loads(str(refusal.value).partition("left behind: ")[2])
            assert len(left) == 3
            assert _alive(left) == []
        assert bystander.poll() is None
    finally:
        bystander.communicate(b"\n")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems end the group alone")
def test_what_a_task_detached_ends_also_where_this_program_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, tempfile; sys.path[:] = sys.argv[2:]; tempfile.tempdir = sys.argv[1]; "
        "from edgeclean.child.parcel import Parcel; from exporters.confined import run_confined; "
        "run_confined('confined_tasks:daemon_task', Parcel(facts={'then': 'hang'}), 'leaving')"
    )
    path = [str(Path(entry).absolute()) for entry in sys.path]
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *path]) as program:
        said = ""
        while not said.endswith("]\n"):
            assert program.poll() is None
            time.sleep(0.05)
            said = "".join(log.read_text() for log in tmp_path.glob("*/left"))
        program.kill()
    left = json.loads(said.partition("left behind: ")[2])
    assert len(left) == 3
    assert _alive(left) == []


def test_nothing_that_the_system_keeps_of_a_users_file_is_changed(tmp_path: Path) -> None:
    """Landlock lets all of it through: the filter of calls refuses it, everywhere."""
    file = tmp_path / "precious"
    file.write_text("kept")
    file.chmod(0o600)
    with contextlib.suppress(OSError):  # some filesystems have none
        os.setxattr(file, "user.mine", b"1")
    before = file.stat()
    given = Parcel(facts={"file": str(file)})
    answer = run_confined("confined_tasks:meddling_task", given, "meddling")
    if not answer.facts["confined"]["network"]:
        pytest.skip(f"this kernel confines no more than: {in_words(answer.facts['confined'])}")
    assert answer.facts["done"] == []
    after = file.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert after.st_ctime_ns == before.st_ctime_ns, "the time of the last change of any of these"
