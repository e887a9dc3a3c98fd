"""Time ``make demo`` as a newcomer runs it: ``python -m benchmarks.studies.demo``.

The last commit is cloned into a temporary folder, with an empty cache of stages, and everything
from there on counts: the environment, its installation, the main job. The test images and the
trigger, which the demo does not see, measure the network before and the bundle's ONNX after.
Nothing else may run beside.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.data.images import PACK_FOLDER, read_pack
from benchmarks.environment import ROOT, environment
from benchmarks.networks.train_demo import published_demo
from benchmarks.studies.compress_zoo import TEST_IMAGES, rates_of
from benchmarks.studies.published import RESULTS
from edgeclean.load.checkpoint import load_checkpoint

INSTALLED = ".venv/runtime-installed"  # what the demo needs first, in the Makefile


def main() -> None:
    """Run the demo, and write ``results/demo.json``."""
    argparse.ArgumentParser(description="Time `make demo` in a clean clone.").parse_args()
    images = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)  # missing: now, not later
    demo = published_demo()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)  # noqa: S603, S607
        install = _timed(INSTALLED, clone)
        run = _timed("demo", clone)
        bundle = clone / "build" / "demo"
        report = json.loads((bundle / "report.json").read_text())
        manifest = json.loads((bundle / "manifest.json").read_text())
        after = load_checkpoint(bundle / "model.onnx", replace(demo.spec, architecture="onnx"))
    result = {
        "command": "python -m benchmarks.studies.demo",
        "seconds": round(install["wall_s"] + run["wall_s"], 1),
        "install": install,
        "compress": run,
        "effort": manifest["configuration"]["effort"],
        "before": rates_of(demo.load(), demo, images),
        "compressed": rates_of(after, demo, images),
        "test_images": TEST_IMAGES,
        "stages": {stage["stage"]: stage["seconds"] for stage in report["stages"]},
        "peak_memory_mib": report["peak_memory_mib"],
        "verdict": report["scan"]["verdict"],
        "trigger_success": report["trigger_success"],
        "seed": report["seed"],
        "environment": environment(),
    }
    (RESULTS / "demo.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def _timed(goal: str, clone: Path) -> dict[str, float]:
    """Make a goal in the clone; return wall and processor seconds of all that it started."""
    start, before = time.perf_counter(), _processor_seconds()
    subprocess.run(  # noqa: S603 - our own words
        ["make", goal],  # noqa: S607
        cwd=clone,
        env={**os.environ, "XDG_CACHE_HOME": str(clone.parent / "cache")},
        check=True,
    )
    spent = _processor_seconds() - before
    return {"wall_s": round(time.perf_counter() - start, 1), "processor_s": round(spent, 1)}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
