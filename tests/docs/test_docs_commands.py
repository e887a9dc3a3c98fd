"""The shell blocks of README.md and of the tutorial, run in order and as they stand.

They run in an empty folder with the network that the page speaks of. `compress` and `scan` are
given a configuration of few steps on top, so that this takes seconds; nothing else is changed. A
block that is not run carries its reason in the page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from programs import Program
from small_checkpoint import quick_config
from written_pages import ROOT, blocks

DEMO = ROOT / "benchmarks" / "zoo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands run: the demo's network, and `model.pth` with README's own model.toml."""
    home = tmp_path / "home"
    (home / "benchmarks" / "zoo").mkdir(parents=True)
    for name in ("demo.safetensors", "demo.toml"):
        shutil.copy(DEMO / name, home / "benchmarks" / "zoo" / name)
    torch.save(safetensors.torch.load_file(DEMO / "demo.safetensors"), home / "model.pth")
    (model,) = (one.text for one in blocks(ROOT / "README.md") if one.language == "toml")
    (home / "model.toml").write_text(model, encoding="utf-8")
    return home


def run_blocks(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    tools = folder.parent / "bin"
    tools.mkdir()
    few_steps = quick_config(folder.parent)
    program = tools / "edgeclean"
    program.write_text(
        f"""#!/bin/sh
case "$1" in
    compress|scan) exec '{sys.executable}' -m edgeclean "$@" --config '{few_steps}' ;;
esac
exec '{sys.executable}' -m edgeclean "$@"
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    script = "set -eu\n" + "\n".join(
        one.text for one in blocks(page) if one.language == "sh" and one.reason is None
    )
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "COLUMNS": "100",
    }
    return subprocess.run(
        ["sh", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_readmes_commands_run(folder: Path) -> None:
    done = run_blocks(ROOT / "README.md", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "build" / "model.onnx").is_file()
    assert "MACs" in done.stdout


@pytest.mark.slow
def test_the_tutorials_commands_run(folder: Path, program: Program) -> None:
    program("openssl")
    done = run_blocks(ROOT / "docs" / "tutorial.md", folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "build" / "demo" / "report.html").is_file()
    assert (folder / "build" / "demo" / "model.sig").is_file()
    # Whether so short a scan suspects anything is not the page's matter; the gate is.
    assert ("exit code 4" in done.stdout) != (folder / "build" / "gated").exists()
    assert (folder / "build" / "embedded" / "digits.h").is_file()


def test_a_command_that_fails_is_noticed(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nedgeclean verify nothing-here\necho after\n```\n", encoding="utf-8")
    done = run_blocks(page, folder)
    assert done.returncode == 3
    assert "after" not in done.stdout
