"""A run killed at any moment, a full disk, a read-only folder: the old bundle stays whole.

And the next run goes on from the last finished stage and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundle_files import put_bundle
from kept_stages import BOUND, KEPT
from programs import Program
from small_checkpoint import write_checkpoint
from small_filesystem import small_filesystem

from edgeclean.bundle.verify import verify_bundle
from edgeclean.files.atomic import hold_folder

RANDOM_KILLS = 20
STAGES = (
    "load",
    *KEPT,
    "decompose",
    "scale",
    "truncate",
    "export",
    "parity",
    "latency",
)
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Runs:
    """Asks the server of `fault_server.py` for runs of one checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fault_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/support"},
        )

    def start(self, output: Path, cache: Path, die_after: str = "") -> int:
        """Begin a run; the number of its process."""
        asked = {
            "checkpoint": str(self._checkpoint),
            "output": str(output),
            "cache": str(cache),
            "die_after": die_after,
            "told": str(self.told),
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> int:
        """Wait for the run; its exit code, negative if it was killed."""
        return self._answer()

    def whole(self, output: Path, cache: Path, die_after: str = "") -> int:
        """A run from its start to its end."""
        self.start(output, cache, die_after)
        return self.end()

    @property
    def told(self) -> Path:
        """What the last run said, a line each."""
        return self._checkpoint.parent / "told"

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(write_checkpoint(tmp_path_factory.mktemp("source")))
    yield runs
    runs.close()


def bound(output: Path) -> dict[str, bytes]:
    return {name: (output / name).read_bytes() for name in BOUND}


@pytest.fixture(scope="module")
def expected(
    runs: Runs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    """What an undisturbed run gives, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    start = time.monotonic()
    assert runs.whole(folder / "out", folder / "cache") == 0
    return bound(folder / "out"), time.monotonic() - start


def test_killed_at_random_moments(
    runs: Runs, tmp_path: Path, expected: tuple[dict[str, bytes], float]
) -> None:
    wanted, seconds = expected
    draw = random.Random(0)
    output = tmp_path / "out"
    died = 0
    for number in range(RANDOM_KILLS):
        old = bound(put_bundle(output))
        pid = runs.start(output, tmp_path / f"cache{number}")
        moment = draw.uniform(0, seconds)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if runs.end() == -signal.SIGKILL:
            died += 1
        else:  # the undisturbed run was a slow one: no later moment hits this one
            seconds = moment
        left = bound(output)
        assert left in (old, wanted)
        verify_bundle(output)
        assert runs.whole(output, tmp_path / f"cache{number}") == 0
        assert bound(output) == wanted
        assert {path.name for path in tmp_path.iterdir() if path.name[:5] != "cache"} == {"out"}
    assert died > RANDOM_KILLS // 2, "it was too quick to be killed"


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_the_boundary_of_a_stage(
    stage: str, runs: Runs, tmp_path: Path, expected: tuple[dict[str, bytes], float]
) -> None:
    output, cache = tmp_path / "out", tmp_path / "cache"
    old = bound(put_bundle(output))
    assert runs.whole(output, cache, die_after=stage) == -signal.SIGKILL
    assert bound(output) == old
    assert runs.whole(output, cache) == 0
    assert bound(output) == expected[0]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "cache"}
    told = runs.told.read_text("utf-8").splitlines()
    if stage in KEPT:
        assert f"{stage}: taken up from an earlier run" in told
    if stage in STAGES[STAGES.index("truncate") :]:
        assert len(told) >= len(KEPT) - 1


@pytest.fixture
def small_disk(tmp_path: Path, program: Program) -> Iterator[Path]:
    """A filesystem of half a mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    with small_filesystem(place, "512k", program):
        yield place


def test_a_full_disk(
    runs: Runs, small_disk: Path, tmp_path: Path, expected: tuple[dict[str, bytes], float]
) -> None:
    output, cache = small_disk / "out", small_disk / "cache"
    old = bound(put_bundle(output))
    filling = small_disk / "filling"
    free = os.statvfs(small_disk)
    filling.write_bytes(bytes(free.f_bavail * free.f_bsize - 16384))
    assert runs.whole(output, cache) == 2
    told = runs.told.read_text("utf-8")
    assert "cannot be written (No space left on device); going on" in told, "the cache"
    assert "No space left on device; what was there is unchanged" in told
    assert bound(output) == old
    verify_bundle(output)
    assert {path.name for path in small_disk.iterdir()} <= {"out", "cache", "filling"}
    filling.unlink()
    assert runs.whole(tmp_path / "elsewhere", cache) == 0
    assert bound(tmp_path / "elsewhere") == expected[0]


def test_a_read_only_folder(runs: Runs, small_disk: Path, tmp_path: Path, program: Program) -> None:
    output = small_disk / "out"
    old = bound(put_bundle(output))
    subprocess.run([str(program("mount")), "-o", "remount,ro", str(small_disk)], check=True)
    assert runs.whole(output, tmp_path / "cache") == 2
    assert "Read-only file system; what was there is unchanged" in runs.told.read_text("utf-8")
    assert bound(output) == old
    assert not (tmp_path / "cache").exists(), "it worked before it found out"


def test_a_second_run_on_one_output_is_refused_at_once(runs: Runs, tmp_path: Path) -> None:
    with hold_folder(tmp_path / "out"):
        assert runs.whole(tmp_path / "out", tmp_path / "cache") == 2
    assert "another run is writing" in runs.told.read_text("utf-8")
    assert not (tmp_path / "cache").exists()
