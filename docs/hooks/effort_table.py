"""What each level of effort costs and keeps, as far as it has been measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown_tables import table

NOT_MEASURED = "The levels have not been measured against each other yet.\n"


def reference(results: Path) -> str:
    """The rows of the results as a table; a sentence where there is no such file."""
    if not results.exists():
        return NOT_MEASURED
    document: Any = json.loads(results.read_text("utf-8"))
    rows: list[dict[str, Any]] = document if isinstance(document, list) else document["rows"]
    head = [key for key, one in rows[0].items() if not isinstance(one, dict | list)]
    shown = [[_words(row.get(key)) for key in head] for row in rows]
    return table([key.replace("_", " ") for key in head], shown)


def _words(fact: object) -> str:
    return f"{fact:.4g}" if isinstance(fact, float) else "-" if fact is None else str(fact)
