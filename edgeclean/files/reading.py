"""Read small files that a user names, whole or not at all; parse TOML without trusting it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from edgeclean.errors import EdgecleanError, UsageError


def read_small_file(
    path: Path, most_bytes: int, *, hint: str, error: type[EdgecleanError] = UsageError
) -> bytes:
    """Read the contents; no more than ``most_bytes`` + 1 are ever read.

    Args:
        path: the file.
        most_bytes: the largest size that is read.
        hint: advice for a file that is larger.
        error: the kind of the refusal.

    Raises:
        EdgecleanError: of the kind ``error``: it cannot be read, or is larger.
    """
    try:
        with path.open("rb") as stream:
            contents = stream.read(most_bytes + 1)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None
    if len(contents) > most_bytes:
        raise error(f"{path}: larger than {most_bytes} bytes; {hint}")
    return contents


def read_small_toml(
    path: Path, most_bytes: int, *, hint: str, error: type[EdgecleanError] = UsageError
) -> dict[str, Any]:
    """Read the tables and keys of a TOML file, not yet checked; see `read_small_file`.

    Raises:
        EdgecleanError: of the kind ``error``: also for what is not TOML.
    """
    contents = read_small_file(path, most_bytes, hint=hint, error=error)
    try:
        return tomllib.loads(contents.decode("utf-8"))
    # Deeply nested arrays exhaust the parser's stack: the file's fault, not ours.
    except (ValueError, RecursionError) as wrong:
        raise error(f"{path}: not a TOML file ({first_line(wrong)})") from None


def first_line(error: BaseException) -> str:
    """Return the first line of a parser's message, cut to 200 characters, to be put into ours."""
    return (str(error).splitlines() or ["nested too deeply"])[0][:200]
