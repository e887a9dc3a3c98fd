"""Puts the tables of ``benchmarks/results/*.md`` into README.md: ``python -m benchmarks.readme``.

A section stands between ``<!-- measured:NAME -->`` and ``<!-- /measured:NAME -->``; its content is
``results/NAME.md``, so that no number in README is typed by hand; ``--check`` fails on a stale one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
SECTION = re.compile(
    r"<!-- measured:(?P<name>[\w-]+) -->\n.*?<!-- /measured:(?P=name) -->", re.DOTALL
)


def filled(text: str) -> str:
    """The text with every section's table as it stands in the results."""
    return SECTION.sub(_section, text)


def _section(match: re.Match[str]) -> str:
    name = match["name"]
    path = RESULTS / f"{name}.md"
    table = path.read_text().strip() if path.exists() else "(not yet run)"
    return f"<!-- measured:{name} -->\n{table}\n<!-- /measured:{name} -->"


def main() -> int:
    """Write the README, or with ``--check`` only say whether it is up to date."""
    old = README.read_text()
    new = filled(old)
    if "--check" in sys.argv[1:]:
        return int(old != new)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
