"""Filesystems that are really mounted: one that can be full, and one at a second place."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from programs import Program


@contextmanager
def mounted(options: list[str], place: Path, program: Program) -> Iterator[None]:
    """What ``mount`` makes of the options at ``place``, which is there already.

    The kernel lets only those with the right to it mount anything, so where it refuses (an
    unprivileged developer, a locked container) the test cannot be run.
    """
    umount, words = program("umount"), [str(program("mount")), *options, str(place)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"the test needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([str(umount), "-l", str(place)], check=True)


def small_filesystem(place: Path, size: str, program: Program) -> AbstractContextManager[None]:
    """A tmpfs of ``size`` at ``place``.

    A quota or a patched ``write`` would not fail as a full disk does, in the middle of a file and
    at its close.
    """
    return mounted(["-t", "tmpfs", "-o", f"size={size}", "tmpfs"], place, program)
