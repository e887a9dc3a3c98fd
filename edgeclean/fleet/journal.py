"""The rows of a fleet, kept as they come: what is done stays done when the driver is killed.

A row is one line of JSON in ``journal.jsonl``, on the disk before the next job begins; a row of the
same name behind it takes its place. What a killed run wrote half, and whatever else is not of a
row's form (as ``fleet.json`` has it), is left out, and gone with the next run, which writes the
file anew: its task is done again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from edgeclean.errors import UsageError
from edgeclean.files.documents import parse_json
from edgeclean.files.reading import open_regular
from edgeclean.files.schema import validator
from edgeclean.files.writing import beginning, write_file

Part = Literal["networks", "cells"]
PARTS: tuple[Part, ...] = ("networks", "cells")
JOURNAL = "journal.jsonl"
HEAD = b'{"format": "edgeclean-fleet-journal-1"}\n'
MOST_LINE = 1 << 20
MOST_VALUES = 10_000
CELL_NAME = "network", "target", "goal"  # the keys of a cell that its name is made of
Row = dict[str, Any]


class Journal:
    """The rows of all networks and cells that are over, by name.

    They are kept as text: a row as Python's objects takes ten times its size.
    """

    def __init__(self, folder: Path) -> None:
        """Read what an earlier run left, and write it anew.

        Args:
            folder: the fleet's folder, which is there.

        Raises:
            UsageError: the file cannot be read or written, is a link, or is none of ours.
        """
        self._path = folder / JOURNAL
        self._rows: dict[Part, dict[str, str]] = {part: {} for part in PARTS}
        for part, name, text in _read(self._path):
            self._rows[part][name] = text
        lines = [_line(part, text) for part in PARTS for text in self._rows[part].values()]
        write_file(self._path, HEAD + b"".join(lines), ours=is_journal)
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._path, flags)
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def write(self, part: Part, row: Row) -> None:
        """Keep a row, also beyond a power cut.

        Raises:
            UsageError: the disk is full, or the file cannot be written.
        """
        text = json.dumps(row, allow_nan=False)
        try:
            os.write(self._descriptor, _line(part, text))
            os.fsync(self._descriptor)
        except OSError as error:
            raise UsageError(
                f"cannot write {self._path}: {error.strerror}; make room and run the same command "
                "again to go on"
            ) from None
        self._rows[part][row["name"]] = text

    def row(self, part: Part, name: str) -> Row | None:
        """Return the row of this name; None if there is none."""
        text = self._rows[part].get(name)
        return None if text is None else json.loads(text)

    def text(self, part: Part, name: str) -> str | None:
        """Return the row of this name as JSON on one line; None if there is none."""
        return self._rows[part].get(name)


is_journal = beginning(re.escape(HEAD))


def _line(part: Part, text: str) -> bytes:
    return f'{{"part": "{part}", "row": {text}}}\n'.encode()


def _read(path: Path) -> Iterator[tuple[Part, str, str]]:
    """Yield part, name and text of the whole rows; a file that is not there has none.

    Raises:
        UsageError: it cannot be read, is a link, or is none of ours.
    """
    if path.is_symlink():  # what it leads to would be replaced, and is not the fleet's
        raise UsageError(f"{path} is a symbolic link, and is not followed; remove it")
    try:
        with open_regular(path, follow=False) as stream:
            if stream.readline(len(HEAD)) not in (HEAD, b""):
                raise UsageError(
                    f"{path} was not written by `edgeclean fleet`, so it is not replaced; choose "
                    "another output folder"
                )
            while line := stream.readline(MOST_LINE):
                row = _row(line)
                if row is not None:
                    yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _row(line: bytes) -> tuple[Part, str, str] | None:
    """Return part, name and text of the row of a line; None for one that no run would write."""
    try:
        entry = parse_json(line, most_values=MOST_VALUES)
        row = entry["row"]
        text = json.dumps(row)
    except (ValueError, TypeError, KeyError):
        return None
    part = next((one for one in PARTS if one == entry.get("part")), None)
    if part is None or not _form(part).is_valid(row):
        return None
    if part == "cells" and row["name"] != "/".join(row[key] for key in CELL_NAME):
        return None
    return part, row["name"], text


@cache
def _form(part: Part) -> Any:
    """Return the validator of one row of a part of ``fleet.json``."""
    whole = validator("fleet")
    items = whole.schema["properties"][part]["items"]
    return whole.evolve(schema=whole.schema["$defs"][items["$ref"].rpartition("/")[2]])
