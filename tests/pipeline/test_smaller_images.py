"""The whole run where a network sees its images smaller: its bundle, its report, the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch
from small_checkpoint import QUICK, spec
from torch import nn

from edgeclean.bundle.verify import verify_bundle
from edgeclean.config import overlay, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.errors import RatioError
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.pipeline import WrittenCompression, compress, inspect_checkpoint
from edgeclean.report.report import check_report
from edgeclean.runner import Cache
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.session import OnnxSession

SIDE, ASKED = 32, {"ranks": {"ratio": 2.0}}
CODE = """
from torch import nn

def make(classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes),
    )
"""


# Of this hardly a layer can be made smaller.
GROUPED = CODE.replace("nn.Conv2d(32, 32, 1)", "nn.Conv2d(32, 32, 3, padding=1, groups=8)")


def write_network(folder: Path, kind: str, code: str = CODE) -> Path:
    """A network of colours, which needs all its channels and few of its pixels."""
    (folder / "net.py").write_text(code, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102 - the same code that the architecture names
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = namespace["make"](4)
        for layer in (module[2], module[4]):
            assert isinstance(layer, nn.Conv2d)
            nn.init.orthogonal_(layer.weight)
    path = folder / "model.safetensors"
    safetensors.torch.save_file(module.state_dict(), path)
    if kind == "onnx":
        network = load_checkpoint(path, whole_spec(), code_folder=folder)
        path = folder / "model.onnx"
        path.write_bytes(export_onnx(network, ExportSettings()))
    return path


def whole_spec(architecture: str = "net.py:make") -> Any:
    return replace(spec(), input_shape=(3, SIDE, SIDE), architecture=architecture)


def run(source: Path, output: Path, kept: Path, **asked: Any) -> WrittenCompression:
    cache = Cache(folder=kept, notify=lambda _line: None)
    settings = settings_for(load_target("cpu"), overlay(overlay(QUICK, ASKED), asked))
    described = whole_spec("onnx" if source.suffix == ".onnx" else "net.py:make")
    return compress(source, described, output, settings, code_folder=source.parent, cache=cache)


@pytest.mark.parametrize("kind", ["safetensors", "onnx"])
def test_a_bundle_whose_network_sees_smaller_images_takes_those_of_before(
    kind: str, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    source = write_network(tmp_path, kind)
    written = run(source, tmp_path / "build", kept, precision={"format": "int8"})
    compression, bundle = written.compression, written.bundle.path
    assert compression.parity.max_relative_difference <= compression.parity.tolerance
    verify_bundle(bundle)
    report = json.loads((bundle / "report.json").read_text("utf-8"))
    check_report(report)
    height, width = report["resolution"]
    assert height == width < SIDE
    macs = report["size"]["macs"]
    assert 2.0 <= macs["original"] / macs["compressed"] <= 2.3
    assert sum(row["macs_after"] for row in report["layers"]) == macs["compressed"]
    page = (bundle / "report.html").read_text("utf-8")
    assert f"its layers see them at {height}\N{MULTIPLICATION SIGN}{width}" in page
    model = (bundle / "model.onnx").read_bytes()
    assert "Resize" in {node.op_type for node in onnx.load_model_from_string(model).graph.node}
    assert OnnxSession(model).input_shape == (3, SIDE, SIDE)
    assert '"resolution": [' in (bundle / "manifest.json").read_text("utf-8")
    again = run(source, tmp_path / "again", kept, precision={"format": "int8"})
    for name in ("model.onnx", "manifest.json"):
        first, second = (one.bundle.path / name for one in (written, again))
        assert first.read_bytes() == second.read_bytes(), name


def test_it_sees_its_own_where_forms_of_layers_are_asked(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    forms = {"forms": ["tucker", "hidden", "separable"]}
    written = run(write_network(tmp_path, "pth"), tmp_path / "build", kept, ranks=forms)
    report = json.loads((written.bundle.path / "report.json").read_text("utf-8"))
    assert report["resolution"] is None
    assert "its layers see them" not in (written.bundle.path / "report.html").read_text("utf-8")


def test_a_ratio_that_layers_do_not_reach_is_met_and_inspect_says_by_what(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    source = write_network(tmp_path, "safetensors", GROUPED)
    written = run(source, tmp_path / "build", kept)
    report = json.loads((written.bundle.path / "report.json").read_text("utf-8"))
    macs = report["size"]["macs"]
    assert report["resolution"] is not None
    assert macs["original"] >= 2.0 * macs["compressed"]
    for asked, may in (({}, True), ({"forms": ["tucker"]}, False)):
        settings = settings_for(
            load_target("cpu"), overlay(overlay(QUICK, ASKED), {"ranks": asked})
        )
        with pytest.raises(RatioError, match="cannot be met") as refused:
            inspect_checkpoint(source, whole_spec(), settings, code_folder=tmp_path)
        assert ("compress can meet it" in str(refused.value)) == may


def test_inspect_plans_the_largest_ratio_in_reach_where_none_was_asked(tmp_path: Path) -> None:
    source = write_network(tmp_path, "safetensors", GROUPED)
    unasked = settings_for(load_target("cpu"), QUICK)
    inspected = inspect_checkpoint(source, whole_spec(), unasked, code_folder=tmp_path)
    assert 1 < inspected.ratio < unasked.ranks.ratio_or_default
    rows = inspected.layers
    before, after = sum(row.macs_before for row in rows), sum(row.macs_after for row in rows)
    assert before >= inspected.ratio * after
    more = replace(unasked, ranks=replace(unasked.ranks, ratio=inspected.ratio + 0.01))
    with pytest.raises(RatioError, match=f"ask for --ratio {inspected.ratio:.2f} or less"):
        inspect_checkpoint(source, whole_spec(), more, code_folder=tmp_path)
