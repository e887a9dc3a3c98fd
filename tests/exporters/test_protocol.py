"""Every runtime in the table keeps the protocol, whether it is installed here or not."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_networks import tiny_network

import exporters
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from exporters import EXPORTERS
from exporters.onnx_exporter import MODEL_FILE, ExportSettings, OnnxExporter, export_onnx
from exporters.protocol import Exporter, Runnable, exporter_named
from exporters.session import OnnxSession
from exporters.tensorrt_engine import LoadedEngine
from exporters.tensorrt_exporter import TensorRTExporter

METHODS = ("version", "convert", "load")


def signature_of(owner: Any, method: str) -> tuple[list[tuple[str, Any]], Any]:
    """Names and types of what a method takes, and the type of what it gives."""
    function = inspect.unwrap(getattr(owner, method))
    found = inspect.signature(
        function, eval_str=True, globals=vars(sys.modules[function.__module__])
    )
    taken = [(one.name, one.annotation) for one in found.parameters.values()]
    return taken[1:], found.return_annotation


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_exporter_keeps_the_protocol(name: str) -> None:
    exporter = exporter_named(name)
    assert isinstance(exporter, Exporter)
    assert exporter.name == name
    assert exporter.needs.startswith("edgeclean")
    for method in METHODS:
        taken, given = signature_of(type(exporter), method)
        assert taken == signature_of(Exporter, method)[0]
        if method == "load":
            assert issubclass(given, Runnable)
        else:
            assert given == signature_of(Exporter, method)[1]
    version = exporter.version()
    assert version is None or version[0].isdigit()


@pytest.mark.parametrize("loaded", [OnnxSession, LoadedEngine])
def test_what_they_load_runs_alike(loaded: type) -> None:
    assert issubclass(loaded, Runnable)
    assert signature_of(loaded, "run") == signature_of(Runnable, "run")


def test_every_exporter_there_is_stands_in_the_table() -> None:
    files = {path.stem for path in Path(str(exporters.__file__)).parent.glob("*_exporter.py")}
    assert {f"exporters.{stem}" for stem in files} == {
        where.partition(":")[0] for where in EXPORTERS.values()
    }
    for where in EXPORTERS.values():
        module, _, name = where.partition(":")
        assert inspect.isclass(getattr(importlib.import_module(module), name))


def test_a_runtime_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="'ncnn2' is unknown; it must be one of onnxruntime, tens"):
        exporter_named("ncnn2")


def test_the_table_imports_no_runtime() -> None:
    asked = "import sys, exporters.protocol; print({'onnxruntime', 'tensorrt'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, check=True, text=True)
    assert said.stdout.strip() == "set()"


@pytest.mark.parametrize("batch", [3, None])
def test_an_onnx_file_there_and_back_computes_what_pytorch_does(batch: int | None) -> None:
    network = tiny_network()
    model = export_onnx(network, ExportSettings(batch=batch))
    exporter = exporter_named("onnxruntime")
    files = exporter.convert(network, model)
    assert files == {MODEL_FILE: model}
    images = torch.randn(3, *network.spec.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        asked = network.module(images).numpy()
    found = exporter.load(files).run(images.numpy())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, asked, rtol=1e-4, atol=1e-4)
    assert np.ptp(asked) > 1e-2, "else this shows nothing"
    assert exporter.version() == onnxruntime.__version__


def test_what_is_no_onnx_file_is_not_converted() -> None:
    with pytest.raises(InputRejectedError, match="not an ONNX file"):
        OnnxExporter().convert(tiny_network(), b"\xff")


def test_without_tensorrt_it_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    exporter = TensorRTExporter()
    with pytest.raises(ToolchainError, match=r"edgeclean\[tensorrt\]"):
        exporter.convert(tiny_network(), b"")
    with pytest.raises(ToolchainError, match=r"edgeclean\[tensorrt\]"):
        exporter.load({})


def test_a_tensorrt_that_is_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "tensorrt-10.3.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.3.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert metadata.version("tensorrt") == "10.3.0"
    assert TensorRTExporter().version() == "10.3.0"
