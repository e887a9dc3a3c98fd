"""A filesystem that can really be full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import Program


@contextmanager
def small_filesystem(place: Path, size: str, program: Program) -> Iterator[None]:
    """A tmpfs of ``size`` at ``place``, which is there already.

    A quota or a patched ``write`` would not fail as a full disk does, in the middle of a file and
    at its close; and the kernel lets only those with the right to mount have a disk to fill. So
    where it refuses (an unprivileged developer, a locked container) the test cannot be run.
    """
    umount = program("umount")
    words = [str(program("mount")), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    mounted = subprocess.run(words, check=False, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a full disk needs the right to mount one: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([str(umount), "-l", str(place)], check=True)
