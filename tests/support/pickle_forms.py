"""Checkpoints that ask for things by names that are not there, written without them."""

from __future__ import annotations

import io
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tiny_checkpoint import saved, tiny


@contextmanager
def renamed_global(kind: type[Any], full: str) -> Iterator[None]:
    """Let a class be pickled under another module's name, which is there only meanwhile."""
    module_name, _, name = full.rpartition(".")
    made = [part for part in _parents(module_name) if part not in sys.modules]
    for part in made:
        sys.modules[part] = types.ModuleType(part)
    old = kind.__module__, kind.__qualname__, kind.__name__
    setattr(sys.modules[module_name], name, kind)
    kind.__module__, kind.__qualname__, kind.__name__ = module_name, name, name
    try:
        yield
    finally:
        kind.__module__, kind.__qualname__, kind.__name__ = old
        delattr(sys.modules[module_name], name)
        for part in made:
            del sys.modules[part]


def _parents(module: str) -> list[str]:
    words = module.split(".")
    return [".".join(words[: depth + 1]) for depth in range(len(words))]


def by_hand_with(full: str) -> bytes:
    """Good weights, and beside them what would call a global with a text."""
    module, _, name = full.rpartition(".")
    call = f"c{module}\n{name}\n(X\x01\x00\x00\x00xtR".encode()
    return with_beside(saved({"state_dict": tiny().state_dict()}), call)


def with_beside(contents: bytes, opcodes: bytes) -> bytes:
    """A file of torch.save whose dict has one more entry, whose value these opcodes make."""
    stream = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(contents))
    with zipfile.ZipFile(stream, "w") as new:
        for member in old.infolist():
            member_contents = old.read(member)
            if member.filename.endswith("data.pkl"):
                assert member_contents.endswith(b".")
                more = b"X\x06\x00\x00\x00beside" + opcodes + b"s."
                member_contents = member_contents[:-1] + more
            new.writestr(member.filename, member_contents)
    return stream.getvalue()
