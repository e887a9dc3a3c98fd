"""A folder full of what a user would miss, and a watch over it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
OLD = 1_000_000_000
NAMES = (
    "notes.txt",
    "x.kept",
    "secret",
    "CACHEDIR.TAG",
    "timing.cache",
    "model.onnx",
    "net.h",
    "scan.json",
    "manifest.json",
    "SHA256SUMS",
    ".hidden",
    ".out.lock",
    ".out.partial/mine.txt",
    ".out.previous/mine.txt",
    ".notes.txt.partial",
    "tmpabc123",
    "sub/folder/deep.txt",
)

_protected: set[str] = set()
_broken: list[str] = []
_hooked: list[bool] = []


def users_folder(folder: Path) -> Path:
    """Files, hidden ones, links, a pipe; all of them old."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}", encoding="utf-8")
    (folder / "link").symlink_to("notes.txt")
    (folder / "nowhere").symlink_to("not there")
    os.link(folder / "notes.txt", folder / "second name")
    os.mkfifo(folder / "pipe")
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD), follow_symlinks=False)
    return folder


def looked_at(folder: Path) -> dict[str, Any]:
    """Every entry with what it holds."""
    return {path.relative_to(folder).as_posix(): _seen(path) for path in folder.rglob("*")}


@contextmanager
def nothing_touched(folder: Path, names: Collection[str] | None = None) -> Iterator[None]:
    """Fail if anything that is in the folder now is removed, moved, replaced or opened to write.

    An audit hook sees it at the moment that Python asks the system for it; what the system did is
    compared afterwards. New entries may come; with ``names``, only these entries are watched.
    """
    before = looked_at(folder)
    if names is not None:
        before = {name: before[name] for name in names}
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked.append(True)
    real = Path(os.path.realpath(folder))
    _broken.clear()
    _protected.update({str(real), *(str(real / name) for name in before)})
    try:
        yield
    finally:
        _protected.clear()
    assert _broken == [], "; ".join(_broken)
    after = looked_at(folder)
    assert {name: after.get(name) for name in before} == before


def _seen(path: Path) -> tuple[int, int, object]:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return status.st_ino, status.st_mode, str(path.readlink())
    if stat.S_ISREG(status.st_mode):
        return status.st_ino, status.st_mode, (path.read_bytes(), status.st_mtime)
    return status.st_ino, status.st_mode, None


def _watch(event: str, parameters: tuple[Any, ...]) -> None:
    if not _protected:
        return
    if event in ("os.remove", "os.rmdir"):
        touched = [(parameters[0], parameters[1])]
    elif event == "os.rename":
        touched = [(parameters[0], parameters[2]), (parameters[1], parameters[3])]
    elif event in ("shutil.rmtree", "os.truncate", "os.chmod", "os.utime") or (
        event == "open" and isinstance(parameters[2], int) and parameters[2] & WRITING
    ):
        touched = [(parameters[0], -1)]
    else:
        return
    for path, folder in touched:
        if isinstance(path, str | bytes | os.PathLike):
            above = Path() if folder == -1 else Path(f"/proc/self/fd/{folder}").readlink()
            full = Path.cwd() / above / os.fsdecode(path)
            # The folder may be named through a link; the entry itself is the link or the file.
            real = str(Path(os.path.realpath(full.parent)) / full.name)
            # `tempfile` says the name of the folder when it opens a new file in it.
            if real in _protected and not (event == "open" and full.is_dir()):
                _broken.append(f"{event} of {real}")
