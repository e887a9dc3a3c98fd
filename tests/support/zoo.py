"""The published checkpoints of ../shared/zoo as loaded networks, and real images to try them on.

from zoo import needs_zoo, zoo_network

@needs_zoo
def test_it():
    network = zoo_network("resnet20-clean")
"""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.model_file import read_model_file
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import LoadedNetwork, Network

MODEL_FILES = Path(__file__).parent / "zoo"
SHARED = Path(__file__).parents[2].parent / "shared"
ZOO_NAMES = tuple(sorted(path.stem for path in MODEL_FILES.glob("*.toml")))

needs_zoo = pytest.mark.skipif(
    not (SHARED / "zoo").is_dir(), reason="the published checkpoints (shared/zoo) are not here"
)
needs_images = pytest.mark.skipif(
    not (SHARED / "data" / "cifar10-test.npz").is_file(),
    reason="the image packs (shared/data) are not here",
)


def zoo_network(name: str) -> LoadedNetwork:
    """One of `ZOO_NAMES`, with a module of its own: a test may do with it as it likes."""
    loaded = _loaded_once(name)
    return replace(loaded, module=copy.deepcopy(loaded.module))


@cache
def _loaded_once(name: str) -> LoadedNetwork:
    # Each loading starts a parsing process, which takes seconds.
    spec = read_model_file(MODEL_FILES / f"{name}.toml")
    return load_checkpoint(SHARED / "zoo" / name / "model.pth", spec, code_folder=MODEL_FILES)


@cache
def cifar10_test_images(count: int) -> tuple[Float[Tensor, "n 3 32 32"], Int[Tensor, " n"]]:
    """The first images of the CIFAR-10 test pack, as pixels in [0, 1], and their classes."""
    with np.load(SHARED / "data" / "cifar10-test.npz", allow_pickle=False) as pack:
        encoded, offsets, labels = pack["data"], pack["offsets"], pack["labels"]
    images = [
        np.asarray(Image.open(io.BytesIO(encoded[offsets[i] : offsets[i + 1]].tobytes())))
        for i in range(count)
    ]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return pixels, torch.from_numpy(labels[:count].astype(np.int64))


def accuracy(network: Network, pixels: Tensor, labels: Tensor) -> float:
    """The fraction of images whose class the network names."""
    with torch.no_grad():
        predictions = pixel_network(network)(pixels).argmax(dim=1)
    return float((predictions == labels).float().mean())
