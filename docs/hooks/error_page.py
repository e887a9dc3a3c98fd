"""Every kind of error with its exit code, read from the tree of errors."""

from __future__ import annotations

from markdown_tables import code, table

from edgeclean.errors import EdgecleanError


def kinds(root: type[EdgecleanError] = EdgecleanError) -> list[type[EdgecleanError]]:
    """The errors below ``root``, each followed by its own kinds."""
    return [one for below in root.__subclasses__() for one in (below, *kinds(below))]


def reference() -> str:
    """One line for each error: its exit code, its name, what it means."""
    ordered = sorted(kinds(), key=lambda one: one.exit_code)
    rows = [
        (str(one.exit_code), code(one.__name__), (one.__doc__ or "").partition("\n\n")[0])
        for one in ordered
    ]
    return table(["exit code", "kind", "meaning"], rows)
