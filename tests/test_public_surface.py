from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, get_args, get_type_hints

import pytest
import typer
from command_line import HEAVY, in_a_child

import edgeclean
from edgeclean import cli, errors
from edgeclean.cli import EXIT_CODES
from edgeclean.config import PipelineSettings, settings_from
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
FRAGMENTS = ("Of ", "In ", "As ", "For ", "From ", "To ", "With ", "Where ", "By ", "On ")
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
    known |= {
        "--alone",
        "--check",
        "--network",
        "--part",
    }  # of sha256sum, and of studies in benchmarks/
    known |= {"--generate", "--head", "--include-dashboard", "--node-ip-address", "--port"}  # Ray's
    known |= {"--follow", "--watch"}  # of kubectl
    for name in commands():
        for parameter in main.commands[name].params:  # type: ignore[attr-defined]
            known |= set(parameter.opts)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXTS)) <= known


def test_every_exit_code_is_told_alike_everywhere() -> None:
    codes = {error.exit_code for error in all_errors() if error is not EdgecleanError} | {0, 1}
    assert codes == set(range(8))
    stopped = {
        128 + signal.SIGHUP,
        128 + signal.SIGINT,
        128 + signal.SIGQUIT,
        128 + signal.SIGTERM,
    }  # by who asked for it
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


def public(kind: type) -> dict[str, Any]:
    """The public classes or functions by name."""
    names = {name: getattr(edgeclean, name) for name in edgeclean.__all__}
    return {name: one for name, one in names.items() if isinstance(one, kind)}


def classes_in(hint: Any) -> set[type]:
    """Our own classes in an annotation, also within a union or a callable."""
    if isinstance(hint, list | tuple):
        return {one for part in hint for one in classes_in(part)}
    if isinstance(hint, type) and hint.__module__.startswith(("edgeclean.", "exporters.")):
        return {hint}
    return classes_in(get_args(hint))


def test_the_public_names_are_told_to_type_checkers_as_they_are_imported() -> None:
    tree = ast.parse(Path(str(edgeclean.__file__)).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: (str(node.module).removeprefix("edgeclean."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == edgeclean._PLACES
    assert sorted({*typed, "__version__"}) == sorted(edgeclean.__all__) == dir(edgeclean)


def test_the_public_names_are_imported_when_they_are_used() -> None:
    in_a_child(
        "import sys, edgeclean\n"
        f"heavy = {set(HEAVY)}\n"
        "assert not heavy & set(sys.modules)\n"
        "raised = [getattr(edgeclean, one) for one in edgeclean.__all__ if one.endswith('Error')]\n"
        "assert all(issubclass(one, edgeclean.EdgecleanError) for one in raised)\n"
        "assert not heavy & set(sys.modules)\n"
        "scope = {}\n"
        "exec('from edgeclean import *', scope)\n"
        "assert set(edgeclean.__all__) <= set(scope)\n"
        "assert edgeclean.scan is scope['scan']\n"
    )
    with pytest.raises(AttributeError, match="no_such_name"):
        edgeclean.no_such_name  # noqa: B018


def test_no_module_is_called_like_a_public_name() -> None:
    folder = Path(str(edgeclean.__file__)).parent
    assert not {path.stem for path in folder.iterdir()} & set(edgeclean.__all__)


def test_every_error_is_public() -> None:
    assert {error.__name__ for error in all_errors()} <= set(edgeclean.__all__)


def test_every_public_function_takes_and_gives_what_is_public() -> None:
    for name, function in public(FunctionType).items():
        hints = get_type_hints(function)
        used = {one for hint in hints.values() for one in classes_in(hint)}
        assert {one.__name__ for one in used} <= set(edgeclean.__all__), name


def test_everything_public_is_documented() -> None:
    for name, one in (public(FunctionType) | public(type)).items():
        text = str(inspect.getdoc(one))
        assert text.splitlines()[0].endswith("."), name
        if isinstance(one, FunctionType):
            assert "\nRaises:\n" in text or not inspect.signature(one).parameters, name
        elif dataclasses.is_dataclass(one):
            whole = "\n".join(above.__doc__ or "" for above in one.__mro__)
            for field in dataclasses.fields(one):
                assert re.search(rf"^ +{field.name}: \S", whole, re.MULTILINE), (name, field.name)
        for member, inside in vars(one).items():
            if isinstance(inside, FunctionType | property) and not member.startswith("_"):
                assert inside.__doc__, (name, member)


def test_the_readme_names_every_family_of_architectures() -> None:
    named = README.lower()
    for name in list_architectures():
        family = re.sub(r"[-\d].*", "", name.removeprefix("cifar-").replace("preact-", "preact"))
        assert family in named, name


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_keeps_to_the_house(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 500  # one concept a file, and most are far shorter
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert _body_lines(node) <= 40, node.name
            assert node.name not in FORBIDDEN
            names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert not FORBIDDEN & {name.arg for name in names}, node.name
    assert not re.search(r"/(?:home|root|work|Users)/", text)


def test_every_docstring_begins_with_a_whole_sentence() -> None:
    """Neither with a small letter nor with what only the name above would make a sentence."""
    begun = [
        f"{path.relative_to(ROOT)}:{line} {name}: {text.splitlines()[0]}"
        for path in PACKAGE_FILES
        for line, name, text in _docstrings(ast.parse(path.read_text("utf-8")))
        if text[:1].islower() or text.startswith(FRAGMENTS)
    ]
    assert begun == [], "\n".join(begun)


def test_no_file_says_that_a_network_is_clean() -> None:
    texts = [*PACKAGE_FILES, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    texts += (ROOT / "edgeclean/report/templates").iterdir()
    for path in texts:
        found = re.findall(r"(?<!never )\bis clean\b", path.read_text("utf-8"), re.IGNORECASE)
        assert found == [], path


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, name and text of the module's docstring and of those of what is public in it."""
    yield 1, "module", ast.get_docstring(tree) or ""
    inside = list(tree.body)
    while inside:
        node = inside.pop(0)
        if isinstance(node, ast.If):  # what only some versions or type checkers see
            inside += [*node.body, *node.orelse]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.lineno, node.name, ast.get_docstring(node) or ""
            inside += node.body if isinstance(node, ast.ClassDef) else []


def _body_lines(node: ast.FunctionDef) -> int:
    """Lines of the body without its docstring: the signature may say what it needs to."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return 0 if not body else int(body[-1].end_lineno or 0) - body[0].lineno + 1
