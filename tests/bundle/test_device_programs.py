"""What runs on a device is ours: a bundle's own programs never do, however well its hashes fit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundle_files import make_checksums_fit, make_manifest_fit
from onnx import TensorProto, helper, numpy_helper
from standin_trtexec import place_trtexec
from tiny_networks import Block, tiny_contents, tiny_network

from edgeclean.bundle import remote_bench
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.kit import kit_files, program
from edgeclean.bundle.manifest import canonical_json
from edgeclean.bundle.remote_bench import MAX_ANSWER_BYTES, RemoteSettings, bench_on_device
from edgeclean.bundle.verify import VerifiedBundle, open_bundle, verify_bundle
from edgeclean.devices.kit import edgeclean_device
from edgeclean.devices.kit.storage import Stop
from edgeclean.devices.ssh import Device
from edgeclean.errors import InputRejectedError, ToolchainError
from exporters.onnx_exporter import export_onnx

SETTINGS = RemoteSettings(rounds=1, seconds=1)
TARGET = {"name": "orin-nano", "compute_capability": "8.7", "tensorrt": ">=10.3,<10.4"}
EVIL_SHELL = b"#!/bin/sh\ntouch ~/canary canary\nexit 3\n"
EVIL_PYTHON = b"open('canary', 'w'); open(__file__ + '.canary', 'w')\n"
SENT = {
    "SHA256SUMS",
    "manifest.json",
    "model.onnx",
    *(f"kit/{name}" for name in ("edgeclean_device.py", "kit.json", "original.onnx", "run.sh")),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    kit = kit_files(
        export_onnx(tiny_network(Block(16), channels=16)), TARGET, precision="fp32", batch=1
    )
    contents = replace(tiny_contents(), target=TARGET, reproducible_files=kit)
    return write_bundle(tmp_path / "bundle", contents).path


class Board:
    """A folder in the place of a device, and a program in the place of ssh that works in it."""

    def __init__(self, folder: Path) -> None:
        self.home, self.tools = folder / "home", folder / "tools"
        self.home.mkdir()
        self.tools.mkdir()
        (self.tools / "python3").symlink_to(sys.executable)
        place_trtexec(self.tools, "10.3.0")
        self.answers('exec sh -c "$last"')

    def answers(self, line: str) -> None:
        """What it does with the words of a command, which are in $last."""
        text = (
            f'#!/bin/sh\ncd "{self.home}"\nHOME="$PWD"; export HOME\nfor last; do :; done\n{line}\n'
        )
        (self.tools / "ssh").write_text(text, encoding="utf-8")
        (self.tools / "ssh").chmod(0o755)

    def files(self) -> set[str]:
        copies = self.home.glob(".edgeclean/*/bundle")
        return {
            path.relative_to(copy).as_posix()
            for copy in copies
            for path in copy.rglob("*")
            if path.is_file()
        }


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board(tmp_path)
    monkeypatch.setenv("PATH", f"{board.tools}{os.pathsep}/usr/bin:/bin")
    return board


def bench(bundle: Path) -> tuple[dict[str, object], list[str]]:
    log: list[str] = []
    return bench_on_device(bundle, Device(host="board"), SETTINGS, log=log.append), log


def put(bundle: Path, name: str, content: bytes) -> None:
    """Another file of the kit, whose every hash fits."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (bundle / name).write_bytes(content)
    manifest["files"][name] = {}
    (bundle / "manifest.json").write_bytes(canonical_json(manifest))
    make_manifest_fit(bundle)


def claim_version(bundle: Path, version: str | None) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["versions"]["edgeclean"] = version
    if version is None:
        del manifest["versions"]["edgeclean"]
    (bundle / "manifest.json").write_bytes(canonical_json(manifest))
    make_manifest_fit(bundle)


CHANGES = {
    "kit/run.sh": EVIL_SHELL,
    "kit/edgeclean_device.py": EVIL_PYTHON,
    "kit/kit.json": canonical_json({"networks": {"original": {"file": "/etc/passwd"}}}),
    "kit/json.py": EVIL_PYTHON,  # Python looks beside the program first
    "kit/sub/x": b"",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_kit_that_no_edgeclean_of_its_version_writes_is_refused(
    bundle: Path, board: Board, name: str
) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    put(bundle, name, CHANGES[name])
    assert verify_bundle(bundle)  # it is whole: nothing but the comparison finds it
    with pytest.raises(
        InputRejectedError, match=f"^{name} is not what edgeclean .* nothing was sent"
    ):
        bench(bundle)
    assert list(board.home.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "version"),
    [("kit/run.sh", "0.0.9"), ("kit/json.py", None), ("kit/run.sh", "\x1b[31m9\n")],
)
def test_of_another_version_the_shipped_kit_is_sent_and_said(
    bundle: Path, board: Board, name: str, version: str | None
) -> None:
    put(bundle, name, CHANGES[name])
    claim_version(bundle, version)
    record, log = bench(bundle)
    assert record["latency"]["kind"] == "measured"
    assert any(f"{name} is not what edgeclean" in line for line in log)
    assert all(line.isprintable() for line in log)
    assert board.files() == SENT
    (copy,) = board.home.glob(".edgeclean/*/bundle")
    assert (copy / "kit/edgeclean_device.py").read_text("utf-8") == program()
    assert not list(board.home.rglob("*canary*"))


def test_what_an_earlier_run_left_on_the_device_is_not_run(bundle: Path, board: Board) -> None:
    """Of the same manifest, by an edgeclean that sent what came."""
    bench(bundle)
    (copy,) = board.home.glob(".edgeclean/*/bundle")
    (copy / "kit/run.sh").write_bytes(EVIL_SHELL)
    make_checksums_fit(copy)
    record, _ = bench(bundle)
    assert record["latency"]["kind"] == "measured"
    assert not list(board.home.rglob("*canary*"))


def test_what_was_verified_is_what_is_sent(
    bundle: Path, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = (bundle / "model.onnx").read_bytes()

    def open_and_change(path: Path) -> VerifiedBundle:
        opened = open_bundle(path)
        for name in ("model.onnx", "kit/original.onnx", "manifest.json", "SHA256SUMS"):
            (path / name).write_bytes(b"another")
        return opened

    monkeypatch.setattr(remote_bench, "open_bundle", open_and_change)
    bench(bundle)
    (copy,) = board.home.glob(".edgeclean/*/bundle")
    assert (copy / "model.onnx").read_bytes() == model


def expanding() -> bytes:
    """A few hundred bytes that become four gigabytes."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["one"], keepdims=0),
        helper.make_node("Expand", ["one", "sides"], ["many"]),
        helper.make_node("ReduceSum", ["many"], ["y"], keepdims=0),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    sides = numpy_helper.from_array(np.array([10**5, 10**4]), "sides")
    graph = helper.make_graph(nodes, "g", [image], [logits], [sides])
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


@pytest.mark.parametrize("content", [expanding(), b"no network"])
def test_an_original_that_costs_too_much_is_not_sent(
    bundle: Path, board: Board, content: bytes
) -> None:
    put(bundle, "kit/original.onnx", content)
    with pytest.raises(InputRejectedError, match=r"^kit/original\.onnx: "):
        bench(bundle)
    assert list(board.home.iterdir()) == []


def test_a_kit_without_its_original_is_refused(bundle: Path, board: Board) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    del manifest["files"]["kit/original.onnx"]
    (bundle / "kit/original.onnx").unlink()
    (bundle / "manifest.json").write_bytes(canonical_json(manifest))
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match=r"kit/original\.onnx is missing from"):
        bench(bundle)


@pytest.mark.parametrize(("step", "stream"), [("cat", 1), ("mkdir", 2), ("head", 1)])
def test_a_device_that_answers_without_end_is_left(
    bundle: Path, board: Board, step: str, stream: int
) -> None:
    """Whatever it was asked, and though it was asked for a few bytes."""
    board.answers(
        f'case "$last" in {step}*) while :; do echo xxxxxxxxxxxxxxxxxxxxxxxx; done >&{stream} ;; '
        '*) exec sh -c "$last" ;; esac'
    )
    with pytest.raises(
        InputRejectedError, match=r"board (answers|reports) more than the \d+ bytes"
    ):
        bench(bundle)


def test_a_shell_that_greets_is_told_before_anything_is_copied(bundle: Path, board: Board) -> None:
    board.answers('echo Welcome to the board; exec sh -c "$last"')
    with pytest.raises(ToolchainError, match=r"shell of board prints 'Welcome to the board.*-t 1"):
        bench(bundle)
    assert list(board.home.iterdir()) == []


def test_a_program_that_is_missing_there_is_told_with_a_way(bundle: Path, board: Board) -> None:
    board.answers(
        'case "$last" in sh*) echo "sh: no" >&2; exit 127 ;; *) exec sh -c "$last" ;; esac'
    )
    with pytest.raises(ToolchainError, match=r"board: sh: no; install what is missing .*--python"):
        bench(bundle)


def test_an_answer_of_the_whole_size_is_read(bundle: Path, board: Board) -> None:
    board.answers(
        f'case "$last" in head*) head -c {MAX_ANSWER_BYTES} /dev/zero ;; '
        '*) exec sh -c "$last" ;; esac'
    )
    with pytest.raises(InputRejectedError, match="not JSON"):
        bench(bundle)


Change = Callable[[Path], object]


def _append(line: str) -> Change:
    def change(bundle: Path) -> None:
        with (bundle / "SHA256SUMS").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    return change


def _as_network(name: str) -> Change:
    def change(bundle: Path) -> None:
        (bundle / "model.onnx").write_bytes((bundle / name).read_bytes())
        make_checksums_fit(bundle)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_as_network("kit/original.onnx"), "model.onnx is another network than"),
        (_as_network("kit/run.sh"), "model.onnx is another network than"),
        (_append(f"{'0' * 64}  model.onnx"), "is missing or broken"),
        (_append(f"{'0' * 64}  ./model.onnx"), "is missing or broken"),
        (_append(f"{'0' * 64}  kit/../model.onnx"), "is missing or broken"),
        (_append(f"{'0' * 64}  /etc/passwd"), "is missing or broken"),
        (_append(f"\\{'0' * 64}  x"), "is missing or was changed"),
        (lambda bundle: (bundle / "SHA256SUMS").write_bytes(b""), "is not listed"),
    ],
)
def test_the_kit_itself_binds_each_network_to_its_role(
    bundle: Path, change: Change, said: str
) -> None:
    edgeclean_device.verify_bundle(bundle)
    change(bundle)
    with pytest.raises(Stop, match=said):
        edgeclean_device.verify_bundle(bundle)


@pytest.mark.parametrize("files", [None, {}, {"model.onnx": 3}, []])
def test_the_kit_needs_a_manifest_that_names_the_networks(bundle: Path, files: object) -> None:
    (bundle / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    make_checksums_fit(bundle)
    with pytest.raises(Stop, match=r"manifest\.json does not name the networks"):
        edgeclean_device.verify_bundle(bundle)
