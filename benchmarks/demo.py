"""``make demo`` as a newcomer runs it, timed: ``python -m benchmarks.demo``.

The last commit is cloned into a temporary folder, with an empty cache of stages, and everything
from there on counts: the environment, its installation, the main job. Nothing else may run beside.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.environment import ROOT, environment
from benchmarks.published import RESULTS


def main() -> None:
    """Run it, and write ``results/demo.json``."""
    with tempfile.TemporaryDirectory() as folder:
        clone, cache = Path(folder) / "clone", Path(folder) / "cache"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)  # noqa: S603, S607
        start = time.perf_counter()
        subprocess.run(
            ["make", "demo"],  # noqa: S607
            cwd=clone,
            env={**os.environ, "XDG_CACHE_HOME": str(cache)},
            check=True,
        )
        seconds = time.perf_counter() - start
        report = json.loads((clone / "build" / "demo" / "report.json").read_text())
    result = {
        "command": "python -m benchmarks.demo",
        "seconds": round(seconds, 1),
        "stages": {stage["stage"]: stage["seconds"] for stage in report["stages"]},
        "peak_memory_mib": report["peak_memory_mib"],
        "verdict": report["scan"]["verdict"],
        "trigger_success": report["trigger_success"],
        "seed": report["seed"],
        "environment": environment(),
    }
    (RESULTS / "demo.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
