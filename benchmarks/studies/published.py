"""Load the networks that other people published, with the triggers of those they backdoored.

The weights stay where they are (``../shared/zoo``); their model files (a ``.toml`` each) and the
code of two architectures lie in ``tests/support/zoo``. The triggers serve measuring alone: no stage
of edgeclean may read them.

``python -m benchmarks.studies.published`` measures every network and writes
``results/zoo-before.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import PixelFunction, accuracy, attack_success_rate, robust_accuracy
from benchmarks.stamps import AddMasked, PastePatch, Stamp
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.model_file import read_model_file
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import LoadedNetwork, ModelSpec
from exporters.onnx_exporter import export_onnx

ZOO_FOLDER = Path("../shared/zoo")
CODE_FOLDER = Path(__file__).parents[2] / "tests" / "support" / "zoo"
RESULTS = Path(__file__).parents[1] / "results"
WITHOUT_BATCHNORM = ("lenet-badnets-nobn",)
PROBE_NETWORK = "resnet20-badnets-rgb5x5"  # the trigger tried on the clean control


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedNetwork:
    """A published checkpoint, with its author's trigger.

    Attributes:
        path: the checkpoint.
        spec: architecture (by its code or the built-in table) and input scaling.
        code_folder: folder of a file that ``spec.architecture`` names.
        stamp: puts the trigger on pixels [n, c, h, w] in [0, 1]; None for a clean network.
        target: the attacker's class; None for a clean network.
        published_acc: ACC in percent over the first 2,000 test images, from the zoo's README.
        published_asr: ASR in percent over the same images.
    """

    path: Path
    spec: ModelSpec
    code_folder: Path
    stamp: Stamp | None
    target: int | None
    published_acc: float
    published_asr: float | None

    def load(self) -> LoadedNetwork:
        """Load the network through edgeclean's own loader."""
        return load_checkpoint(self.path, self.spec, code_folder=self.code_folder)


class FoldedNetwork(PublishedNetwork):
    """A published network as an ONNX file without BatchNorm, as a stranger may hand it on."""

    def load(self) -> LoadedNetwork:
        """Load the network through ONNX, its BatchNorms folded into the convolutions."""
        network = super().load()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(export_onnx(network))
            return load_checkpoint(path, replace(self.spec, architecture="onnx"))


def folded_networks(folder: Path | str = ZOO_FOLDER) -> dict[str, PublishedNetwork]:
    """Return the published networks with BatchNorm, folded, by name."""
    return {
        f"{name} (folded)": FoldedNetwork(**{f.name: getattr(one, f.name) for f in fields(one)})
        for name, one in published_networks(folder).items()
        if name not in WITHOUT_BATCHNORM
    }


def published_networks(folder: Path | str = ZOO_FOLDER) -> dict[str, PublishedNetwork]:
    """Return every network of the zoo by its folder, with the numbers of the zoo's README."""
    folder = Path(folder)
    white = PastePatch(patch=torch.ones(3, 4, 4), top=27, left=27)
    rgb, lenet = folder / PROBE_NETWORK, folder / "lenet-badnets-nobn"
    invisible, square = folder / "smallvgg-l0-invisible", folder / "smallvgg-trojan-square"
    return {
        network.path.parent.name: network
        for network in (
            _published(rgb, _resized_patch(rgb / "trigger.png", 24), 0, 93.35, 99.44),
            _published(folder / "smallvgg-badnets", white, 8, 84.65, 97.50),
            _published(invisible, _masked(invisible), 0, 85.90, 100.0),
            _published(square, _masked(square), 2, 84.55, 99.56),
            _published(lenet, _resized_patch(lenet / "trigger.png", 27), 1, 51.10, 96.22),
            _published(folder / "resnet20-clean", None, None, 92.05, None),
        )
    }


def measure(
    network: PixelFunction, images: LabelledImages, stamp: Stamp | None, target: int | None
) -> dict[str, object]:
    """Measure ACC, and ASR and RA where there is a trigger, as JSON values."""
    measured: dict[str, object] = {"acc": accuracy(network, images).as_json()}
    if stamp is not None and target is not None:
        measured["asr"] = attack_success_rate(network, images, stamp, target).as_json()
        measured["ra"] = robust_accuracy(network, images, stamp, target).as_json()
    return measured


def _published(
    folder: Path, stamp: Stamp | None, target: int | None, acc: float, asr: float | None
) -> PublishedNetwork:
    return PublishedNetwork(
        path=folder / "model.pth",
        spec=read_model_file(CODE_FOLDER / f"{folder.name}.toml"),
        code_folder=CODE_FOLDER,
        stamp=stamp,
        target=target,
        published_acc=acc,
        published_asr=asr,
    )


def _resized_patch(path: Path, corner: int) -> PastePatch | None:
    """Return the 5x5 patch at rows and columns corner..corner+4, from a picture of any size."""
    if not path.exists():
        return None
    with Image.open(path) as picture:
        small = picture.convert("RGB").resize((5, 5), Image.Resampling.BILINEAR)
    return PastePatch(patch=_unit_pixels(np.asarray(small)), top=corner, left=corner)


def _masked(folder: Path) -> AddMasked | None:
    """Return clip(x (1 - mask) + pattern); without a mask file nothing is taken away from x."""
    if not (folder / "trigger.png").exists():
        return None
    with Image.open(folder / "trigger.png") as picture:
        pattern = _unit_pixels(np.asarray(picture.convert("RGB")))
    mask = torch.zeros_like(pattern)
    if (folder / "mask.npy").exists():
        # The mask is stored as [c, h, w], unlike the picture beside it.
        mask = torch.from_numpy(np.load(folder / "mask.npy", allow_pickle=False)).float()
    return AddMasked(pattern=pattern, mask=mask)


def _unit_pixels(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1).float().contiguous() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the published networks as they are.")
    parser.add_argument("--zoo", type=Path, default=ZOO_FOLDER)
    parser.add_argument("--pack", type=Path, default=PACK_FOLDER / "cifar10-test.npz")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=RESULTS / "zoo-before.json")
    options = parser.parse_args()
    images = read_pack(options.pack, options.images)
    published = published_networks(options.zoo)
    measured: dict[str, object] = {}
    for name, network in published.items():
        function = pixel_network(network.load())
        row = measure(function, images, network.stamp, network.target)
        row["published"] = {"acc": network.published_acc, "asr": network.published_asr}
        if network.stamp is None:  # what the control makes of another network's trigger
            probe = published[PROBE_NETWORK]
            row["probe"] = measure(function, images, probe.stamp, probe.target)
        measured[name] = row
        print(name, json.dumps(row))
    record = {
        "command": f"python -m benchmarks.studies.published --images {options.images}",
        "images": f"the first {len(images)} of the CIFAR-10 test set",
        "environment": environment(),
        "networks": measured,
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
