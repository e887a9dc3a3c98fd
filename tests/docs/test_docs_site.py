"""The built site: whole, complete in what it reads from the code, and without outside resources."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import unquote

import pytest
import typer
from browser import browser
from programs import Program
from written_pages import ROOT

import edgeclean
from edgeclean import cli
from edgeclean.config import PipelineSettings
from edgeclean.errors import EdgecleanError

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed; `make install` does it")
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
LINK_ON_PAGE = """
[getComputedStyle(document.querySelector("article p a")).color,
 getComputedStyle(document.body).backgroundColor]
"""


class Page(HTMLParser):
    """What a page links to, what it loads, and where it can be entered."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "id" in given:
            self.ids.add(given["id"] or "")
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(str(given.get("href")))
        if given.get(LOADING.get(tag, "")):
            self.loaded.append(str(given[LOADING[tag]]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def section(page: Path, heading: str) -> str:
    """The HTML between one second-level heading and the next."""
    text = page.read_text("utf-8")
    start = text.index(f'<h2 id="{heading}">')
    end = text.find("<h2 ", start + 1)
    return unescape(text[start : end if end > 0 else None])


def test_every_link_and_anchor_resolves(pages: dict[Path, Page]) -> None:
    assert len(pages) > 30
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of wherever the site is put
            continue
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            if target.is_dir():
                target /= "index.html"
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids | {"__top"}, f"{path.name}: {link}"


def test_nothing_is_loaded_from_outside(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loaded
        for address in page.loaded:
            assert not re.match(r"(?:[a-z]+:)?//", address), f"{path.name}: {address}"
        # The theme's script would fetch the drawer of such a block.
        assert 'class="mermaid"' not in path.read_text("utf-8")
    for sheet in site.rglob("*.css"):
        fetched = re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//[^)\"']*", sheet.read_text())
        assert fetched == [], sheet.name


def test_links_are_legible_in_the_colours_that_the_system_has_now(
    program: Program, site: Path, tmp_path: Path
) -> None:
    with browser(program("chromium"), tmp_path) as tab:
        for scheme, named in (("dark", "slate"), ("light", "default"), ("dark", "slate")):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            tab("Emulation.setEmulatedMedia", features=[feature])
            tab.show((site / "index.html").as_uri())
            assert tab.value("document.body.dataset.mdColorScheme") == named
            words, paper = (luminance(one) for one in tab.value(LINK_ON_PAGE))
            lighter, darker = max(words, paper), min(words, paper)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def luminance(colour: str) -> float:
    """The relative luminance of ``rgb(...)``, as WCAG has it."""
    levels = [int(one) / 255 for one in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in levels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_no_part_is_left_ungenerated(pages: dict[Path, Page]) -> None:
    for path in pages:
        assert "<!-- generated:" not in path.read_text("utf-8"), path.name


def test_every_option_of_every_command_is_in_the_reference(site: Path) -> None:
    main: Any = typer.main.get_command(cli.app)
    for name, command in main.commands.items():
        if command.hidden:
            continue
        text = section(site / "reference" / "commands.html", name)
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                assert f"<code>{parameter.name.upper()}</code>" in text
            elif parameter.name != "help":
                for option in parameter.opts:
                    assert f"<code>{option}</code>" in text, (name, option)
                first = (parameter.help or "").split()[:3]
                assert first, (name, parameter.name)


def settings_tables(owner: type = PipelineSettings, name: str = "") -> dict[str, type]:
    found = {name: owner}
    for field, hint in get_type_hints(owner).items():
        if dataclasses.is_dataclass(hint):
            found |= settings_tables(hint, f"{name}.{field}".removeprefix("."))  # type: ignore[arg-type]
    return found


def test_every_setting_is_in_the_reference_with_a_meaning(site: Path) -> None:
    page = site / "reference" / "settings.html"
    for name, owner in settings_tables().items():
        heading = name.replace(".", "") if name else "at-the-top-of-the-file"
        rows = dict(
            re.findall(
                r"<tr>\s*<td><code>(\w+)</code></td>(.*?)</tr>", section(page, heading), re.S
            )
        )
        for field in dataclasses.fields(owner):
            if dataclasses.is_dataclass(get_type_hints(owner)[field.name]):
                continue
            cells = re.findall(r"<td>(.*?)</td>", rows[field.name], re.S)
            assert len(cells[-1]) > 3, (name, field.name)


def test_every_error_and_target_is_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "exit-codes.html").read_text("utf-8")
    for error in EdgecleanError.__subclasses__():
        assert f"<td>{error.exit_code}</td>\n<td><code>{error.__name__}</code></td>" in text
    targets = (site / "reference" / "targets.html").read_text("utf-8")
    for name in ("cpu", "jetson", "orin-nano", "rtx"):
        assert f'<h2 id="{name}">' in targets
    assert "unverified" in targets


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page], site: Path) -> None:
    ids = pages[site / "reference" / "python.html"].ids
    for name in edgeclean.__all__:
        if not name.startswith("__"):
            assert f"edgeclean.{name}" in ids


@pytest.mark.parametrize("name", ["report", "manifest"])
def test_every_key_of_a_document_is_in_the_reference(site: Path, name: str) -> None:
    text = (site / "reference" / f"{name}.html").read_text("utf-8")
    schema = json.loads((ROOT / f"edgeclean/schemas/{name}.schema.json").read_text("utf-8"))
    for key in schema["properties"]:
        assert f"<td><code>{key}</code></td>" in text, key


def test_every_part_of_a_report_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "report.md").read_text("utf-8")
    schema = json.loads((ROOT / "edgeclean/schemas/report.schema.json").read_text("utf-8"))
    for key in schema["properties"]:
        assert re.search(rf"^\| .*`{key}`.* \|.{{10,}}\|$", page, re.MULTILINE), key
