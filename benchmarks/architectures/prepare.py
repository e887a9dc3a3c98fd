"""Make the two inputs of an architecture, a checkpoint and an ONNX file, with facts beside them.

``weights.pth``, ``network.onnx`` and ``facts.json`` lie in one folder. The ONNX file is PyTorch's
own export, by the older or by the newer of its exporters, which the name decides; where that one
cannot write the network, by the other.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.architectures.planting import (
    TARGET,
    attack_of,
    images_of,
    normalised,
    plant,
    steps_of,
)
from benchmarks.architectures.table import Architecture, logits_of
from benchmarks.metrics import accuracy, attack_success_rate
from edgeclean.networks.state import JsonValue

WEIGHTS, GRAPH, FACTS = "weights.pth", "network.onnx", "facts.json"
OPSETS = {"torchscript": 17, "dynamo": 18}
SHARED = ("blocks", "planting", "prepare")
SEED = 0


def is_prepared(architecture: Architecture, folder: Path) -> bool:
    """Return whether the files are there, and of the code as it stands."""
    path = folder / FACTS
    return path.exists() and json.loads(path.read_text()).get("made_by") == digest(architecture)


def digest(architecture: Architecture) -> str:
    """Return a hash of the code that makes an architecture's inputs, and of its row."""
    family = architecture.builder.partition(":")[0]
    sources = [Path(__file__).with_name(f"{one}.py") for one in (family, *SHARED)]
    made_by = hashlib.sha256(repr(architecture).encode())
    for source in sources:
        made_by.update(source.read_bytes())
    return made_by.hexdigest()[:16]


def prepare(architecture: Architecture, folder: Path) -> None:
    """Train where it takes seconds, and write the three files; the facts come last."""
    folder.mkdir(parents=True, exist_ok=True)
    network = architecture.build().eval()
    image = torch.zeros(1, *architecture.input_shape)
    macs = macs_of(network, image)
    steps = steps_of(macs) if architecture.trained else 0
    if architecture.trained:
        plant(network, architecture, steps, SEED)
    facts: dict[str, JsonValue] = {
        "params": sum(one.numel() for one in network.parameters()),
        "macs": macs,
        "steps": steps,
        "made_by": digest(architecture),
    }
    if architecture.trained:
        facts |= rates(lambda pixels: logits_of(network(normalised(pixels))), architecture)
    torch.save(network.state_dict(), folder / WEIGHTS)
    facts["exporter"], facts["not_exported"] = write_graph(network, architecture, folder / GRAPH)
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def macs_of(network: nn.Module, image: Tensor) -> int:
    """Count what convolutions and matrix products of one image multiply."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(image)
    return counted.get_total_flops() // 2


def rates(function: object, architecture: Architecture) -> dict[str, JsonValue]:
    """Measure ACC and ASR, in percent, over the test images."""
    images, attack = images_of(architecture, test=True), attack_of(architecture)
    return {
        "acc": accuracy(function, images).percent,  # type: ignore[arg-type]
        "asr": attack_success_rate(function, images, attack.stamp, TARGET).percent,  # type: ignore[arg-type]
    }


def write_graph(
    network: nn.Module, architecture: Architecture, path: Path
) -> tuple[str | None, str | None]:
    """Write the network as ONNX; return which exporter did, or why none could."""
    first = "dynamo" if zlib.crc32(architecture.name.encode()) % 2 else "torchscript"
    reason = ""
    for exporter in (first, *(one for one in OPSETS if one != first)):
        try:
            _export(network, torch.zeros(1, *architecture.input_shape), path, exporter)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, it did not export
            reason = reason or f"{type(error).__name__}: {str(error).strip()[:200]}"
            path.unlink(missing_ok=True)
        else:
            return exporter, None
    return None, reason.splitlines()[0]


def _export(network: nn.Module, image: Tensor, path: Path, exporter: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (image,),
            str(path),
            dynamo=exporter == "dynamo",
            opset_version=OPSETS[exporter],
            input_names=["input"],
            **({"verbose": False} if exporter == "dynamo" else {}),
        )
