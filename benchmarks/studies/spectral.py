"""Search triggers that are sparse in frequency: ``python -m benchmarks.studies.spectral``.

An additive family whose cost is the sum of its sines' amplitudes: one sine over the image (SIG),
or the few of FTrojan, ought to cost little, a natural perturbation of many frequencies much. The
cheapest trigger towards every class is searched as the scan searches its own families, beside the
scan's additive family; ``results/spectral.json`` and ``.md`` have the scores of the attacker's
class and of the highest other. The scan has no such family: see the table.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.studies.published import RESULTS
from benchmarks.studies.scan_selection import networks_of_ten_classes
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.backdoor.families import AdditiveFamily
from edgeclean.backdoor.gradient import Evidence, GradientSettings, Slot, cheapest_triggers
from edgeclean.backdoor.judging import judged_costs
from edgeclean.backdoor.scan import under_test
from edgeclean.backdoor.selection import Selection
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.state import LoadedNetwork

PATH = RESULTS / "spectral.json"
NETWORKS = ("cpu clean", "zoo resnet20-clean", "cpu sig", "cpu low-frequency", "cpu blended")
SEEDS, THREADS, LEVEL = (0, 1), 1, "quick"
STEPS = 200  # twice a search's at the default effort
PERIODS = 16  # the most a side


class SpectralFamily(AdditiveFamily):
    """One sum of sines per slot; the cost is the sum of their amplitudes in grey levels."""

    name = "spectral"
    sees = "one or a few sines over the whole image, of any direction and phase"
    cost_unit = "grey levels (of 255), sum of amplitudes"
    weight = 0.004
    learning_rate = 0.002

    def __init__(self, slots: int, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        self._waves = waves(shape[1], shape[2])
        size = (slots, shape[0], len(self._waves), 2)
        self._amplitudes = 0.0005 * torch.randn(size, generator=generator)

    @property
    def _delta(self) -> Float[Tensor, "k c h w"]:  # type: ignore[override]
        return torch.einsum("kcft,fthw->kchw", self._amplitudes, self._waves)

    def parameters(self) -> list[Tensor]:
        """See `Family.parameters`."""
        return [self._amplitudes.requires_grad_()]

    def cost(self) -> Float[Tensor, " k"]:
        """See `Family.cost`; the phases of a sine cost nothing."""
        return 255 * (self._amplitudes.square().sum((1, 3)) + 1e-10).sqrt().sum(1)


def waves(height: int, width: int) -> Float[Tensor, "f 2 h w"]:
    """Return cosine and sine of every direction with at most `PERIODS` a side, each once."""
    down = torch.arange(-PERIODS, PERIODS + 1).float()
    along = torch.arange(PERIODS + 1).float()
    rows, columns = (one.flatten() for one in torch.meshgrid(down, along, indexing="ij"))
    once = (columns > 0) | (rows > 0)
    y = rows[once, None, None] * (torch.arange(height) / height)[None, :, None]
    x = columns[once, None, None] * (torch.arange(width) / width)[None, None, :]
    angle = 2 * math.pi * (y + x)
    return torch.stack([angle.cos(), angle.sin()], 1)


def main() -> None:
    """Measure the cells that are missing, and write the table."""
    argparse.ArgumentParser(description="Search triggers sparse in frequency.").parse_args()
    torch.set_num_threads(THREADS)
    cells: dict[str, Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else {}
    known = networks_of_ten_classes()
    for name in NETWORKS:
        for seed in SEEDS:
            key = f"{name}, seed {seed}"
            if key not in cells:
                load, target = known[name]
                found = {"network": name, "seed": seed, "true_target": target}
                cells[key] = found | _measured(load(), seed)
                _write(cells)
                print(key, cells[key]["spectral"]["scores"], flush=True)
    _write(cells)


def _measured(network: LoadedNetwork, seed: int) -> Cell:
    settings = settings_for(load_target("cpu"), {"seed": seed, "effort": LEVEL})
    images = synthesize(network, settings.synthesize, seed=seed)
    module, evidence = under_test(network, images.pixels[: settings.scan.images])
    families = (SpectralFamily, AdditiveFamily)
    searched = {one.name: _searched(module, evidence, one, seed) for one in families}
    return {**searched, "environment": environment()}


def _searched(
    module: torch.nn.Module, evidence: Evidence, family: type[AdditiveFamily], seed: int
) -> Cell:
    chosen = Selection.of_all(10)
    slots = [Slot(target) for target in chosen.searched]
    start, generator = time.process_time(), torch.Generator().manual_seed(seed)
    settings = GradientSettings(steps=STEPS)
    results = cheapest_triggers(module, evidence, slots, family, settings, generator)
    scores, threshold = judged_costs(results, chosen)
    return {
        "scores": [round(score, 2) for score in scores],
        "threshold": round(threshold, 2),
        "costs": [round(one.cost, 1) if math.isfinite(one.cost) else None for one in results],
        "processor_s": round(time.process_time() - start, 1),
    }


def _write(cells: dict[str, Cell]) -> None:
    whole = {"command": "python -m benchmarks.studies.spectral", "steps": STEPS, "cells": cells}
    write_whole(PATH, json.dumps(whole, indent=1))
    write_whole(PATH.with_suffix(".md"), table(cells))


def table(cells: dict[str, Cell]) -> str:
    """Return, for each network and seed, the scores of the true class and of the highest other."""
    lines = [
        "| network | seed | true class | threshold | sparse: true class, highest other "
        "| additive: true class, highest other | processor s |",
        "|---" * 7 + "|",
    ]
    for cell in cells.values():
        true = cell["true_target"]
        pairs = [_pair(cell[name]["scores"], true) for name in ("spectral", "additive")]
        seconds = [f"{cell[name]['processor_s']:.0f}" for name in ("spectral", "additive")]
        lines.append(
            f"| {cell['network']} | {cell['seed']} | {'-' if true is None else true} | "
            f"{cell['spectral']['threshold']:.1f} | {' | '.join(pairs)} | {', '.join(seconds)} |"
        )
    return "\n".join(lines)


def _pair(scores: list[float], true: int | None) -> str:
    others = max(score for target, score in enumerate(scores) if target != true)
    return f"{'-' if true is None else f'{scores[true]:.1f}'}, {others:.1f}"


if __name__ == "__main__":
    main()
