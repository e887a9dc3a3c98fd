"""What goes into a child process and comes out of it: facts and files, read as data."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgeclean.errors import EdgecleanError
from edgeclean.files.documents import parse_json

JsonValue = Any  # as in `edgeclean.networks.state`, which would load torch into every child
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What a child process is given, and what it answers.

    Attributes:
        facts: a JSON object.
        files: bytes by name.
    """

    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


def packed(parcel: Parcel) -> tuple[bytes, ...]:
    """Return a parcel as the parts that are sent one after another.

    Raises:
        ValueError: a number of its facts is not finite.
    """
    lengths = [[name, len(content)] for name, content in parcel.files.items()]
    head = json.dumps({"facts": dict(parcel.facts), "files": lengths}, allow_nan=False).encode()
    return _LENGTH.pack(len(head)), head, *parcel.files.values()


def unpacked(contents: bytes, start: int = 0) -> Parcel:
    """Return the parcel of the bytes from ``start`` on; for strangers within `untrusted_answer`."""
    (length,) = _LENGTH.unpack_from(contents, start)
    start += _LENGTH.size
    head = parse_json(contents[start : start + length])
    start += length
    files = {}
    for name, size in head["files"]:
        if not isinstance(size, int) or not 0 <= size <= len(contents) - start:
            raise ValueError("a file is longer than the parcel")
        files[str(name)] = contents[start : start + size]
        start += size
    if start != len(contents) or not isinstance(head["facts"], dict):
        raise ValueError("the parcel holds something else")
    return Parcel(facts=head["facts"], files=files)


@contextmanager
def untrusted_answer(refusal: EdgecleanError) -> Iterator[None]:
    """Within, a child's answer is read: whoever took the child over may answer anything.

    Args:
        refusal: raised where the answer is not of its form.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error):
        raise refusal from None
