"""Jobs that travel: to another machine's folder, and through a real Ray whose nodes die."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_folder import fill
from kept_stages import BOUND
from small_checkpoint import spec

from edgeclean import pipeline
from edgeclean.files.store import Store
from edgeclean.fleet.catalogue import read_catalogue
from edgeclean.fleet.graph import graph, job_of
from edgeclean.fleet.inputs import look_at
from edgeclean.fleet.jobs import Done, Failed, Job
from edgeclean.fleet.plan import plan_networks
from edgeclean.fleet.ray_engine import RayEngine, _on_a_node, pack
from edgeclean.fleet.run import DOCUMENT, Fleet, run_fleet
from edgeclean.runner import own_code

CATALOGUE = """
[defaults]
model = "net.toml"
config = "quick.toml"
[[targets]]
[[targets]]
target = "jetson"
[[networks]]
glob = "*.safetensors"
"""
Bundles = dict[str, dict[str, bytes]]


def catalogued(folder: Path, text: str = CATALOGUE) -> Path:
    path = fill(folder) / "catalogue.toml"
    path.write_text(text, encoding="utf-8")
    return path


def jobs(catalogue: Path, cache: Path, out: Path) -> dict[str, Job]:
    networks = plan_networks(read_catalogue(catalogue))
    files = {one.name: look_at(one, {}) for one in networks}
    nodes = graph(networks, files, {one.name: one.cells for one in networks})
    return {
        node.task.name: job_of(node, files[node.network.name], cache=cache, bundles=out)
        for node in nodes
    }


def bound(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in BOUND}


def test_what_a_job_needs_travels_with_it_and_what_it_makes_comes_back(tmp_path: Path) -> None:
    catalogue = catalogued(tmp_path / "given")
    todo = jobs(catalogue, tmp_path / "cache", tmp_path / "out")
    first = pack(todo["purify:a"])
    shutil.copytree(tmp_path / "given", tmp_path / "moved")
    luggage, sent = pack(todo["cell:a/cpu/default"])
    shutil.rmtree(tmp_path / "given")  # no file system is shared
    came = _on_a_node(first[1], first[0])
    assert isinstance(came.answer, Done)
    assert came.bundle == {}
    store = Store(tmp_path / "cache", pytest.fail)
    for key, contents in came.kept.items():
        store.put(key, contents)
    with_kept = type(luggage)(files=luggage.files, kept=came.kept, code=luggage.code)
    cell = _on_a_node(sent, with_kept)
    assert isinstance(cell.answer, Done)
    assert set(cell.answer.facts["taken_up"]) >= {"synthesize", "scan", "purify"}
    assert not set(cell.kept) & set(came.kept)

    moved = tmp_path / "moved"
    alone = pipeline.compress(
        *(moved / "a.safetensors", spec(), tmp_path / "alone", todo["cell:a/cpu/default"].settings),
        code_folder=moved,
    )
    assert {name: cell.bundle[name] for name in BOUND} == bound(alone.bundle.path)


def test_another_edgeclean_on_a_node_is_refused_and_a_strangers_path_is_not_told(
    tmp_path: Path,
) -> None:
    catalogue = catalogued(tmp_path / "given", CATALOGUE.replace("*.safetensors", "bad.pth"))
    luggage, job = pack(jobs(catalogue, tmp_path / "cache", tmp_path / "out")["purify:bad"])
    assert luggage.code == own_code()
    refused = _on_a_node(job, luggage).answer
    assert isinstance(refused, Failed)
    assert refused.message.startswith("bad.pth: ")
    assert refused.exit_code == 3
    other = type(luggage)(files=luggage.files, kept={}, code="0")
    refused = _on_a_node(job, other).answer
    assert isinstance(refused, Failed)
    assert (refused.exit_code, refused.kind) == (7, "ToolchainError")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, and no more than what a test takes away."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ec-", ignore_cleanup_errors=True) as short,
    ):  # names of sockets have 107 characters at most
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", short)
        utils = pytest.importorskip("ray.cluster_utils", reason="the extra `ray` is not installed")
        made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=1)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundles]:
    """The catalogue, and its cells as one process makes them."""
    catalogue = catalogued(tmp_path_factory.mktemp("ray") / "given")
    folder = catalogue.parent.parent
    made: Bundles = {}
    for name, job in jobs(catalogue, folder / "kept", folder / "out").items():
        if job.kind == "cell" and job.output is not None:
            pipeline.compress(
                *(job.checkpoint, spec(), job.output, job.settings),
                target=job.target,
                code_folder=catalogue.parent,
            )
            made[name.removeprefix("cell:")] = bound(job.output)
    return catalogue, made


def on_ray(cluster: Any, catalogue: Path, folder: Path) -> Fleet:
    engine = RayEngine(address=cluster.address, jobs=None)
    plan = plan_networks(read_catalogue(catalogue))
    return run_fleet(plan, folder / "out", engine, cache=folder / "cache")


def rows(folder: Path) -> int:
    """How many tasks are over."""
    journal = folder / "out" / "journal.jsonl"
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def kill_a_worker(node: Any) -> bool:
    """Kill a process that works on a task of this node; whether there was one."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in (int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()):
        try:
            working = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::purify:")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if working and parent == raylet:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_a_worker_and_a_node_that_go_lose_nothing(
    cluster: Any, expected: tuple[Path, Bundles], tmp_path: Path, seed: int
) -> None:
    catalogue, bundles = expected
    extra = cluster.add_node(num_cpus=1)
    drawn = random.Random(seed)
    after, until, happened = drawn.randrange(3), time.monotonic() + 500, []

    def strike() -> None:
        while time.monotonic() < until and len(happened) < 2:
            if not happened and kill_a_worker(cluster.head_node):
                happened.append("worker")
            elif happened and rows(tmp_path) >= after:
                time.sleep(drawn.random())
                cluster.remove_node(extra)
                happened.append("node")
            time.sleep(0.05)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        made = on_ray(cluster, catalogue, tmp_path)
    finally:
        until = 0.0
        striker.join()
    assert happened == ["worker", "node"]
    assert made.failures == {}
    for cell, files in bundles.items():
        assert bound(tmp_path / "out" / "bundles" / cell) == files, cell
    assert not list((tmp_path / "out").rglob(".edgeclean-*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_driver_that_is_killed_goes_on(
    cluster: Any, expected: tuple[Path, Bundles], tmp_path: Path
) -> None:
    catalogue, bundles = expected
    words = ["-o", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--engine", "ray"]
    command = [sys.executable, "-m", "edgeclean", "fleet", str(catalogue), *words]
    command += ["--address", cluster.address, "--jobs", "1"]
    run = subprocess.Popen(command, start_new_session=True)
    journal, until = tmp_path / "out" / "journal.jsonl", time.monotonic() + 600
    while run.poll() is None and time.monotonic() < until:
        if journal.exists() and b'"part": "cells"' in journal.read_bytes():
            break
        time.sleep(0.2)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    done = subprocess.run(command, check=False)
    assert done.returncode == 0
    document = json.loads((tmp_path / "out" / DOCUMENT).read_text("utf-8"))
    assert document["counts"]["kept"] >= 1
    for cell, files in bundles.items():
        assert bound(tmp_path / "out" / "bundles" / cell) == files, cell
