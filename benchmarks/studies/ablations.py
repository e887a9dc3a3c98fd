"""Measure ablations: ``python -m benchmarks.studies.ablations --network smallvgg-badnets``.

One network is scanned once; then the unlearning and the recovery run with one setting changed at a
time, everything else at its defaults. What `benchmarks.studies.compress_zoo` did of a row already
is taken up, and it takes up what was done here: a row's seconds are then of less. Each row is
written as it is done, and finished rows are not run again. Test images and trigger only measure;
``agreement`` counts how many of 2,000 training images, which a user would not have either, get the
purified teacher's answer.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.data.balanced_crops import with_crops
from benchmarks.data.images import PACK_FOLDER, read_pack
from benchmarks.environment import environment
from benchmarks.rendering.ablations_table import write_ablations_table
from benchmarks.studies.compress_zoo import KEPT, TEST_IMAGES, rates_of
from benchmarks.studies.published import RESULTS, published_networks
from edgeclean.backdoor.purify import PurifySettings, purify
from edgeclean.backdoor.scan import scan
from edgeclean.backdoor.unlearn import UnlearnSettings
from edgeclean.compression.finetune import FinetuneSettings
from edgeclean.compression.settings import Form
from edgeclean.config import PipelineSettings, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import SynthesizeSettings, joined, synthesize
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import (
    JsonValue,
    Network,
    PurifiedNetwork,
    SyntheticImages,
    TruncatedNetwork,
)
from edgeclean.runner import Cache, Runner
from edgeclean.shrinking import recovered_network, scaled_network, truncated_network


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """A recovery of accuracy.

    Attributes:
        settings: settings of the fine-tuning.
        synthesis: settings of the images made from the purified network, beside the scan's.
        forms: what layers may become before it; None for all that serve the goal.
        crops: crops of photographs that are drawn once and stand among the synthetic images, as
            many as there are of those: any, or as many of each class that the purified network
            sees.
        real: whether as many real training images are used instead: not for a user without data,
            but the reach of the same steps with the best of images.
    """

    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    synthesis: SynthesizeSettings = field(default_factory=SynthesizeSettings)
    forms: tuple[Form, ...] | None = None
    crops: Literal["none", "any", "balanced"] = "none"
    real: bool = False


UNLEARNING = {
    "defaults": PurifySettings(),
    "triggers do not adapt": PurifySettings(unlearn=UnlearnSettings(ascent_steps=0)),
    "no bank": PurifySettings(candidates=1, bank_triggers=1, unlearn=UnlearnSettings(bank_share=0)),
    "one round": PurifySettings(rounds=1),
    "all suspects at once": PurifySettings(one_by_one=False),
    "no features": PurifySettings(unlearn=UnlearnSettings(feature_weight=0.0)),
    "the network as it came teaches in every round": PurifySettings(overrule=False),
    "probabilities compared": PurifySettings(unlearn=UnlearnSettings(compare="probabilities")),
}
STEPS, IMAGES = FinetuneSettings().steps, SynthesizeSettings().recovery_count
RECOVERY = {
    "nothing": Recovery(settings=FinetuneSettings(steps=0)),
    "defaults": Recovery(),
    "low-rank factors alone": Recovery(forms=("tucker",)),
    "fewer hidden channels alone": Recovery(forms=("hidden",)),
    "without separable kernels": Recovery(forms=("tucker", "hidden")),
    "separable kernels alone": Recovery(forms=("separable",)),
    "the network as it came teaches what was not unlearned": Recovery(
        settings=FinetuneSettings(overrule=True)
    ),
    "BatchNorm re-estimated first": Recovery(settings=FinetuneSettings(reestimate=True)),
    "a quarter adversarial (the deck's)": Recovery(
        settings=FinetuneSettings(adversarial_share=0.25)
    ),
    "no features": Recovery(settings=FinetuneSettings(feature_weight=0.0)),
    "probabilities compared": Recovery(
        settings=FinetuneSettings(compare="probabilities", feature_weight=0.0)
    ),
    "half the steps, batches of 128": Recovery(
        settings=FinetuneSettings(steps=STEPS // 2, batch_size=128)
    ),
    "twice the steps": Recovery(settings=FinetuneSettings(steps=2 * STEPS)),
    "three times the images": Recovery(synthesis=SynthesizeSettings(recovery_count=3 * IMAGES)),
    "Adam for all": Recovery(settings=FinetuneSettings(optimizer="adam")),
    "no photographs": Recovery(settings=FinetuneSettings(photograph_share=0.0)),
    "crops drawn once": Recovery(settings=FinetuneSettings(photograph_share=0.0), crops="any"),
    "crops drawn once, as many of each class": Recovery(
        settings=FinetuneSettings(photograph_share=0.0), crops="balanced"
    ),
    "real images (not data-free)": Recovery(
        settings=FinetuneSettings(photograph_share=0.0), real=True
    ),
}


def main() -> None:
    """Measure the rows of both tables for one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="smallvgg-badnets", choices=published_networks())
    parser.add_argument("--only", choices=["unlearning", "recovery"])
    parser.add_argument("--ratio", type=float, default=4.0, help="that recovery starts from")
    rows = UNLEARNING | RECOVERY
    parser.add_argument("--row", action="append", choices=rows, help="only this; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    study = Study(options.network, options.seed, options.ratio)
    asked = options.row or [*UNLEARNING, *RECOVERY]
    if options.only != "recovery":
        study.unlearn([name for name in UNLEARNING if name in asked])
    if options.only != "unlearning":
        study.recover([name for name in RECOVERY if name in asked])


class Study:
    """The study of one network, with its images, its scan, and the file of its rows."""

    def __init__(self, name: str, seed: int, ratio: float) -> None:
        self._published, self._name, self._seed = published_networks()[name], name, seed
        self._network = self._published.load()
        asked = {"seed": seed, "ranks": {"ratio": ratio}}
        self._settings: PipelineSettings = settings_for(load_target("cpu"), asked)
        self._test = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)
        self._path = RESULTS / f"ablations-{name}-seed{seed}.json"
        self._rows: dict[str, JsonValue] = {}
        if self._path.exists():
            self._rows = json.loads(self._path.read_text())["rows"]
        self._run = Runner(Cache(folder=KEPT, notify=lambda _: None))
        self._images = self._run.once(
            "synthesize", synthesize, self._network, self._settings.synthesize, seed=seed
        )
        self._found = self._run.once(
            "scan", scan, self._network, self._images, self._settings.scan, seed=seed
        )

    def unlearn(self, names: list[str]) -> None:
        """Unlearn and measure every row that is not there yet."""
        for name in names:
            settings, row = UNLEARNING[name], f"unlearning: {name}"
            if row not in self._rows:
                start = time.process_time()
                purified = purify(
                    self._network, self._images, self._found, settings, seed=self._seed
                )
                self._keep(row, purified, {"processor_seconds": _since(start)})

    def recover(self, names: list[str]) -> None:
        """Recover and measure every row that is not there yet, of one network a set of forms."""
        found = self._network, self._images, self._found
        teacher = self._run.once("purify", purify, *found, self._settings.purify, seed=self._seed)
        train = read_pack(PACK_FOLDER / "cifar10-train.npz", 2 * TEST_IMAGES)
        judges, real = train.floats()[:TEST_IMAGES], train.floats()[TEST_IMAGES:]
        expected = _classes(teacher, judges)
        for name in names:
            row = f"recovery at {self._settings.ranks.ratio:g}x: {name}"
            if row in self._rows:
                continue
            recovery = RECOVERY[name]
            truncated, start = self._truncated(teacher, recovery.forms), time.process_time()
            images = self._recovery_images(teacher, recovery)
            if recovery.crops != "none":
                shape = self._network.spec.input_shape
                seen = partial(_classes, teacher) if recovery.crops == "balanced" else None
                images = with_crops(images, shape, self._seed, seen)
            if recovery.real:
                count = len(images)
                labels = expected.new_zeros(count)  # answers are compared, not labels
                images = SyntheticImages(pixels=real[:count], labels=labels, origin="real")
            settings = replace(self._settings, finetune=recovery.settings)
            student, _ = recovered_network(
                self._network, teacher, truncated, images, settings, self._run
            )
            agreed = (_classes(student, judges) == expected).double().mean()
            facts = {"agreement": round(100 * float(agreed), 2), "images": len(images)}
            self._keep(row, student, {**facts, "processor_seconds": _since(start)})

    def _recovery_images(self, teacher: Network, recovery: Recovery) -> SyntheticImages:
        chosen = recovery.synthesis.recovery()
        fresh = self._run.once("synthesize", synthesize, teacher, chosen, seed=self._seed + 1)
        return joined(self._images, fresh)

    def _truncated(
        self, teacher: PurifiedNetwork, forms: tuple[Form, ...] | None
    ) -> TruncatedNetwork:
        settings = replace(self._settings, ranks=replace(self._settings.ranks, forms=forms))
        images = self._recovery_images(teacher, Recovery())
        scaled = scaled_network(teacher, images, settings, self._run)
        return truncated_network(scaled, images, settings, None, None, self._run)

    def _keep(self, row: str, network: Network, facts: dict[str, float]) -> None:
        rates = rates_of(network, self._published, self._test)
        words = f"--network {self._name} --seed {self._seed} --ratio {self._settings.ranks.ratio:g}"
        self._rows[row] = {
            **rates,
            **facts,
            "command": f"python -m benchmarks.studies.ablations {words}",
            "seed": self._seed,
            "environment": environment(),
        }
        whole = {"rows": self._rows}
        self._path.write_text(json.dumps(whole, indent=1) + "\n")  # rows in the order they ran
        write_ablations_table()
        print(row, rates, facts, flush=True)


@torch.no_grad()
def _classes(network: Network, images: Float[Tensor, "n c h w"]) -> Tensor:
    """Return the class that ``network`` gives to each image."""
    module = pixel_network(network).eval()
    return torch.cat([module(batch).argmax(1) for batch in images.split(500)])


def _since(start: float) -> float:
    """Return processor seconds of all threads, which leave out waits and stops."""
    return round(time.process_time() - start, 1)


if __name__ == "__main__":
    main()
