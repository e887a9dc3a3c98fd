"""A cache, and what it tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from kept_things import Ear

from edgeclean.files.store import Store


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def store(tmp_path: Path, ear: Ear) -> Store:
    return Store(tmp_path / "cache", ear)
