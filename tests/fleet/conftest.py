"""A folder with small networks, and catalogues of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet_folder import Written, fill


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fill(tmp_path / "given")


@pytest.fixture
def written(folder: Path) -> Written:
    def write(text: str) -> Path:
        path = folder / "catalogue.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
