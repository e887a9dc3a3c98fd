"""Jobs that travel: to another machine's folder, and through a real Ray whose nodes die."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fleet_folder import fill
from kept_stages import BOUND
from small_checkpoint import spec

from edgeclean import pipeline
from edgeclean.errors import ToolchainError
from edgeclean.files.store import Store
from edgeclean.fleet.catalogue import read_catalogue
from edgeclean.fleet.graph import graph, job_of
from edgeclean.fleet.inputs import look_at
from edgeclean.fleet.jobs import Answer, Done, Failed, Job, Lost
from edgeclean.fleet.plan import plan_networks
from edgeclean.fleet.ray_engine import RayEngine, _on_a_node, pack
from edgeclean.fleet.run import run_fleet
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


def test_a_ray_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("ray")
    old.__version__ = "2.51.2"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", old)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(ToolchainError, match=r"2\.51\.2 .* 2\.52 or later"):
        RayEngine(address="10.0.0.1:6379", jobs=None)


def patiently(start: Callable[[], Any]) -> Any:
    """Ray gives a node half a minute to come up, which a busy machine may not keep."""
    for left in reversed(range(3)):
        try:
            return start()
        except Exception:
            if not left:
                raise
    return None


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What fleets are compared with is made by as many threads as a task of theirs has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One node that does no task; a test adds the second, and takes it away."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ec-", ignore_cleanup_errors=True) as short,
    ):  # names of sockets have 107 characters at most
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", short)
        utils = pytest.importorskip("ray.cluster_utils", reason="the extra `ray` is not installed")
        head = {"num_cpus": 0, "include_dashboard": False}
        made = patiently(lambda: utils.Cluster(initialize_head=True, head_node_args=head))
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundles]:
    """The folder of the networks, and what one process makes of each of them: all are alike."""
    catalogue = catalogued(tmp_path_factory.mktemp("ray") / "given")
    folder = catalogue.parent.parent
    made: Bundles = {}
    for name, job in jobs(catalogue, folder / "kept", folder / "out").items():
        if name.startswith("cell:a/") and job.output is not None:
            pipeline.compress(
                *(job.checkpoint, spec(), job.output, job.settings),
                target=job.target,
                code_folder=catalogue.parent,
            )
            made[name.removeprefix("cell:a/")] = bound(job.output)
    return catalogue.parent, made


def networks(folder: Path, count: int) -> Path:
    """A catalogue of so many networks, each for two targets."""
    entries = "".join(
        f'[[networks]]\nname = "n{one}"\ncheckpoint = "{"ab"[one % 2]}.safetensors"\n'
        for one in range(count)
    )
    path = folder / f"catalogue-{count}.toml"
    path.write_text(CATALOGUE.partition("[[networks]]")[0] + entries, encoding="utf-8")
    return path


def check_bundles(out: Path, count: int, bundles: Bundles) -> None:
    """Every cell has its bundle, whole, with the bytes of one process, and nothing else is left."""
    made = sorted(one.parent for one in (out / "bundles").rglob("manifest.json"))
    cells = [f"n{one}/{cell}" for one in range(count) for cell in bundles]
    assert [one.relative_to(out / "bundles").as_posix() for one in made] == sorted(cells)
    for folder in made:
        cell = folder.relative_to(out / "bundles").as_posix().partition("/")[2]
        assert bound(folder) == bundles[cell], folder
        for line in (folder / "SHA256SUMS").read_text("ascii").splitlines():
            sha256, _, name = line.partition("  ")
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    assert not list(out.rglob(".edgeclean-*"))


class WatchedEngine(RayEngine):
    """The engine, with a note of every task that is begun and of every answer."""

    def __init__(self, address: str) -> None:
        super().__init__(address=address, jobs=None)
        self.begun: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.lost: list[tuple[str, Lost]] = []

    def submit(self, name: str, job: Job) -> None:
        self.begun[name] += 1
        super().submit(name, job)

    def wait(self) -> Sequence[tuple[str, Answer]]:
        ended = super().wait()
        self.done.update(name for name, answer in ended if isinstance(answer, Done))
        self.lost += [(name, answer) for name, answer in ended if isinstance(answer, Lost)]
        return ended


def rows(folder: Path) -> int:
    """How many tasks are over."""
    journal = folder / "out" / "journal.jsonl"
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def worker_of(node: Any) -> int | None:
    """The process that works on a task of this node; None while there is none."""
    raylet = node.all_processes["raylet"][0].process.pid
    for pid in (int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()):
        try:
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == raylet and title.startswith((b"ray::purify:", b"ray::cell:")):
            return pid
    return None


@contextmanager
def second_node(cluster: Any) -> Iterator[Any]:
    """A node with one processor."""
    node = patiently(lambda: cluster.add_node(num_cpus=1))
    try:
        yield node
    finally:
        cluster.remove_node(node)


def strike(
    cluster: Any, folder: Path, running: Callable[[], bool], *, strikes: int, seed: int
) -> Counter[str]:
    """Take the node that works away at random moments, and kill workers between.

    Before each strike at least as many tasks more are over as was drawn, so that the fleet comes on
    whatever is lost. The other node does no task, or the fleet would be over before the strikes.
    """
    happened: Counter[str] = Counter()
    drawn, enough = random.Random(seed), 0
    for number in range(strikes):
        node = patiently(lambda: cluster.add_node(num_cpus=1))
        enough += drawn.randrange(3)
        while rows(folder) < enough or (worker := worker_of(node)) is None:
            assert running()
            time.sleep(0.05)
        if number % 3 == 1:
            os.kill(worker, signal.SIGKILL)
            happened["worker"] += 1
        time.sleep(drawn.random())
        cluster.remove_node(node, allow_graceful=drawn.random() < 0.5)
        happened["node"] += 1
    return happened


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("strikes", "count"), [(3, 4), (10, 8)], ids=["three_times", "ten_times"])
def test_nodes_that_go_at_random_moments_lose_nothing(
    cluster: Any, expected: tuple[Path, Bundles], tmp_path: Path, strikes: int, count: int
) -> None:
    folder, bundles = expected
    plan = plan_networks(read_catalogue(networks(folder, count)))
    engine = WatchedEngine(cluster.address)
    with ThreadPoolExecutor(1) as pool:  # Ray adds nodes in the main thread alone
        out, cache = tmp_path / "out", tmp_path / "cache"
        fleet = pool.submit(run_fleet, plan, out, engine, cache=cache)
        try:
            struck = strike(cluster, tmp_path, lambda: not fleet.done(), strikes=strikes, seed=0)
        finally:
            with second_node(cluster):  # on which it comes to its end
                made = fleet.result()
    assert made.failures == {}
    assert struck == {"node": strikes, "worker": strikes // 3}
    check_bundles(out, count, bundles)
    assert set(engine.done.values()) == {1}  # none twice
    assert len(engine.done) == 3 * count
    assert engine.begun == engine.done + Counter(name for name, _ in engine.lost)
    # A node has one task in work, and at most the answer of one more on it.
    assert len(engine.lost) <= 2 * strikes + struck["worker"]
    assert sum(lost.with_its_node for _, lost in engine.lost) >= strikes / 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_driver_that_is_killed_goes_on_and_a_worker_that_is_killed_says_nothing(
    cluster: Any, expected: tuple[Path, Bundles], tmp_path: Path
) -> None:
    folder, bundles = expected
    words = ["-o", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--engine", "ray"]
    catalogue = str(networks(folder, count := 3))
    command = [sys.executable, "-m", "edgeclean", "fleet", catalogue, *words, "--json"]
    command += ["--address", cluster.address]
    journal = tmp_path / "out" / "journal.jsonl"
    with second_node(cluster), subprocess.Popen(command, start_new_session=True) as run:
        while not (journal.exists() and b'"part": "cells"' in journal.read_bytes()):
            assert run.poll() is None
            time.sleep(0.1)
        time.sleep(random.Random(0).random())
        os.killpg(run.pid, signal.SIGKILL)
    entries = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    made = [one["row"]["bundle"] for one in entries if one["part"] == "cells"]
    before = {bundle: (tmp_path / "out" / bundle).stat() for bundle in made}

    pipe = subprocess.PIPE
    with (
        second_node(cluster) as node,
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as run,
    ):
        while (worker := worker_of(node)) is None:
            assert run.poll() is None
            time.sleep(0.05)
        os.kill(worker, signal.SIGKILL)
        said, err = run.communicate()
    assert run.returncode == 0, err
    counts = json.loads(said)["counts"]
    assert counts["kept"] == len(before) >= 1
    assert "raylet" not in err
    for bundle, status in before.items():  # not made again
        assert (tmp_path / "out" / bundle).stat() == status
    check_bundles(tmp_path / "out", count, bundles)


LISTENING = """
import os
from pathlib import Path
from edgeclean.fleet.ray_engine import RayEngine

engine = RayEngine(address=None, jobs=1)
engine.room()
parents = {}
for one in Path("/proc").iterdir():
    try:
        parents[int(one.name)] = int((one / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        pass
family = {os.getpid()}
while more := {one for one, parent in parents.items() if parent in family} - family:
    family |= more
sockets = set()
for one in family:
    try:
        sockets |= {os.readlink(link) for link in Path(f"/proc/{one}/fd").iterdir()}
    except OSError:
        pass
for table in ("tcp", "tcp6"):
    for words in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:]):
        if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
            print(words[1].partition(":")[0])
engine.close()
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_driver_that_is_stopped_says_so_in_one_line(
    cluster: Any, expected: tuple[Path, Bundles], tmp_path: Path, number: signal.Signals
) -> None:
    folder, _ = expected
    words = ["-o", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--engine", "ray"]
    command = [sys.executable, "-m", "edgeclean", "fleet", str(networks(folder, 1)), *words]
    command += ["--address", cluster.address, "--quiet"]
    with (
        second_node(cluster) as node,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run,
    ):
        while worker_of(node) is None:
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(number)
        _, err = run.communicate()
    assert run.returncode == 128 + number
    assert len(err.splitlines()) == 1
    assert err.startswith(("error: stopped by", "error: interrupted"))


@pytest.mark.slow
def test_a_ray_of_its_own_listens_on_loopback_alone() -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    said = subprocess.run(
        [sys.executable, "-c", LISTENING], capture_output=True, text=True, check=True
    )
    addresses = said.stdout.split()
    assert len(addresses) >= 3  # the raylet, the store of the cluster, an agent
    assert set(addresses) <= LOOPBACK
