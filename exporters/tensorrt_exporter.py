"""An ONNX file as a TensorRT engine for the GPU of this machine.

Thin on purpose: it has not run where it was written (docs/guides/jetson.md). The precision is
that of the graph (`exporters.precision`), and what came out is read back from the engine itself,
because tools have answered success and built float32 before. An engine is code for one device and
one TensorRT: it is never shipped in a bundle, and only what was built here is loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from edgeclean.devices.kit.storage import engine_key, engine_name
from edgeclean.devices.kit.trtexec_lines import precisions_of
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.files.reading import read_small_file
from edgeclean.networks.state import Network
from edgeclean.settings import Settings, setting
from exporters.tensorrt_engine import LoadedEngine, opened
from exporters.tensorrt_rules import differences

MIB = 2**20
ENGINE_FILE = "model.plan"
MAX_RECORD_BYTES, MAX_TIMING_BYTES = MIB, 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings(Settings):
    """How an engine is built.

    Attributes:
        precision: of the graph; it names the engine, and tells TensorRT 10 what a DLA may use.
        workspace_mib: the most scratch memory that a layer may take.
        dla_core: build for this accelerator core; None for the GPU.
        gpu_fallback: layers that the accelerator cannot run go to the GPU; refused otherwise.
    """

    precision: str = setting("fp32", one_of=("fp32", "fp16", "bf16", "int8"))
    workspace_mib: int = setting(1024, at_least=1, at_most=2**20)
    dla_core: int | None = setting(None, at_least=0, at_most=15)
    gpu_fallback: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A built engine.

    Attributes:
        key: of (ONNX sha256, TensorRT, compute capability, precision); what it is good for.
        contents: the serialised engine.
        tensorrt: the version that built it, and that alone can load it.
        compute_capability: of the GPU that it was built on.
        layer_precisions: layers by the type that they write, read back from the engine.
        timing_cache: what was measured while building; makes the next build quick.
    """

    key: str
    contents: bytes
    tensorrt: str
    compute_capability: str
    layer_precisions: dict[str, int]
    timing_cache: bytes


def local_tensorrt() -> tuple[Any, str]:
    """The installed ``tensorrt`` module, and the compute capability of this machine's GPU.

    Raises:
        ToolchainError: TensorRT or a GPU is missing; the message says what brings it.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise ToolchainError(
            f"TensorRT cannot be imported here ({error}); pip install 'edgeclean[tensorrt]', or "
            "build on the device with the bundle's kit"
        ) from None
    differences(trt)
    if not torch.cuda.is_available():
        raise ToolchainError(
            "PyTorch sees no CUDA GPU here, and an engine is built on the GPU that will run it; "
            "build on the device with the bundle's kit"
        )
    major, minor = torch.cuda.get_device_capability()
    return trt, f"{major}.{minor}"


def build_engine(  # pragma: no cover - needs TensorRT and a GPU
    trt: Any,
    model: bytes,
    onnx_sha256: str,
    compute_capability: str,
    settings: EngineSettings,
    *,
    timing_cache: bytes = b"",
) -> Engine:
    """Build an engine from an ONNX file, on this machine's GPU.

    Args:
        trt: the ``tensorrt`` module.
        model: the ONNX file.
        onnx_sha256: its hash.
        compute_capability: of the GPU.
        settings: how.
        timing_cache: of an earlier build on this machine; ignored where it does not fit.

    Raises:
        InputRejectedError: TensorRT's reader does not take the file; its own words are in it.
        ToolchainError: the accelerator is not there, or nothing can be built.
    """
    rules = differences(trt)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    on_dla = settings.dla_core is not None
    network = builder.create_network(rules.network_flags(on_dla=on_dla))
    _parse(trt, network, model)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MIB)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector says little
    cache = config.create_timing_cache(timing_cache)
    config.set_timing_cache(cache, False)
    rules.allow_precision(config, settings.precision, on_dla=on_dla)
    if on_dla:
        _use_dla(trt, builder, config, settings)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise ToolchainError(
            f"TensorRT {trt.__version__} could not build an engine; more --workspace-mib or a "
            "smaller network may help, and its own log says why"
        )
    contents = bytes(serialized)
    return Engine(
        key=engine_key(onnx_sha256, trt.__version__, compute_capability, settings.precision),
        contents=contents,
        tensorrt=trt.__version__,
        compute_capability=compute_capability,
        layer_precisions=_read_back(trt, contents, settings),
        timing_cache=bytes(config.get_timing_cache().serialize()),
    )


def cached_engine(
    folder: Path, model: bytes, onnx_sha256: str, settings: EngineSettings
) -> tuple[Path, dict[str, Any]]:
    """The engine of a network for this machine, from ``folder`` or built into it.

    Returns:
        Its path and what is known of it.

    Raises:
        ToolchainError: TensorRT or a GPU is missing, or nothing can be built.
        InputRejectedError: TensorRT's reader does not take the file.
        UsageError: the folder cannot be written.
    """
    trt, capability = local_tensorrt()
    key = engine_key(onnx_sha256, trt.__version__, capability, settings.precision)
    key = engine_name(key, settings.workspace_mib, settings.dla_core, settings.gpu_fallback)
    plan, record, timing = (
        folder / f"{key}.plan",
        folder / f"{key}.json",
        folder / "edgeclean-timing.cache",
    )
    if plan.is_file() and record.is_file():
        known: dict[str, Any] = json.loads(_read(record, MAX_RECORD_BYTES))
        return plan, {**known, "cached": True}
    before = _read(timing, MAX_TIMING_BYTES) if timing.is_file() else b""
    made = build_engine(trt, model, onnx_sha256, capability, settings, timing_cache=before)
    about = {
        "key": key,
        "tensorrt": made.tensorrt,
        "compute_capability": capability,
        "precision": settings.precision,
        "bytes": len(made.contents),
        "layer_precisions": made.layer_precisions,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(about, indent=2, sort_keys=True) + "\n"
        for path, content in (
            (timing, made.timing_cache),
            (plan, made.contents),
            (record, text.encode()),  # last: its presence says that the engine is whole
        ):
            _put(path, content)
    except OSError as error:
        raise UsageError(f"cannot write the engine to {folder}: {error.strerror}") from None
    return plan, {**about, "cached": False}


class TensorRTExporter:
    """TensorRT, on this machine's GPU: builds an engine from the ONNX file (see `Exporter`)."""

    name = "tensorrt"
    needs = "edgeclean[tensorrt]"

    def __init__(self, settings: EngineSettings | None = None) -> None:
        """Keep how engines are built; the precision is to be the graph's own."""
        self._settings = settings or EngineSettings()

    def version(self) -> str | None:
        """The installed TensorRT's version; None where there is none."""
        try:
            return metadata.version("tensorrt")
        except metadata.PackageNotFoundError:
            return None

    def convert(self, network: Network, model: bytes) -> dict[str, bytes]:
        """The engine, for this machine alone.

        Raises:
            ToolchainError: TensorRT or a GPU is missing, or nothing can be built.
            InputRejectedError: TensorRT's reader does not take the file.
        """
        del network
        trt, capability = local_tensorrt()
        digest = hashlib.sha256(model).hexdigest()
        made = build_engine(trt, model, digest, capability, self._settings)
        return {ENGINE_FILE: made.contents}

    def load(self, files: Mapping[str, bytes]) -> LoadedEngine:
        """An engine that was built here: it is code, and a stranger's must not be loaded.

        Raises:
            ToolchainError: TensorRT or a GPU is missing, or the engine is not this machine's.
        """
        trt, _ = local_tensorrt()
        return LoadedEngine(trt, files[ENGINE_FILE], self._settings.dla_core)


def _put(path: Path, content: bytes) -> None:
    """Write a file under a name that nobody else has, and rename it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".edgeclean-") as beside:
        partial = Path(beside) / path.name
        partial.write_bytes(content)
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise UsageError(f"{path} is no plain file, and is not replaced; move it away")
        partial.replace(path)


def _parse(
    trt: Any, network: Any, model: bytes
) -> None:  # pragma: no cover - needs TensorRT and a GPU
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(model):
        reasons = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise InputRejectedError(
            f"TensorRT {trt.__version__} does not take the network: {'; '.join(reasons)[:400]}"
        )


def _use_dla(
    trt: Any, builder: Any, config: Any, settings: EngineSettings
) -> None:  # pragma: no cover - needs TensorRT and a GPU
    core = settings.dla_core
    if core is None or core >= builder.num_DLA_cores:
        raise ToolchainError(
            f"DLA core {core} was asked, and TensorRT {trt.__version__} can build for "
            f"{builder.num_DLA_cores} here; leave --dla-core out"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    if settings.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _read_back(
    trt: Any, contents: bytes, settings: EngineSettings
) -> dict[str, int]:  # pragma: no cover - needs TensorRT and a GPU
    """What the layers of the built engine write: never what was asked for."""
    engine = opened(trt, contents, settings.dla_core)
    inspector = engine.create_engine_inspector()
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return precisions_of(json.loads(layers))


def _read(path: Path, most_bytes: int) -> bytes:
    return read_small_file(path, most_bytes, hint="delete it, and it is made again")
