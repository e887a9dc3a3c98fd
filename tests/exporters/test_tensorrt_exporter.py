"""The exporter needs TensorRT and a GPU to run; that every name it uses exists can be checked.

``tensorrt_api.json`` holds the names of NVIDIA's published Python bindings, by version.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import tiny_network

from edgeclean.errors import ToolchainError, UsageError
from exporters import tensorrt_engine, tensorrt_exporter, tensorrt_rules
from exporters.onnx_exporter import export_onnx
from exporters.tensorrt_exporter import EngineSettings, cached_engine, local_tensorrt

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text("utf-8"))["wheels"]
CLASSES = {  # what a variable of this name is, in the exporter
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
RETURNED = {  # what a call gives whose result is used on the spot
    ("IBuilderConfig", "get_timing_cache"): "ITimingCache",
    ("OnnxParser", "get_error"): "ParserError",
}
TEN = [name for name in API if "-10." in name]
ELEVEN = [name for name in API if "-11." in name]


def used(source: str, *, variables: bool) -> set[tuple[str, str]]:
    """(class or "module", name) of everything that is taken from TensorRT.

    What comes from TensorRT under a name that this test does not know has the class "?".
    """
    found = set()
    tree = ast.parse(source)
    theirs = {target for node in ast.walk(tree) for target in _from_tensorrt(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner, ast.Name) and owner.id == "trt":
            if node.attr != "__version__":
                found.add(("module", node.attr))
        elif isinstance(owner, ast.Name) and variables and owner.id in {*CLASSES, *theirs}:
            found.add((CLASSES.get(owner.id, "?"), node.attr))
        elif isinstance(owner, ast.Attribute) and _name(owner.value) == "trt":
            found.add((owner.attr, node.attr))
        elif isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute):
            kind = CLASSES.get(_name(owner.func.value))
            if variables and kind is not None:
                found.add((RETURNED.get((kind, owner.func.attr), "?"), node.attr))
    return found


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _from_tensorrt(node: ast.AST) -> list[str]:
    """The variable that an assignment gives what a call of TensorRT returned."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
        return []
    function = node.value.func
    if not isinstance(function, ast.Attribute) or _name(function.value) not in {"trt", *CLASSES}:
        return []
    return [_name(target) for target in node.targets]


EXPORTER = inspect.getsource(tensorrt_exporter) + inspect.getsource(tensorrt_engine)


@pytest.mark.parametrize("wheel", API)
def test_every_name_of_the_exporter_is_in_the_published_bindings(wheel: str) -> None:
    names = used(EXPORTER, variables=True)
    assert len(names) > 20
    assert ("Builder", "build_serialized_network") in names
    assert {("ITimingCache", "serialize"), ("ParserError", "desc")} <= names
    assert ("IExecutionContext", "execute_async_v3") in names
    missing = {(kind, name) for kind, name in names if name not in API[wheel].get(kind, ())}
    assert missing == set()


@pytest.mark.parametrize(
    ("rules", "wheels"),
    [(tensorrt_rules.TensorRT10, TEN), (tensorrt_rules.TensorRT11, ELEVEN)],
)
def test_each_versions_own_names_are_in_its_bindings(rules: type, wheels: list[str]) -> None:
    assert wheels
    for wheel in wheels:
        for kind, name in used(inspect.getsource(rules), variables=True):
            assert name in API[wheel].get(kind, ()), (wheel, kind, name)


def test_the_differences_are_real() -> None:
    """What stands in the file of differences is there because 11 took it away."""
    for wheel in ELEVEN:
        assert "FP16" not in API[wheel]["BuilderFlag"]
        assert "INT8" not in API[wheel]["BuilderFlag"]
        assert "EXPLICIT_BATCH" not in API[wheel]["NetworkDefinitionCreationFlag"]
    for wheel in TEN:
        assert {"FP16", "INT8"} <= set(API[wheel]["BuilderFlag"])
    others = {name for _, name in used(EXPORTER, variables=True)}
    assert not others & {"FP16", "INT8", "BF16", "STRONGLY_TYPED"}


def fake(version: str) -> Any:
    module = types.ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0"])
def test_another_tensorrt_is_refused(version: str) -> None:
    with pytest.raises(ToolchainError, match=f"TensorRT {version} is installed"):
        tensorrt_rules.differences(fake(version))


def test_the_right_rules_are_chosen() -> None:
    for version, rules in (
        ("10.3.0", tensorrt_rules.TensorRT10),
        ("10.16.2", tensorrt_rules.TensorRT10),
        ("11.4.0.106", tensorrt_rules.TensorRT11),
    ):
        assert type(tensorrt_rules.differences(fake(version))) is rules


class Flags:
    """What a builder's configuration was told."""

    def __init__(self) -> None:
        self.set: list[str] = []

    def set_flag(self, flag: str) -> None:
        self.set.append(flag)


@pytest.mark.parametrize("on_dla", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_only_10_on_a_dla_is_told_the_precision(precision: str, on_dla: bool) -> None:
    trt = fake("10.3.0")
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace(STRONGLY_TYPED=1)
    trt.BuilderFlag = types.SimpleNamespace(INT8="INT8", FP16="FP16")
    ten, eleven = tensorrt_rules.TensorRT10(trt), tensorrt_rules.TensorRT11(trt)
    assert ten.network_flags(on_dla=on_dla) == (0 if on_dla else 1 << 1)
    assert eleven.network_flags(on_dla=on_dla) == 0
    told: list[list[str]] = []
    for rules in (ten, eleven):
        config = Flags()
        rules.allow_precision(config, precision, on_dla=on_dla)
        told.append(sorted(config.set))
    wanted = ["FP16", "INT8"] if precision == "int8" else ["FP16"]
    assert told == [wanted if on_dla else [], []]


def test_an_engine_is_kept_whole_and_for_its_own_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only the building itself is stood in for; it needs TensorRT and a GPU."""
    given: list[bytes] = []

    def built(
        trt: Any, model: bytes, digest: str, capability: str, settings: Any, *, timing_cache: bytes
    ) -> tensorrt_exporter.Engine:
        given.append(timing_cache)
        return tensorrt_exporter.Engine(
            key="unused",
            contents=b"engine of " + model,
            tensorrt=trt.__version__,
            compute_capability=capability,
            layer_precisions={"fp16": 2},
            timing_cache=b"timing",
        )

    monkeypatch.setattr(tensorrt_exporter, "build_engine", built)
    here = ["8.7"]
    monkeypatch.setattr(tensorrt_exporter, "local_tensorrt", lambda: (fake("10.3.0"), here[0]))
    folder, settings = tmp_path / "engines", EngineSettings(precision="fp16")
    plan, about = cached_engine(folder, b"net", "0" * 64, settings)
    assert (plan.read_bytes(), about["cached"]) == (b"engine of net", False)
    assert cached_engine(folder, b"net", "0" * 64, settings) == (plan, {**about, "cached": True})
    on_dla, _ = cached_engine(
        folder, b"net", "0" * 64, EngineSettings(precision="fp16", dla_core=1)
    )
    here[0] = "8.9"
    elsewhere, _ = cached_engine(folder, b"net", "0" * 64, settings)
    assert len({plan, on_dla, elsewhere}) == 3
    assert given == [b"", b"timing", b"timing"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write the engine to"):
        cached_engine(tmp_path / "file" / "engines", b"net", "0" * 64, settings)


def test_every_setting_is_part_of_what_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An engine built otherwise is another engine; only the building itself is stood in for."""
    built: list[EngineSettings] = []

    def build(
        trt: Any, model: bytes, digest: str, capability: str, settings: Any, *, timing_cache: bytes
    ) -> tensorrt_exporter.Engine:
        built.append(settings)
        return tensorrt_exporter.Engine(
            key="unused",
            contents=repr(settings).encode(),
            tensorrt=trt.__version__,
            compute_capability=capability,
            layer_precisions={},
            timing_cache=b"",
        )

    monkeypatch.setattr(tensorrt_exporter, "build_engine", build)
    monkeypatch.setattr(tensorrt_exporter, "local_tensorrt", lambda: (fake("10.3.0"), "8.7"))
    asked = EngineSettings(dla_core=0)
    others = {"precision": "fp16", "workspace_mib": 64, "dla_core": 1, "gpu_fallback": False}
    assert set(others) == {field.name for field in dataclasses.fields(EngineSettings)}
    ways = [EngineSettings(), asked]
    ways += [dataclasses.replace(asked, **{name: value}) for name, value in others.items()]
    for _ in range(2):
        for way in ways:
            plan, _ = cached_engine(tmp_path, b"net", "0" * 64, way)
            assert plan.read_bytes() == repr(way).encode()
    assert built == ways


def test_without_tensorrt_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(ToolchainError, match=r"TensorRT cannot be imported.*the bundle's kit"):
        cached_engine(tmp_path, b"", "0" * 64, EngineSettings())
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake("10.3.0"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ToolchainError, match=r"no CUDA GPU here.*the bundle's kit"):
        local_tensorrt()


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"workspace_mib": 0}, {"dla_core": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            EngineSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_an_engine_is_built_and_its_precision_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    model = export_onnx(tiny_network())
    plan, about = cached_engine(tmp_path, model, "0" * 64, EngineSettings())
    assert plan.stat().st_size == about["bytes"]
    assert about["layer_precisions"].get("fp32", 0) > 0
    assert cached_engine(tmp_path, model, "0" * 64, EngineSettings())[1]["cached"]


@pytest.mark.gpu
def test_an_engine_computes_what_pytorch_does() -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    network, exporter = tiny_network(), tensorrt_exporter.TensorRTExporter()
    loaded = exporter.load(exporter.convert(network, export_onnx(network)))
    image = torch.randn(1, *network.spec.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        asked = network.module(image).numpy()
    np.testing.assert_allclose(loaded.run(image.numpy()), asked, rtol=1e-2, atol=1e-2)
    with pytest.raises(ToolchainError, match="does not take images"):
        loaded.run(np.zeros((2, *network.spec.input_shape), np.float32))
