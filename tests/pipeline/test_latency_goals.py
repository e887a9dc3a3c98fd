"""Goals of time and size through the whole pipeline and the command line."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal
from latency_tables import made_up_table
from report_evidence import evidence
from small_checkpoint import OPTIONS, QUICK, quick_config, quick_settings, spec, write_checkpoint

from edgeclean import pipeline, shrinking
from edgeclean.compression.latency_table import LatencyTable, read_latency_table
from edgeclean.config import overlay
from edgeclean.environment import describe_environment
from edgeclean.errors import BudgetError, UsageError
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.measure.latency import LatencyReport
from edgeclean.measure.machine_table import is_of_this_machine
from edgeclean.pipeline import WrittenCompression, compress
from edgeclean.report.report import check_report
from edgeclean.runner import Cache
from exporters import file_size

BYTES = ("manifest.json", "model.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def table(source: Path) -> LatencyTable:
    return made_up_table(load_checkpoint(source, spec(), code_folder=source.parent))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def run(source: Path, output: Path, goal: dict[str, Any], **more: Any) -> WrittenCompression:
    settings = quick_settings(**overlay(QUICK, {"ranks": goal, "purify": {"mode": "none"}}))
    return compress(source, spec(), output, settings, code_folder=source.parent, **more)


def latency(speedup: float) -> LatencyReport:
    report = evidence().latency
    assert report is not None
    return replace(report, speedup=speedup, speedup_low=speedup - 0.01, speedup_high=speedup + 0.01)


def of_here(table: LatencyTable) -> LatencyTable:
    here = describe_environment()
    runtime = f"onnxruntime {here.versions['onnxruntime']}, CPUExecutionProvider"
    return replace(table, device=here.processor, runtime=runtime)


def test_one_table_gives_the_same_bytes_which_name_it(
    source: Path, table: LatencyTable, tmp_path: Path
) -> None:
    first, second = (
        run(source, tmp_path / name, {"speedup": 1.3}, latency_table=table) for name in "ab"
    )
    for name in BYTES:
        pair = [(one.bundle.path / name).read_bytes() for one in (first, second)]
        assert pair[0] == pair[1], name
    manifest = json.loads((first.bundle.path / "manifest.json").read_text())
    notes = next(r["notes"] for r in manifest["history"] if r["stage"] == "truncate")
    assert notes["latency_table"]["sha256"] == table.sha256
    before, after = notes["latency_table"]["network_ms"]
    assert before / after >= 1.3
    timed = [layer for layer in notes["layers"] if "ms" in layer]
    assert timed
    assert all(layer["ms"][1] <= layer["ms"][0] for layer in timed)


def test_the_report_tells_each_layers_time(
    source: Path, table: LatencyTable, tmp_path: Path
) -> None:
    written = run(source, tmp_path / "b", {"speedup": 1.3}, latency_table=table)
    report = json.loads((written.bundle.path / "report.json").read_text())
    check_report(report)
    assert report["latency_table"]["device"] == "made up"
    factored = [row for row in report["layers"] if row["fate"] == "factored"]
    assert factored
    assert all(row["time_kind"] == "measured" for row in factored)
    assert all(0 < row["ms_after"] < row["ms_before"] for row in factored)
    page = (written.bundle.path / "report.html").read_text()
    assert "Milliseconds" in page
    assert table.sha256[:16] in page


def test_without_a_table_nothing_is_said_of_one(source: Path, tmp_path: Path) -> None:
    written = run(source, tmp_path / "b", {"ratio": 1.5})
    assert written.report["latency_table"] is None
    assert all(row["time_kind"] is None for row in written.report["layers"])
    assert "Milliseconds" not in (written.bundle.path / "report.html").read_text()


@pytest.mark.parametrize(("speedup", "here", "refused"), [(0.9, True, True), (0.9, False, False)])
def test_a_slower_network_is_refused_on_the_machine_of_its_table(
    source: Path,
    table: LatencyTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    speedup: float,
    here: bool,
    refused: bool,
) -> None:
    monkeypatch.setattr(pipeline, "measure_pair", lambda *_: latency(speedup))
    given = of_here(table) if here else table
    assert is_of_this_machine(given) == here
    if not refused:
        assert run(source, tmp_path / "b", {"speedup": 1.3}, latency_table=given).bundle
        return
    with pytest.raises(BudgetError, match="slower than the original") as refusal:
        run(source, tmp_path / "b", {"speedup": 1.3}, latency_table=given)
    assert refusal.value.exit_code == 6
    assert not (tmp_path / "b").exists()


def test_it_is_refused_before_it_is_tuned_and_again_at_the_end(
    source: Path, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = []
    real = shrinking.finetune

    @functools.wraps(real)
    def finetune(*args: Any, **kwargs: Any) -> Any:
        tuned.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr(shrinking, "finetune", finetune)
    for reports, times in (([0.9], 0), ([1.1, 0.9], 1)):
        left = [latency(one) for one in reports]
        for module in (shrinking, pipeline):  # of the truncated network, and of the finished one
            monkeypatch.setattr(module, "measure_pair", lambda *_, left=left: left.pop(0))
        tuned.clear()
        with pytest.raises(BudgetError, match="slower"):
            run(source, tmp_path / "b", {"speedup": 1.3}, latency_table=of_here(table))
        assert len(tuned) == times


def test_a_table_that_is_measured_here_is_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pipeline, shrinking):  # no table's planning waits for a quiet machine
        monkeypatch.setattr(module, "measure_pair", lambda *_: latency(1.1))
    cache = Cache(folder=tmp_path / "cache", notify=lambda _: None)
    first, second = (
        run(source, tmp_path / name, {"latency_budget_ms": 1e3}, cache=cache) for name in "ab"
    )
    for name in BYTES:
        pair = [(one.bundle.path / name).read_bytes() for one in (first, second)]
        assert pair[0] == pair[1], name
    assert first.report["latency_table"]["device"] == describe_environment().processor
    shutil.rmtree(tmp_path / "cache")
    third = run(source, tmp_path / "c", {"latency_budget_ms": 1e3}, cache=cache)
    assert third.report["latency_table"] != first.report["latency_table"]  # measured again


def test_a_size_budget_is_kept_and_a_larger_file_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = len(run(source, tmp_path / "a", {"ratio": 1.0}).compression.model)
    budget = whole - 4000
    assert len(run(source, tmp_path / "b", {"size_budget": budget}).compression.model) <= budget
    monkeypatch.setattr(file_size, "NODE_BYTES", -20_000)  # as if less were foretold than comes
    with pytest.raises(BudgetError, match="ask for a little less") as refusal:
        run(source, tmp_path / "c", {"size_budget": budget})
    assert refusal.value.exit_code == 6
    assert not (tmp_path / "c").exists()


def test_what_cannot_be_planned_is_refused_before_anything_is_loaded(
    table: LatencyTable, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.pth"

    def refused(words: str, goal: dict[str, Any], **more: Any) -> None:
        with pytest.raises(UsageError, match=words):
            compress(absent, spec(), tmp_path / "b", quick_settings(**goal), **more)

    fast = {"ranks": {"speedup": 1.3}}
    refused("cannot be measured here", fast | {"target": "orin-nano"})
    refused("of fp16", {}, latency_table=replace(table, precision="fp16"))
    other_threads = replace(of_here(table), threads=2)
    refused("make them alike", fast, latency_table=other_threads)
    small = {"ranks": {"size_budget": 9000}, "precision": {"format": "int8"}}
    refused("cannot be planned for int8", small)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--ratio", "2", "--speedup", "2"), 2, "--ratio and --speedup were both asked"),
        (("--speedup", "2", "--size-budget", "9kB"), 2, "a network has one goal"),
        (("--size-budget", "much"), 2, "must be bytes"),
        (("--latency-table", "none.json"), 2, "cannot be read"),
        (("--latency-table", "net.py"), 2, "is not a JSON document"),
        (("--speedup", "0.5"), 2, "speedup is 0.5; it must be a number from 1 to"),
    ],
)
def test_goals_on_the_command_line(
    terminal: Terminal,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(source.parent)
    said = terminal("compress", source, *OPTIONS, "-o", tmp_path / "b", *words)
    assert said.code == code
    assert message in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_a_table_from_the_command_is_what_compress_takes(
    terminal: Terminal, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    path = tmp_path / "table.json"
    said = terminal("latency-table", source, *OPTIONS, "-o", path, "--rounds", "5", "--json")
    assert said.code == 0, said.err
    told, table = json.loads(said.out), read_latency_table(path)
    assert told["sha256"] == table.sha256
    assert told["layers"] == 3
    assert told["shapes"] == len(table.blocks) > 3  # those with fewer channels as well
    seen: list[LatencyTable] = []

    def compress(*_: Any, **named: Any) -> None:
        seen.append(named["latency_table"])
        raise UsageError("far enough")

    monkeypatch.setattr(pipeline, "compress", compress)
    config = quick_config(tmp_path)
    words = ("--config", config, "--latency-table", path, "-o", tmp_path / "b")
    assert terminal("compress", source, *OPTIONS, *words).code == 2
    assert seen == [table]
