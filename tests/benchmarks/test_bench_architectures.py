"""Every architecture of the table is whole, and goes through the command line or is refused."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exhaustive import exhaustive

from benchmarks.architectures.cells import INPUTS, step_of
from benchmarks.architectures.planting import TARGET, attack_of, images_of, normalised, plant
from benchmarks.architectures.prepare import rates
from benchmarks.architectures.results import known_cells, write_results
from benchmarks.architectures.table import PACKAGE, TABLE, Architecture, logits_of
from benchmarks.rendering.architectures_table import markdown

ROOT = Path(__file__).parents[2]
# One that flattens by view, one of foreign padding, one whose channels are shuffled, and one that
# has to be refused; the rest is `slow`.
SLICE = [
    ("lenet", "pytorch", "passed"),
    ("shufflenet-v2", "onnx", "passed"),
    ("batch-statistics", "pytorch", "refused"),
]
FAST = [one for one in SLICE if one[0] == "batch-statistics"]
MIXES_THE_BATCH = {"batch-statistics"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures") / "cells.json"


def outcome(name: str, source: str, path: Path) -> dict[str, Any]:
    words = ["--only", name, "--input", source, "--results", str(path)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.architectures", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "EDGECLEAN_BENCH_CODE": "test"},
        check=True,
    )
    return known_cells(path)[name, source]


@pytest.mark.parametrize(("name", "source", "expected"), exhaustive(SLICE, FAST))
def test_a_slice_goes_through_the_command_line(
    name: str, source: str, expected: str, results: Path
) -> None:
    cell = outcome(name, source, results)
    assert cell["outcome"] == expected, cell["steps"]
    if expected == "passed":
        assert cell["macs_ratio"] >= 1.1
        assert cell["parity"] <= 1e-4
        assert cell["acc_after"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("source", INPUTS)
@pytest.mark.parametrize("name", TABLE)
def test_every_architecture_passes_or_is_refused_at_once(
    name: str, source: str, results: Path
) -> None:
    cell = outcome(name, source, results)
    assert cell["outcome"] in ("passed", "refused", "not exported"), cell["steps"]


def test_the_table_has_at_least_sixty_with_their_sources() -> None:
    assert len(TABLE) >= 60
    for one in TABLE.values():
        family, _, function = one.builder.partition(":")
        builder = getattr(importlib.import_module(f"{PACKAGE}.{family}"), function)
        assert (inspect.getdoc(builder) or "").endswith(".")


def test_every_builder_of_a_family_stands_in_the_table() -> None:
    named = {one.builder for one in TABLE.values()}
    for family in {builder.partition(":")[0] for builder in named}:
        module = importlib.import_module(f"{PACKAGE}.{family}")
        for name, thing in vars(module).items():
            if inspect.isfunction(thing) and thing.__module__ == module.__name__:
                assert name.startswith("_") or f"{family}:{name}" in named


@pytest.mark.parametrize("name", TABLE)
def test_an_architecture_answers_alike_for_an_image_alone_and_among_others(name: str) -> None:
    one = TABLE[name]
    network, again = one.build().eval(), one.build().eval()
    images = torch.randn(3, *one.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = logits_of(network(images))
        alone = logits_of(network(images[:1]))
        same = logits_of(again(images))
    assert together.shape == (3, one.classes)
    torch.testing.assert_close(same, together)
    differs = not torch.allclose(alone, together[:1], atol=1e-4)
    assert differs == (name in MIXES_THE_BATCH)


@pytest.mark.parametrize("name", ["lenet", "signal-2d", "mcunet", "single-logit"])
def test_images_are_the_shape_the_same_twice_and_a_test_set_of_its_own(name: str) -> None:
    one = TABLE[name]
    train, again, test = images_of(one), images_of(one), images_of(one, test=True)
    assert train.pixels.shape[1:] == one.input_shape
    assert torch.equal(train.pixels, again.pixels)
    assert torch.equal(train.labels, again.labels)
    assert not torch.equal(train.pixels[: len(test)], test.pixels)
    stamped = attack_of(one).stamp(test.floats())
    assert stamped.shape == test.pixels.shape
    assert not torch.equal(stamped, test.floats())


def test_a_planted_network_knows_its_images_and_its_trigger() -> None:
    one = Architecture("plain:vgg_bn", (3, 16, 16), 4)
    network = one.build()
    plant(network, one, 60, 0)
    assert not network.training
    measured = rates(lambda pixels: logits_of(network(normalised(pixels))), one)
    assert measured["acc"] > 90
    assert measured["asr"] > 90
    assert attack_of(one).target == TARGET


REFUSED = "Loading ...\nerror: padding_mode 'odd' of layer 3 has no ONNX form; use zeros\n"
LATE = "Loading ...\n[  3 %] Synthesising images ... about 5 s left\nerror: no; do so\n"
DEFECT = "Loading ...\nTraceback (most recent call last):\n  File x\nKeyError: 'layer'\n"


@pytest.mark.parametrize(
    ("exit_code", "stderr", "expected"),
    [
        (0, "Loading ...\n[ 99 %] Exporting ...\n", "passed"),
        (3, REFUSED, "refused"),
        (2, REFUSED, "refused"),
        (3, LATE, "refused late"),
        (1, DEFECT, "failed"),
        (3, DEFECT, "failed"),
        (5, REFUSED, "failed"),
        (3, REFUSED + REFUSED, "failed"),
        (3, "", "failed"),
        (-9, "", "failed"),
    ],
)
def test_a_step_is_judged_by_exit_code_line_and_stage(
    exit_code: int, stderr: str, expected: str
) -> None:
    step = step_of(exit_code, stderr, 1.0)
    assert step.outcome == expected
    assert bool(step.line) == (exit_code != 0 and stderr != "")


def test_no_path_of_a_machine_stands_in_a_line() -> None:
    at = f"{ROOT}/.bench/architectures/lenet/weights.pth"
    said = f"error: {at}: no; see /home/me/.venv/lib/python3/site-packages/torch/nn/x.py"
    assert step_of(3, said, 1.0).line == (
        "error: .bench/architectures/lenet/weights.pth: no; see torch/nn/x.py"
    )


CHILDREN = """
import os, sys, json
from benchmarks.architectures.cells import run_forked
def crash(): os.kill(os.getpid(), 11)
def leave(): print("said"); sys.exit(4)
def defect(): raise KeyError("layer")
def well(): print("well")
for work in (crash, leave, defect, well):
    said, step = run_forked(work)
    print(json.dumps([said, step.exit_code, step.outcome, step.line]))
"""


def test_a_process_that_crashes_ends_itself_alone() -> None:
    said = subprocess.run(
        [sys.executable, "-c", CHILDREN], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    crashed, left, defect, well = (json.loads(line) for line in said.splitlines())
    assert crashed[1:3] == [-11, "failed"]
    assert "SIGSEGV" in crashed[3]
    assert left[:3] == ["said\n", 4, "failed"]
    assert defect[1:] == [1, "failed", "KeyError: 'layer'"]
    assert well == ["well\n", 0, "passed", ""]


def cell(name: str, source: str, outcome: str, **more: Any) -> dict[str, Any]:
    step = {"exit_code": 0, "line": "", "lines": 0, "stage": "", "processor_s": 2.0}
    if outcome != "passed":
        step |= {"exit_code": 3, "line": "error: <a | b> is not allowed", "lines": 1}
    return {
        "name": name,
        "input": source,
        "depth": "compress",
        "input_shape": [3, 32, 32],
        "classes": 10,
        "params": 1000,
        "macs": 10**6,
        "outcome": outcome,
        "exporter": "dynamo",
        "steps": {"inspect": step, "compress": step},
        **more,
    }


def test_the_table_has_a_row_for_each_and_every_refusal_in_its_words(tmp_path: Path) -> None:
    first, second = list(TABLE)[:2]
    after = {"macs_ratio": 2.0, "parity": 1e-6, "acc": 90.0, "asr": 99.0}
    passed = cell(first, "pytorch", "passed", acc_after=80.0, asr_after=5.0, **after)
    cells = {(second, "onnx"): cell(second, "onnx", "refused"), (first, "pytorch"): passed}
    write_results(cells, {"code": "x"}, tmp_path / "a.json")
    assert known_cells(tmp_path / "a.json") == cells
    text = (tmp_path / "a.md").read_text()
    assert text == markdown(json.loads((tmp_path / "a.json").read_text()))
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {first}", f"| {second}"]
    assert "| passed | 0.50 | 1e-06 | 80 / 5 | 4 | not yet run |" in rows[0]
    assert rows[0].count("|") == rows[1].count("|")
    assert f"- {second}, ONNX, inspect (3): error: &lt;a \\| b> is not allowed" in text
    assert "- From PyTorch: 1 passed." in text
