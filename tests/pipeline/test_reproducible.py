"""One configuration, one set of bytes: whoever runs it, wherever, whenever."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoint import OPTIONS, QUICK, spec, write_checkpoint

from edgeclean.bundle.manifest import UNREPRODUCIBLE
from edgeclean.config import overlay, to_toml
from edgeclean.gates import Policy
from edgeclean.images.labelled import LabelledImages

ROOT = Path(__file__).parents[2]
SETTINGS = overlay(
    QUICK,
    {
        "synthesize": {"count": 12, "steps": 1, "batch_size": 12},
        "scan": {"images": 8, "steps": 1, "bank_candidates": 10},
        "finetune": {"steps": 1},
    },
)
# A scan that suspects, so that there are trigger pictures to compare.
PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import report_evidence
from edgeclean import cli
from edgeclean.backdoor import scan as stage
def scan(*_, **__):
    return report_evidence.scan_report(side=12)
stage.scan = scan
assert "edgeclean.pipeline" not in sys.modules and "matplotlib" not in sys.modules
cli.main()
"""
HOST, USER = "a-very-odd-hostname", "somebody-with-a-name"


def bundle_of(folder: Path, *words: str, umask: int, **environment: str) -> dict[str, bytes]:
    """The bundle's files, from a run in a folder of its own with an environment of its own."""
    checkpoint = write_checkpoint(folder)
    (folder / "quick.toml").write_text(to_toml(SETTINGS), encoding="utf-8")
    places = folder / "home-of-the-user", folder / "temporary", folder / "cache"
    home, temporary, cache = places
    for place in places:
        place.mkdir()
    program = PROGRAM.format(tests=str(ROOT / "tests" / "support"))
    rest = ["--config=quick.toml", "--threads=1", "-o", "out", *words]
    finished = subprocess.run(
        [sys.executable, "-c", program, "compress", checkpoint.name, *OPTIONS, *rest],
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(cache),
            **environment,
        },
        umask=umask,
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    # No writes outside of the output folder and the cache.
    assert list(home.iterdir()) == []
    assert [path.name for path in cache.iterdir()] == ["edgeclean"]
    assert list(temporary.iterdir()) == []
    out = folder / "out"
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.slow
def test_the_reproducible_set_is_the_same_for_everybody(tmp_path: Path) -> None:
    one = bundle_of(tmp_path / "first-place", umask=0o022, TZ="UTC", LANG="C")
    other = bundle_of(
        tmp_path / "quite" / "another-place",
        "--max-size=1MB",
        umask=0o077,
        TZ="Pacific/Kiritimati",
        LANG="tr_TR.UTF-8",
        LC_ALL="C.UTF-8",
        USER=USER,
        LOGNAME=USER,
        HOSTNAME=HOST,
        SOURCE_DATE_EPOCH="1",
        PYTHONHASHSEED="12345",
    )
    same = {"model.onnx", "manifest.json", "golden.safetensors", "bom.cdx.json"}
    same |= {"trigger-0-class-2.png"}
    assert set(one) - UNREPRODUCIBLE | {"manifest.json"} == same
    for name in sorted(same):
        assert one[name] == other[name], name
    gates = json.loads(other["report.json"])["gates"]
    assert [gate["gate"] for gate in gates] == ["max-size"]
    for files, place in ((one, "first-place"), (other, "another-place")):
        for word in (str(tmp_path), str(ROOT), place, "home-of-the-user", HOST, USER):
            for name, content in files.items():
                assert word.encode() not in content, (name, word)
        for name, content in files.items():
            for word in names_of_this_machine():
                assert word.encode() not in content, (name, word)


def names_of_this_machine() -> list[str]:
    """Of the host and the user; short ones (such as "root") may stand in any text."""
    return [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5]


def test_gates_and_images_change_no_byte_that_ships(tmp_path: Path) -> None:
    import numpy as np

    from edgeclean.config import PipelineSettings, settings_from
    from edgeclean.pipeline import compress

    checkpoint = write_checkpoint(tmp_path / "source")
    settings = settings_from(PipelineSettings, overlay(SETTINGS, {"purify": {"mode": "none"}}))
    policy = Policy(max_accuracy_drop=100.0, max_size="1 MB", min_speedup=1e-3)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 12, 12), dtype=np.uint8)
    labelled = LabelledImages(pixels=pixels, labels=np.arange(20) % 4, files=())
    plain, gated = (
        compress(
            checkpoint, spec(), tmp_path / name, settings, code_folder=checkpoint.parent, **more
        )
        for name, more in (("plain", {}), ("gated", {"policy": policy, "labelled": labelled}))
    )
    assert plain.bundle.manifest_sha256 == gated.bundle.manifest_sha256
    assert plain.report["gates"] == []
    assert plain.report["evaluation"] is None
    assert len(gated.report["gates"]) == 3
    assert gated.report["evaluation"]["images"] == 20
