"""Every target with every fact about it and its source, as `edgeclean targets` prints them."""

from __future__ import annotations

import json
from typing import Any

from markdown_tables import code, table
from typer.testing import CliRunner

from edgeclean import cli

OVERVIEW = ("title", "runtime", "opset", "precisions", "jetpacks")


def _asked(*words: str) -> Any:
    done = CliRunner().invoke(cli.app, ["targets", *words, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def targets() -> list[dict[str, Any]]:
    """All shipped targets, each as ``edgeclean targets --json`` prints it."""
    found: list[dict[str, Any]] = _asked()["targets"]
    return found


def reference() -> str:
    """A table of all targets, then a section with the facts and sources of each."""
    every = targets()
    rows = [
        (f"[`{one['name']}`](#{one['name']})", *(_words(one[name]) for name in OVERVIEW))
        for one in every
    ]
    parts = [table(["target", *OVERVIEW], rows)]
    for one in every:
        facts = [
            (name, _words(fact), one["sources"].get(name, ""))
            for name, fact in one.items()
            if name not in ("name", "title", "sources") and fact not in (None, "", [], {})
        ]
        title = [f"## {one['name']}", "", str(one["title"]), ""]
        parts.append("\n".join([*title, table(["fact", "value", "source"], facts)]))
    return "\n".join(parts)


def _words(fact: object) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name}: {one}" for name, one in fact.items())
    if isinstance(fact, list):
        return ", ".join(str(one) for one in fact)
    return code(fact) if isinstance(fact, bool) else "" if fact is None else str(fact)
