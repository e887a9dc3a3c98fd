"""A fleet's journal is believed by its form alone: what no run would write is done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal
from fleet_folder import CATALOGUE, fill

from edgeclean.errors import AccuracyGateError, UsageError
from edgeclean.files.schema import validator
from edgeclean.fleet.catalogue import read_catalogue
from edgeclean.fleet.jobs import Answer, Failed, Job
from edgeclean.fleet.journal import HEAD, JOURNAL, PARTS, Journal
from edgeclean.fleet.local_engine import LocalEngine
from edgeclean.fleet.plan import plan_networks
from edgeclean.fleet.run import DOCUMENT, Fleet, run_fleet
from edgeclean.gates import GateVerdict, refuse_failed

OTHERS = (None, True, -1, "x", [[1]], {"a": 1})
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))


class RefusingEngine:
    """Does no job and answers at once; it counts what it was asked to do."""

    name, careful = "refusing", False

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        self.asked: list[str] = []
        self._facts = dict(facts or {})
        self._waiting: list[str] = []

    def room(self) -> int:
        return 1

    def submit(self, name: str, job: Job) -> None:
        del job
        self.asked.append(name)
        self._waiting.append(name)

    def wait(self) -> Sequence[tuple[str, Answer]]:
        answer = Failed(kind="refused", message="not now", exit_code=3, facts=self._facts)
        names, self._waiting = self._waiting, []
        return [(name, answer) for name in names]

    def close(self) -> None:
        pass


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)  # its arguments are the real entry point's


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet of one cell that is done, as a real run leaves it."""
    folder = fill(tmp_path_factory.mktemp("fleet"))
    (folder / "catalogue.toml").write_text(CATALOGUE, encoding="utf-8")
    engine = LocalEngine(jobs=1)
    made = again(folder, folder / "out", engine)
    assert made.counts.done == 1
    return folder


def again(place: Path, output: Path, engine: Any) -> Fleet:
    networks = plan_networks(read_catalogue(place / "catalogue.toml"))
    return run_fleet(networks, output, engine, cache=place / "cache")


def rows(place: Path) -> dict[str, dict[str, Any]]:
    lines = (place / "out" / JOURNAL).read_bytes().removeprefix(HEAD).splitlines()
    return {entry["part"]: entry["row"] for entry in map(json.loads, lines)}


def written(folder: Path, kept: dict[str, Any]) -> Path:
    entries = [json.dumps({"part": part, "row": row}) for part, row in kept.items()]
    (folder / JOURNAL).write_bytes(HEAD + "\n".join([*entries, ""]).encode())
    return folder


def altered(value: Any) -> Iterator[Any]:
    """The value with each key within it away, and with everything within it of other kinds."""
    yield from (other for other in OTHERS if type(other) is not type(value))
    yield from NO_NUMBERS
    if isinstance(value, dict):
        for key, inside in value.items():
            yield {name: one for name, one in value.items() if name != key}
            yield from ({**value, key: other} for other in altered(inside))


def test_of_every_altered_row_only_what_has_the_form_is_kept(place: Path, tmp_path: Path) -> None:
    """What is kept stands in a document that keeps to the schema, whatever it says."""
    real = rows(place)
    assert set(real) == set(PARTS)
    tried = kept = 0
    for part in PARTS:
        for wrong in altered(real[part]):
            journal = Journal(written(tmp_path, {**real, part: wrong}))
            row = journal.row(part, real[part]["name"])
            journal.close()
            tried += 1
            if row is not None:
                kept += 1
                json.dumps(row, allow_nan=False)
                document = {**json.loads((place / "out" / DOCUMENT).read_text()), part: [row]}
                validator("fleet").validate(document)
    assert tried > 400
    assert kept < tried / 10, "a few values have another right one, such as null"


@pytest.mark.parametrize("part", PARTS)
def test_every_key_of_a_row_is_needed(place: Path, tmp_path: Path, part: str) -> None:
    real = rows(place)
    for key in real[part]:
        short = {name: value for name, value in real[part].items() if name != key}
        journal = Journal(written(tmp_path, {**real, part: short}))
        assert journal.row(part, real[part]["name"]) is None, key  # type: ignore[arg-type]
        journal.close()


def test_a_run_does_the_task_of_a_damaged_row_again(place: Path, tmp_path: Path) -> None:
    real = rows(place)
    cell, network = real["cells"], real["networks"]
    damaged: list[tuple[str, Any]] = [
        *(("cells", {**cell, key: 5}) for key in ("size", "gates", "key", "external_sha256")),
        *(("cells", {**cell, key: "other"}) for key in ("network", "target", "goal")),
        ("cells", {**cell, "external_sha256": [1]}),
        ("networks", {**network, "params": float("nan")}),
        ("networks", {**network, "suspicions": 5}),
        *(("networks", {k: v for k, v in network.items() if k != key}) for key in network),
        *(("cells", {k: v for k, v in cell.items() if k != key}) for key in cell),
    ]
    for part, row in damaged:
        output = tmp_path / "out"
        shutil.copytree(place / "out", output)
        written(output, {**real, part: row})
        engine = RefusingEngine()
        fleet = again(place, output, engine)
        assert engine.asked, (part, row)
        assert fleet.counts.failed == 1, (part, row)
        validator("fleet").validate(json.loads((output / DOCUMENT).read_text("utf-8")))
        shutil.rmtree(output)


def test_a_whole_journal_leaves_nothing_to_do(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "out", tmp_path / "out")
    engine = RefusingEngine()
    assert again(place, tmp_path / "out", engine).counts.kept == 1
    assert engine.asked == []


@pytest.mark.parametrize("emptied", [True, False])
def test_a_fleet_whose_journal_was_lost_is_still_a_fleet(
    place: Path, tmp_path: Path, emptied: bool
) -> None:
    output = tmp_path / "out"
    shutil.copytree(place / "out", output)
    (output / JOURNAL).unlink()
    if emptied:
        (output / JOURNAL).touch()
    engine = RefusingEngine()
    assert again(place, output, engine).counts.kept == 0
    assert engine.asked


def test_a_journal_of_somebody_elses_is_not_replaced(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(place / "out", output)
    (output / JOURNAL).write_text("my diary", encoding="utf-8")
    with pytest.raises(UsageError, match="was not written by"):
        again(place, output, RefusingEngine())
    assert (output / JOURNAL).read_text("utf-8") == "my diary"


def test_a_gate_without_a_number_fails_its_cell_and_not_the_fleet(tmp_path: Path) -> None:
    folder = fill(tmp_path / "given")
    (folder / "catalogue.toml").write_text(CATALOGUE, encoding="utf-8")
    verdict = GateVerdict(
        gate="max-expected-drop",
        asked=1.0,
        measured=None,  # of a forecast that does not apply
        unit="percentage points",
        passed=False,
        detail="forecast none",
    )
    with pytest.raises(AccuracyGateError) as refused:
        refuse_failed([verdict])
    fleet = again(folder, tmp_path / "out", RefusingEngine(refused.value.facts))
    assert fleet.counts.failed == 1
    document = json.loads((tmp_path / "out" / DOCUMENT).read_text("utf-8"))
    validator("fleet").validate(document)
    (gate,) = document["cells"][0]["gates"]
    assert (gate["gate"], gate["measured"], gate["passed"]) == ("max-expected-drop", None, False)


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"5",
        b'{"part": "cells"}',
        b'{"part": ["cells"], "row": {}}',
        b'{"part": "cells", "row": 5}',
        b'{"part": "cells", "row": NaN}',
        b"[" * 100_000,
        b"\xff\xfe",
        b"1" * 100_000,
    ],
)
def test_a_line_that_is_no_row_is_left_out(tmp_path: Path, line: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(HEAD + line + b"\n")
    Journal(tmp_path).close()
    assert (tmp_path / JOURNAL).read_bytes() == HEAD


def test_a_number_that_json_reads_as_infinity_is_no_row(place: Path, tmp_path: Path) -> None:
    real = rows(place)
    path = written(tmp_path, real) / JOURNAL
    seconds = f'"seconds": {real["cells"]["seconds"]}'.encode()
    path.write_bytes(path.read_bytes().replace(seconds, b'"seconds": 1e999'))
    journal = Journal(tmp_path)
    journal.close()
    assert journal.row("cells", real["cells"]["name"]) is None


@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_journals_place_is_refused(
    place: Path, tmp_path: Path, terminal: Terminal, there: bool
) -> None:
    output, target = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(place / "out", output)
    (output / JOURNAL).rename(target)
    before = target.read_bytes()
    if not there:
        target.unlink()
    (output / JOURNAL).symlink_to(target)
    with pytest.raises(UsageError, match="symbolic link"):
        Journal(output)
    words = ["fleet", place / "catalogue.toml", "-o", output, "--cache", place / "cache"]
    said = terminal(*words, "--jobs", "1")
    assert said.code == 2
    assert [line for line in said.err.splitlines() if "error" in line] == said.err.splitlines()[-1:]
    assert "Traceback" not in said.err
    assert target.exists() is there
    assert not there or target.read_bytes() == before
    assert (output / JOURNAL).is_symlink()
