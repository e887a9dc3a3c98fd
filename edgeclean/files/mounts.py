"""Mount points cannot be replaced: the system refuses to rename them, and only at the end of a run.

A container that is given its output folder as a volume (``-v $PWD/out:/out``) has one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgeclean.errors import UsageError

TABLE = Path("/proc/self/mountinfo")
_PLACE = 4  # the field of the mount point; proc(5)
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # white space and backslashes


def refuse_mount(place: Path, named: Path, where: str) -> None:
    """Refuse a file or folder that something is mounted on; systems without the table refuse none.

    Args:
        place: the absolute path, symbolic links followed.
        named: the path as the user named it.
        where: what to name instead: "inside it" or "in a mounted folder".

    Raises:
        UsageError: it is a mount point.
    """
    if os.fsencode(place) in _mount_points():
        kind = "folder" if place.is_dir() else "file"
        raise UsageError(f"{named} is a mount point, and cannot be replaced; name a {kind} {where}")


def _mount_points() -> set[bytes]:
    try:
        lines = TABLE.read_bytes().splitlines()
    except OSError:  # not Linux, or /proc is hidden
        return set()
    fields = (line.split(b" ") for line in lines)
    return {_ESCAPED.sub(_byte, one[_PLACE]) for one in fields if len(one) > _PLACE}


def _byte(escaped: re.Match[bytes]) -> bytes:
    return bytes([int(escaped[1], 8) & 0xFF])
