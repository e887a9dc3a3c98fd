"""Scan networks of two and three classes: ``python -m benchmarks.studies.few_classes``.

The networks are trained here (`benchmarks.networks.few_classes`), clean and attacked, and scanned
at ``--effort quick``. Half of their tasks served to choose the rule of
`edgeclean.backdoor.few_classes`; its false alarms and misses are counted on the other half, on
which nothing was tuned. Test images and the trigger only measure. A network joins
``results/few-classes.json`` as it is done; those that are there are not run again without
``--again``. ``results/few-classes.md`` is the table.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.networks.few_classes import TASKS, FewClasses, all_networks, prepared
from benchmarks.rendering.few_classes_table import known_cells, write_results
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.effort import LENGTHS
from edgeclean.images.synthesize import SynthesizeSettings, synthesize

KEPT = Path(__file__).parents[2] / ".bench" / "few-classes"
SEED = 0
IMAGES = SynthesizeSettings(**LENGTHS["quick"]["synthesize"])
SEARCH = ScanSettings(**LENGTHS["quick"]["scan"])


def main() -> None:
    """Train and scan the networks that are missing, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    for one in all_networks():
        asked = options.half in (None, one.half) and one.task in (options.task or TASKS)
        if not asked or (one.name in known_cells() and not options.again):
            continue
        if options.seconds is not None and time.process_time() - started > options.seconds:
            break
        cell = scanned(one)
        write_results(known_cells() | {one.name: cell})
        print(one.name, cell["verdict"], cell["suspects"], flush=True)
    write_results(known_cells())


def scanned(one: FewClasses) -> dict[str, Any]:
    """Return what the scan says of one network, beside what is true of it."""
    network, rates = prepared(one, KEPT)
    started = time.process_time()
    report = scan(network, synthesize(network, IMAGES, seed=SEED), SEARCH, seed=SEED)
    told = report.summary()
    return {
        "command": "python -m benchmarks.studies.few_classes",
        "seed": SEED,
        "half": one.half,
        "task": one.task,
        "form": one.form,
        "attack": one.attack,
        "target": one.target,
        "classes": one.classes,
        "rates": rates,
        "verdict": report.verdict,
        "suspects": told["suspects"],
        "searches": [
            {key: search[key] for key in ("name", "costs", "scores", "successes", "threshold")}
            for search in told["searches"]
        ],
        "processor_s": round(time.process_time() - started, 1),
        "environment": environment(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=("choice", "report"), help="only networks of this half")
    parser.add_argument("--task", action="append", choices=TASKS, help="may be repeated")
    parser.add_argument("--seconds", type=float, help="of processor time, after which none begins")
    parser.add_argument("--again", action="store_true", help="also networks that are there already")
    return parser


if __name__ == "__main__":
    main()
