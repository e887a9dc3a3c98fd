"""The texts of the repository: short where they should be, and with no dead link."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from written_pages import ROOT, TEXTS, anchors, blocks, links

from edgeclean import cli
from edgeclean.load.architectures import list_architectures

OURS = "edgeclean|exporters|benchmarks|tests|docs"
SOURCES = [
    path
    for folder in (*OURS.split("|"), ".ci")
    for path in sorted((ROOT / folder).rglob("*"))
    if (path.suffix == ".py" or folder == ".ci") and path != Path(__file__)
]
SOURCES += [ROOT / name for name in ("Makefile", "pyproject.toml", "mkdocs.yml", ".importlinter")]
# Results that a study has yet to write, names in commands and in tests, keys in an ONNX file.
NOT_FILES = {
    "benchmarks/results/effort.json",
    "benchmarks/studies/X",
    "benchmarks/zoo/demo",
    *("edgeclean/toml", "edgeclean/mk", "edgeclean/stages", "edgeclean/digits"),
}


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


def test_the_guide_names_every_built_in_architecture() -> None:
    guide = (ROOT / "docs" / "guides" / "own-network.md").read_text("utf-8")
    table = guide.partition("## Built-in architectures")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z0-9-]+)`", table)) - {"--arch"} == set(list_architectures())


def test_the_guide_names_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    guide = (ROOT / "docs" / "guides" / "installing.md").read_text("utf-8")
    named = set(re.findall(r"`(?:edgeclean)?\[([a-z-]+)\]`", guide))
    assert named == set(project["optional-dependencies"])


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


def named_in(text: str) -> set[str]:
    """The files, folders and modules of this repository that a text names, as paths."""
    paths = re.findall(rf"(?<![\w/.-])((?:{OURS})/[\w/.-]*[\w-])", text)
    modules = re.findall(r"python -m (benchmarks(?:\.[a-z_]\w*)+)", text)
    modules += re.findall(r"``?((?:edgeclean|exporters|benchmarks)(?:\.[a-z_]\w+)+)``?", text)
    return {*paths, *(module.replace(".", "/") for module in modules)}


def exists(name: str) -> bool:
    """A module's name may go on with a word of the module."""
    place = ROOT / name
    if place.exists() or place.with_suffix(".py").is_file():
        return True
    for module in (place.parent.with_suffix(".py"), place.parent / "__init__.py"):
        if module.is_file() and re.search(rf"\b{place.name}\b", module.read_text("utf-8")):
            return True
    return False


@pytest.mark.parametrize("page", [*TEXTS, *SOURCES], ids=name_of)
def test_every_file_and_module_that_a_text_names_is_there(page: Path) -> None:
    missing = {name for name in named_in(page.read_text("utf-8")) if not exists(name)}
    assert missing - NOT_FILES == set()


def test_a_file_that_has_moved_would_be_seen() -> None:
    text = "see `edgeclean/kit/`, `edgeclean.kit.run` and python -m benchmarks.folding"
    assert named_in(text) == {"edgeclean/kit", "edgeclean/kit/run", "benchmarks/folding"}
    assert not any(exists(name) for name in named_in(text))
    assert exists("edgeclean/devices/kit")
    assert exists("edgeclean/pipeline/compress")


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
