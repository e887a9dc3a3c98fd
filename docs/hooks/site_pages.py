"""The hook of mkdocs: fills the generated parts of pages, and adds the files outside ``docs/``.

A page says ``<!-- generated:NAME -->`` where a part of it is read from the code. README.md is the
site's first page; SECURITY.md, CONTRIBUTING.md, CHANGELOG.md and benchmarks/README.md are pages
too, so that each text stands in one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catalogue_page
import command_pages
import effort_table
import error_page
import python_page
import schema_pages
import search_page
import setting_pages
import target_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from benchmarks.rendering.demo_levels import known_cells

ROOT = Path(__file__).parents[2]
GENERATED: dict[str, Callable[[], str]] = {
    "command-overview": command_pages.overview,
    "commands": command_pages.reference,
    "settings": setting_pages.reference,
    "targets": target_pages.reference,
    "errors": error_page.reference,
    "report": lambda: schema_pages.reference("report"),
    "manifest": lambda: schema_pages.reference("manifest"),
    "catalogue": catalogue_page.reference,
    "fleet": lambda: schema_pages.reference("fleet"),
    "latency-table": lambda: schema_pages.reference("latency-table"),
    "python": python_page.reference,
    "searches": search_page.reference,
    "glossary": lambda: glossary(),
    "effort": lambda: effort_table.reference(known_cells()),
}
MARK = re.compile(r"<!-- generated:([\w-]+) -->")
# Texts of the repository that are pages of the site, and where they stand in it.
TEXTS = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
PICTURES = "benchmarks/results/"


def glossary() -> str:
    """The glossary as CONTRIBUTING.md has it, without its heading."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return text.partition("\n## Glossary\n")[2].partition("\n## ")[0].strip()


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the texts that stand outside the folder, and the pictures of the results."""
    for source, page in TEXTS.items():
        content = site_text(source, (ROOT / source).read_text("utf-8"))
        files.append(File.generated(config, page, content=content))
    for picture in sorted((ROOT / PICTURES).rglob("*")):
        if picture.suffix in (".png", ".svg"):
            path = "results/" + picture.relative_to(ROOT / PICTURES).as_posix()
            files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def site_text(source: str, text: str) -> str:
    """A text of the repository with its relative links as the site has them."""
    folder = (ROOT / source).parent

    def in_site(match: re.Match[str]) -> str:
        path, anchor = match["path"], match["anchor"] or ""
        if not path or "://" in path:
            return match[0]
        inside = (folder / path).resolve().relative_to(ROOT).as_posix()
        if inside.startswith(PICTURES):
            return f"]({inside.removeprefix('benchmarks/')}{anchor})"
        if inside in TEXTS or inside.startswith("docs/"):
            return f"]({TEXTS.get(inside, inside.removeprefix('docs/'))}{anchor})"
        return match[0]

    return re.sub(r"\]\((?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)", in_site, text)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with its generated parts; pictures of results as the site has them.

    Raises:
        KeyError: a page asks for a part that nothing generates.
    """
    depth = page.file.src_uri.count("/")
    to_root = "../" * depth
    text = re.sub(r"\]\((?:\.\./)+benchmarks/results/", f"]({to_root}results/", markdown)
    text = re.sub(
        r"\]\((?:\.\./)+(SECURITY|CONTRIBUTING|CHANGELOG|README)\.md", _upper(to_root), text
    )
    text = re.sub(r"\]\((?:\.\./)+benchmarks/README\.md", f"]({to_root}benchmarks.md", text)
    return MARK.sub(lambda match: GENERATED[match[1]](), text)


def _upper(to_root: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"]({to_root}{TEXTS[match[1] + '.md']}"
