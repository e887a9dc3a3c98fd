from __future__ import annotations

import ast
import inspect
import re
import signal
import tomllib
from pathlib import Path

import pytest
import typer

from edgeclean import cli, errors, pipeline
from edgeclean.cli import EXIT_CODES
from edgeclean.config import PipelineSettings, settings_for, settings_from
from edgeclean.devices.targets import load_target
from edgeclean.errors import EdgecleanError, UsageError
from edgeclean.load.architectures import list_architectures
from edgeclean.load.model_file import read_model_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# What README.md and the pages of the site say; their generated parts are tested in tests/docs.
TEXTS = "\n".join(
    [README, *(page.read_text("utf-8") for page in sorted((ROOT / "docs").rglob("*.md")))]
)
PACKAGE_FILES = sorted(
    path for package in ("edgeclean", "exporters") for path in (ROOT / package).rglob("*.py")
)
FORBIDDEN = {"utils", "helpers", "manager", "args", "data", "result", "process"}


def blocks(language: str, page: str) -> list[str]:
    text = (ROOT / page).read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> dict[str, typer.models.CommandInfo]:
    return {
        str(info.callback.__name__).replace("_", "-"): info
        for info in cli.app.registered_commands
        if info.callback and not info.hidden
    }


def all_errors(root: type[EdgecleanError] = EdgecleanError) -> list[type[EdgecleanError]]:
    return [root, *(below for one in root.__subclasses__() for below in all_errors(one))]


def test_the_texts_name_every_command_and_no_other() -> None:
    shell = "".join(re.findall(r"```(?:sh|bash)\n(.*?)```", TEXTS, re.DOTALL))
    named = set(re.findall(r"^edgeclean ([a-z][\w-]+)", shell, re.MULTILINE))
    named |= set(re.findall(r"[`(]edgeclean ([a-z][\w-]+)", TEXTS))
    assert named == set(commands())


def test_every_option_in_the_texts_exists() -> None:
    main = typer.main.get_command(cli.app)
    known = {"--help", "--install-completion", "--version"}
    known |= {"--check", "--network"}  # of sha256sum, and of a study in benchmarks/
    for name in commands():
        for parameter in main.commands[name].params:  # type: ignore[attr-defined]
            known |= set(parameter.opts)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXTS)) <= known


def test_every_exit_code_is_told_alike_everywhere() -> None:
    codes = {error.exit_code for error in all_errors() if error is not EdgecleanError} | {0, 1}
    assert codes == set(range(8))
    stopped = {128 + signal.SIGINT, 128 + signal.SIGTERM}  # by who asked for it
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text("utf-8")
    assert {
        int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    } == codes | stopped
    (line,) = re.findall(r"^Exit codes .*?\(\[all\]", README, re.MULTILINE | re.DOTALL)
    assert {int(code) for code in re.findall(r"\b(\d) ", line)} == codes
    assert {int(code) for code in re.findall(r"\b(\d+) ", EXIT_CODES)} == codes | stopped
    tree = errors.__doc__ or ""
    for error in all_errors():
        if error is not EdgecleanError:
            assert re.search(rf"{error.__name__} +{error.exit_code} ", tree), error


def test_the_documented_files_are_what_the_readers_take(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    for page in ("README.md", "docs/guides/own-network.md"):
        (model,) = blocks("toml", page)
        path.write_text(model, encoding="utf-8")
        assert read_model_file(path).architecture in list_architectures()
    (configuration,) = blocks("toml", "docs/guides/settings.md")
    settings = settings_from(PipelineSettings, tomllib.loads(configuration))
    assert settings.ranks.overrides == {"layer1.0.conv1": (8, 8)}


def test_the_documented_target_is_one(tmp_path: Path) -> None:
    (text,) = blocks("toml", "docs/guides/own-target.md")
    path = tmp_path / "camera-board.toml"
    path.write_text(text, encoding="utf-8")
    target = load_target(target_file=path)
    assert (target.name, target.memory_gb) == ("camera-board", (8,))
    path.write_text(text.replace(', source = "the board\'s data sheet"', ""), encoding="utf-8")
    with pytest.raises(UsageError, match="source"):
        load_target(target_file=path)


def test_the_documented_python_is_the_api() -> None:
    (code,) = blocks("python", "docs/guides/python.md")
    tree = ast.parse(code)
    scope: dict[str, object] = {}
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), "python.md", "exec"), scope)  # noqa: S102 - our own text
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "compress"
    )
    keywords = {str(word.arg): object() for word in call.keywords}
    inspect.signature(pipeline.compress).bind(*(object() for _ in call.args), **keywords)
    settings = settings_for(load_target("orin-nano"), {"ranks": {"ratio": 2.0}, "seed": 7})
    assert (settings.ranks.ratio, settings.seed) == (2.0, 7)


def test_the_readme_names_every_family_of_architectures() -> None:
    named = README.lower()
    for name in list_architectures():
        family = re.sub(r"[-\d].*", "", name.removeprefix("cifar-").replace("preact-", "preact"))
        assert family in named, name


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_keeps_to_the_house(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert _body_lines(node) <= 40, node.name
            assert node.name not in FORBIDDEN
            names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert not FORBIDDEN & {name.arg for name in names}, node.name
    assert not re.search(r"/(?:home|root|work|Users)/", text)


def test_no_file_says_that_a_network_is_clean() -> None:
    texts = [*PACKAGE_FILES, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    texts += (ROOT / "edgeclean/report/templates").iterdir()
    for path in texts:
        found = re.findall(r"(?<!never )\bis clean\b", path.read_text("utf-8"), re.IGNORECASE)
        assert found == [], path


def _body_lines(node: ast.FunctionDef) -> int:
    """Lines of the body without its docstring: the signature may say what it needs to."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return 0 if not body else int(body[-1].end_lineno or 0) - body[0].lineno + 1
