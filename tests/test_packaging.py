from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("edgeclean", "exporters")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files in a wheel, built offline by the back end that the project names."""
    hatchling = pytest.importorskip("hatchling.build", reason="hatchling is not installed")
    del hatchling
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    build = "import hatchling.build as b; print(b.build_wheel('dist'))"
    (copy / "dist").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_wheel_holds_every_file_of_both_packages_and_nothing_else(
    wheel: dict[str, bytes],
) -> None:
    shipped = {name for name in wheel if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == expected
    assert {
        "edgeclean/py.typed",
        "exporters/py.typed",
        "edgeclean/schemas/report.schema.json",
        "edgeclean/report/templates/report.html.j2",
        "edgeclean/devices/kit/edgeclean_device.py",
        "edgeclean/devices/kit/run.sh",
    } <= shipped
    layer = "edgeclean/integrations/yocto/meta-edgeclean"
    assert {
        "edgeclean/integrations/cmake/Edgeclean.cmake",
        "edgeclean/integrations/make/edgeclean.mk",
        f"{layer}/conf/layer.conf",
        f"{layer}/classes/edgeclean-model.bbclass",
    } <= shipped
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in wheel)


def test_the_wheel_says_what_it_is_and_under_which_license(wheel: dict[str, bytes]) -> None:
    (about,) = (name for name in wheel if name.endswith(".dist-info/METADATA"))
    said = BytesParser().parsebytes(wheel[about])
    assert said["License-Expression"] == "Apache-2.0"
    assert said.get_all("License-File") == ["LICENSE"]
    text = wheel[about.replace("METADATA", "licenses/LICENSE")]
    assert text == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in text[:200]
    assert b"END OF TERMS AND CONDITIONS" in text
    kinds = said.get_all("Classifier")
    assert "Typing :: Typed" in kinds
    # An index refuses a wheel with both the expression and a classifier of a license.
    assert not any(kind.startswith("License ::") for kind in kinds)
    oldest = said["Requires-Python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in kinds


def test_every_third_party_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {
        re.split(r"[<>=\[ ]", requirement)[0].lower().replace("-", "_")
        for requirement in [
            *project["dependencies"],
            *(
                one
                for group in ("tensorrt", "sign", "architectures")
                for one in project["optional-dependencies"][group]
            ),
        ]
    }
    provided = {"PIL": "pillow", "google": "onnx"}  # protobuf comes with onnx
    imported = {
        provided.get(name, name).lower()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in _imports(ast.parse(path.read_text("utf-8")))
    }
    assert imported - set(sys.stdlib_module_names) - set(PACKAGES) <= declared


def _imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found
