"""The texts of the repository: short where they should be, and with no dead link."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer
from written_pages import ROOT, TEXTS, anchors, blocks, links

from edgeclean import cli


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def options_of(command: str) -> set[str]:
    main = typer.main.get_command(cli.app)
    known = {"--help"}
    for parameter in main.commands[command].params:  # type: ignore[attr-defined]
        known |= {*parameter.opts, *parameter.secondary_opts}
    return known


def commands_in(page: Path) -> list[list[str]]:
    """Every call of edgeclean in a page's shell blocks, in words."""
    calls = []
    for block in blocks(page):
        if block.language not in ("sh", "bash"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["edgeclean"]:
                ends = [words.index(one) for one in (">", "|", "||", "&&") if one in words]
                calls.append(words[1 : min(ends, default=len(words))])
    return calls


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_the_picture_of_the_report_is_small() -> None:
    picture = ROOT / "docs" / "assets" / "report.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size < 300_000


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        if "://" in path:
            continue
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), path
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_a_missing_anchor_would_be_seen() -> None:
    assert "limits" in anchors(ROOT / "SECURITY.md")
    assert "no-such-heading" not in anchors(ROOT / "SECURITY.md")


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_every_command_in_a_page_takes_the_options_that_it_is_given(page: Path) -> None:
    for words in commands_in(page):
        if words[0].startswith("-"):
            continue
        given = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert given <= options_of(words[0]), words


def test_commands_are_found_in_the_pages() -> None:
    found = {words[0] for page in TEXTS for words in commands_in(page)}
    assert {"compress", "scan", "verify", "bench", "latency-table", "build-engine"} <= found


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_a_block_that_is_not_run_gives_a_reason(name: str) -> None:
    for block in blocks(ROOT / name):
        if block.language == "sh" and block.reason is not None:
            assert len(block.reason) > 20
        assert block.language in ("sh", "toml", "text"), "sh is run; text is output"
