"""Search for source-specific backdoors: ``python -m benchmarks.studies.source_search``.

Such a backdoor works on images of one class only. The affordable search gives each class one start:
the least mask, or least additive stamp, that makes its images leave it; a class far cheaper than
the others would be suspected. No published network here has such a backdoor, so a score above the
threshold points at something else, and the costs say how cheap a trigger must be to stand out: at
the usual spread, about half of the median. The scan does not run this search.
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.environment import environment
from benchmarks.studies.compress_zoo import THREADS
from benchmarks.studies.published import RESULTS, published_networks
from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.gradient import ELSEWHERE, GradientSettings, Slot, cheapest_triggers
from edgeclean.backdoor.scan import under_test
from edgeclean.backdoor.searches import cheapness_scores, suspicion_threshold
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.networks.state import LoadedNetwork

SEED = 0
IMAGES = SynthesizeSettings(count=512)
SEARCH = GradientSettings(steps=100, success=0.9)
SEARCHED = ("masked patch", "additive")


def main() -> None:
    """Search all networks by both families, and write ``results/source-search.json``."""
    argparse.ArgumentParser(
        description="Search the published networks for source-specific backdoors."
    ).parse_args()
    torch.set_num_threads(THREADS)
    networks = {name: one.load() for name, one in published_networks().items()}
    result = {
        "command": "python -m benchmarks.studies.source_search",
        "seed": SEED,
        "threshold": {
            name: round(suspicion_threshold(one.spec.classes), 3) for name, one in networks.items()
        },
        "networks": {name: _searched(one) for name, one in networks.items()},
        "environment": environment(),
    }
    (RESULTS / "source-search.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def _searched(network: LoadedNetwork) -> dict[str, object]:
    module, evidence = under_test(network, synthesize(network, IMAGES, seed=SEED).pixels)
    slots = [Slot(ELSEWHERE, source) for source in range(network.spec.classes)]
    answer: dict[str, object] = {}
    for name in SEARCHED:
        generator = torch.Generator().manual_seed(SEED)
        found = cheapest_triggers(module, evidence, slots, FAMILIES[name], SEARCH, generator)
        costs = [one.cost for one in found]
        answer[name] = {
            "unit": FAMILIES[name].cost_unit,
            "costs": [round(cost, 2) if cost < float("inf") else None for cost in costs],
            "scores": [round(score, 2) for score in cheapness_scores(costs)],
        }
    return answer


if __name__ == "__main__":
    main()
