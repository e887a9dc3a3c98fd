"""Train small networks of 43 classes, clean and attacked.

They are ResNet-20s on 10,000 traffic signs, some minutes each on one core, kept in
``.bench/signs-small``: ``python -m benchmarks.networks.train_signs`` trains those that are missing.
They serve studies of the scan alone; the suite ``signs`` trains longer, on four times the images.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from benchmarks.attacks.base import Attack
from benchmarks.attacks.table import ATTACKS
from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.networks.training import TrainingSettings, measured, train
from benchmarks.suite.kept_networks import read_network, write_network
from benchmarks.suite.suites import GTSRB, image_spec
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.pixels import Normalize
from edgeclean.networks.state import JsonValue, LoadedNetwork

FOLDER = Path(__file__).parents[2] / ".bench" / "signs-small"
SPEC = image_spec("resnet20", **GTSRB)
TRAINED = ("badnets", "clean", "blended", "wanet")
IMAGES, TESTED = 10_000, 2_000
SETTINGS = TrainingSettings(epochs=12, flip=False)


def main() -> None:
    """Train what is missing, one after another."""
    parser = argparse.ArgumentParser(description="Train small networks of traffic signs.")
    parser.add_argument("--attack", action="append", choices=TRAINED)
    parser.add_argument("--packs", type=Path, default=PACK_FOLDER)
    options = parser.parse_args()
    whole = read_pack(options.packs / "gtsrb-roi-test.npz", IMAGES + TESTED)
    for name in options.attack or TRAINED:
        if not path_of(name).exists():
            _trained(name, whole)


def sign_networks() -> dict[str, tuple[LoadedNetwork, Attack, dict[str, JsonValue]]]:
    """Return those that were trained, by attack: the network, its attack, and ACC and ASR."""
    found = {}
    for name in TRAINED:
        if path_of(name).exists():
            attack, module, made_with = _setting(name)
            modules = nn.ModuleDict({"network": module, **attack.networks()})
            digest, training = read_network(path_of(name), modules, made_with)
            network = LoadedNetwork(module=module.eval(), spec=SPEC, source_sha256=digest)
            found[name] = (network, attack, training)
    return found


def path_of(name: str) -> Path:
    """Return where a network is kept."""
    return FOLDER / f"{name}.safetensors"


def _setting(name: str) -> tuple[Attack, nn.Module, dict[str, JsonValue]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SETTINGS.seed)
        attack = ATTACKS[name](SPEC.classes, SPEC.input_shape[1:])
        module = build_architecture(SPEC.architecture, SPEC, ())
    facts = {"images": IMAGES, "settings": asdict(SETTINGS), "attack": attack.facts()}
    return attack, module, facts


def _trained(name: str, whole: LabelledImages) -> None:
    attack, module, made_with = _setting(name)
    network = nn.Sequential(Normalize(SPEC.mean, SPEC.std), module)
    record = train(
        network,
        whole.first(IMAGES),
        attack,
        SETTINGS,
        resume_from=FOLDER / name,
        report=lambda line: print(name, line, flush=True),
    )
    test = whole.select(torch.arange(IMAGES, IMAGES + TESTED))
    rates = measured(network, test, attack)
    print(name, rates, flush=True)
    modules = nn.ModuleDict({"network": module, **attack.networks()})
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    write_network(path_of(name), modules, made_with, {**rates, "epochs": list(record.epochs)})


if __name__ == "__main__":
    main()
