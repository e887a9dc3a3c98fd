"""A small bundle to tamper with, and what a tamperer does: make all listed hashes fit again."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tiny_networks import tiny_contents

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import write_bundle


def put_bundle(folder: Path) -> Path:
    """A bundle of the tiny network at ``folder``, in place of what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in _pristine().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def make_hashes_fit(bundle: Path) -> None:
    """In the bill of materials, the manifest, the report and the list of checksums."""
    bill = (bundle / "bom.cdx.json").read_text("utf-8")
    said = json.loads(bill)["metadata"]["component"]["hashes"][0]["content"]
    digest = texts.sha256((bundle / "model.onnx").read_bytes())
    (bundle / "bom.cdx.json").write_text(bill.replace(said, digest), encoding="utf-8")
    make_manifest_fit(bundle)


def make_manifest_fit(bundle: Path) -> None:
    """All of these but the bill of materials."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    for name in manifest["files"]:
        content = (bundle / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": texts.sha256(content)}
    (bundle / "manifest.json").write_bytes(texts.canonical_json(manifest))
    report = json.loads((bundle / "report.json").read_bytes())
    report["manifest_sha256"] = texts.sha256((bundle / "manifest.json").read_bytes())
    (bundle / "report.json").write_bytes(texts.canonical_json(report))
    make_checksums_fit(bundle)


def make_checksums_fit(bundle: Path) -> None:
    """In the list of checksums only."""
    files = {
        path.relative_to(bundle).as_posix(): path.read_bytes()
        for path in bundle.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }
    (bundle / "SHA256SUMS").write_bytes(texts.checksum_lines(files))


@cache
def _pristine() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_bundle(Path(folder) / "build", tiny_contents(ms=1.5)).path
        return {
            path.relative_to(bundle).as_posix(): path.read_bytes()
            for path in sorted(bundle.rglob("*"))
            if path.is_file()
        }
