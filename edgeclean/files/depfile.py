r"""Dependency files that GNU Make, Ninja and CMake all read alike: what an output was made from.

The three agree on little: a space is escaped by a backslash, and that is all. Everything else that
one of them gives a meaning to (in a Makefile, ``;`` begins a command that is run; CMake reads ``#``
and ``$`` otherwise than Ninja, and remakes for ever) cannot be written so that all understand it,
and is refused.

Source: GCC's ``-MMD -MP``, Ninja's ``depfile_parser.in.cc``, the GNU Make manual, chapter 4.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from edgeclean.errors import UsageError
from edgeclean.files.text import printable

# ASCII that all of them take as it stands; and every letter beyond ASCII.
_PLAIN = re.compile(r"[A-Za-z0-9+,/_.(){}@! ~-]|[^\x00-\x7f]")


def depfile(target: Path, dependencies: Iterable[Path]) -> bytes:
    """Return the rule that makes ``target`` from ``dependencies``, in their order, each once.

    Each dependency is also a target without a rule, as GCC's ``-MP`` does, so that one that is
    removed makes the build remake the target rather than stop.

    Raises:
        UsageError: a name holds a character that the build tools do not read alike.
    """
    names = list(dict.fromkeys(_escaped(path) for path in dependencies))
    lines = [" \\\n  ".join([f"{_escaped(target)}:", *names])]
    lines += [f"{name}:" for name in names]
    return os.fsencode("\n".join(lines) + "\n")


def is_depfile(contents: bytes) -> bool:
    """Return whether `depfile` wrote these bytes, for some ``model.onnx``."""
    target, *lines = os.fsdecode(contents).split("\n")
    names = []
    if target.endswith(" \\"):
        target = target.removesuffix(" \\")
        for line in lines:
            names.append(line.removesuffix(" \\").removeprefix("  "))
            if not line.endswith(" \\"):
                break
    rule = " \\\n  ".join([target, *names])
    whole = "\n".join([rule, *(f"{name}:" for name in names)]) + "\n"
    return target.endswith("model.onnx:") and os.fsencode(whole) == contents


def _escaped(path: Path) -> str:
    name = str(path)
    bad = sorted({character for character in name if not _PLAIN.fullmatch(character)})
    # A leading ~ is a home folder to Make, and archive(member) is a part of an archive.
    if name.startswith("~"):
        bad.append("~ at the beginning")
    if name.endswith(")"):
        bad.append(") at the end")
    # Who reads the file by hand or by words loses a space there.
    if name != name.strip(" "):
        bad.append("a space at the beginning or end")
    # .IGNORE, .PHONY and their like are orders to Make, with ./ before them as well.
    if name.startswith(".") and "/" not in name:
        bad.append(". at the beginning of a name without a folder")
    if bad:
        raise UsageError(
            f"{printable(name)!r} cannot stand in a dependency file: Make, Ninja and CMake do not "
            f"read {', '.join(repr(printable(one)) for one in bad)} alike; rename it"
        )
    return name.replace(" ", "\\ ")
