"""Write a network as an ONNX file: BatchNorm folded, simplified, the same bytes every time.

The TorchScript-based exporter (``dynamo=False``) is used for every opset: the newer one cannot go
below 18 (it warns and writes 18), turns global average pooling into ReduceMean, which a DLA does
not take, and puts source paths into the file.
"""

from __future__ import annotations

import copy
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import onnx
import onnxruntime
import torch
from torch import nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.networks.layers import evaluated
from edgeclean.networks.state import ModelSpec, Network
from edgeclean.settings import Settings, setting
from edgeclean.version import __version__
from exporters.onnx_check import open_onnx, opset_of
from exporters.session import OnnxSession
from exporters.silence import nothing_on_stdout

INPUT_NAME = "input"
OUTPUT_NAME = "logits"
MODEL_FILE = "model.onnx"
OPSETS = range(11, 21)  # what the TorchScript-based exporter can write
MAX_WEIGHT_BYTES = 1_500_000_000  # a protobuf file ends at 2 GiB; onnxsim's own threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings(Settings):
    """What the file must be.

    Attributes:
        opset: version of the operator set, exactly; a target's newest readable one bounds it.
        batch: images per run, or None to leave it open (DLA and many edge runtimes need it fixed).
    """

    opset: int = setting(17, at_least=OPSETS.start, at_most=OPSETS.stop - 1)
    batch: int | None = setting(1, at_least=1, at_most=2**16)


def export_onnx(network: Network, settings: ExportSettings | None = None) -> bytes:
    """Write a network as one self-contained ONNX file, in memory.

    The input ``input`` [batch, c, h, w] float32 is the network's own, already normalised; the
    output is ``logits`` [batch, classes].

    Args:
        network: what to export; it is not changed.
        settings: opset and batch.

    Returns:
        The file: valid, at exactly the asked opset, every BatchNorm that follows a convolution
        folded into it, without paths or times; equal networks and settings give equal bytes.

    Raises:
        InputRejectedError: the network uses what ONNX at this opset cannot express, or its weights
            exceed 1.5 GB.
    """
    settings = settings or ExportSettings()
    _refuse_oversize(network.module)
    module = _numbered_padding_(evaluated(copy.deepcopy(network.module).cpu().float()))
    # As the code was written for: a view of what channels-last weights put out may not be had.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    proto = onnx.load_model_from_string(_trace(module, network.spec, settings))
    _strip(proto)  # before simplifying: what onnxsim does must not depend on it
    simplified = _simplify(proto)
    _strip(simplified)
    _describe(simplified, network)
    model: bytes = simplified.SerializeToString(deterministic=True)
    _check(model, settings.opset)
    return model


class OnnxExporter:
    """ONNX Runtime, on this machine's CPU: it loads the ONNX file as it is (see `Exporter`)."""

    name = "onnxruntime"
    needs = "edgeclean"

    def version(self) -> str | None:
        """ONNX Runtime's own version, whichever of its packages brought it."""
        return str(onnxruntime.__version__)

    def convert(self, network: Network, model: bytes) -> dict[str, bytes]:
        """The ONNX file itself, checked.

        Raises:
            InputRejectedError: it is not plain, valid ONNX.
        """
        del network
        open_onnx(model)
        return {MODEL_FILE: model}

    def load(self, files: Mapping[str, bytes]) -> OnnxSession:
        """A session on the CPU.

        Raises:
            InputRejectedError: ONNX Runtime cannot load it.
        """
        return OnnxSession(files[MODEL_FILE])


def _numbered_padding_(module: nn.Module) -> nn.Module:
    """Write "same" padding in numbers, in place, where both ends of an axis are padded alike.

    The exporter makes ONNX's ``auto_pad`` of it, which ONNX Runtime refuses beside a dilation.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding == "same":
            axes = zip(layer.dilation, layer.kernel_size, strict=True)
            total = [dilation * (kernel - 1) for dilation, kernel in axes]
            if all(one % 2 == 0 for one in total):
                layer.padding = (total[0] // 2, total[1] // 2)
    return module


def _refuse_oversize(module: nn.Module) -> None:
    weight_bytes = sum(tensor.numel() * 4 for tensor in module.state_dict().values())
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise InputRejectedError(
            f"the network holds {weight_bytes / 1e9:.1f} GB of weights; at most "
            f"{MAX_WEIGHT_BYTES / 1e9:.1f} GB fit into one ONNX file"
        )


def _trace(module: nn.Module, spec: ModelSpec, settings: ExportSettings) -> bytes:
    buffer = io.BytesIO()
    images = torch.zeros(settings.batch or 2, *spec.input_shape)
    open_batch = {INPUT_NAME: {0: "batch"}, OUTPUT_NAME: {0: "batch"}}
    try:
        with nothing_on_stdout(), warnings.catch_warnings():
            _expect_legacy_warnings()
            torch.onnx.export(
                module,
                (images,),
                cast(Any, buffer),  # annotated as a path, documented to take a buffer too
                dynamo=False,
                opset_version=settings.opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_axes=open_batch if settings.batch is None else None,
            )
    except Exception as error:  # the exporter's own, or whatever the user's code raises in it
        line = first_line(error)
        # What follows is a dump of the graph, or where to ask for a new feature of PyTorch.
        line = re.split(r", scope: |\. Please |\s*\[Caused by ", line)[0][:300]
        raise InputRejectedError(
            f"the network cannot be written as ONNX at opset {settings.opset}: {line}"
        ) from error
    return buffer.getvalue()


def _expect_legacy_warnings() -> None:
    """Silence what this exporter is known to say; anything else still reaches the caller."""
    for message in ("You are using the legacy TorchScript-based", "The feature will be removed"):
        warnings.filterwarnings("ignore", message=message, category=DeprecationWarning)
    # A shape read in Python becomes a constant. That is wanted: shapes are fixed, and with an open
    # batch the parity check runs another batch size than the traced one.
    warnings.filterwarnings("ignore", category=TracerWarning)
    # A strided slice (the option-A shortcut) is left for onnxsim, which can fold it.
    warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
    # A norm that takes the statistics of each image in evaluation too, and a recurrent layer with
    # more images than one: the parity check runs the file, and on other numbers of images.
    norm, batch = "ONNX export mode is set to", "Exporting a model to ONNX with a batch_size"
    warnings.filterwarnings("ignore", message=norm, category=UserWarning)
    warnings.filterwarnings("ignore", message=batch, category=UserWarning)
    # What PyTorch's own processor kernel does for them; the file says SAME_UPPER.
    warnings.filterwarnings(
        "ignore", message="Using padding='same' with even", category=UserWarning
    )


def _simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and fuse; onnxsim gets the model in memory, never a path.

    Its own comparison on random images is left off: it prints, and draws from the global generator.
    `exporters.parity` compares the finished file with PyTorch, which is the stronger check.
    """
    import onnxsim  # most of a second, of commands that export nothing too

    # certify=False: it would otherwise do more, and write more, where Z3 is installed.
    with nothing_on_stdout():
        simplified, is_valid = onnxsim.simplify(proto, certify=False)
    if not is_valid:
        raise InputRejectedError(
            "onnxsim could not simplify the network without changing what it computes"
        )
    checked: onnx.ModelProto = simplified
    return checked


def _strip(proto: onnx.ModelProto) -> None:
    """Drop every free text, where exporters leave stack traces, paths and logs, in place."""
    graph = proto.graph
    elements: list[Any] = [proto, graph, *graph.node, *graph.initializer]
    elements += [*graph.input, *graph.output, *graph.value_info]
    for element in elements:
        element.ClearField("doc_string")
        element.ClearField("metadata_props")


def _describe(proto: onnx.ModelProto, network: Network) -> None:
    """Say in the file what its input must be; small, and nothing that differs between two runs."""
    proto.producer_name = "edgeclean"
    proto.producer_version = __version__
    proto.graph.name = "edgeclean"
    spec = network.spec
    low = [-mean / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    high = [(1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    facts = {
        "edgeclean.input": "RGB or grey pixels in [0, 1], minus mean, divided by std, NCHW float32",
        "edgeclean.input_range": json.dumps({"low": low, "high": high}),
        "edgeclean.mean": json.dumps(list(spec.mean)),
        "edgeclean.std": json.dumps(list(spec.std)),
        "edgeclean.source_sha256": network.source_sha256,
        "edgeclean.tool": f"edgeclean {__version__}",
    }
    for key in sorted(facts):
        proto.metadata_props.add(key=key, value=facts[key])


def _check(model: bytes, opset: int) -> None:
    """Re-open what was written: exporters have answered success with another opset before."""
    proto = open_onnx(model)
    if opset_of(proto) != opset:
        raise InputRejectedError(
            f"opset {opset} was asked and {opset_of(proto)} came out; the network needs an "
            f"operator that opset {opset} lacks"
        )
    producers = {name: node.op_type for node in proto.graph.node for name in node.output}
    readers = [name for node in proto.graph.node for name in node.input]
    for node in proto.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        feeding = producers.get(node.input[0], "the input")
        if feeding in {"Conv", "ConvTranspose"} and readers.count(node.input[0]) == 1:
            raise InputRejectedError(
                f"BatchNormalization {node.name!r} was not folded into the convolution before it"
            )
