"""The Makefile of the firmware guide, run as it stands on the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from firmware_project import Project, write_project
from programs import Program
from written_pages import ROOT, blocks


@pytest.mark.slow
def test_the_makefile_of_the_guide_builds_once(tmp_path: Path, program: Program) -> None:
    """Two options more than on the page make the work short."""
    make = str(program("make"))
    program("cc")
    guide = ROOT / "docs" / "guides" / "firmware.md"
    (written,) = [block.text for block in blocks(guide) if block.language == "make"]
    write_project(tmp_path, "digits.pth")
    (tmp_path / "model.toml").rename(tmp_path / "digits.toml")
    shorter = "digits_OPTIONS += --config quick.toml --threads 1\n"
    (tmp_path / "Makefile").write_text(written + shorter, encoding="utf-8")
    project = Project(tmp_path, "digits.pth", [make, "firmware"], ".")
    first = project.build()
    assert first.returncode == 0, first.stdout + first.stderr
    assert project.embedded() == project.model()
    again = project.build()
    assert "'firmware' is up to date" in again.stdout, again.stdout + again.stderr
