"""The kit's parts, run in this process before they are joined, do what the joined file does.

The joined file is run by `test_device_kit.py` and through a real sshd; here every way that a run
can end is gone through where the test can arrange it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standin_trtexec import banner, place_trtexec
from test_device_kit import kit_bundle, run_kit

from edgeclean.devices.kit import device_state, edgeclean_device, storage

MEASURED = ("before", "after", "latency")


class Parts:
    """The parts on one bundle, with a stand-in for trtexec."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.work = folder, folder / "work"
        self.bundle = kit_bundle(folder)
        self.trtexec = place_trtexec(folder / "tools", "10.16")
        monkeypatch.setattr(edgeclean_device, "BUNDLE", self.bundle)

    def __call__(self, *words: str) -> int:
        tool = [] if "--trtexec" in words else ["--trtexec", str(self.trtexec)]
        return edgeclean_device.main(
            ["--work", str(self.work), "--rounds", "2", "--seconds", "1", *tool, *words]
        )

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.work / "result.json").read_text()))

    def tool(self, script: str) -> str:
        """A trtexec of one's own, which tells its version as the real one does."""
        path = self.folder / "own-trtexec"
        path.write_text(
            f"#!/bin/sh\necho '{banner('10.16')}'\n"
            f"if [ \"$1\" = --help ]; then '{self.trtexec}' --help; exit 0; fi\n{script}\n"
        )
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    return Parts(tmp_path, monkeypatch)


def test_the_parts_and_the_joined_file_record_the_same(parts: Parts, tmp_path: Path) -> None:
    assert parts("--dla-core", "0") == 0
    joined = tmp_path / "joined"
    words = ["--work", str(joined), "--trtexec", str(parts.trtexec), "--rounds", "2"]
    finished = run_kit(parts.bundle, *words, "--seconds", "1", "--dla-core", "0")
    assert finished.returncode == 0, finished.stderr
    one, other = parts.result(), json.loads((joined / "result.json").read_text())
    for record in (one, other):
        for name in MEASURED:
            del record[name]
        for engine in record["engines"].values():
            del engine["build_seconds"]
    assert one == other


def test_engines_are_kept_and_a_broken_one_is_built_again(parts: Parts) -> None:
    assert parts() == 0
    assert [one["cached"] for one in parts.result()["engines"].values()] == [False, False]
    assert parts() == 0
    assert [one["cached"] for one in parts.result()["engines"].values()] == [True, True]
    plan = next((parts.work / "engines").glob("*.plan"))
    plan.write_bytes(plan.read_bytes()[:-1])
    assert parts() == 0
    assert sorted(one["cached"] for one in parts.result()["engines"].values()) == [False, True]


def test_an_engine_is_not_taken_for_one_with_other_scratch_memory(parts: Parts) -> None:
    keys = []
    for words in ([], ["--workspace-mib", "64"], ["--dla-core", "0"]):
        assert parts(*words) == 0
        engines = parts.result()["engines"].values()
        assert [one["cached"] for one in engines] == [False, False]
        keys += [one["key"] for one in engines]
    assert len(set(keys)) == 6


def test_a_run_that_was_cut_off_goes_on_with_its_rounds(parts: Parts) -> None:
    failing = parts.folder / "fail-now"
    script = f"[ -e '{failing}' ] && case \"$*\" in *--loadEngine*) exit 1;; esac\n"
    tool = parts.tool(f'{script}exec "{parts.trtexec}" "$@"')
    assert parts("--trtexec", tool) == 0
    whole = parts.result()["latency"]
    assert parts.result()["resumed"] is False
    rounds = parts.work / "rounds"
    assert not rounds.exists()  # a whole run starts its rounds anew
    failing.touch()
    assert parts("--trtexec", tool) == 8
    kept = next(rounds.iterdir())
    (kept / "0-original").write_text(json.dumps([{"latencyMs": 1e6, "computeMs": 1.0}]))
    failing.unlink()
    assert parts("--trtexec", tool) == 0
    assert parts.result()["resumed"] is True
    assert parts.result()["latency"]["original"]["rounds_p50_ms"][0] == 1e6
    assert whole["original"]["rounds_p50_ms"][0] < 1e6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bundle: (bundle / "SHA256SUMS").unlink(), "SHA256SUMS is missing or broken"),
        (lambda bundle: (bundle / "SHA256SUMS").write_text("x"), "SHA256SUMS is missing or broken"),
        (lambda bundle: (bundle / "model.onnx").write_bytes(b""), "model.onnx is missing or was"),
        (lambda bundle: _unlisted(bundle, "kit/kit.json"), "kit/kit.json is not listed"),
        (lambda bundle: _listed(bundle, "../outside"), "SHA256SUMS is missing or broken"),
    ],
)
def test_a_changed_bundle_is_refused_before_anything_is_run(
    parts: Parts,
    change: Callable[[Path], object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (parts.bundle.parent / "outside").write_bytes(b"outside")
    change(parts.bundle)
    assert parts() == 3
    assert words in capsys.readouterr().err
    assert not parts.work.exists()
    assert (parts.folder / "tools/calls.log").read_text() == ""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo '[E] no memory left'; exit 1", "build the engine of the original network: [E] no"),
        ("echo gone; exit 1", "build the engine of the original network: gone"),
        ("exit 0", "answered success and wrote no engine for the original network"),
    ],
)
def test_an_engine_that_is_not_built_ends_the_run(
    parts: Parts, script: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parts("--trtexec", parts.tool(script)) == 8
    assert words in capsys.readouterr().err
    assert not (parts.work / "result.json").exists()


def test_a_measurement_without_times_ends_the_run(
    parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    script = f'case "$*" in *--loadEngine*) exit 0;; esac\nexec "{parts.trtexec}" "$@"'
    assert parts("--trtexec", parts.tool(script)) == 8
    assert "trtexec exported no times" in capsys.readouterr().err


def test_a_tool_that_is_missing_or_tells_no_version_is_named(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parts("--trtexec", str(parts.folder / "nothing")) == 7
    assert "trtexec was not found" in capsys.readouterr().err
    silent = parts.folder / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    assert parts("--trtexec", str(silent)) == 7
    assert "does not tell its version" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(parts.trtexec.parent))
    assert storage.find_trtexec(None) == str(parts.trtexec)


def test_a_disk_without_room_is_told_wherever_it_shows(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(parts.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=0))
    assert parts() == 9  # before an engine is built
    room = iter([10**12, *[0] * 9])
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=next(room)))
    assert parts("--trtexec", parts.tool("exit 1")) == 9  # trtexec failed for want of room
    room = iter([10**12, *[0] * 9])
    assert parts("--trtexec", parts.tool("exit 0")) == 9  # and did not notice
    said = capsys.readouterr().err
    assert said.count("the disk is full at") == 3
    full = OSError(errno.ENOSPC, "no space", "somewhere")
    monkeypatch.setattr(edgeclean_device, "verify_bundle", lambda bundle: _raise(full))
    assert parts() == 9
    other = OSError(errno.EIO, "broken", "somewhere")
    monkeypatch.setattr(edgeclean_device, "verify_bundle", lambda bundle: _raise(other))
    assert parts() == 2
    assert "somewhere: broken" in capsys.readouterr().err
    gone = BrokenPipeError()
    monkeypatch.setattr(edgeclean_device, "verify_bundle", lambda bundle: _raise(gone))
    assert parts() == 1


def test_a_second_run_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        storage.hold(first)
        pauses = []
        monkeypatch.setattr(time, "sleep", pauses.append)
        with pytest.raises(storage.Stop, match="another run is at work") as stop:
            storage.hold(second)
        assert stop.value.code == 2
        assert len(pauses) == 30
        monkeypatch.undo()
        threading.Timer(0.2, first.close).start()
        storage.hold(second)
    assert "another run is at work here; waiting" in capsys.readouterr().err


def test_what_a_device_tells_is_read_from_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = tmp_path / "devfreq"
    for name, value in (("gpu", "1300500000\n"), ("odd", "n/a")):
        (clocks / name).mkdir(parents=True)
        (clocks / name / "cur_freq").write_text(value)
    monkeypatch.setattr(device_state, "CLOCKS", ((str(clocks), "*/cur_freq", 1e6),))
    assert device_state.snapshot()["clocks_mhz"] == {"gpu": 1300.5}
    monkeypatch.setattr(
        device_state,
        "first_line",
        lambda path: "nvidia,orin nvidia,tegra234" if path.endswith("compatible") else None,
    )
    assert device_state.compute_capability("9.9") == {"value": "8.7", "from": "chip tegra234"}


def test_the_power_mode_and_the_gpu_are_asked_of_their_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = {"nvpmodel": "echo 'NV Power Mode: MAXN'; echo 0", "nvidia-smi": "echo 9.0"}
    for name, script in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    assert device_state.power_mode() == "NV Power Mode: MAXN 0"
    assert device_state.compute_capability("8.7") == {"value": "9.0", "from": "nvidia-smi"}
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert device_state.compute_capability("8.7") == {
        "value": "8.7",
        "from": "the bundle's target",
    }
    assert device_state.compute_capability(None)["value"] == "unknown"


def test_memory_that_is_not_told_is_none() -> None:
    assert device_state.memory_mib("NoSuchLine") is None
    assert (device_state.memory_mib("MemTotal") or 0) > 0
    assert device_state.first_line("/no/such/file") is None


def _raise(error: OSError) -> None:
    raise error


def _unlisted(bundle: Path, name: str) -> None:
    lines = (bundle / "SHA256SUMS").read_text().splitlines(keepends=True)
    (bundle / "SHA256SUMS").write_text(
        "".join(one for one in lines if not one.endswith(f"{name}\n"))
    )


def _listed(bundle: Path, name: str) -> None:
    digest = storage.file_hash(bundle / name)
    with (bundle / "SHA256SUMS").open("a") as stream:
        stream.write(f"{digest}  {name}\n")
