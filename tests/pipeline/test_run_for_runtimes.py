"""A whole run for other runtimes: refused early, or checked, measured, bundled and run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Terminal
from report_evidence import HOSTILE
from runtime_installed import installed_runtime
from small_checkpoint import OPTIONS, quick_config, write_checkpoint

from edgeclean.bundle.verify import verify_bundle
from edgeclean.report.report import check_report


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def test_a_runtime_that_is_not_here_is_one_line_before_the_checkpoint_is_read(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.confined_runtime.installed_version", lambda _package: None)
    checkpoint = write_checkpoint(tmp_path)
    for words in (["--runtime", "ncnn"], ["--target", "raspberry-pi-4"]):
        said = terminal("compress", checkpoint, *OPTIONS, *words, "-o", tmp_path / "build")
        assert said.code == 7
        assert said.out == ""
        (line,) = said.err.strip().splitlines()
        assert line.startswith("error: the runtime ncnn was asked, and ncnn and pnnx are not inst")
        assert "pip install 'edgeclean[ncnn]'" in line
        assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--runtime", "ncnn,tvm"], "the runtime 'tvm' is unknown; it must be one of onnxrunt"),
        (["--runtime", "mnn,mnn"], "names has 'mnn' twice; name it once"),
        (["--runtime", "ncnn", "--precision", "int8"], "int8 was asked of ncnn, which is given"),
        (["--runtime", f"{HOSTILE}"], "the runtime '<script>"),
    ],
)
def test_what_cannot_be_is_one_line(
    terminal: Terminal, tmp_path: Path, words: list[str], line: str
) -> None:
    checkpoint = write_checkpoint(tmp_path)
    said = terminal("compress", checkpoint, *OPTIONS, *words, "-o", tmp_path / "build")
    assert said.code == 2
    assert line in said.err
    assert "\x1b" not in said.err


@pytest.mark.slow
def test_a_bundle_for_a_runtime_is_whole_and_run_again(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = installed_runtime("mnn").version()
    folder = tmp_path / "with spaces und Ümläute"
    checkpoint, output = write_checkpoint(folder), folder / "build"
    monkeypatch.chdir(folder)
    config = quick_config(folder)
    said = terminal(
        *("compress", checkpoint, *OPTIONS, "--config", config, "--ratio", 1.2),
        *("--runtime", "mnn", "--json", "--no-cache", "-o", output),
    )
    assert said.code == 0, said.err
    rows = {row["name"]: row for row in json.loads(said.out)["runtimes"]}
    assert list(rows) == ["onnxruntime", "mnn"]
    assert rows["mnn"]["parity"] <= rows["mnn"]["tolerance"]
    report = json.loads((output / "report.json").read_text("utf-8"))
    check_report(report)
    assert report["runtimes"] == list(rows.values())
    page = (output / "report.html").read_text("utf-8")
    assert f"mnn {version} (in this bundle)" in page
    assert "without network" in page
    (check,) = verify_bundle(output).runtimes
    assert (check.name, check.version) == ("mnn", version)
    original = folder / "original.onnx"
    assert terminal("export", checkpoint, *OPTIONS, "-o", original).code == 0
    words = ("bench", output, "--against", original, "--runs", 5, "--json")
    measured = json.loads(terminal(*words, "--runtime", "mnn").out)
    assert measured["runtime"] == f"mnn {version}"
    refused = terminal(*words, "--runtime", "openvino")
    assert refused.code == 2
    assert "has no files of the runtime 'openvino'; it has those of mnn" in refused.err


def test_doctor_lists_the_runtimes(terminal: Terminal) -> None:
    said = terminal("doctor", "--json")
    parts = {one["name"]: one for one in json.loads(said.out)["parts"]}
    for name, extra in (
        ("openvino", "openvino"),
        ("ncnn", "ncnn"),
        ("pnnx", "ncnn"),
        ("mnn", "mnn"),
        ("ai-edge-litert", "litert"),
        ("executorch", "executorch"),
    ):
        assert f"pip install 'edgeclean[{extra}]'" in parts[name]["enables"]
        assert not parts[name]["needed"]


def test_an_export_writes_a_folder_for_each_runtime_and_replaces_its_own_alone(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed_runtime("mnn")
    folder = tmp_path / "with spaces und Ümläute"
    checkpoint, output = write_checkpoint(folder), folder / "net.onnx"
    monkeypatch.chdir(folder)
    words = ("export", checkpoint, *OPTIONS, "-o", output, "--runtime", "mnn", "--json")
    said = terminal(*words)
    assert said.code == 0, said.err
    made = json.loads(said.out)["runtimes"]["mnn"]
    assert Path(made["folder"]) == folder / "net-mnn"
    assert made["parity"]["max_relative_difference"] <= 1e-4
    record = json.loads((folder / "net-mnn/edgeclean-runtime.json").read_text("utf-8"))
    assert set(record["files"]) == {"model.mnn"}
    before = (folder / "net-mnn/model.mnn").read_bytes()
    assert terminal(*words).code == 0, "it replaces its own"
    assert (folder / "net-mnn/model.mnn").read_bytes() == before
    (folder / "net-mnn/model.mnn").write_bytes(before + b"x")
    refused = terminal(*words)
    assert refused.code == 2
    assert "is not as `edgeclean export` wrote it, so it is not replaced" in refused.err
    assert (folder / "net-mnn/model.mnn").read_bytes() == before + b"x"
    assert terminal(*words[:-3], "--runtime", "fastest").code == 2
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        *("model.safetensors", "net-mnn", "net.onnx", "net.py")
    ]
