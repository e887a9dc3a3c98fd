"""A bundle measured over a real sshd, in a runtime that really runs at the other end."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_files import make_manifest_fit
from command_line import Terminal
from loopback_sshd import Loopback
from runtime_bundles import original_onnx, runtime_bundle
from tiny_networks import tiny_contents

from edgeclean.bundle import remote_runtime
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.manifest import canonical_json
from edgeclean.bundle.remote_bench import (
    MAX_ANSWER_BYTES,
    RemoteSettings,
    bench_opened,
    read_record,
)
from edgeclean.bundle.remote_runtime import RuntimeRemoteSettings, bench_in_runtime
from edgeclean.bundle.verify import open_bundle
from edgeclean.devices.ssh import Device, parse_device
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError

SETTINGS = RuntimeRemoteSettings(rounds=2, seconds=1, python=sys.executable)
NOWHERE = Device(host="nowhere")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_bundle(tmp_path_factory.mktemp("bundle") / "bundle", "onnxruntime")


def bench(
    bundle: Path,
    server: Loopback,
    settings: RuntimeRemoteSettings = SETTINGS,
    *,
    runtime: str = "onnxruntime",
    against: bytes | None = None,
) -> tuple[dict[str, object], list[str]]:
    log: list[str] = []
    device = parse_device(server.url, configuration=server.configuration)
    opened = open_bundle(bundle)
    given = original_onnx() if against is None and runtime == "onnxruntime" else against
    record = bench_in_runtime(opened, device, runtime, settings, against=given, log=log.append)
    return record, log


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncnn", "openvino", "mnn"])
def test_a_board_runs_the_runtimes_own_files_and_answers(
    name: str, server: Loopback, tmp_path: Path
) -> None:
    own = runtime_bundle(tmp_path / "bundle", name)
    record, log = bench(own, server, runtime=name)
    assert record["manifest_sha256"] == open_bundle(own).record.manifest_sha256
    assert record["runtime"]["name"] == name
    assert record["parity"]["max_relative_difference"] <= record["parity"]["tolerance"]
    assert record["parity"]["images"] > 0
    latency = record["latency"]
    for role in ("original", "compressed"):
        assert len(latency[role]["rounds_p50_ms"]) == 2
        assert 0 < latency[role]["min_ms"] <= latency[role]["p50_ms"] <= latency[role]["p90_ms"]
    assert latency["speedup"] == latency["original"]["p50_ms"] / latency["compressed"]["p50_ms"]
    order = [
        line.split()[1].strip(",") for line in log if line.startswith("measuring ") and "," in line
    ]
    assert order == ["original", "compressed", "compressed", "original"]


@pytest.mark.slow
def test_the_command_tells_a_board_and_then_holds_its_gate(
    bundle: Path,
    server: Loopback,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = tmp_path / "original.onnx"
    original.write_bytes(original_onnx())
    there = ("--device", server.url, "--ssh-config", server.configuration)
    asked = ("--runtime", "onnxruntime", "--against", original, "--python", sys.executable)
    answer = Terminal(monkeypatch, capsys)("bench", bundle, *there, *asked, "--min-speedup", 1000)
    assert answer.code == 6, answer.err
    assert "at least 1000 was asked" in answer.err
    for words in ("parity with the bundle", "onnxruntime", "speed-up", "state before"):
        assert words in answer.out


@pytest.mark.slow
def test_nothing_is_left_or_removed_but_the_programs_own(bundle: Path, server: Loopback) -> None:
    theirs = server.home / ".edgeclean" / "of the user"
    theirs.mkdir(parents=True)
    (theirs / "a file").write_text("theirs")
    python = server.home / "a Python's folder" / "python; touch owned"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    before = everything(server.home)
    settings = replace(SETTINGS, python="a Python's folder/python; touch owned", rounds=1)
    _, log = bench(bundle, server, settings)
    assert any("copying" in line for line in log)
    digest = open_bundle(bundle).record.manifest_sha256[:16]
    new = everything(server.home) - before
    assert {name.split("/")[1] for name in new} == {f"{digest}-onnxruntime"}
    assert before <= everything(server.home)
    assert not [name for name in new if "__pycache__" in name or name.endswith(".partial")]
    _, log = bench(bundle, server, settings)
    assert not any("copying" in line for line in log)


@pytest.mark.slow
def test_a_board_without_the_runtime_or_the_python_is_one_sentence(
    bundle: Path, server: Loopback
) -> None:
    bare = server.tools / "bare-python"
    bare.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -I -S -B "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(
        ToolchainError, match=r"onnxruntime is not installed for .*name that Python"
    ):
        bench(bundle, server, replace(SETTINGS, python="bare-python"))
    with pytest.raises(ToolchainError, match="no-such-python"):
        bench(bundle, server, replace(SETTINGS, python="no-such-python"))


@pytest.mark.slow
def test_a_copy_that_was_damaged_on_the_board_is_made_anew(bundle: Path, server: Loopback) -> None:
    bench(bundle, server, replace(SETTINGS, rounds=1))
    (model,) = server.home.glob(".edgeclean/*/bundle/model.onnx")
    whole = model.read_bytes()
    model.write_bytes(bytes(len(whole)))  # what a power cut leaves of a file that was not flushed
    bench(bundle, server, replace(SETTINGS, rounds=1))
    assert model.read_bytes() == whole


def test_a_board_gets_the_networks_and_the_kit_and_no_more(bundle: Path) -> None:
    opened = open_bundle(bundle)
    files = remote_runtime._files_to_send(opened, "onnxruntime", original_onnx(), print)
    assert files["kit/original/model.onnx"] == original_onnx()
    assert set(files) == {
        *("SHA256SUMS", "manifest.json", "golden.safetensors", "model.onnx"),
        *("kit/edgeclean_device.py", "kit/kit.json", "kit/run.sh", "kit/original/model.onnx"),
    }


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("rknn", "rknn.* is measured on no device here; those are: onnxruntime, openvino"),
        ("litert-micro", "measured on no device here"),
        ("a\nb", "measured on no device here"),
        ("mnn", "the bundle has no files of the runtime mnn; it has those of onnxruntime"),
    ],
)
def test_a_runtime_that_cannot_be_measured_there_is_refused(
    bundle: Path, runtime: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as refusal:
        bench_in_runtime(open_bundle(bundle), NOWHERE, runtime, SETTINGS, against=None, log=print)
    assert "\n" not in str(refusal.value)


def test_a_bundle_without_an_original_says_how_to_make_one(tmp_path: Path) -> None:
    plain = open_bundle(write_bundle(tmp_path / "plain", tiny_contents()).path)
    with pytest.raises(
        UsageError, match="has no original to compare with in onnxruntime; give --ag"
    ):
        bench_in_runtime(plain, NOWHERE, "onnxruntime", SETTINGS, against=None, log=print)
    with pytest.raises(InputRejectedError, match="the original"):
        bench_in_runtime(plain, NOWHERE, "onnxruntime", SETTINGS, against=b"x", log=print)


def test_a_kit_for_a_runtime_is_none_for_tensorrt(bundle: Path) -> None:
    with pytest.raises(UsageError, match="has no kit for a device"):
        bench_opened(open_bundle(bundle), NOWHERE, RemoteSettings(), print)


def test_programs_that_are_not_ours_never_reach_a_board(tmp_path: Path) -> None:
    name = "kit/json.py"  # Python looks beside the program first
    own = runtime_bundle(tmp_path / "bundle", "mnn")
    (own / name).write_bytes(b"open('canary', 'w')\n")
    manifest = json.loads((own / "manifest.json").read_bytes())
    manifest["files"][name] = {}
    (own / "manifest.json").write_bytes(canonical_json(manifest))
    make_manifest_fit(own)
    with pytest.raises(InputRejectedError, match=f"^{name} is not what .* nothing was sent"):
        bench_in_runtime(open_bundle(own), NOWHERE, "mnn", SETTINGS, against=None, log=print)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not JSON"),
        (b"{}", "does not fit its schema"),
        (b" " * (MAX_ANSWER_BYTES + 1), "larger than"),
    ],
)
def test_an_answer_is_as_untrusted_as_any_input(content: bytes, said: str) -> None:
    with pytest.raises(InputRejectedError, match=said):
        read_record(content, "0" * 64, remote_runtime.SCHEMA)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"seconds": 0}, {"threads": 0}, {"python": "x" * 1001}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        RuntimeRemoteSettings(**wrong)  # type: ignore[arg-type]
