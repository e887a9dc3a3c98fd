"""What is done once, what is done again, and what a worker refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fleet_folder import MODEL, Written

from edgeclean.fleet.catalogue import read_catalogue
from edgeclean.fleet.graph import graph, job_of
from edgeclean.fleet.inputs import look_at
from edgeclean.fleet.jobs import Done, Failed, Job
from edgeclean.fleet.journal import Journal
from edgeclean.fleet.local_engine import LocalEngine
from edgeclean.fleet.plan import plan_networks
from edgeclean.fleet.rows import bundle_of, cell_row, network_row
from edgeclean.fleet.run import Fleet
from edgeclean.fleet.scheduler import Task
from edgeclean.fleet.work import run_job

BASE = '[defaults]\nmodel = "net.toml"\nconfig = "quick.toml"\n'


def nodes(path: Path) -> dict[str, tuple[Task, Job]]:
    networks = plan_networks(read_catalogue(path))
    files = {one.name: look_at(one, {}) for one in networks}
    return {
        node.task.name: (
            node.task,
            job_of(node, files[node.network.name], cache=path.parent / "c", bundles=path.parent),
        )
        for node in graph(networks, files, {one.name: one.cells for one in networks})
    }


def test_networks_share_a_scan_cells_a_tuning_and_an_architecture_a_table(written: Written) -> None:
    text = BASE + '[[targets]]\n[[targets]]\nname = "gated"\nmax-size = "1 MB"\n'
    text += '[[goals]]\nratio = 2\n[[goals]]\nspeedup = 1.1\n[[networks]]\nglob = "*.safetensors"\n'
    made = {name: task for name, (task, _) in nodes(written(text)).items()}
    assert made["purify:a"] == Task(name="purify:a")
    assert made["purify:b"] == Task(name="purify:b", after=("purify:a",))  # the same bytes
    assert [name for name in made if name.startswith("table:")] == ["table:0"]
    assert made["table:0"].alone
    for net in "ab":
        first, second = (f"cell:{net}/{target}/ratio-2" for target in ("cpu", "gated"))
        assert (made[first].needs, made[first].after) == ((f"purify:{net}",), ())
        assert made[second].after == (first,)  # which differs by a gate alone
        timed = f"cell:{net}/cpu/speedup-1.1"
        assert made[timed].after == ("table:0",)


@pytest.mark.parametrize(
    ("name", "text", "more"),
    [
        ("a.safetensors", None, ""),
        ("net.toml", MODEL + "# changed\n", ""),
        ("net.py", "# changed\n", ""),
        ("quick.toml", "seed = 5\n", ""),
        ("catalogue.toml", None, "max-size = 100000\n"),
        ("manifest", None, ""),
    ],
)
def test_a_cell_is_made_again_if_anything_that_decides_it_changed(
    written: Written, folder: Path, tmp_path: Path, name: str, text: str | None, more: str
) -> None:
    catalogue = BASE + '[[networks]]\ncheckpoint = "a.safetensors"\n'
    (tmp_path / "out").mkdir()

    def looked_at(path: Path) -> Fleet:
        networks = plan_networks(read_catalogue(path))
        fleet = Fleet(
            *(networks, tmp_path / "out", LocalEngine(1)),
            cache=tmp_path / "cache",
            watch=lambda _moment: None,
        )
        fleet.look()
        return fleet

    first = looked_at(written(catalogue))
    ((network,), cell) = first.networks, first.networks[0].cells[0]
    manifest = bundle_of(tmp_path / "out", cell) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}", encoding="utf-8")
    sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    done = Done(facts={"manifest_sha256": sha256, "external_sha256": {}}, seconds=1.0)
    journal = Journal(tmp_path / "out")
    journal.write("networks", network_row(network, None, Done(facts={}, seconds=1.0)))
    journal.write("cells", cell_row(network, cell, first._waiting[cell.name], done))
    journal.close()
    assert looked_at(written(catalogue)).counts.kept == 1
    if name == "manifest":
        manifest.write_text("{ }", encoding="utf-8")
    elif name == "a.safetensors":
        (folder / name).write_bytes((folder / name).read_bytes() + b"\0")
    elif text is not None:
        (folder / name).write_text(text, encoding="utf-8")
    assert looked_at(written(catalogue + more)).counts.kept == 0


def test_a_worker_takes_only_the_bytes_that_were_hashed(written: Written) -> None:
    _, job = nodes(written(BASE + '[[networks]]\ncheckpoint = "a.safetensors"\n'))["purify:a"]
    answer = run_job(replace(job, sha256="0" * 64))
    assert isinstance(answer, Failed)
    assert answer.exit_code == 3
    assert "was changed while the fleet ran" in answer.message


def test_code_of_a_model_file_that_only_lies_there_is_not_run(
    written: Written, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "net.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\n", encoding="utf-8"
    )
    (folder / "a.toml").write_text(MODEL, encoding="utf-8")
    _, job = nodes(written('[[networks]]\nglob = "a.safetensors"\n'))["purify:a"]
    assert job.model == folder / "a.toml"
    assert job.beside == ()
    answer = run_job(job)
    assert isinstance(answer, Failed)
    assert answer.exit_code == 3
    assert "names code to run" in answer.message
    assert not Path("ran").exists()


def test_a_journal_gives_back_what_it_was_given_and_leaves_out_what_is_torn(
    tmp_path: Path, written: Written
) -> None:
    (network,) = plan_networks(
        read_catalogue(written(BASE + '[[networks]]\ncheckpoint = "a.safetensors"\n'))
    )
    cell = network.cells[0]
    wrong = Failed(kind="defect", message="\u2028 \x1b", exit_code=1)
    whole = network_row(network, None, wrong)
    first, second = (cell_row(network, cell, key, wrong) for key in ("1", "2"))
    journal = Journal(tmp_path)
    journal.write("cells", first)
    journal.write("networks", whole)
    journal.write("cells", second)
    journal.close()
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"part": "cells", "row": {"name": "y"')
    again = Journal(tmp_path)
    assert again.row("cells", cell.name) == second
    assert again.row("networks", network.name) == whole
    assert again.row("cells", "y") is None
    again.write("cells", {**second, "name": "y"})
    again.close()
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) == 4  # the head, and each row once
    assert all(isinstance(json.loads(line), dict) for line in lines)
