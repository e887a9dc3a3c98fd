"""Hold the tests' coverage against the marks of SECURITY.md: ``make coverage``.

Reads the output of ``coverage json``, prints each group's lines and branches, writes
``results/coverage.json``, and fails below a mark, naming the files that fall short of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT, environment

RESULTS = Path(__file__).parent / "results"
COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")
LEFT_OUT = "# pragma: no "  # "cover" or "branch"; each says why behind it


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Files that share a mark.

    Attributes:
        name: name of the group.
        places: folders (with a slash at the end) and files.
        percent: share of the lines, and of the branches, that the tests must run.
    """

    name: str
    places: tuple[str, ...]
    percent: float


GROUPS = (
    Group(
        name="input boundary",
        places=(
            "edgeclean/load/",
            "edgeclean/files/schema.py",
            "edgeclean/files/text.py",
            "edgeclean/compression/settings.py",
            "edgeclean/devices/profile_files.py",
        ),
        percent=100,
    ),
    Group(
        name="bundle code",
        places=("edgeclean/bundle/", "edgeclean/files/atomic.py", "edgeclean/files/depfile.py"),
        percent=100,
    ),
    Group(name="the rest", places=("edgeclean/", "exporters/"), percent=95),
)


def by_group(files: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sum each group, and list what its files lack; a file counts in the first that names it."""
    found: dict[str, dict[str, Any]] = {
        group.name: {**dict.fromkeys(COUNTS, 0), "mark_percent": group.percent, "not_run": {}}
        for group in GROUPS
    }
    for name, file in sorted(files.items()):
        group = next(one for one in GROUPS if name.startswith(one.places))
        for count in COUNTS:
            found[group.name][count] += file["summary"][count]
        if file["missing_lines"] or file["missing_branches"]:
            found[group.name]["not_run"][name] = {
                "lines": file["missing_lines"],
                "branches": file["missing_branches"],
            }
    for sums in found.values():
        sums["lines_percent"] = _percent(sums["covered_lines"], sums["num_statements"])
        sums["branches_percent"] = _percent(sums["covered_branches"], sums["num_branches"])
    return found


def left_out() -> dict[str, list[str]]:
    """Return every line of the two packages that is not counted, by file, with its reason."""
    found: dict[str, list[str]] = {}
    for package in ("edgeclean", "exporters"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for line in path.read_text("utf-8").splitlines():
                code, mark, reason = line.partition(LEFT_OUT)
                if mark:
                    name = path.relative_to(ROOT).as_posix()
                    found.setdefault(name, []).append(f"{code.strip()}  # no {reason}")
    return found


def main() -> int:
    """Write the record; return 1 where a mark is missed."""
    parser = argparse.ArgumentParser(description="Coverage against its marks.")
    parser.add_argument("measured", type=Path, help="what `coverage json` wrote")
    parser.add_argument("--output", type=Path, default=RESULTS / "coverage.json")
    options = parser.parse_args()
    groups = by_group(json.loads(options.measured.read_text("utf-8"))["files"])
    short = False
    for name, sums in groups.items():
        print(
            f"{name}: lines {sums['lines_percent']} %, branches {sums['branches_percent']} % "
            f"(mark {sums['mark_percent']} %)"
        )
        if min(sums["lines_percent"], sums["branches_percent"]) < sums["mark_percent"]:
            short = True
            for file, missing in sums["not_run"].items():
                print(f"  {file}: lines {missing['lines']}, branches {missing['branches']}")
        # Line numbers are stale with the next change; what falls short is enough.
        sums["not_run"] = sorted(sums["not_run"])
    record = {
        "command": "make coverage",
        "environment": environment(),
        "groups": groups,
        "left_out": left_out(),
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(short)


def _percent(part: int, whole: int) -> float:
    """Return the percentage rounded down: 99.99 is not 100."""
    return 100.0 if part == whole else int(10000 * part / whole) / 100


if __name__ == "__main__":
    sys.exit(main())
