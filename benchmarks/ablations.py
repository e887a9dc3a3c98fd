"""What single parts are worth: ``python -m benchmarks.ablations --network smallvgg-badnets``.

One network is scanned once; then the unlearning and the recovery run with one part changed at a
time, everything else at its defaults. Each row is written as it is done, and what is there is not
run again. Test images and trigger only measure.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from benchmarks.compress_zoo import TEST_IMAGES, rates_of
from benchmarks.environment import environment
from benchmarks.images import PACK_FOLDER, read_pack
from benchmarks.published import RESULTS, published_networks
from edgeclean.factors.decompose import DecomposeSettings, decompose
from edgeclean.factors.scale import ScaleSettings, scale
from edgeclean.purification.purify import PurifySettings, purify
from edgeclean.purification.unlearn import UnlearnSettings
from edgeclean.ranks.choose import RankSettings, choose_ranks
from edgeclean.ranks.truncate import TruncateSettings, truncate
from edgeclean.recovery.finetune import FinetuneSettings, finetune
from edgeclean.scan import ScanSettings, scan
from edgeclean.states import JsonValue, Network, SyntheticImages, TruncatedNetwork
from edgeclean.synthesis.synthesize import SynthesizeSettings, joined, synthesize

UNLEARNING = {
    "defaults": PurifySettings(),
    "triggers do not adapt": PurifySettings(unlearn=UnlearnSettings(ascent_steps=0)),
    "no bank": PurifySettings(candidates=1, bank_triggers=1, unlearn=UnlearnSettings(bank_share=0)),
    "one round": PurifySettings(rounds=1),
    "probabilities compared": PurifySettings(unlearn=UnlearnSettings(compare="probabilities")),
}
RECOVERY = {
    "nothing": FinetuneSettings(steps=0),
    "defaults": FinetuneSettings(),
    "BatchNorm re-estimated first": FinetuneSettings(reestimate=True),
    "a quarter procedural": FinetuneSettings(procedural_share=0.25),
    "a quarter adversarial (the deck's)": FinetuneSettings(adversarial_share=0.25),
    "no features": FinetuneSettings(feature_weight=0.0),
    "probabilities compared": FinetuneSettings(compare="probabilities", feature_weight=0.0),
    "half the steps, batches of 128": FinetuneSettings(
        steps=FinetuneSettings().steps // 2, batch_size=128
    ),
    "twice the steps": FinetuneSettings(steps=2 * FinetuneSettings().steps),
}


def main() -> None:
    """Rows of both tables for one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="smallvgg-badnets", choices=published_networks())
    parser.add_argument("--only", choices=["unlearning", "recovery"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    Study(options.network, options.seed).run(options.only)


class Study:
    """One network, its images and its scan, and the file that the rows go to."""

    def __init__(self, name: str, seed: int) -> None:
        self._published, self._name, self._seed = published_networks()[name], name, seed
        self._network = self._published.load()
        self._test = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)
        self._path = RESULTS / f"ablations-{name}.json"
        self._rows: dict[str, JsonValue] = {}
        if self._path.exists():
            self._rows = json.loads(self._path.read_text())["rows"]

    def run(self, only: str | None) -> None:
        """Every row that is not there yet."""
        images = synthesize(self._network, SynthesizeSettings(), seed=self._seed)
        found = scan(self._network, images, ScanSettings(), seed=self._seed)
        purified: Network | None = None
        for name, settings in UNLEARNING.items() if only != "recovery" else ():
            if f"unlearning: {name}" not in self._rows:
                start = time.perf_counter()
                outcome = purify(self._network, images, found, settings, seed=self._seed)
                self._keep(f"unlearning: {name}", outcome, time.perf_counter() - start)
                purified = outcome if name == "defaults" else purified
        if only == "unlearning":
            return
        teacher = purified or purify(
            self._network, images, found, PurifySettings(), seed=self._seed
        )
        fresh = synthesize(teacher, SynthesizeSettings().recovery(), seed=self._seed + 1)
        self._recover(teacher, joined(images, fresh))

    def _recover(self, teacher: Network, images: SyntheticImages) -> None:
        truncated = _truncated(teacher, images)
        self._keep("truncated to half the MACs", truncated, 0.0)
        for name, settings in RECOVERY.items():
            if f"recovery: {name}" not in self._rows:
                start = time.perf_counter()
                outcome = finetune(truncated, teacher, images, settings, seed=self._seed)
                self._keep(f"recovery: {name}", outcome, time.perf_counter() - start)

    def _keep(self, row: str, network: Network, seconds: float) -> None:
        rates = rates_of(network, self._published, self._test)
        self._rows[row] = {**rates, "seconds": round(seconds, 1)}
        whole = {
            "command": f"python -m benchmarks.ablations --network {self._name}",
            "seed": self._seed,
            "environment": environment(),
            "rows": self._rows,
        }
        self._path.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
        print(row, self._rows[row], flush=True)


def _truncated(teacher: Network, images: SyntheticImages) -> TruncatedNetwork:
    scaled = scale(decompose(teacher, DecomposeSettings()), ScaleSettings())
    settings = replace(RankSettings(), rank_multiple=8)
    plan = choose_ranks(scaled, settings, images=images)
    return truncate(scaled, plan, TruncateSettings())


if __name__ == "__main__":
    main()
