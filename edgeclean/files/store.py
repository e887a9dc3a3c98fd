"""A folder of results by key: whole or absent, sealed, bounded, and never a reason to fail.

Every entry is sealed with a secret of the folder (HMAC-SHA256): an entry that was damaged, moved to
another key, or written by somebody who cannot read the secret is ignored, with a warning. The
folder is its owner's alone; who can read and write it can do no more than who can change the
checkpoint.

A ``CACHEDIR.TAG`` marks the folder as made here. Nothing is put into a folder that holds anything
and no such tag; and nothing is removed from one but results and half written files by the names
that only they have.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgeclean.files.reading import is_hollow, open_regular

SECRET = "secret"  # noqa: S105 - the name of the file
SECRET_BYTES = 32
SEAL_BYTES = 32
_PART = 2**20  # bytes that are sealed at once: OpenSSL takes no 2 GiB
SUFFIX = ".kept"
TAG = "CACHEDIR.TAG"
# Source: the Cache Directory Tagging Specification; programs that make backups leave it out.
TAG_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# This folder was made by edgeclean, which removes old results from it; keep nothing of yours here.
# Results that are gone are computed again: you may delete the folder.
"""
PREFIX, PARTIAL = ".edgeclean-", ".partial"  # of what is being written
# Results have a SHA-256 as their key; whatever else is called .kept is not ours to remove.
_RESULT = re.compile(r"[0-9a-f]{64}\.kept")
_PARTIAL = re.compile(r"\.edgeclean-[a-z0-9_]+\.partial")
STALE_SECONDS = 3600  # after which what a killed writer left is removed

Notify = Callable[[str], None]


class Store:
    """A store of results by key, in a folder that is made when the first one comes.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path, notify: Notify, *, limit_bytes: int = 2 * 2**30) -> None:
        """Read and write nothing yet.

        Args:
            folder: made with rights for its owner only; parents are made as well.
            notify: called with one line about everything that is ignored and why.
            limit_bytes: above it, the results that were not used for longest are removed.
        """
        self.folder = folder
        self._notify = notify
        self._limit_bytes = limit_bytes

    def get(self, key: str) -> bytes | None:
        """Return what was put under this key; None where there is nothing, or nothing to trust."""
        path = self._path(key)
        try:
            # Not followed, and not waited for: a link or a pipe is nobody's result.
            with open_regular(path, follow=False) as file:
                size = os.fstat(file.fileno()).st_size
                if size > self._limit_bytes or is_hollow(file):  # damaged: it is not even read
                    size = 0
                sealed = file.read(min(size, SEAL_BYTES))
                result = file.read(max(0, size - SEAL_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, MemoryError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no memory is left for it"
            self._notify(f"cache: {path.name} cannot be read ({reason}); made again")
            return None
        secret = self._secret()
        if secret is None or not hmac.compare_digest(_seal(secret, key, result), sealed):
            self._notify(f"cache: {path.name} was changed or is not ours; it is ignored")
            return None
        with suppress(OSError):
            os.utime(path)
        return result

    def put(self, key: str, contents: bytes) -> None:
        """Keep a result; where that is impossible, warn and go on without."""
        if SEAL_BYTES + len(contents) > self._limit_bytes:
            self._notify(
                f"cache: a result of {len(contents)} bytes is more than all that is kept; going on"
            )
            return
        beside = None
        try:
            secret = self._prepared()
            if secret is None:
                return
            with tempfile.NamedTemporaryFile(
                dir=self.folder, prefix=PREFIX, suffix=PARTIAL, delete=False
            ) as stream:
                beside = Path(stream.name)
                stream.write(_seal(secret, key, contents))
                stream.write(contents)
                stream.flush()
                os.fsync(stream.fileno())
            path = self._path(key)
            there = _status(path)
            if there is not None and not stat.S_ISREG(there.st_mode):
                self._notify(f"cache: {path.name} is no plain file, and is not replaced")
                return
            beside.replace(path)
            self._prune()
        except OSError as error:
            self._notify(f"cache: {self.folder} cannot be written ({error.strerror}); going on")
        finally:
            if beside is not None:
                with suppress(OSError):
                    beside.unlink(missing_ok=True)

    def _prepared(self) -> bytes | None:
        """Return the secret of the folder, made where it is missing; None where nothing is kept."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        foreign = foreign_entry(self.folder)
        if foreign is not None:
            self._notify(
                f"cache: {self.folder} holds {foreign!r} and was not made by edgeclean; "
                "nothing is kept there"
            )
            return None
        if not (self.folder / TAG).exists() or (self.folder / TAG).stat().st_size == 0:
            _write_tag(self.folder / TAG)
        return self._secret(make=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _secret(self, *, make: bool = False) -> bytes | None:
        """Return the folder's secret; None, with a warning, where others could have written it."""
        path = self.folder / SECRET
        if make and not path.exists():
            with tempfile.NamedTemporaryFile(  # for its owner only
                dir=self.folder, prefix=PREFIX, suffix=PARTIAL
            ) as stream:
                stream.write(secrets.token_bytes(SECRET_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
                with suppress(FileExistsError):  # another run was quicker
                    os.link(stream.name, path)
        try:
            for one in (self.folder, path):
                status = one.stat(follow_symlinks=one is self.folder)
                if status.st_uid != os.getuid() or status.st_mode & 0o022:
                    self._notify(f"cache: others may write {one}; nothing is kept there or read")
                    return None
            with open_regular(path, follow=False) as file:
                secret = file.read(SECRET_BYTES + 1)
        except OSError as error:
            self._notify(f"cache: {path} cannot be read ({error.strerror})")
            return None
        if len(secret) != SECRET_BYTES:
            self._notify(
                f"cache: {path} is damaged; nothing is kept or read until you remove {self.folder}"
            )
            return None
        return secret

    def _prune(self) -> None:
        """Remove the oldest results above the limit, and what killed writers left."""
        found = [(_status(path), path) for path in self.folder.iterdir()]
        plain = [(one, path) for one, path in found if one and stat.S_ISREG(one.st_mode)]
        now = max((status.st_mtime for status, _ in plain), default=0)
        room = self._limit_bytes
        for status, path in sorted(plain, key=lambda one: -one[0].st_mtime):
            left = _PARTIAL.fullmatch(path.name) and status.st_mtime < now - STALE_SECONDS
            if _RESULT.fullmatch(path.name):
                room -= status.st_size
                left = room < 0
            if left:
                path.unlink(missing_ok=True)


def foreign_entry(folder: Path) -> str | None:
    """Name an entry of a folder that this program did not make; None for its own or an empty one.

    An empty tag is what a run leaves that was killed, or found the disk full, while it wrote it.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:  # it is not there, or cannot be read: then nothing is written either
        return None
    found = _beginning(folder / TAG)
    if found == TAG_TEXT:
        return None
    others = names if found != b"" else [name for name in names if name != TAG]
    return others[0] if others else None


def _beginning(path: Path) -> bytes | None:
    """Return the first bytes of a plain file that can be read; None for everything else."""
    try:
        with open_regular(path, follow=False) as stream:
            return stream.read(len(TAG_TEXT) + 1)
    except OSError:
        pass
    return None


def _status(path: Path) -> os.stat_result | None:
    """Return what a name stands for, a link itself; None where another run has removed it."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _write_tag(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as stream:
        stream.write(TAG_TEXT)


def _seal(secret: bytes, key: str, contents: bytes) -> bytes:
    """Seal the key as well: a result under another name is not that name's result."""
    seal, view = hmac.new(secret, key.encode() + b"\0", "sha256"), memoryview(contents)
    for start in range(0, len(view), _PART):
        seal.update(view[start : start + _PART])
    return seal.digest()
