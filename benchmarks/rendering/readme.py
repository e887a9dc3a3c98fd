"""Put the tables of ``results/*.md`` into the pages: ``python -m benchmarks.rendering.readme``.

A section stands between ``<!-- measured:NAME -->`` and ``<!-- /measured:NAME -->`` in a page under
``docs/results``; its content is ``results/NAME.md``, so that no number of a table is typed
by hand; ``--check`` fails on a stale one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
FOLDER = Path(__file__).parents[2] / "docs" / "results"
SECTION = re.compile(
    r"<!-- measured:(?P<name>[\w-]+) -->\n.*?<!-- /measured:(?P=name) -->", re.DOTALL
)


def pages() -> list[Path]:
    """Return every page that has a section."""
    return [page for page in sorted(FOLDER.glob("*.md")) if SECTION.search(page.read_text("utf-8"))]


def filled(text: str, folder: Path = FOLDER) -> str:
    """Return the text of a page in ``folder`` with every table as it is in the results."""
    return SECTION.sub(lambda match: _section(match, folder), text)


def _section(match: re.Match[str], folder: Path) -> str:
    name = match["name"]
    path = RESULTS / f"{name}.md"
    table = path.read_text("utf-8").strip() if path.exists() else "(not yet run)"
    # Pictures are named as seen from the results.
    seen = Path(os.path.relpath(RESULTS, folder)).as_posix()
    table = table.replace("](pictures/", f"]({seen}/pictures/")
    return f"<!-- measured:{name} -->\n{table}\n<!-- /measured:{name} -->"


def main() -> int:
    """Write the pages, or with ``--check`` only report whether they are up to date."""
    parser = argparse.ArgumentParser(description="Put the measured tables into the pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 for a stale page")
    options = parser.parse_args()
    stale = False
    for page in pages():
        old = page.read_text("utf-8")
        new = filled(old, page.parent)
        stale |= old != new
        if not options.check:
            page.write_text(new, "utf-8")
    return int(stale and options.check)


if __name__ == "__main__":
    sys.exit(main())
