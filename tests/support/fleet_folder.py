"""A folder with small networks for a fleet, and catalogues of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from small_checkpoint import quick_config, write_checkpoint

MODEL = """
architecture = "net.py:make"
input-shape = [3, 12, 12]
classes = 4
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""
CATALOGUE = """
[defaults]
model = "net.toml"
config = "quick.toml"

[[goals]]
ratio = 2.0

[[networks]]
checkpoint = "a.safetensors"
"""
Written = Callable[[str], Path]


def fill(folder: Path) -> Path:
    """Two networks of one architecture, its model file, quick settings, and no network at all."""
    for name in ("b.safetensors", "a.safetensors"):
        write_checkpoint(folder, name)
    quick_config(folder)
    (folder / "net.toml").write_text(MODEL, encoding="utf-8")
    (folder / "bad.pth").write_bytes(b"no network")
    return folder
