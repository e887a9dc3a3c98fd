"""Writes the seeds: the smaller hostile files, one of each case, and good ones.

``PYTHONPATH=tests/support:tests/hostile python tests/fuzz/make_seeds.py`` - only needed where a
case is new; what a fuzzer found and what was fixed is added by hand, under a name that says what it
was.
"""

from __future__ import annotations

import io
import re
import tempfile
import warnings
import zipfile
from pathlib import Path

import safetensors.torch
from hostile_archives import ARCHIVES, archive, good
from hostile_case import Case
from hostile_onnx import ONNX
from hostile_pickles import PICKLES
from hostile_safetensors import SAFETENSORS
from hostile_settings import SETTINGS
from onnx_network import network
from pickle_writing import legacy_file, saved, tiny_weights
from seeds_of_bundles import seeds

SEEDS = Path(__file__).parent / "seeds"
LARGEST = 4096
# These end with the parsing process only, and the fuzzer has none: they would never end.
ENDLESS = ("hash bomb",)


def main() -> None:
    """Write them all."""
    for reader, cases in (
        ("zip", [*ARCHIVES, *PICKLES]),
        ("safetensors", SAFETENSORS),
        ("onnx", ONNX),
        ("toml", SETTINGS),
    ):
        for case in _ending(cases):
            put(reader, case.id, _first_file(case))
    for case in _ending(PICKLES):
        put("pickle", case.id, _as_legacy(_first_file(case)))
    weights = tiny_weights()
    put("zip", "good", saved(weights))
    put("zip", "good archive", archive(good()))
    put("pickle", "good", saved(weights, _use_new_zipfile_serialization=False))
    put("safetensors", "good", safetensors.torch.save(weights))
    put("onnx", "good", network().SerializeToString())
    for reader, name, contents in seeds():
        put(reader, name, contents)


def put(reader: str, name: str, contents: bytes) -> None:
    """One seed, if it is small and there is something in it."""
    if reader == "zip" and not contents.startswith(b"PK"):
        return
    if 0 < len(contents) <= LARGEST:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        (SEEDS / reader).mkdir(parents=True, exist_ok=True)
        (SEEDS / reader / plain).write_bytes(contents)


def _ending(cases: list[Case]) -> list[Case]:
    return [case for case in cases if case.name not in ENDLESS]


def _as_legacy(contents: bytes) -> bytes:
    """The pickle of an archive, where torch.save put one before there were archives."""
    if not contents.startswith(b"PK"):
        return contents
    try:
        with zipfile.ZipFile(io.BytesIO(contents)) as archive:
            payload = archive.read("a/data.pkl")
    except (KeyError, zipfile.BadZipFile):
        return b""
    return legacy_file()[0] + payload


def _first_file(case: Case) -> bytes:
    """What the stranger sent, or for settings the TOML file; nothing where it is a hole."""
    with tempfile.TemporaryDirectory() as folder:
        words = case.build(Path(folder))
        named = [word for word in words if word.endswith(".toml") and word != "model.toml"]
        path = Path(folder) / (named[-1] if named else words[1])
        small = path.is_file() and path.stat().st_size <= LARGEST
        return path.read_bytes() if small else b""


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
