"""`edgeclean bench --device`: which kit is taken, what it refuses, and what is told of a board."""

from __future__ import annotations

import json
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal
from tiny_networks import tiny_contents

from edgeclean.bundle.bundle import write_bundle
from edgeclean.cli import bench_device
from edgeclean.cli.command import interrupted_line
from edgeclean.cli.console import Reporter
from edgeclean.errors import ParityError, UsageError

NOWHERE = ("--device", "ssh://nowhere.invalid")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "bundle", tiny_contents()).path


def record(**changes: Any) -> dict[str, Any]:
    """What a board answers."""
    sample = {name: 2.0 for name in ("p50_ms", "p90_ms", "p99_ms", "min_ms", "mean_ms")}
    sample |= {"coefficient_of_variation": 0.01, "runs": 9, "rounds_p50_ms": [2.0]}
    state = {"clocks_mhz": {"cpu0": 2400.0, "cpu1": 1500.0}, "temperatures_c": {"cpu": 61.25}}
    state |= {"governor": "ondemand", "throttled": 0, "memory_available_mib": 9, "uptime_s": 1.0}
    whole = {
        "device": {"model": "Raspberry Pi 5 Model B", "machine": "aarch64"},
        "runtime": {"name": "ncnn", "version": "1.0"},
        "settings": {"threads": 4},
        "parity": {"images": 16, "max_relative_difference": 2e-6, "tolerance": 1e-4},
        "before": state,
        "after": state,
        "latency": {
            "original": sample,
            "compressed": {**sample, "p50_ms": 1.0},
            "speedup": 2.0,
            "kind": "measured",
        },
    }
    return {**whole, **changes}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runtime", "ncnn", "--trtexec", "x"], "both networks run in ncnn on this device; leav"),
        (
            ["--runtime", "mnn", "--dla-core", "0", "--workspace-mib", "9"],
            "--workspace-mib and --d",
        ),
        (
            ["--runtime", "tensorrt", "--python", "p"],
            "builds engines of TensorRT on this device; l",
        ),
        (["--runtime", "tensorrt", "--threads", "2"], "leave --threads out"),
        (["--runtime", "tensorrt"], "has no kit for a device"),
        (
            ["--runtime", "ncnn"],
            "the bundle has no files of the runtime ncnn; it has those of onnx",
        ),
        (
            ["--runtime", "onnxruntime"],
            "this bundle has no original to compare with in onnxruntime",
        ),
        (["--runtime", "onnxruntime", "--against", "no-such.onnx"], "no-such.onnx"),
    ],
)
def test_what_a_device_cannot_do_is_refused_before_it_is_reached(
    terminal: Terminal, bundle: Path, words: list[str], said: str
) -> None:
    answer = terminal("bench", bundle, *NOWHERE, *words)
    assert answer.code in (2, 3)
    assert said in answer.err


def test_a_run_on_a_device_goes_on_after_it_was_interrupted(bundle: Path) -> None:
    def run() -> str:
        reporter, place = Reporter(as_json=False, quiet=True), ("ssh://nowhere.invalid", None)
        with pytest.raises(UsageError, match="no kit"):
            bench_device.bench_there(reporter, bundle, place, "tensorrt", {})
        return interrupted_line()

    assert Context().run(run).endswith("are kept: run the same command again to go on")


def test_a_board_is_told_with_its_state_and_its_parity(capsys: pytest.CaptureFixture[str]) -> None:
    bench_device.tell_board(Reporter(), record(), "pi")
    told = capsys.readouterr().out
    for words in (
        "Raspberry Pi 5",
        "ncnn 1.0",
        "2.0e-06, allowed 1e-04",
        "61 °C, 1500 to 2400 MHz",
    ):
        assert words in told


def test_a_board_that_computes_something_else_is_refused_after_its_numbers_were_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    far = {"images": 16, "max_relative_difference": 2e-4, "tolerance": 1e-4}
    with pytest.raises(
        ParityError, match=r"on pi ncnn .* differ from the bundle's by 0.0002"
    ) as end:
        bench_device.tell_board(Reporter(as_json=True), record(parity=far), "pi")
    assert end.value.exit_code == 5
    assert json.loads(capsys.readouterr().out)["parity"] == far


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (0, []),
        (0x1, ["its voltage is too low"]),
        (0x50005, ["its voltage is too low", "it is throttled"]),
        (0x80000, ["it is too warm, or was since it was started"]),
    ],
)
def test_what_holds_a_raspberry_pi_back_is_said_in_words(bits: int, said: list[str]) -> None:
    assert bench_device._held_back(bits) == said


def test_a_state_that_is_not_told_is_none() -> None:
    nothing = {"temperatures_c": {}, "clocks_mhz": {}, "governor": None}
    assert bench_device._state(nothing) == "not told"
