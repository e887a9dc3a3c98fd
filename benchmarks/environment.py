"""Describe where a number was measured, for every benchmark's JSON."""

from __future__ import annotations

import os
import resource
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edgeclean.environment import describe_environment

ROOT = Path(__file__).parents[1]
CODE = (".", ":!benchmarks/results", ":!benchmarks/zoo", ":!*.md")


def environment() -> dict[str, object]:
    """Return processor, threads, versions, device and code version; no host name and no path."""
    return {
        **asdict(describe_environment()),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "code": code_version(),
    }


def code_version() -> str:
    """Return the commit, with ``+changes`` when more than texts and results differ from it.

    ``EDGECLEAN_BENCH_CODE`` says it of a copy on another machine, whose git does not know.
    """
    if named := os.environ.get("EDGECLEAN_BENCH_CODE"):
        return named
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    finished = subprocess.run(  # noqa: S603 - fixed words, nothing of others
        ["git", *words],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=20,
    )
    return finished.stdout.strip()


def peak_mib() -> int:
    """Return the most memory in MiB that this process ever had; Linux."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def wall_seconds(cell: dict[str, Any]) -> str:
    """Return a cell's wall time for a table, marked where the machine had other work meanwhile."""
    return f"{cell['wall_s']:.0f}{busy(cell)}"


def busy(cell: dict[str, Any]) -> str:
    """Return the mark of a machine that had other work, or nothing.

    A run's own threads make a load of their number; twice that is somebody else's as well.
    """
    around = cell["environment"]
    had_others = around.get("load_average", 0.0) >= 2 * around.get("threads", 1)
    return " (busy)" if had_others else ""
