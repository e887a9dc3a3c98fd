"""What a fleet of 10,000 networks costs its driver: ``python -m benchmarks.studies.fleet``.

Real are the catalogue with its files, the plan, the graph, the schedule, the journal, the document
and the page; simulated is only the engine, whose clock is virtual. A task takes as long as the same
stages of a published network did in ``results/compress-zoo.json``. Nodes die at random moments (an
exponential law) and lose what they work on, and some networks are refused.

Each number of nodes is a process of its own, whose peak of memory is the system's. Processor time
is the measure: it does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, peak_mib
from benchmarks.rendering.fleet_table import write_fleet_table
from benchmarks.studies.published import RESULTS
from benchmarks.suite.cells import write_whole
from edgeclean.fleet.catalogue import read_catalogue
from edgeclean.fleet.jobs import Answer, Done, Failed, Job, Lost
from edgeclean.fleet.plan import plan_networks
from edgeclean.fleet.run import DOCUMENT, PAGE, run_fleet
from edgeclean.report.figures import png_uri

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
TARGETS = ("cpu", "orin-nano", "xavier-nx")
SLOTS = 8  # tasks side by side on a node
NODE_HOURS = 24.0  # mean time until a node dies
REPAIR_SECONDS = 600.0  # until there is another in its place
REFUSED = 0.02  # of the networks
SUSPECTED = 0.05
SHARED = ("load", "synthesize", "scan", "purify")
MODEL = """
architecture = "resnet20"
input-shape = [3, 32, 32]
classes = 10
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Seconds of a network's shared stages, and of what is left for a cell."""

    purify: float
    cell: float


def recorded() -> list[Durations]:
    """Return the durations of every run in ``results/compress-zoo.json``."""
    cells = json.loads((RESULTS / "compress-zoo.json").read_text("utf-8"))["cells"]
    found = []
    for cell in cells:
        seconds = {one["stage"]: one["seconds"] for one in cell["stages"]}
        shared = sum(seconds.get(name, 0.0) for name in SHARED)
        rest = sum(taken for name, taken in seconds.items() if name not in SHARED)
        found.append(Durations(purify=shared, cell=rest + seconds.get("load", 0.0)))
    return found


class SimulatedEngine:
    """An engine of nodes with a virtual clock; see `edgeclean.fleet.engines.Engine`.

    Attributes:
        now: virtual seconds.
        worked: virtual seconds of all tasks that came to their end.
        lost: how many tasks a dying node took along.
    """

    name = "simulated"
    careful = False

    def __init__(self, nodes: int, durations: Sequence[Durations], seed: int) -> None:
        self.now = self.worked = 0.0
        self.lost = 0
        self._random, self._durations = random.Random(seed), durations
        self._slots = dict.fromkeys(range(nodes), SLOTS)  # free ones, of nodes that are up
        self._flights: dict[str, tuple[int, Job, float]] = {}
        self._events: list[tuple[float, int, str, Any]] = []
        self._count = 0
        for node in range(nodes):
            self._later(self._life(), "dies", node)

    def room(self) -> int:
        """Return the slots of the nodes that are up."""
        return SLOTS * len(self._slots)

    def submit(self, name: str, job: Job) -> None:
        """Begin on the node with the most free slots."""
        node = max(self._slots, key=self._slots.__getitem__)
        self._slots[node] -= 1
        drawn = self._durations[int(str(job.sha256)[:8], 16) % len(self._durations)]
        seconds = drawn.purify if job.kind == "purify" else drawn.cell
        self._flights[name] = node, job, seconds
        self._later(seconds, "ends", (name, node))

    def wait(self) -> Sequence[tuple[str, Answer]]:
        """Go on to the next moment at which a task ends or is lost."""
        while True:
            self.now, _, what, whom = heapq.heappop(self._events)
            if what == "ends":
                name, node = whom
                if name in self._flights and self._flights[name][0] == node:
                    return [(name, self._answer(name))]
            elif what == "dies":
                self._slots.pop(whom)
                self._later(REPAIR_SECONDS, "comes back", whom)
                gone = [name for name, flight in self._flights.items() if flight[0] == whom]
                for name in gone:
                    del self._flights[name]
                self.lost += len(gone)
                if gone:
                    return [(name, Lost(reason="or its node is gone")) for name in gone]
            else:
                self._slots[whom] = SLOTS
                self._later(self._life(), "dies", whom)
                if not self._flights:  # everything waited for a node
                    return []

    def close(self) -> None:
        """There is nothing to let go of."""

    def _life(self) -> float:
        return self._random.expovariate(1 / (3600 * NODE_HOURS))

    def _later(self, seconds: float, what: str, whom: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + seconds, self._count, what, whom))

    def _answer(self, name: str) -> Answer:
        node, job, seconds = self._flights.pop(name)
        self._slots[node] += 1
        self.worked += seconds
        number = int(str(job.sha256)[8:16], 16) / 2**32
        if job.kind == "purify" and number < REFUSED:
            message = f"{job.checkpoint.name}: damaged, cut short, or not a checkpoint"
            return Failed(kind="InputRejectedError", message=message, exit_code=3, seconds=seconds)
        if job.kind == "purify":
            return Done(facts=network_facts(suspected=number > 1 - SUSPECTED), seconds=seconds)
        return Done(facts=cell_facts(str(job.sha256)), seconds=seconds)


def network_facts(*, suspected: bool) -> dict[str, Any]:
    """Return the facts of a network as `edgeclean.fleet.work` gives them."""
    picture = None
    if suspected:
        picture = png_uri(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return {
        "architecture": "resnet20",
        "params": 272_474,
        "macs": 40_813_184,
        "verdict": "suspected" if suspected else "not found",
        "suspicions": ["class 3"] if suspected else [],
        "trigger": picture,
        "taken_up": [],
    }


def cell_facts(sha256: str) -> dict[str, Any]:
    """Return the facts of a cell; its numbers differ from one network to the next."""
    share = 0.4 + int(sha256[16:20], 16) / 2**18
    after = int(1_090_000 * share)
    return {
        "manifest_sha256": sha256,
        "external_sha256": {},
        "purified": True,
        "size": {
            "params": {"original": 272_474, "compressed": int(272_474 * share)},
            "macs": {"original": 40_813_184, "compressed": int(40_813_184 * share)},
            "onnx_bytes": {"original": 1_090_000, "compressed": after},
        },
        "latency": {"original_p50_ms": 0.47, "compressed_p50_ms": 0.47 * share, "speedup": 1.5},
        "evaluation": {"images": 2000, "original_accuracy": 0.91, "compressed_accuracy": 0.89},
        "gates": [
            {"gate": "max-size", "asked": 2_000_000, "measured": after, "unit": "bytes",
             "passed": True}
        ],
        "taken_up": ["synthesize", "scan", "purify"],
    }  # fmt: skip


def simulate(nodes: int, networks: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run a fleet on simulated nodes, and return what it took; its files stay in the folder."""
    intake = folder / "intake"
    intake.mkdir(parents=True)
    (folder / "model.toml").write_text(MODEL, encoding="utf-8")
    for number in range(networks):
        (intake / f"net-{number:05d}.pth").write_bytes(f"{seed} {number}".encode())
    targets = "".join(f'[[targets]]\ntarget = "{name}"\n' for name in TARGETS)
    text = f'[defaults]\nmodel = "model.toml"\n{targets}[[networks]]\nglob = "intake/*.pth"\n'
    (folder / "catalogue.toml").write_text(text, encoding="utf-8")
    engine = SimulatedEngine(nodes, recorded(), seed)
    before, started, wall = peak_mib(), time.process_time(), time.perf_counter()
    plan = plan_networks(read_catalogue(folder / "catalogue.toml"))
    made = run_fleet(plan, folder / "out", engine, cache=folder / "cache")
    processor, wall = time.process_time() - started, time.perf_counter() - wall
    counts = made.document_counts()
    return {
        "nodes": nodes,
        **counts,
        "tasks_lost": engine.lost,
        "virtual_hours": round(engine.now / 3600, 2),
        "slots_busy": round(engine.worked / (engine.now * nodes * SLOTS), 4),
        "processor_ms_a_cell": round(1000 * processor / counts["cells"], 3),
        "wall_ms_a_cell": round(1000 * wall / counts["cells"], 3),
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "document_bytes": (folder / "out" / DOCUMENT).stat().st_size,
        "page_bytes": (folder / "out" / PAGE).stat().st_size,
    }


def page_seconds(page: Path, folder: Path) -> dict[str, float] | None:
    """Measure how long the page takes in headless Chromium; None where there is none."""
    sys.path.insert(0, str(SUPPORT))
    from browser import browser  # type: ignore[import-not-found, unused-ignore]
    from programs import installed  # type: ignore[import-not-found, unused-ignore]

    chromium = installed("chromium")
    if chromium is None:
        return None
    with browser(chromium, folder) as tab:
        start = time.perf_counter()
        tab.show(page.as_uri())
        opened = time.perf_counter() - start
        loaded = tab.value("performance.getEntriesByType('navigation')[0].loadEventEnd")
        rows = tab.value("document.querySelectorAll('tbody tr').length")
        found = tab.value(FILTER)
    return {
        "opened_s": round(opened, 3),
        "load_event_s": round(loaded / 1000, 3),
        "rows_drawn": rows,
        "filter_ms": round(found, 1),
    }


FILTER = """
(() => {
  const find = document.getElementById("find"), start = performance.now();
  find.value = "net-00042";
  find.dispatchEvent(new Event("input"));
  return performance.now() - start;
})()
"""


def main() -> None:
    """Simulate each number of nodes, and write the file."""
    parser = argparse.ArgumentParser(description="Measure what a large fleet costs its driver.")
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where fleets lie; of it the wall time hangs")
    asked = parser.parse_args()
    rows, page = [], None
    for nodes in asked.nodes:
        with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
            given = nodes, asked.networks, asked.seed, Path(temporary) / "fleet"
            spawned = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawned) as pool:
                rows.append(pool.submit(simulate, *given).result())
            print(json.dumps(rows[-1]))
            if nodes == asked.nodes[-1]:
                page = page_seconds(given[3] / "out" / PAGE, Path(temporary))
                print(json.dumps(page))
    whole = {
        "command": f"python -m benchmarks.studies.fleet --networks {asked.networks} "
        f"--nodes {' '.join(map(str, asked.nodes))} --seed {asked.seed}"
        + (f" --folder {asked.folder}" if asked.folder else ""),
        "durations": "results/compress-zoo.json",
        "targets": list(TARGETS),
        "slots_a_node": SLOTS,
        "mean_node_hours": NODE_HOURS,
        "repair_seconds": REPAIR_SECONDS,
        "share_refused": REFUSED,
        "share_suspected": SUSPECTED,
        "seed": asked.seed,
        "simulations": rows,
        "page": page,
        "environment": environment(),
    }
    path = RESULTS / "fleet.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if "zoo" in before:  # of benchmarks.studies.fleet_zoo
        whole["zoo"] = before["zoo"]
    write_whole(path, json.dumps(whole, indent=1))
    write_fleet_table()


if __name__ == "__main__":
    main()
