"""Each command on a small network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import HEAVY, Terminal, in_a_child
from onnx_middles import exported
from report_evidence import scan_report
from small_checkpoint import QUICK, quick_config
from torch import nn

from edgeclean import pipeline
from edgeclean.cli import about
from edgeclean.config import overlay, to_toml
from edgeclean.errors import InputRejectedError, ToolchainError


def test_integrations_prints_folders_that_are_there(terminal: Terminal) -> None:
    folders = json.loads(terminal("integrations", "--json").out)
    for name, file in (
        ("cmake", "Edgeclean.cmake"),
        ("make", "edgeclean.mk"),
        ("yocto", "meta-edgeclean"),
    ):
        assert (Path(folders[name]) / file).exists()
        said = terminal("integrations", name, "--quiet")
        assert said == (0, f"{folders[name]}\n", "")  # one line that a build tool can take
    assert "yocto" in terminal("integrations").out


@pytest.mark.parametrize("words", [[], ["--json"], ["make"], ["cmake", "--json"], ["bazel"]])
def test_the_former_name_of_integrations_answers_alike(
    terminal: Terminal, words: list[str]
) -> None:
    now, before = terminal("integrations", *words), terminal("parts", *words)
    assert (before.code, before.out) == (now.code, now.out)
    if now.code == 0:
        (line,) = before.err.splitlines()
        assert "`edgeclean integrations`" in line
    assert " parts " not in terminal("--help").out


def test_integrations_are_found_without_anything_heavy() -> None:
    finished = in_a_child(
        "import sys\n"
        "from edgeclean.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print(*(m for m in sys.modules if '.' not in m), file=sys.stderr)",
        "integrations",
        "make",
    )
    assert not set(HEAVY) & set(finished.stderr.split())


def test_embed_writes_into_a_folder_that_holds_other_things(
    terminal: Terminal, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "main.c").write_text("int main;", encoding="utf-8")
    said = terminal("embed", bundle, "-o", tmp_path, "--symbol", "net", "--json")
    document = json.loads(said.out)
    assert said.code == 0
    assert document["bytes"] == (bundle / "model.onnx").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"main.c", "net.c", "net.h"}
    older, newer = ((tmp_path / name).stat().st_mtime_ns for name in ("net.h", "net.c"))
    assert older <= newer  # what edgeclean.mk relies on
    said = terminal("embed", bundle, "-o", tmp_path / "i", "--form", "incbin")
    assert "edgeclean_model.S" in said.out


def test_embed_replaces_bytes_that_it_wrote_and_no_others(
    terminal: Terminal, bundle: Path, tmp_path: Path
) -> None:
    words = ["embed", bundle, "-o", tmp_path, "--form", "incbin", "--symbol", "net"]
    words += ["--file", "golden.safetensors"]
    for _ in range(2):
        said = terminal(*words, "--json")
        assert said.code == 0, said.err
    document = json.loads(said.out)
    content = (bundle / "golden.safetensors").read_bytes()
    assert (document["file"], document["bytes"]) == ("golden.safetensors", len(content))
    assert (tmp_path / "net.safetensors").read_bytes() == content
    (tmp_path / "net.safetensors").write_bytes(b"mine")
    said = terminal(*words)
    assert said.code == 2
    assert "net.safetensors exists and was not written by this command" in said.err
    assert (tmp_path / "net.safetensors").read_bytes() == b"mine"
    said = terminal("embed", bundle, "-o", tmp_path / "x", "--file", "litert/model.tflite")
    assert said.code == 2
    assert "the bundle has no file 'litert/model.tflite' to embed; it has" in said.err
    assert not (tmp_path / "x").exists()


def test_compress_ends_in_a_table_and_the_reports_path(
    terminal: Terminal, network: list[object], tmp_path: Path
) -> None:
    config = quick_config(tmp_path)
    config.write_text("seed = 9\n" + config.read_text("utf-8"), encoding="utf-8")  # option wins
    output = tmp_path / "build"
    words = ["--config", config, "--ratio", 2, "--seed", 3, "--threads", 1, "--no-cache"]
    words += ["-o", output]
    said = terminal("compress", *network, *words)
    assert said.code == 0
    for row in ("parameters", "MACs", "ONNX file", "latency p50", "parity", "model.onnx"):
        assert row in said.out
    assert "report.html" in said.err.splitlines()[-1]
    assert "Synthesising images ..." in said.err  # no terminal: a line for each stage
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    assert manifest["seed"] == manifest["configuration"]["seed"] == 3
    assert manifest["configuration"]["latency"]["threads"] == 1
    assert manifest["configuration"]["ranks"]["ratio"] == 2.0
    assert (output / "report.html").is_file()


@pytest.mark.parametrize(
    ("setting", "told"), [({"learning_rate": 9.0}, True), ({"steps": 0}, False)]
)
def test_a_recovery_that_was_left_out_is_told(
    terminal: Terminal, network: list[object], tmp_path: Path, setting: dict[str, Any], told: bool
) -> None:
    config, output = tmp_path / "e.toml", tmp_path / "b"
    config.write_text(to_toml(overlay(QUICK, {"finetune": setting})), encoding="utf-8")
    said = terminal("compress", *network, "--config", config, "--no-cache", "-o", output)
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    (kept,) = (one["notes"]["kept"] for one in manifest["history"] if one["stage"] == "finetune")
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert kept is not told
    assert ("Recovery was left out" in said.err) is told
    assert any("Recovery was left out" in one for one in report["warnings"]) is told
    assert ("Recovery was left out" in (output / "report.html").read_text("utf-8")) is told


@pytest.mark.parametrize("words", [[], ["--no-photographs"]])
def test_photographs_are_told_where_recovery_saw_them(
    terminal: Terminal, network: list[object], tmp_path: Path, words: list[str]
) -> None:
    config, output = quick_config(tmp_path), tmp_path / "b"
    said = terminal(
        "compress", *network, "--config", config, *words, "--ratio", 1.5, "--no-cache", "-o", output
    )
    assert said.code == 0
    report = json.loads((output / "report.json").read_text("utf-8"))
    seen, page = report["images"]["photographs"], (output / "report.html").read_text("utf-8")
    assert "no training data was used" in page
    assert ("crops of 10 public photographs" in page) is (words == [])
    assert ("crops of unrelated photographs" in page) is (words == [])
    if words:
        assert seen is None
    else:
        assert seen["count"] == 10
        assert seen["share"] == pytest.approx(0.5 / (1 + seen["distance"]), abs=1e-3)


@pytest.mark.parametrize("words", [[], ["--no-photographs"]])
def test_photographs_that_pillow_cannot_open_are_told_before_anything_is_read(
    tmp_path: Path, words: list[str]
) -> None:
    """A Pillow that was built without WebP has no such module."""
    without = "import sys; sys.modules['PIL._webp'] = None; from edgeclean.cli import main; main()"
    spec = ["--input-shape", "3x32x32", "--classes", "10", "--mean", "0,0,0", "--std", "1,1,1"]
    asked = ["compress", "absent.pth", "--arch", "resnet20", *spec, *words, "-o", "b"]
    said = subprocess.run(
        [sys.executable, "-c", without, *asked], cwd=tmp_path, capture_output=True, text=True
    )
    assert ("absent.pth" in said.stderr) is (words != [])
    assert ("built without WebP" in said.stderr) is (words == [])
    assert ("--no-photographs does without" in said.stderr) is (words == [])
    assert said.returncode == (ToolchainError if words == [] else InputRejectedError).exit_code
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_document_and_the_rest_is_on_stderr(
    terminal: Terminal, network: list[object], tmp_path: Path
) -> None:
    config = quick_config(tmp_path)
    output = tmp_path / "b"
    said = terminal("compress", *network, "--config", config, "-o", output, "--json")
    document = json.loads(said.out)
    assert document["bundle"] == str(output)
    assert document["size"]["macs"]["original"] >= 2 * document["size"]["macs"]["compressed"]
    assert set(document["files"]) == {path.name for path in output.iterdir()}
    assert "Exporting ..." in said.err
    quiet = terminal("compress", *network, "--config", config, "-o", output, "--quiet")
    assert quiet == (0, "", "")


def test_gates_and_a_depfile_from_the_command_line(
    terminal: Terminal, network: list[object], source: Path, tmp_path: Path
) -> None:
    config, output, place = quick_config(tmp_path), tmp_path / "b", tmp_path / "b.d"
    policy, images = tmp_path / "policy.toml", tmp_path / "images.npz"
    policy.write_text('max-size = "1 MB"\nmax-accuracy-drop = 100\n', encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 12, 12), dtype=np.uint8)
    np.savez(images, images=pixels, labels=np.arange(30) % 4)
    words = ["compress", *network, "--config", config, "-o", output, "--policy", policy]
    words += ["--evaluate", images, "--depfile", place]
    said = terminal(*words, "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert [gate["gate"] for gate in document["gates"]] == ["max-accuracy-drop", "max-size"]
    assert document["evaluation"]["images"] == 30
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["gates"] == document["gates"]
    page = (output / "report.html").read_text("utf-8")
    assert "max-accuracy-drop" in page
    assert "On 30 labelled images" in page
    rule = place.read_text("utf-8").split("\n\n")[0].replace("\\\n", "").splitlines()[0].split()
    expected = [source, "net.py", config, policy, images]
    assert rule == [f"{output / 'model.onnx'}:", *map(str, expected)]

    before = {path.name: path.read_bytes() for path in output.iterdir()}
    place.unlink()
    failed = terminal(*words, "--json", "--max-size", "1 kB")
    error = json.loads(failed.out)["error"]
    assert (failed.code, error["kind"]) == (6, "BudgetError")
    assert [gate["passed"] for gate in error["gates"]] == [True, False]
    assert "at most 1,000 was asked" in failed.err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert not place.exists()


def test_scan_shows_what_it_searched_and_writes_evidence(
    terminal: Terminal,
    network: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def suspicious_scan(*_: object, **__: object) -> object:
        return scan_report()

    monkeypatch.setattr(pipeline, "scan", suspicious_scan)
    output = tmp_path / "evidence"
    words = ["scan", *network, "--config", quick_config(tmp_path)]
    said = terminal(*words, "-o", output)
    assert said.code == 0
    assert "backdoor suspected, target class 2" in said.out
    assert "masked patch" in said.out
    assert "warps & <b>blends</b>" in said.out
    assert {path.name for path in output.iterdir()} == {"scan.json", "trigger-0-class-2.png"}
    again = terminal(*words, "-o", output)
    assert again.code == 2
    assert "not empty" in again.err
    failing = terminal(*words, "--fail-on-backdoor", "--json")
    assert failing.code == 4
    assert json.loads(failing.out)["suspects"][0]["target"] == 2


def test_a_scan_that_finds_nothing_says_by_what(
    terminal: Terminal, network: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind_scan(*_: object, **__: object) -> object:
        return scan_report(suspected=False)

    monkeypatch.setattr(pipeline, "scan", blind_scan)
    config = quick_config(tmp_path)
    said = terminal("scan", *network, "--config", config, "--fail-on-backdoor")
    assert said.code == 0
    assert "no trigger found by masked patch" in said.out
    assert "clean" not in said.out


def test_inspect_lists_layers_and_changes_nothing(
    terminal: Terminal, network: list[object], source: Path
) -> None:
    words = ["--config", quick_config(source.parent), "--ratio", 2]
    before = {path: path.stat().st_mtime_ns for path in source.parent.iterdir()}
    said = terminal("inspect", *network, *words, "--keep", "0")
    assert said.code == 0
    assert "named by --keep" in said.out
    assert "ranks" in said.out
    assert "█" in said.out
    document = json.loads(terminal("inspect", *network, *words, "--json").out)
    assert [row["name"] for row in document["layers"]] == ["0", "3", "6", "11"]
    before_macs = sum(row["macs_before"] for row in document["layers"])
    assert before_macs >= 2 * sum(row["macs_after"] for row in document["layers"])
    assert document["spectra"][0]["before"][0] == 1.0
    assert {path: path.stat().st_mtime_ns for path in source.parent.iterdir()} == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the older exporter
def test_inspect_shows_what_cannot_give_the_default_and_says_so(
    terminal: Terminal, tmp_path: Path
) -> None:
    layers = [nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=8), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    (tmp_path / "net.onnx").write_bytes(exported(module.eval(), free=True))
    words = [tmp_path / "net.onnx", "--mean", "0,0,0", "--std", "1,1,1"]
    said = terminal("inspect", *words, "--json")
    assert said.code == 0
    ratio = json.loads(said.out)["ratio"]
    assert 1 <= ratio < 2
    assert f"cannot give the default, 2x; the table is for --ratio {ratio:.2f}" in said.err
    asked = terminal("inspect", *words, "--ratio", 2)
    assert (asked.code, f"ask for --ratio {ratio:.2f} or less" in asked.err) == (6, True)


def test_export_writes_one_file_at_the_opset(
    terminal: Terminal, network: list[object], tmp_path: Path
) -> None:
    from exporters.onnx_check import open_onnx, opset_of

    output = tmp_path / "deep" / "net.onnx"
    said = terminal("export", *network, "-o", output, "--target", "tx2", "--json")
    assert said.code == 0
    assert opset_of(open_onnx(output.read_bytes())) == json.loads(said.out)["opset"] == 13
    assert [path.name for path in output.parent.iterdir()] == ["net.onnx"]
    assert output.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    before = output.read_bytes()
    refused = terminal("export", *network, "-o", output, "--opset", 5)
    assert refused.code == 2
    assert output.read_bytes() == before
    blocked = terminal("export", *network, "-o", output / "in-a-file.onnx")
    assert blocked.code == 2
    assert "cannot write" in blocked.err


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_verify_holds_and_notices_one_bit(terminal: Terminal, bundle: Path, tmp_path: Path) -> None:
    said = terminal("verify", bundle, "--json")
    assert said.code == 0
    assert "model.onnx" in json.loads(said.out)["files"]
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    contents = bytearray((copy / "report.html").read_bytes())
    contents[len(contents) // 2] ^= 1
    (copy / "report.html").write_bytes(contents)
    broken = terminal("verify", copy)
    assert broken.code == 3
    assert "report.html" in broken.err


def test_bench_measures_both_and_keeps_a_budget(terminal: Terminal, bundle: Path) -> None:
    original = bundle.parent / "original.onnx"
    words = ["bench", bundle, "--against", original, "--runs", 8]
    said = terminal(*words, "--json")
    assert said.code == 0
    document = json.loads(said.out)
    assert document["original"]["runs"] == document["compressed"]["runs"] == 8
    table = terminal(*words, "--min-speedup", 1000)
    assert table.code == 6
    assert "speed-up" in table.out
    assert "at least 1000 was asked" in table.err
    wrong = terminal("bench", bundle, "--against", bundle / "manifest.json")
    assert wrong.code == 3


def test_targets_lists_all_and_explains_one(terminal: Terminal) -> None:
    said = terminal("targets")
    assert "jetson" in said.out
    assert "orin-nano" in said.out
    one = terminal("targets", "jetson-nano")
    assert "rank_multiples" in one.out
    facts = json.loads(terminal("targets", "jetson-nano", "--json").out)
    assert facts["opset"] == 13


def test_doctor_says_what_is_missing_and_what_for(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(terminal("doctor", "--json").out)
    parts = {part["name"]: part for part in document["parts"]}
    assert parts["torch"]["found"]
    assert parts["tensorrt"]["enables"]
    monkeypatch.setattr(about, "installed_version", lambda name: None)
    said = terminal("doctor")
    assert said.code == 7
    assert "MISSING, needed" in said.out
    assert "torch" in said.err
