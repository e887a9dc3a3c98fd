"""The trained depthwise networks of `benchmarks.studies.depthwise`, and what measures them.

An EfficientNet-Lite0 for ImageNet's 1,000 classes, and the MobileNetV2s that the suite ``mobile``
trains on CIFAR-10. Their test images and the trigger serve measuring alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.metrics import PixelFunction, Rate, predictions
from benchmarks.networks import efficientnet_lite
from benchmarks.stamps import Stamp
from benchmarks.suite.kept_networks import KEPT
from benchmarks.suite.suite_run import BENCH_FOLDER, read_attacked
from benchmarks.suite.suites import SUITES
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import JsonValue, ModelSpec, Network

IMAGENET = PACK_FOLDER / "imagenet10-224.npz"
TEST_IMAGES = 5000  # of CIFAR-10, as in the suites
AT_ONCE = 50  # 224x224 images take gigabytes in hundreds


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedNetwork:
    """A trained network, with the images that measure it.

    Attributes:
        spec: architecture and input scaling.
        write: writes the checkpoint into a folder and returns its path.
        images: read only when something is measured; all of them measure agreement.
        unseen: which of the images the network was not trained on; they measure accuracy.
        stamp: puts the trigger on pixels in [0, 1]; None for a network without a backdoor.
        target: the attacker's class; None for a network without a backdoor.
    """

    spec: ModelSpec
    write: Callable[[Path], Path]
    images: Callable[[], LabelledImages]
    unseen: Callable[[], Bool[Tensor, " n"]]
    stamp: Stamp | None = None
    target: int | None = None


def trained_networks() -> dict[str, TrainedNetwork]:
    """Return every network of the study by its name."""
    return {
        "efficientnet-lite0": TrainedNetwork(
            spec=efficientnet_lite.SPEC,
            write=lambda _folder: efficientnet_lite.efficientnet_lite0_checkpoint(),
            images=lambda: read_pack(IMAGENET),
            unseen=_not_in_training_set,
        ),
        **{f"mobilenet-v2-{attack}": _of_suite(attack) for attack in ("badnets", "clean")},
    }


def answers(
    network: Network, images: LabelledImages, stamp: PixelFunction | None = None
) -> Int[Tensor, " n"]:
    """Return the class that the network gives each image, stamped first where there is a stamp."""
    function = pixel_network(network).eval()
    positions = torch.arange(len(images)).split(AT_ONCE)
    return torch.cat([predictions(function, images.select(part), stamp) for part in positions])


def rates(network: Network, original: Network, trained: TrainedNetwork) -> dict[str, JsonValue]:
    """Measure ACC and the agreement with the original; where there is a trigger, ASR as well."""
    images, unseen = trained.images(), trained.unseen()
    given = answers(network, images)
    as_before = given if network is original else answers(original, images)
    measured: dict[str, JsonValue] = {
        "acc": _rate((given == images.labels)[unseen]),
        "agreement": _rate(given == as_before),
    }
    if trained.stamp is not None:
        victims = images.select(images.labels != trained.target)
        measured["asr"] = _rate(answers(network, victims, trained.stamp) == trained.target)
    return measured


def _rate(hits: Bool[Tensor, " n"]) -> dict[str, object]:
    return Rate(hits=int(hits.sum()), total=len(hits)).as_json()


def _not_in_training_set() -> Bool[Tensor, " n"]:
    with np.load(IMAGENET, allow_pickle=False) as pack:
        return torch.from_numpy(~pack["in_training_set"])


def _of_suite(name: str) -> TrainedNetwork:
    (suite,) = SUITES["mobile"]
    attack = suite.attacks[name](suite.spec.classes, suite.spec.input_shape[1:])

    def write(folder: Path) -> Path:
        within = Path(suite.name) / "seed-0"
        committed = KEPT / within / f"{name}.safetensors"
        kept = BENCH_FOLDER / within / name / "network.safetensors"
        found = committed if committed.exists() else kept
        if not found.exists():
            command = f"python -m benchmarks.suite mobile --attack {name}"
            raise SystemExit(f"{name} is not trained yet; `{command}` does it")
        _, stored = read_attacked(found, suite, name, seed=0)
        path = folder / "network.safetensors"
        save_file(stored.network.module.state_dict(), path)
        return path

    poisoned = name != "clean"
    return TrainedNetwork(
        spec=suite.spec,
        write=write,
        images=lambda: read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES),
        unseen=lambda: torch.ones(TEST_IMAGES, dtype=torch.bool),
        stamp=attack.stamp if poisoned else None,
        target=attack.target if poisoned else None,
    )
