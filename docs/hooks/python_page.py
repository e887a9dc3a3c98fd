"""The public names of the package, for mkdocstrings to read from the source."""

from __future__ import annotations

from types import FunctionType

import edgeclean


def names() -> list[str]:
    """The public names as dotted paths: functions, then what they take and give, then errors."""
    public = [name for name in edgeclean.__all__ if not name.startswith("__")]
    return [f"edgeclean.{name}" for name in sorted(public, key=_group)]


def reference() -> str:
    """A section for each public name; mkdocstrings fills them in."""
    return "\n".join(f"::: {name}\n" for name in names())


def _group(name: str) -> int:
    if isinstance(getattr(edgeclean, name), FunctionType):
        return 0
    return 2 if name.endswith("Error") else 1
