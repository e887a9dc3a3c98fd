"""What is told of the software, whichever package brought it."""

from __future__ import annotations

from importlib import metadata

import pytest

from edgeclean.environment import installed_version, versions


def test_a_library_is_found_under_its_other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise metadata.PackageNotFoundError(name)
        return "1.99"

    assert installed_version("onnxruntime") == metadata.version("onnxruntime")
    monkeypatch.setattr(metadata, "version", only)
    assert installed_version("onnxruntime") == "1.99"
    assert installed_version("torch") is None
    assert set(versions()) == {"edgeclean", "python", "onnxruntime"}
