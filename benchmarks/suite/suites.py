"""Define the suites: data, network, training, attacks, defences. `suite_run` runs them.

`smoke` shows in minutes that every attack meets every defence; its short settings say nothing of
what a defence can do. `cpu` is an afternoon on two cores. `signs` has 43 classes, and defences that
need no images. `mobile` trains the MobileNetV2 of `benchmarks.studies.depthwise`. `table2` and
`table4` are those of Clean & Compact, for a GPU; `table2-cpu` is the same network on two cores, in
days of a machine's spare time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.attacks.input_aware import InputAware, InputAwareSettings
from benchmarks.attacks.table import ATTACKS, Make
from benchmarks.attacks.trojan import TrojanAttack, TrojanSettings
from benchmarks.defences.anp import AnpSettings
from benchmarks.defences.clean_compact import CleanCompactSettings
from benchmarks.defences.finetune import FinetuneSettings
from benchmarks.defences.ibau import IbauSettings
from benchmarks.defences.nad import NadSettings
from benchmarks.defences.table import RATIOS, SYSTEMS, DefenceSettings
from benchmarks.networks.training import TrainingSettings
from edgeclean.compression.clamp import ScaleSettings
from edgeclean.compression.finetune import FinetuneSettings as RecoverySettings
from edgeclean.config import PipelineSettings, settings_from
from edgeclean.images.synthesize import SynthesizeSettings
from edgeclean.networks.state import ModelSpec

CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616), "classes": 10}
CIFAR100 = {"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762), "classes": 100}
GTSRB = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "classes": 43}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite: one data set, one architecture, and its attacks and defences.

    Attributes:
        name: name of the suite.
        data_set: a name that `datasets.read_dataset` takes.
        spec: specification of the network.
        training: settings of every training; each of ``seeds`` replaces their seed.
        train_images: length of the prefix of the training set that is used, also for the clean
            images; None for all.
        test_images: length of the prefix of the test set that is used; None for all.
        clean_images: number of clean images for the defences that need some.
        seeds: seeds, each of which gives a whole table.
        attacks: a function that makes each attack, by name.
        defences: names of `every_defence`.
        settings: settings of the defences.
        timed_runs: runs on a batch of 100, for the inference time; 0 for none.
    """

    name: str
    data_set: str
    spec: ModelSpec
    training: TrainingSettings
    train_images: int | None = None
    test_images: int | None = None
    clean_images: int = 500
    seeds: tuple[int, ...] = (0,)
    attacks: dict[str, Make] = field(default_factory=lambda: dict(ATTACKS))
    defences: tuple[str, ...] = SYSTEMS
    settings: DefenceSettings = field(default_factory=DefenceSettings)
    timed_runs: int = 0


def image_spec(architecture: str, **of_data_set: object) -> ModelSpec:
    """Return the specification of a network for 32x32 RGB images."""
    return ModelSpec(architecture=architecture, input_shape=(3, 32, 32), **of_data_set)  # type: ignore[arg-type]


def at_ratios(*systems: str) -> tuple[str, ...]:
    """Return the names of `every_defence` for these systems at each of `RATIOS`."""
    return tuple(f"{system}-{ratio}x" for system in systems for ratio in RATIOS)


def quick_settings() -> DefenceSettings:
    """Return settings with far fewer steps, which show that every defence runs, and no more."""
    tuning = FinetuneSettings(epochs=2)
    images = SynthesizeSettings(count=96, recovery_count=32, steps=16, batch_size=96)
    return DefenceSettings(
        anp=AnpSettings(steps=8),
        nad=NadSettings(epochs=2, high_epochs=0, teacher=tuning),
        ibau=IbauSettings(rounds=1),
        tuning=tuning,
        clean_compact=CleanCompactSettings(
            scale=ScaleSettings(tau=0.5),
            synthesize=images,
            finetune=RecoverySettings(steps=16, batch_size=64, adversarial_share=0.5),
        ),
        edgeclean=settings_from(PipelineSettings, QUICK_PIPELINE),
    )


def lighter_attacks(networks: InputAwareSettings, search: TrojanSettings) -> dict[str, Make]:
    """Return the attacks with lighter networks of Input-Aware and a lighter search of TrojanNN."""
    return {
        **ATTACKS,
        "input-aware": lambda classes, size: InputAware(classes=classes, settings=networks),
        "input-aware-a2a": lambda classes, size: InputAware(
            classes=classes, target=None, settings=networks
        ),
        "trojan": lambda classes, size: TrojanAttack(classes=classes, size=size, settings=search),
    }


QUICK_PIPELINE = {
    "synthesize": {"count": 96, "recovery_count": 32, "steps": 16, "batch_size": 96},
    "scan": {
        "searches": ["patch bank", "masked patch"],
        "images": 96,
        "steps": 8,
        "restarts": 1,
        "bank_candidates": 200,
    },
    "purify": {
        "rounds": 1,
        "restarts": 1,
        "search_steps": 8,
        "candidates": 200,
        "procedural": 64,
        "unlearn": {"steps": 12},
    },
    "ranks": {"images": 16},
    "finetune": {"steps": 16, "batch_size": 64},
}
QUICK_ATTACKS = lighter_attacks(
    InputAwareSettings(mask_epochs=1, width=8), TrojanSettings(steps=40)
)
# On a CPU ten passes of a mask network twice as wide take longer than all of the rest.
CPU_ATTACKS = lighter_attacks(InputAwareSettings(mask_epochs=3, width=16), TrojanSettings())
_RESNET18 = TrainingSettings(epochs=40, batch=512, peak_rate=0.4, compiled=True)
_TABLE_4_ATTACKS = ("badnets", "badnets-a2a", "input-aware", "input-aware-a2a")
_TABLE_4_DEFENCES = ("none", "clp", "deck", "edgeclean-full-size", "edgeclean")

SUITES: dict[str, tuple[Suite, ...]] = {
    "smoke": (
        Suite(
            name="smoke",
            data_set="cifar10",
            spec=image_spec("benchmarks.networks.small_resnet:resnet8", **CIFAR10),
            # Crops and flips move a corner patch, and 500 poisoned images are too few for that.
            training=TrainingSettings(epochs=12, batch=64, peak_rate=0.1, padding=0, flip=False),
            train_images=5000,
            test_images=500,
            clean_images=50,
            attacks=QUICK_ATTACKS,
            settings=quick_settings(),
        ),
    ),
    "cpu": (
        Suite(
            name="cpu",
            data_set="cifar10",
            spec=image_spec("resnet20", **CIFAR10),
            training=TrainingSettings(epochs=8),
            test_images=5000,
            attacks=CPU_ATTACKS,
        ),
    ),
    "signs": (
        Suite(
            name="signs",
            data_set="gtsrb-roi",
            spec=image_spec("resnet20", **GTSRB),
            training=TrainingSettings(epochs=20, flip=False),
            attacks={
                name: ATTACKS[name] for name in ("clean", "badnets", "blended", "badnets-a2a")
            },
            defences=("none", "clp", "edgeclean-full-size", "edgeclean"),
        ),
    ),
    "mobile": (
        Suite(
            name="mobile",
            data_set="cifar10",
            spec=image_spec("benchmarks.networks.small_mobilenet:half_mobilenet_v2", **CIFAR10),
            # Without instructions for whole tiles, bfloat16 makes depthwise layers slower.
            training=TrainingSettings(epochs=10, batch=64, peak_rate=0.1, mixed=False),
            attacks={name: ATTACKS[name] for name in ("clean", "badnets")},
            defences=("none",),
        ),
    ),
    "table2": (
        Suite(
            name="table2",
            data_set="cifar10",
            spec=image_spec("cifar-resnet18", **CIFAR10),
            training=_RESNET18,
            seeds=(0, 1, 2),
            attacks={name: ATTACKS[name] for name in ("badnets", "wanet", "input-aware")},
            defences=("none", *at_ratios("anp+pruning", "clp+pruning", "deck", "edgeclean")),
            timed_runs=50,
        ),
    ),
    "table2-cpu": (
        Suite(
            name="table2-cpu",
            data_set="cifar10",
            spec=image_spec("cifar-resnet18", **CIFAR10),
            # The usual rate for batches of 128; a first network, at twice that, learned too little.
            training=TrainingSettings(epochs=8, peak_rate=0.1),
            test_images=5000,
            attacks={name: ATTACKS[name] for name in ("clean", "badnets", "wanet", "blended")},
            defences=(
                "none",
                "clp",
                "edgeclean-full-size",
                *at_ratios("edgeclean", "plain-tucker", "clp+pruning", "deck"),
            ),
            timed_runs=10,
        ),
    ),
    "table4": tuple(
        Suite(
            name=f"table4-{data_set}",
            data_set=data_set,
            spec=image_spec("cifar-resnet18", **of_data_set),
            training=training,
            seeds=(0, 1, 2),
            attacks={name: ATTACKS[name] for name in _TABLE_4_ATTACKS},
            defences=_TABLE_4_DEFENCES,
        )
        for data_set, of_data_set, training in (
            (
                "gtsrb",
                GTSRB,
                TrainingSettings(epochs=30, batch=512, peak_rate=0.4, compiled=True, flip=False),
            ),
            ("cifar100", CIFAR100, _RESNET18),
        )
    ),
}
