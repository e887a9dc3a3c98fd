"""The Markdown of the repository: its blocks, links and anchors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(
    r"(?:<!-- not run(?P<reason>[^>]*)-->\n)?^```(?P<language>[\w-]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]*))?\)")


class Block(NamedTuple):
    language: str
    text: str
    reason: str | None  # why it is not run; None for one that is


def blocks(page: Path) -> list[Block]:
    return [
        Block(found["language"], found["text"], found["reason"])
        for found in _BLOCK.finditer(page.read_text("utf-8"))
    ]


def prose(page: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", page.read_text("utf-8")))


def links(page: Path) -> list[tuple[str, str | None]]:
    return [(found["path"], found["anchor"]) for found in _LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """What a heading can be reached by, as mkdocs and the forges both write it."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings}
