"""Puts the tables of ``results/*.md`` into both READMEs: ``python -m benchmarks.readme``.

A section stands between ``<!-- measured:NAME -->`` and ``<!-- /measured:NAME -->``; its content is
``results/NAME.md``, so that no number is typed by hand; ``--check`` fails on a stale one.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
READMES = (README, Path(__file__).parent / "README.md")
SECTION = re.compile(
    r"<!-- measured:(?P<name>[\w-]+) -->\n.*?<!-- /measured:(?P=name) -->", re.DOTALL
)


def filled(text: str, folder: Path = README.parent) -> str:
    """The text of a README in ``folder`` with every table as it stands in the results."""
    return SECTION.sub(lambda match: _section(match, folder), text)


def _section(match: re.Match[str], folder: Path) -> str:
    name = match["name"]
    path = RESULTS / f"{name}.md"
    table = path.read_text().strip() if path.exists() else "(not yet run)"
    # Pictures are named as seen from the results.
    table = table.replace("](pictures/", f"]({RESULTS.relative_to(folder).as_posix()}/pictures/")
    return f"<!-- measured:{name} -->\n{table}\n<!-- /measured:{name} -->"


def main() -> int:
    """Write the READMEs, or with ``--check`` only say whether they are up to date."""
    stale = False
    for readme in READMES:
        old = readme.read_text()
        new = filled(old, readme.parent)
        stale |= old != new
        if "--check" not in sys.argv[1:]:
            readme.write_text(new)
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
