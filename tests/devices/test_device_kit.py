from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kit_runs
import pytest
from standin_trtexec import FLAGS, banner, place_trtexec
from tiny_networks import tiny_contents, tiny_network

import edgeclean
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.kit import kit_files, program
from edgeclean.devices.kit import device_state
from edgeclean.devices.kit.storage import engine_key
from edgeclean.devices.kit.trtexec_lines import (
    build_line,
    flags_in,
    measure_line,
    precisions_of,
    type_named,
    version_in,
)
from exporters.onnx_exporter import export_onnx

SHARED_FLAGS = Path(__file__).parents[3] / "shared" / "reference" / "trtexec-flags"
PATHS = {"onnx": "a.onnx", "engine": "a.plan", "timing": "t", "layers": "l", "times": "m"}
PRECISIONS = ("fp32", "fp16", "int8", "bf16")


def version_of(name: str) -> tuple[int, int, int]:
    found = version_in(banner(name))
    assert found is not None
    return found


def want(precision: str, dla_core: int | None = None) -> dict[str, Any]:
    return {
        "precision": precision,
        "workspace_mib": 512,
        "dla_core": dla_core,
        "seconds": 2,
        "warmup_ms": 500,
    }


@pytest.mark.skipif(not SHARED_FLAGS.is_dir(), reason="the reference (shared/reference) is absent")
def test_the_flags_are_those_of_the_reference() -> None:
    there = {path.stem[1:]: path.read_text().split() for path in SHARED_FLAGS.glob("*.txt")}
    assert there == FLAGS


@pytest.mark.parametrize("release", FLAGS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dla_core", [None, 0])
def test_every_command_line_has_only_flags_of_its_version(
    release: str, precision: str, dla_core: int | None
) -> None:
    version, known = version_of(release), set(FLAGS[release])
    asked = want(precision, dla_core)
    if version[0] < 10 and precision == "bf16":
        with pytest.raises(ValueError, match="bf16 needs TensorRT 10"):
            build_line(version, known, PATHS, asked)
        return
    built = build_line(version, known, PATHS, asked)
    timed = measure_line(version, known, PATHS, asked)
    for line in (built, timed):
        assert {word.split("=")[0] for word in line} <= known
    assert {"--onnx=a.onnx", "--saveEngine=a.plan", "--skipInference"} <= set(built)
    assert "--memPoolSize=workspace:512" in built
    assert {"--loadEngine=a.plan", "--exportTimes=m"} <= set(timed)


@pytest.mark.parametrize("release", FLAGS)
def test_precision_is_the_graphs_wherever_it_can_be(release: str) -> None:
    version, known = version_of(release), set(FLAGS[release])
    line = build_line(version, known, PATHS, want("fp16"))
    assert ("--stronglyTyped" in line) == (version[0] == 10)
    assert ("--fp16" in line) == (version[0] < 10)
    on_dla = build_line(version, known, PATHS, want("int8", 1))
    assert ("--int8" in on_dla) == (version[0] < 11)
    assert {"--useDLACore=1", "--allowGPUFallback"} <= set(on_dla)


@pytest.mark.parametrize("release", FLAGS)
def test_the_same_is_measured_by_every_version(release: str) -> None:
    """Transfers inside, a CUDA graph, spinning: 11.0 turned all three defaults around."""
    version, known = version_of(release), set(FLAGS[release])
    line = measure_line(version, known, PATHS, want("fp32"))
    if version[0] >= 11:
        assert "--includeDataTransfers" in line
        assert not {"--noCudaGraph", "--noSpinWait"} & set(line)
    else:
        assert {"--useCudaGraph", "--useSpinWait"} <= set(line)
        assert "--noDataTransfers" not in line


def test_a_trtexec_before_8_6_is_asked_in_its_own_words() -> None:
    known = {"--onnx", "--saveEngine", "--buildOnly", "--workspace", "--fp16"}
    line = build_line((8, 2, 1), known, PATHS, want("fp16"))
    assert {word.split("=")[0] for word in line} <= known
    assert "--workspace=512" in line


def test_versions_are_read_from_the_banner() -> None:
    assert version_in("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # --help") == (8, 5, 2)
    assert version_in("[TensorRT v8001]") == (8, 0, 1)
    assert version_in("[TensorRT v100300] [b26]") == (10, 3, 0)
    assert version_in("[TensorRT v101602]") == (10, 16, 2)
    assert version_in("[TensorRT v110401]") == (11, 4, 1)
    assert version_in("nothing") is None
    assert flags_in("  --fp16   Enable fp16 (see --int8)\n --onnx=<file>") == {
        "--fp16",
        "--int8",
        "--onnx",
    }


def test_precisions_are_read_back_from_the_inspector() -> None:
    def layer(text: str) -> dict[str, Any]:
        return {"Name": "x", "Outputs": [{"Name": "y", "Format/Datatype": text}]}

    texts = ["Half", "Row major linear FP16 format", "Int8", "FP32", "Channel major FP8 format"]
    layers = {"Layers": [*map(layer, texts), {"Name": "no output"}, "only a name"]}
    assert precisions_of(layers) == {"fp16": 2, "int8": 1, "fp32": 1, "fp8": 1}
    assert precisions_of("nothing") == {}
    assert type_named("Thirty-two wide channel vectorized row major Int8 format") == "int8"
    assert type_named("?") == "unknown"


def test_a_key_is_of_exactly_four_things() -> None:
    base = ("a" * 64, "10.3.0", "8.7", "fp16")
    keys = {engine_key(*base)}
    for place, other in enumerate(("b" * 64, "10.3.1", "7.2", "int8")):
        keys.add(engine_key(*(*base[:place], other, *base[place + 1 :])))
    assert len(keys) == 5


def test_the_program_is_one_file_for_python_3_6_with_nothing_but_its_library() -> None:
    tree = ast.parse(program(), feature_version=(3, 6))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
        # What newer libraries brought, which no syntax check sees.
        assert not isinstance(node, ast.NamedExpr | ast.Match)
        if isinstance(node, ast.keyword):
            assert node.arg not in {"capture_output", "text", "missing_ok", "dirs_exist_ok"}
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"removeprefix", "removesuffix", "readlink", "is_relative_to"}
    assert imported <= {
        *("argparse", "errno", "fcntl", "hashlib", "json", "math", "os", "pathlib", "platform"),
        *("re", "shutil", "subprocess", "sys", "time", "typing"),
    }
    assert "from __future__" not in program()


def test_the_summary_is_of_all_runs() -> None:
    sample = device_state.summarise([[1.0, 3.0], [2.0, 4.0]])
    assert (sample["p50_ms"], sample["min_ms"], sample["runs"]) == (2.5, 1.0, 4)
    assert sample["rounds_p50_ms"] == [2.0, 3.0]
    assert sample["p99_ms"] == pytest.approx(3.97)
    assert sample["coefficient_of_variation"] == pytest.approx(1.25**0.5 / 2.5)


def kit_bundle(folder: Path) -> Path:
    target = {"name": "orin-nano", "compute_capability": "8.7", "tensorrt": ">=10.3,<10.4"}
    files = kit_files(export_onnx(tiny_network(seed=3)), target, precision="fp16", batch=1)
    contents = replace(tiny_contents(), reproducible_files=files)
    return write_bundle(folder / "bundle", contents).path


def run_kit(bundle: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return kit_runs.run_kit(bundle, *words, PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin")


@pytest.mark.parametrize("release", ["8.6.1", "10.16", "11.1"])
def test_the_kit_runs_from_the_bundle_alone(tmp_path: Path, release: str) -> None:
    bundle = kit_bundle(tmp_path)
    trtexec = place_trtexec(tmp_path / "tools", release)
    words = ["--work", str(tmp_path / "w"), "--trtexec", str(trtexec), "--rounds", "1"]
    finished = run_kit(bundle, *words)
    assert finished.returncode == 0, finished.stderr
    record = json.loads((tmp_path / "w" / "result.json").read_text())
    schema = Path(edgeclean.__file__).parent / "schemas/device.schema.json"
    jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(record)
    assert record["tensorrt"].startswith(release)
    assert record["engines"]["compressed"]["precision"] == "fp16"
    assert record["engines"]["original"]["precision"] == "fp32"
    assert not list((tmp_path / "w").rglob("*.partial"))


def test_rounds_of_another_power_mode_are_not_gone_on_with(tmp_path: Path) -> None:
    """With a device that is taken away in the middle, and comes back in another mode."""
    bundle, tools = kit_bundle(tmp_path), tmp_path / "tools"
    words = ["--work", str(tmp_path / "w"), "--trtexec", str(place_trtexec(tools, "10.3.0"))]
    one, two = [*words, "--rounds", "1"], [*words, "--rounds", "2"]

    def run(mode: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        (tools / "nvpmodel").write_text(f"#!/bin/sh\necho 'NV Power Mode: {mode}'\n")
        (tools / "nvpmodel").chmod(0o755)
        path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
        return kit_runs.run_kit(bundle, *words, PATH=path)

    (tmp_path / "w/result.json.partial").mkdir(parents=True)  # all is measured, nothing written
    assert run("15W", one).returncode != 0
    (tmp_path / "w/result.json.partial").rmdir()
    assert run("MAXN", two).returncode == 0
    record = json.loads((tmp_path / "w" / "result.json").read_text())
    assert (record["power_mode"], record["resumed"]) == ("NV Power Mode: MAXN", False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds, --seconds and --workspace-mib must each be 1 or more"),
        (["--seconds", "-1"], "must each be 1 or more"),
        (["--dla-core", "-1"], "--dla-core must be 0 or more"),
        (["--work", "/dev/null/x"], "/dev/null/x: Not a directory; another --work may be"),
        (["--trtexec", "/dev/null/x"], "trtexec was not found (/dev/null/x)"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_work(
    tmp_path: Path, words: list[str], said: str
) -> None:
    bundle, trtexec = kit_bundle(tmp_path), place_trtexec(tmp_path / "tools", "10.3.0")
    finished = run_kit(bundle, "--trtexec", str(trtexec), "--work", str(tmp_path / "w"), *words)
    assert finished.returncode in (2, 7)
    assert finished.stderr.startswith("error: ")
    assert len(finished.stderr.splitlines()) == 1
    assert said in finished.stderr


def trtexec_that(folder: Path, does: str) -> Path:
    """A program that answers ``--help`` as trtexec does, and then does this."""
    path = folder / "trtexec"
    told = f"echo '{banner('11.1')}'"
    path.write_text(f'#!/bin/sh\n{told}\n[ "$1" = --help ] && exit 0\n{does}\n')
    path.chmod(0o755)
    return path


def test_a_kit_that_is_stopped_says_that_it_goes_on(tmp_path: Path) -> None:
    bundle, trtexec = kit_bundle(tmp_path), trtexec_that(tmp_path, "kill -INT $PPID; sleep 5")
    finished = run_kit(bundle, "--work", str(tmp_path / "w"), "--trtexec", str(trtexec))
    assert finished.returncode == 130
    assert "Traceback" not in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("error: stopped; what is done is kept")


def test_no_time_is_taken_by_a_clock_that_can_be_set_back() -> None:
    """A negative one does not fit the schema, and stays in the engine's record."""
    for one in Path(edgeclean.__file__).parent.glob("devices/kit/*.py"):
        assert "time.time(" not in one.read_text("utf-8"), one.name


@pytest.mark.parametrize("name", ["model.onnx", "kit/original.onnx", "kit/kit.json"])
def test_the_kit_refuses_a_changed_bundle(tmp_path: Path, name: str) -> None:
    bundle = kit_bundle(tmp_path)
    (bundle / name).write_bytes((bundle / name).read_bytes() + b" ")
    finished = run_kit(bundle, "--work", str(tmp_path / "w"))
    assert finished.returncode == 3
    assert f"{name} is missing or was changed" in finished.stderr
    assert not (tmp_path / "w").exists()


def test_what_trtexec_says_of_a_failure_is_passed_on(tmp_path: Path) -> None:
    bundle = kit_bundle(tmp_path)
    trtexec = trtexec_that(tmp_path, "echo '[E] Out of memory'; exit 1")
    finished = run_kit(bundle, "--work", str(tmp_path / "w"), "--trtexec", str(trtexec))
    assert finished.returncode == 8
    assert "build the engine of the original network: [E] Out of memory" in finished.stderr
