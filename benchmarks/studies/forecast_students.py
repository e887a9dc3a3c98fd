"""Make the compressed networks that the forecast of lost accuracy is learnt from.

A student is a network after purification or compression, of which the accuracy lost on real test
images is known. Each is kept as an ONNX file with its facts in ``.bench/forecast/students``, so
that `benchmarks.studies.forecast` can measure it again within seconds. They are compressed as they
came, without a scan, by recoveries of different lengths: agreement and loss both move. Students
that went through the whole pipeline, purification included, are taken from the stages that
`benchmarks.studies.compress_zoo` kept (``--kept``).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from benchmarks.attacks.base import NoAttack
from benchmarks.data.datasets import read_dataset
from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import predictions
from benchmarks.networks.few_classes import (
    MEAN,
    STD,
    all_networks,
    data_of,
    prepared,
)
from benchmarks.networks.train_demo import published_demo
from benchmarks.networks.training import TrainingSettings, train
from benchmarks.studies.published import published_networks
from benchmarks.suite.kept_networks import KEPT as COMMITTED
from benchmarks.suite.suites import SUITES, image_spec
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import PurifySettings, purify, unlearned_classes
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import finetune
from edgeclean.compression.plan import RankPlan, choose_ranks
from edgeclean.compression.truncate import truncate
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.load.architectures import build_architecture
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.networks.pixels import Normalize, pixel_network
from edgeclean.networks.state import (
    LoadedNetwork,
    Network,
    PurifiedNetwork,
    SyntheticImages,
)
from edgeclean.stage_results import from_bytes
from exporters.onnx_exporter import export_onnx

NOT_SCANNED = ScanReport(verdict="not found", suspects=(), searches=(), images=0)
BENCH = Path(__file__).parents[2] / ".bench" / "forecast"
STUDENTS = BENCH / "students"
TEST_IMAGES = 2000
PLAIN_IMAGES = 10_000
SEED = 0
BATCH = 48
IMAGES = SynthesizeSettings(count=160, steps=10)  # of short recoveries
SEAL_BYTES = 32  # before each kept result, see `edgeclean.files.store`
RATIOS = {  # that each network is compressed by, as it came
    "smallvgg-badnets": (4.0,),
    "smallvgg-l0-invisible": (2.0,),
    "smallvgg-trojan-square": (2.0, 3.0),
    "lenet-badnets-nobn": (3.0,),
    "resnet20-badnets-rgb5x5": (2.0, 4.0),
    "resnet20-clean": (3.0,),
    "plain-cifar10": (1.5, 2.0, 3.0),
    "plain-signs": (1.5, 3.0),
    "wide-cifar10": (2.0, 4.0),
}
STEPS = (20, 60)  # of a recovery that goes on: each end is a student
SUITE_RATIOS = {"clean": (3.0,), "sig": (2.0,), "wanet": (1.5,), "trojan": (2.0,)}
FEW = ("car-deer-frog-rgb32-clean-0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A network with labelled images to measure it on.

    Attributes:
        load: returns the network.
        test: returns its test images.
        domain: what its images are.
        ratios: that it is compressed by, as it came.
    """

    load: Callable[[], LoadedNetwork]
    test: Callable[[], LabelledImages]
    domain: str
    ratios: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A small network that this study trains itself: convolutions, BatchNorms, a linear layer.

    Attributes:
        data_set: CIFAR-10 or the traffic signs.
        classes: the first so many of its classes.
        widths: channels of each convolution; all but the first halve the image.
    """

    data_set: str
    classes: int
    widths: tuple[int, ...] = (16, 24, 32, 48)

    def module(self) -> nn.Module:
        """Return the network before its training."""
        layers: list[nn.Module] = []
        for place, (given, made) in enumerate(pairwise((3, *self.widths))):
            conv = nn.Conv2d(given, made, 3, 2 if place else 1, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(made), nn.ReLU()]
        last = nn.Linear(self.widths[-1], self.classes)
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)

    def images(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the images that it is trained on, and others."""
        return tuple(  # type: ignore[return-value]
            one.select((one.labels < self.classes).nonzero().flatten())
            for one in _read(self.data_set)
        )


@cache
def _read(data_set: str) -> tuple[LabelledImages, LabelledImages]:
    return read_dataset(data_set, PACK_FOLDER, train_images=PLAIN_IMAGES, test_images=TEST_IMAGES)


PLAIN = {
    "plain-cifar10": Plain(data_set="cifar10", classes=10),
    "plain-signs": Plain(data_set="gtsrb-roi", classes=43),
    "wide-cifar10": Plain(data_set="cifar10", classes=10, widths=(24, 48, 64, 96)),
}


def networks() -> dict[str, Measured]:
    """Return the networks by name: the zoo's, those trained here, and those of other domains."""
    found = {
        name: Measured(load=one.load, test=cifar, domain="CIFAR-10", ratios=RATIOS[name])
        for name, one in published_networks().items()
    }
    found["demo"] = Measured(
        load=published_demo().load, test=cifar, domain="CIFAR-10", ratios=(2.0,)
    )
    found["mobile-badnets"] = Measured(
        load=lambda: _committed("mobile", "badnets"),
        test=cifar,
        domain="CIFAR-10",
        ratios=(1.5,),
    )
    for attack, ratios in SUITE_RATIOS.items():
        found[f"cpu-{attack}"] = Measured(
            load=lambda attack=attack: _committed("cpu", attack),  # type: ignore[misc]
            test=cifar,
            domain="CIFAR-10",
            ratios=ratios,
        )
    for name, plain in PLAIN.items():
        found[name] = Measured(
            load=lambda name=name: _plain(name),  # type: ignore[misc]
            test=lambda plain=plain: plain.images()[1],  # type: ignore[misc]
            domain="GTSRB" if plain.data_set == "gtsrb-roi" else "CIFAR-10",
            ratios=RATIOS[name],
        )
    for one in all_networks():
        if one.name in FEW:
            found[one.name] = Measured(
                load=lambda one=one: prepared(one, BENCH / "few-classes")[0],  # type: ignore[misc]
                test=lambda one=one: data_of(one)[1],  # type: ignore[misc]
                domain="few classes",
                ratios=(2.0,),
            )
    return found


@cache
def cifar() -> LabelledImages:
    """Return CIFAR-10's first test images."""
    return read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)


def _plain(name: str) -> LoadedNetwork:
    """Return a network of `PLAIN`, trained unless it is kept."""
    plain = PLAIN[name]
    train_set, _ = plain.images()
    spec = image_spec("plain", mean=(MEAN,) * 3, std=(STD,) * 3, classes=plain.classes)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        inner = plain.module()
    path = BENCH / "trained" / f"{name}.safetensors"
    if not path.exists():
        mirror = plain.data_set == "cifar10"
        asked = TrainingSettings(
            epochs=5, peak_rate=0.2, flip=mirror, padding=2, mixed=False, seed=SEED
        )
        whole = nn.Sequential(Normalize(spec.mean, spec.std), inner)
        train(whole, train_set, NoAttack(classes=spec.classes), asked)
        inner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(dict(inner.state_dict()), path)
    inner.load_state_dict(safetensors.torch.load_file(path))
    return LoadedNetwork(module=inner.eval(), spec=spec, source_sha256="0" * 64)


def main() -> None:
    """Take up what earlier runs left."""
    parser = argparse.ArgumentParser(description="Take up students of earlier runs.")
    parser.add_argument("--kept", type=Path, help="folder of compress_zoo's kept stages")
    parser.add_argument("--bundle", type=Path, help="a bundle that was made of --network")
    parser.add_argument("--network", choices=networks())
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.kept is not None:
        take_up(options.kept)
    if options.bundle is not None:
        take_up_bundle(options.network, options.bundle)


def make_students(name: str, measured: Measured) -> None:
    """Make the students of a network that are missing."""
    for ratio in measured.ratios:
        if not _facts_path(name, _point(ratio, STEPS[-1])).exists():
            _make(name, measured, ratio)


def _make(name: str, measured: Measured, ratio: float) -> None:
    """Compress a network as it came, at ``--effort quick``, with short recoveries."""
    started, network = time.process_time(), measured.load()
    asked = {"effort": "quick", "ranks": {"ratio": ratio, "images": 8}}
    settings = settings_for(load_target("cpu"), asked)
    images = _images(name, network)
    nothing = PurifySettings(mode="none")
    teacher = purify(network, images, NOT_SCANNED, nothing, seed=SEED)
    scaled = scale(decompose(teacher, settings.decompose), settings.scale)
    plan = choose_ranks(scaled, settings.ranks, images=images)
    truncated = truncate(scaled, plan, settings.truncate)
    done = 0
    for steps in STEPS:
        recovery = replace(settings.finetune, steps=steps - done, batch_size=BATCH)
        student = finetune(truncated, teacher, images, recovery, seed=SEED + done)
        facts = {"state": "compressed", "ratio": ratio, "steps": steps, "unlearned": []}
        facts["processor_s"] = round(time.process_time() - started, 1)
        keep(name, _point(ratio, steps), measured, network, student, facts)
        truncated, done = replace(truncated, module=student.module), steps


def _point(ratio: float, steps: int) -> str:
    return f"{ratio:g}x-{steps}-steps"


def _images(name: str, network: LoadedNetwork) -> SyntheticImages:
    """Return the images of the recovery, kept beside the students."""
    path = BENCH / "images" / f"{name}.safetensors"
    if path.exists():
        read = safetensors.torch.load_file(path)
        return SyntheticImages(pixels=read["pixels"], labels=read["labels"], origin="kept")
    images = synthesize(network, IMAGES, seed=SEED)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"pixels": images.pixels, "labels": images.labels}, path)
    return images


_RIGHT: dict[str, torch.Tensor] = {}  # of every original: which test images it knows


def keep(
    name: str,
    point: str,
    measured: Measured,
    network: LoadedNetwork,
    student: Network,
    facts: Mapping[str, Any],
) -> None:
    """Write a student's ONNX file and, after it, its facts: the accuracy lost among them."""
    test = measured.test()
    if name not in _RIGHT:
        _RIGHT[name] = _right(network, test)
    right = _RIGHT[name], _right(student, test)
    before, after = (float(one.double().mean()) for one in right)
    spread = float((right[0].double() - right[1].double()).std()) / len(test) ** 0.5
    whole = {
        "network": name,
        "domain": measured.domain,
        **facts,
        "acc_before": round(100 * before, 2),
        "acc_after": round(100 * after, 2),
        "lost": round(100 * (before - after), 2),
        "lost_standard_error": round(100 * spread, 2),
        "test_images": len(test),
        "seed": SEED,
        "environment": environment(),
    }
    path = _facts_path(name, point)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".onnx").write_bytes(export_onnx(student))
    path.write_text(json.dumps(whole, indent=1) + "\n")
    print(name, point, whole["lost"], whole.get("processor_s"), flush=True)


def _right(network: Network, test: LabelledImages) -> torch.Tensor:
    return predictions(pixel_network(network).eval(), test) == test.labels


def _facts_path(name: str, point: str) -> Path:
    return STUDENTS / f"{name}-{point}.json"


def take_up(folder: Path) -> None:
    """Keep the purified and the compressed networks of whole runs, whatever code made them."""
    published = {name: networks()[name] for name in published_networks()}
    loaded = {name: one.load() for name, one in published.items()}
    whole = [_unsealed(path) for path in sorted(folder.glob("*.kept"))]
    plans = [plan for one in whole if isinstance(plan := _decoded(one), RankPlan)]
    for contents in whole:
        for name, network in loaded.items():
            purified = _decoded(contents, network)
            if isinstance(purified, PurifiedNetwork) and _same_source(purified, network):
                notes = {"unlearned": list(unlearned_classes(purified)), "steps": None}
                facts = {"state": "purified", "ratio": 1.0, **notes}
                if not _facts_path(name, "purified").exists():
                    keep(name, "purified", published[name], network, purified, facts)
                for plan, student in _students(purified, plans, whole):
                    facts = {"state": "purified and compressed", "ratio": plan.ratio_asked, **notes}
                    facts["steps"] = student.history[-1].settings["steps"]
                    point = f"purified-{plan.ratio_asked:g}x"
                    if not _facts_path(name, point).exists():
                        keep(name, point, published[name], network, student, facts)


def take_up_bundle(name: str, bundle: Path) -> None:
    """Keep the network of a bundle that was made of one of the networks."""
    measured = networks()[name]
    network = measured.load()
    manifest = json.loads((bundle / "manifest.json").read_text())
    history = {one["stage"]: one for one in manifest["history"]}
    asked = manifest["configuration"]
    ratio, steps = asked["ranks"]["ratio"], asked["finetune"]["steps"]
    facts = {"state": "purified and compressed", "ratio": ratio, "steps": steps}
    facts["unlearned"] = history["purify"]["notes"].get("targets", [])
    student = read_student(bundle / "model.onnx", network)
    keep(name, f"bundle-{ratio:g}x-{steps}-steps", measured, network, student, facts)


def _students(
    purified: PurifiedNetwork, plans: list[RankPlan], whole: list[bytes]
) -> Iterator[tuple[RankPlan, Network]]:
    """Yield the recovered networks of a teacher, each with its plan."""
    settings = settings_for(load_target("cpu"), {})
    scaled = scale(decompose(purified, settings.decompose), settings.scale)
    for plan in plans:
        try:
            like = truncate(scaled, plan, settings.truncate)
        except Exception:  # noqa: BLE001, S112 - a plan of another network
            continue
        for contents in whole:
            student = _decoded(contents, like)
            if student is None or isinstance(student, PurifiedNetwork | RankPlan):
                continue
            if isinstance(student, Network) and _following(student, purified, like):
                yield plan, student


def _following(student: Network, purified: PurifiedNetwork, like: Network) -> bool:
    mine = [(one.stage, dict(one.notes)) for one in student.history[:-1]]
    return mine == [(one.stage, dict(one.notes)) for one in like.history]


def _same_source(purified: PurifiedNetwork, network: LoadedNetwork) -> bool:
    """Return whether weights were changed but little: networks of one architecture are many."""
    mine, theirs = purified.module.state_dict(), network.module.state_dict()
    floats = [name for name in mine if mine[name].is_floating_point() and mine[name].ndim > 1]
    cosines = [
        nn.functional.cosine_similarity(mine[name].flatten(), theirs[name].flatten(), dim=0)
        for name in floats
    ]
    return float(torch.stack(cosines).mean()) > 0.7


def _unsealed(path: Path) -> bytes:
    return path.read_bytes()[SEAL_BYTES:]


def _decoded(contents: bytes, like: Network | None = None) -> Any:
    """Return a kept result, or None where it is a network of other layers."""
    try:
        return from_bytes(contents, like)
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None


def _committed(suite_name: str, attack: str) -> LoadedNetwork:
    """Return a suite's network from the files beside it."""
    (suite,) = SUITES[suite_name]
    path = COMMITTED / suite_name / "seed-0" / f"{attack}.safetensors"
    module = build_architecture(suite.spec.architecture, suite.spec, ())
    prefix = "network."
    weights = {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in safetensors.torch.load_file(path).items()
        if name.startswith(prefix)
    }
    module.load_state_dict(weights)
    return LoadedNetwork(module=module.eval(), spec=suite.spec, source_sha256="0" * 64)


def read_student(path: Path, network: LoadedNetwork) -> LoadedNetwork:
    """Return a kept student as a user's bundle holds it: an ONNX file."""
    return load_checkpoint(path, replace(network.spec, architecture="onnx"))


if __name__ == "__main__":
    main()
