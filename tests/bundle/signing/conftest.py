"""Keys, and a bundle that is signed with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle_files import put_bundle

pytest.importorskip("model_signing")
from signing_keys import sign, write_keys

from edgeclean.bundle.signing import Trusted


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture
def trusted(keys: tuple[Path, Path]) -> Trusted:
    return Trusted(public_key=keys[1])


@pytest.fixture
def bundle(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    folder = put_bundle(tmp_path / "build")
    sign(folder, keys[0])
    return folder
