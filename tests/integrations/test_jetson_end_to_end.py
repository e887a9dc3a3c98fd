"""From a checkpoint to numbers from a device: `compress --target jetson`, then `bench --device`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from loopback_sshd import Loopback
from small_checkpoint import OPTIONS, quick_config, write_checkpoint
from standin_trtexec import place_trtexec

from edgeclean import cli
from edgeclean.bundle.verify import verify_bundle
from exporters.onnx_check import open_onnx, opset_of


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["edgeclean", *map(str, words), "--json", "--quiet"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_a_jetson_gets_a_network_and_gives_its_latency(
    tmp_path: Path,
    server: Loopback,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_checkpoint(tmp_path / "source")
    monkeypatch.chdir(source.parent)
    bundle = tmp_path / "bundle"
    said = answer(
        monkeypatch,
        capsys,
        *("compress", source, *OPTIONS, "--config", quick_config(source.parent)),
        *("--target", "jetson", "--precision", "fp16", "-o", bundle),
    )
    assert said["precision"]["format"] == "fp16"
    record = verify_bundle(bundle)
    kit = {"kit/edgeclean_device.py", "kit/run.sh", "kit/kit.json", "kit/original.onnx"}
    assert kit <= set(record.files)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert kit <= set(manifest["files"])
    settings = json.loads((bundle / "kit/kit.json").read_text())
    assert settings["compute_capability"] == "8.7"
    assert settings["networks"]["compressed"]["precision"] == "fp16"
    weights = open_onnx((bundle / "model.onnx").read_bytes()).graph.initializer
    assert all(one.data_type == 10 for one in weights if one.dims)  # FLOAT16
    original = open_onnx((bundle / "kit/original.onnx").read_bytes())
    assert opset_of(original) == 17
    place_trtexec(server.tools, "10.3.0")
    words = ("bench", bundle, "--device", server.url, "--ssh-config", server.configuration)
    measured = answer(monkeypatch, capsys, *words, "--rounds", 1, "--seconds", 1)
    assert measured["manifest_sha256"] == record.manifest_sha256
    assert measured["engines"]["compressed"]["precision"] == "fp16"
    assert "--stronglyTyped" in measured["engines"]["compressed"]["flags"]
    assert measured["latency"]["kind"] == "measured"
    here = answer(monkeypatch, capsys, "bench", bundle, "--runs", 5)  # the kit's own original
    assert here["kind"] == "measured"
    assert here["provider"] == "CPUExecutionProvider"
