"""The kit that measures a bundle in a runtime that a board has installed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit_runs import run_kit
from runtime_bundles import runtime_bundle
from safetensors.numpy import load, save

from edgeclean.bundle.kit import program
from edgeclean.bundle.runtime_kit import MODULES
from edgeclean.devices.kit import runtime_device, runtime_engines, storage
from edgeclean.files.schema import first_violation

ONE = ["--rounds", "1", "--seconds", "1"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_bundle(tmp_path_factory.mktemp("pristine") / "bundle", "onnxruntime")


class Parts:
    """The kit's parts on one bundle, in this process."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.work, self.bundle = folder / "work", bundle
        self.place = ["--bundle", str(bundle)]

    def __call__(self, *words: str) -> int:
        return runtime_device.main([*self.place, "--work", str(self.work), *ONE, *words])

    def child(self, folder: Path, *words: str) -> dict[str, Any]:
        answer = folder / "answer.json"
        assert runtime_device.main([*self.place, *ONE, "--output", str(answer), *words]) == 0
        return dict(json.loads(answer.read_text()))

    def program(self, text: str) -> None:
        """Another program in the place of the processes that measure."""
        replace(self.bundle, runtime_device.PROGRAM, text.encode())


@pytest.fixture
def parts(tmp_path: Path, pristine: Path) -> Parts:
    return Parts(tmp_path, Path(shutil.copytree(pristine, tmp_path / "bundle")))


def test_the_program_is_one_file_for_python_3_9_and_a_runtimes_wheel() -> None:
    text = program(MODULES)
    tree = ast.parse(text, feature_version=(3, 9))
    imported: dict[str, bool] = {}
    for node in ast.walk(tree):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            at_the_top = node.col_offset == 0  # type: ignore[attr-defined]
            imported[name.split(".")[0]] = at_the_top or imported.get(name, False)
        # What newer Pythons brought, which no syntax check sees.
        assert not isinstance(node, ast.Match)
        if isinstance(node, ast.keyword):
            assert node.arg not in {"strict", "slots", "kw_only"}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            assert not isinstance(node.right, ast.Constant | ast.Subscript)  # no X | None
    assert imported.pop("numpy") is False  # where the runtime is missing, it says so first
    assert set(imported) <= {
        *("argparse", "errno", "fcntl", "hashlib", "importlib", "json", "math", "os", "pathlib"),
        *("platform", "shutil", "subprocess", "sys", "time", "typing"),
    }
    assert "from __future__" not in text
    assert "edgeclean." not in "".join(line for line in text.splitlines() if "import" in line)


def test_the_golden_images_and_the_times_are_those_of_the_networks(
    parts: Parts, tmp_path: Path
) -> None:
    golden = parts.child(tmp_path, "--child", "compressed", "--golden")
    stored = load((parts.bundle / "golden.safetensors").read_bytes())
    assert golden["images"] == len(stored["input"])
    assert golden["max_relative_difference"] <= 1e-6
    config = json.loads((parts.bundle / "kit/kit.json").read_bytes())
    changed = {**stored, "logits": stored["logits"] + np.float32(0.5)}
    (parts.bundle / "golden.safetensors").write_bytes(save(changed))
    network = runtime_engines.open_network("onnxruntime", parts.bundle, "fp32", 1)
    images = runtime_engines.golden_tensor(parts.bundle / "golden.safetensors", "input")
    logits = runtime_engines.golden_tensor(parts.bundle / "golden.safetensors", "logits")
    far = runtime_device.compare(network, images, logits, 1)["max_relative_difference"]
    largest = np.maximum(1, np.abs(changed["logits"]).max(axis=1))
    assert far == pytest.approx(0.5 / largest.min(), rel=1e-3)
    times = runtime_device.take_times(network, images, config, 0)
    assert len(times) == 1
    assert times[0] > 0


@pytest.mark.parametrize(
    ("tensors", "words"),
    [({"logits": np.zeros((1, 2), np.float32)}, "hold no input"), (b"\xff" * 8, "not whole")],
)
def test_golden_images_that_are_none_are_said(tmp_path: Path, tensors: Any, words: str) -> None:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(tensors if isinstance(tensors, bytes) else save(tensors))
    with pytest.raises(ValueError, match=words):
        runtime_engines.golden_tensor(path, "input")


def test_logits_that_are_none_are_said(parts: Parts) -> None:
    images = runtime_engines.golden_tensor(parts.bundle / "golden.safetensors", "input")
    logits = runtime_engines.golden_tensor(parts.bundle / "golden.safetensors", "logits")
    classes = logits.shape[1]
    with pytest.raises(ValueError, match="not finite"):
        runtime_device.compare(lambda _: np.full((1, classes), np.nan), images, logits, 1)
    with pytest.raises(ValueError, match=r"it gives .* logits; .* are stored"):
        runtime_device.compare(lambda _: np.zeros((1, classes + 1)), images, logits, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.onnx", "model.onnx is missing or was changed"),
        ("kit/original/model.onnx", "kit/original/model.onnx is missing or was changed"),
        ("golden.safetensors", "golden.safetensors is missing or was changed"),
    ],
)
def test_a_changed_bundle_is_refused_before_anything_is_run(
    parts: Parts, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts.bundle / name).write_bytes(b"")
    assert parts() == 3
    assert words in capsys.readouterr().err
    assert not parts.work.exists()


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", 8, "crashed with the compressed network (signal 1"),
        ("import sys; sys.exit('error: no such layer')", 8, "network: no such layer"),
        ("import sys; print('error: the disk is full'); sys.exit(9)", 9, "the disk is full"),
    ],
)
def test_a_runtime_that_ends_otherwise_is_one_sentence(
    parts: Parts, text: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts.program(text)
    assert parts() == code
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in last
    assert not (parts.work / "result.json").exists()


def test_one_that_hangs_is_ended(parts: Parts, capsys: pytest.CaptureFixture[str]) -> None:
    parts.program("import time; time.sleep(60)")
    assert parts("--spare", "1") == 8
    assert "did not end with the compressed network in time" in capsys.readouterr().err


# In the place of the processes that measure: tells what it was asked, and ends the fourth time.
COUNTING = """
import json, pathlib, sys
words = sys.argv[1:]
answer = pathlib.Path(words[words.index("--output") + 1])
told, golden = answer.with_name("asked"), "--golden" in words
asked = told.read_text().splitlines() if told.exists() else []
asked.append(words[words.index("--child") + 1] + " --golden" * golden)
told.write_text("\\n".join(asked))
if len(asked) == 4:
    sys.exit("error: cut off")
found = {"images": 1, "max_relative_difference": 0.0}
answer.write_text(json.dumps(found if golden else {"times_ms": [float(len(asked)), 2.0]}))
"""


def test_rounds_that_are_kept_are_not_measured_again(parts: Parts) -> None:
    def asked() -> list[str]:
        return (parts.work / "asked").read_text().splitlines()

    parts.program(COUNTING)
    assert parts("--rounds", "2") == 8
    assert asked() == ["compressed --golden", "original", "compressed", "compressed"]
    assert parts("--rounds", "2") == 0
    assert asked()[4:] == ["compressed --golden", "compressed", "original"]
    record = json.loads((parts.work / "result.json").read_text())
    assert record["resumed"] is True
    assert first_violation(record, "device-runtime") is None
    assert record["latency"]["original"]["min_ms"] == 2.0
    assert not (parts.work / "rounds").exists()


@pytest.mark.parametrize("times", [[], [0.0], [-1.0], ["1"], {}, [1], [float("inf")]])
def test_times_that_are_none_are_refused(times: Any) -> None:
    with pytest.raises(ValueError, match="times"):
        runtime_device.checked_times(times)


def test_a_python_without_the_runtime_is_told_what_to_do(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(runtime_engines.PACKAGES, "onnxruntime", "no-such-wheel-of-edgeclean")
    assert parts() == 7
    said = capsys.readouterr().err
    assert "the runtime onnxruntime is not installed for" in said
    assert f"--python env/{'bin'}/python" in said
    assert not parts.work.exists()


@pytest.mark.parametrize("option", ["--rounds", "--seconds", "--threads", "--spare"])
def test_an_impossible_length_is_refused(parts: Parts, option: str) -> None:
    assert parts(option, "0") == 2


@pytest.mark.parametrize(
    ("script", "bits"),
    [("echo throttled=0x50005", 0x50005), ("echo nothing", None), ("exit 1", None)],
)
def test_a_raspberry_pi_says_what_holds_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, bits: int | None
) -> None:
    tool = tmp_path / "vcgencmd"
    tool.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] || exit 2\n{script}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    assert runtime_device.state()["throttled"] == bits


@pytest.mark.slow
@pytest.mark.parametrize("name", runtime_engines.PACKAGES)
def test_the_kit_runs_from_the_bundle_alone_in(name: str, tmp_path: Path) -> None:
    bundle = runtime_bundle(tmp_path / "a bundle", name)
    finished = run_kit(bundle, "--work", str(tmp_path / "w"), *ONE, PYTHON=sys.executable)
    assert finished.returncode == 0, finished.stderr
    record = json.loads((tmp_path / "w/result.json").read_text())
    assert first_violation(record, "device-runtime") is None
    assert record["runtime"]["name"] == name
    assert record["parity"]["max_relative_difference"] <= 1e-5
    assert record["latency"]["original"]["runs"] >= 1
    assert not list(bundle.rglob("__pycache__"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "mnn", "ncnn", "onnxruntime"])
def test_a_file_that_the_runtime_does_not_take_is_one_sentence(name: str, tmp_path: Path) -> None:
    bundle = runtime_bundle(tmp_path / "bundle", name)
    config = json.loads((bundle / "kit/kit.json").read_bytes())
    for one in config["networks"]["original"]:
        replace(bundle, one, b"nothing that a runtime takes")
    finished = run_kit(bundle, "--work", str(tmp_path / "w"), *ONE, PYTHON=sys.executable)
    assert finished.returncode == 8, finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(f"error: {name} ")
    assert "the original network" in last


def replace(bundle: Path, name: str, content: bytes) -> None:
    """Another content of a file, whose hash fits."""
    before = f"{storage.file_hash(bundle / name)}  {name}\n"
    (bundle / name).write_bytes(content)
    sums = bundle / "SHA256SUMS"
    sums.write_text(
        sums.read_text().replace(before, f"{storage.file_hash(bundle / name)}  {name}\n")
    )
