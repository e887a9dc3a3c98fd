"""The public names of the package, for mkdocstrings to read from the source."""

from __future__ import annotations

import edgeclean


def names() -> list[str]:
    """Where each public name is defined, as a dotted path."""
    public = getattr(edgeclean, "__all__", ())
    found = [getattr(edgeclean, name) for name in public if not name.startswith("__")]
    return [f"{one.__module__}.{one.__qualname__}" for one in found if hasattr(one, "__qualname__")]


def reference() -> str:
    """A section for each public name; mkdocstrings fills them in."""
    return "\n".join(f"::: {name}\n" for name in names())
