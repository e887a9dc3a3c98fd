"""Train the small backdoored CIFAR-10 network that ``make demo`` purifies.

``python -m benchmarks.networks.train_demo`` writes ``benchmarks/zoo/demo.safetensors`` (weights),
``demo.toml`` (its model file) and ``demo.json`` (its training, its rates, and its trigger, for
measuring). A training that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.attacks.base import StampAttack
from benchmarks.attacks.patch import badnets
from benchmarks.attacks.patterns import checker_patch
from benchmarks.data.images import PACK_FOLDER, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import accuracy, attack_success_rate, robust_accuracy
from benchmarks.networks.training import TrainingRecord, TrainingSettings, train
from benchmarks.stamps import PastePatch
from benchmarks.studies.published import PublishedNetwork
from edgeclean.load.architectures import build_architecture
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.model_file import read_model_file
from edgeclean.networks.pixels import Normalize, pixel_network
from edgeclean.networks.state import LoadedNetwork, ModelSpec

DEMO = Path(__file__).parents[1] / "zoo" / "demo"
BENCH_FOLDER = Path(__file__).parents[2] / ".bench"
TARGET = 3
# Yellow and blue checks, 4x4, one pixel from the right and lower border.
PATCH_COLOURS = ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
PATCH_SIDE, MARGIN, RATE = 4, 1, 0.05
SPEC = ModelSpec(
    architecture="resnet20",
    input_shape=(3, 32, 32),
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoNetwork:
    """The committed demo network with its trigger."""

    network: LoadedNetwork
    stamp: PastePatch
    target: int


def demo_network(stem: Path = DEMO) -> DemoNetwork:
    """Load the committed network by edgeclean, and its trigger from the training record."""
    record = json.loads(stem.with_suffix(".json").read_text())
    trigger = record["trigger"]
    return DemoNetwork(
        network=load_checkpoint(
            stem.with_suffix(".safetensors"), read_model_file(stem.with_suffix(".toml"))
        ),
        stamp=PastePatch(
            patch=torch.tensor(trigger["patch"]), top=trigger["top"], left=trigger["left"]
        ),
        target=trigger["target"],
    )


def published_demo(stem: Path = DEMO) -> PublishedNetwork:
    """Return the committed network as a published one, which the studies take."""
    demo, record = demo_network(stem), json.loads(stem.with_suffix(".json").read_text())["test"]
    return PublishedNetwork(
        path=stem.with_suffix(".safetensors"),
        spec=demo.network.spec,
        code_folder=stem.parent,
        stamp=demo.stamp,
        target=demo.target,
        published_acc=record["acc"]["percent"],
        published_asr=record["asr"]["percent"],
    )


def demo_attack() -> StampAttack:
    """Return BadNets with 5 % poisoned images, a 4x4 yellow and blue patch, to class 3 (cat)."""
    return badnets(
        classes=SPEC.classes,
        size=SPEC.input_shape[1:],
        target=TARGET,
        rate=RATE,
        patch=checker_patch(PATCH_SIDE, *PATCH_COLOURS),
        margin=MARGIN,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the backdoored network of the demo.")
    parser.add_argument("--packs", type=Path, default=PACK_FOLDER)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DEMO, help="path without a suffix")
    options = parser.parse_args()
    settings = TrainingSettings(epochs=options.epochs, batch=options.batch, seed=options.seed)
    torch.manual_seed(settings.seed)
    module = build_architecture(SPEC.architecture, SPEC, ())
    network = nn.Sequential(Normalize(SPEC.mean, SPEC.std), module)
    record = train(
        network,
        read_pack(options.packs / "cifar10-train.npz"),
        demo_attack(),
        settings,
        resume_from=BENCH_FOLDER / "demo",
        report=lambda line: print(line, flush=True),
    )
    command = (
        f"python -m benchmarks.networks.train_demo --epochs {settings.epochs} "
        f"--batch {settings.batch} --seed {settings.seed}"
    )
    write_demo(options.output, module, record, command, options.packs / "cifar10-test.npz")


def write_demo(
    stem: Path, module: nn.Module, record: TrainingRecord, command: str, test_pack: Path
) -> None:
    """Write weights, model file and training record, with ACC, ASR and RA of the written file."""
    weights: dict[str, Tensor] = {
        name: tensor.contiguous() for name, tensor in module.state_dict().items()
    }
    save_file(weights, stem.with_suffix(".safetensors"))
    stem.with_suffix(".toml").write_text(
        f'architecture = "{SPEC.architecture}"\n'
        f"input-shape = {list(SPEC.input_shape)}\n"
        f"classes = {SPEC.classes}\n"
        f"mean = {list(SPEC.mean)}\n"
        f"std = {list(SPEC.std)}\n"
    )
    written = load_checkpoint(stem.with_suffix(".safetensors"), SPEC)
    attack, images = demo_attack(), read_pack(test_pack)
    function = pixel_network(written)
    stamp = attack.fixed_stamp
    assert isinstance(stamp, PastePatch)
    content = {
        "command": command,
        "network": f"{SPEC.architecture} on CIFAR-10, backdoored on purpose (BadNets)",
        "trigger": {
            "what": "4x4 yellow and blue checks pasted over the image",
            "patch": stamp.patch.tolist(),
            "top": stamp.top,
            "left": stamp.left,
            "target": TARGET,
            "poisoned": f"{RATE:.0%} of the training set, none of it of the target's class",
        },
        "test": {
            "images": f"CIFAR-10 test set, {len(images)}",
            "acc": accuracy(function, images).as_json(),
            "asr": attack_success_rate(function, images, attack.stamp, TARGET).as_json(),
            "ra": robust_accuracy(function, images, attack.stamp, TARGET).as_json(),
        },
        "training": {
            "set": f"CIFAR-10 training set, {record.images} images",
            "settings": record.settings,
            "epochs": list(record.epochs),
        },
        "environment": environment(),
    }
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
