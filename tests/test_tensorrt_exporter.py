"""The exporter needs TensorRT and a GPU to run; that every name it uses exists can be checked.

``tensorrt_api.json`` holds the names of NVIDIA's published Python bindings, by version.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tiny_networks import tiny_network

from edgeclean.errors import ToolchainError, UsageError
from exporters import tensorrt_exporter, tensorrt_versions
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
    "inspector": "EngineInspector",
}
TEN = [name for name in API if "-10." in name]
ELEVEN = [name for name in API if "-11." in name]


def used(source: str, *, variables: bool) -> set[tuple[str, str]]:
    """(class or "module", name) of everything that is taken from TensorRT."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id == "trt":
            if node.attr != "__version__":
                found.add(("module", node.attr))
        elif isinstance(node.value, ast.Name) and variables and node.value.id in CLASSES:
            found.add((CLASSES[node.value.id], node.attr))
        elif (
            isinstance(node.value, ast.Attribute)
            and isinstance(node.value.value, ast.Name)
            and node.value.value.id == "trt"
        ):
            found.add((node.value.attr, node.attr))
    return found


EXPORTER = inspect.getsource(tensorrt_exporter).replace("engine.contents", "made.contents")
# `Engine` is our own record, under the same variable name in one function.
EXPORTER = EXPORTER.replace("engine.tensorrt", "made.t").replace("engine.layer_", "made.l")
EXPORTER = EXPORTER.replace("engine.timing_cache", "made.c")


@pytest.mark.parametrize("wheel", API)
def test_every_name_of_the_exporter_is_in_the_published_bindings(wheel: str) -> None:
    names = used(EXPORTER, variables=True)
    assert len(names) > 20
    assert ("Builder", "build_serialized_network") in names
    names |= {("ITimingCache", "serialize"), ("ParserError", "desc")}  # of what a call returned
    missing = {(kind, name) for kind, name in names if name not in API[wheel][kind]}
    assert missing == set()


@pytest.mark.parametrize(
    ("rules", "wheels"),
    [(tensorrt_versions.TensorRT10, TEN), (tensorrt_versions.TensorRT11, ELEVEN)],
)
def test_each_versions_own_names_are_in_its_bindings(rules: type, wheels: list[str]) -> None:
    assert wheels
    for wheel in wheels:
        for kind, name in used(inspect.getsource(rules), variables=True):
            assert name in API[wheel][kind], (wheel, kind, name)


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
        tensorrt_versions.differences(fake(version))


def test_the_right_rules_are_chosen() -> None:
    for version, rules in (
        ("10.3.0", tensorrt_versions.TensorRT10),
        ("10.16.2", tensorrt_versions.TensorRT10),
        ("11.4.0.106", tensorrt_versions.TensorRT11),
    ):
        assert type(tensorrt_versions.differences(fake(version))) is rules


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
    ten, eleven = tensorrt_versions.TensorRT10(trt), tensorrt_versions.TensorRT11(trt)
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
