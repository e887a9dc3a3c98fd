"""Scan a network for backdoors on synthetic images alone.

For every class, each search looks for the least trigger of its family that sends the images of
all other classes there; a class far cheaper than the others is suspected (`outliers`). "Not
found" means what these searches could not find, never that there is nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeclean.errors import UsageError
from edgeclean.pixels import pixel_network
from edgeclean.precision import channels_last, device_of, mixed_precision
from edgeclean.progress import Progress, silent
from edgeclean.scan.bank import BankScore, build_bank, score_bank
from edgeclean.scan.families import AdditiveFamily, Family, MaskedFamily, WarpFamily
from edgeclean.scan.gradient import (
    Evidence,
    Found,
    GradientSettings,
    Slot,
    cheapest_triggers,
    success_rate,
)
from edgeclean.scan.outliers import cheapness_scores
from edgeclean.scan.report import ScanReport, SearchRecord, Suspect
from edgeclean.states import Network, SyntheticImages

FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (MaskedFamily, AdditiveFamily, WarpFamily)
}
BANK = "patch bank"
BANK_SUCCESS = 0.9  # of a bank candidate on all images, to count as a trigger
BANK_TRIES = 8  # smallest candidates of a class that are confirmed on all images


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSettings:
    """Which searches, and how hard.

    Attributes:
        searches: names out of ``patch bank``, ``masked patch``, ``additive``, ``warp``.
        images: how many of the synthetic images to use (gradient searches draw from them).
        steps: Adam steps of each gradient search.
        restarts: independent starts of each gradient search; each class keeps its cheapest.
        bank_candidates: how many of the bank's candidates are tried, drawn at random.
    """

    searches: tuple[str, ...] = (BANK, "masked patch", "additive")
    images: int = 512
    steps: int = 100
    restarts: int = 2
    bank_candidates: int = 5000

    def __post_init__(self) -> None:
        known = (BANK, *FAMILIES)
        unknown = [name for name in self.searches if name not in known]
        if unknown or not self.searches:
            raise UsageError(
                f"unknown search {', '.join(unknown) or '(none given)'}; "
                f"choose from {', '.join(known)}"
            )
        if min(self.images, self.steps, self.restarts, self.bank_candidates) < 1:
            raise UsageError("a scan's images, steps, restarts and candidates must be at least 1")


def scan(
    network: Network,
    images: SyntheticImages,
    settings: ScanSettings,
    *,
    seed: int,
    progress: Progress = silent,
) -> ScanReport:
    """Search for triggers towards every class; see the module's docstring.

    Args:
        network: of any stage; it is copied, not changed.
        images: synthetic (or any) images; their labels are not used, the network's own are.
        settings: see `ScanSettings`.
        seed: of starts, draws and the bank's random textures.
        progress: told after every search and restart.
    """
    module, evidence = under_test(network, images.pixels[: settings.images])
    classes = network.spec.classes
    records, found_by_search = [], []
    total = len(settings.searches)
    for done, name in enumerate(settings.searches):
        progress(f"Scanning: {name}", done, total)
        generator = torch.Generator().manual_seed(seed + 7919 * done)
        if name == BANK:
            found = _search_bank(module, evidence, classes, settings, generator)
        else:
            found = _search_family(module, evidence, classes, name, settings, generator)
        records.append(_record(name, found))
        found_by_search.append(found)
    progress("Scanning", total, total)
    suspects = _suspects(records, found_by_search)
    return ScanReport(
        verdict="suspected" if suspects else "not found",
        suspects=suspects,
        searches=tuple(records),
        images=len(evidence.pixels),
    )


def under_test(network: Network, pixels: Float[Tensor, "n c h w"]) -> tuple[nn.Module, Evidence]:
    """A frozen channels-last copy as a function of pixels, and what it says of ``pixels``."""
    copied = copy.deepcopy(pixel_network(network)).eval().requires_grad_(False)
    module = channels_last(copied.to(device_of(network.module)))
    return module, Evidence(pixels, predictions(module, pixels))


@torch.no_grad()
def predictions(module: nn.Module, pixels: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    """The class that a function of pixels gives each image."""
    device = device_of(module)
    outputs = []
    for batch in pixels.split(256):
        with mixed_precision(device):
            logits = module(batch.to(device, memory_format=torch.channels_last))
        outputs.append(logits.argmax(1).cpu())
    return torch.cat(outputs)


def suspicion_threshold(classes: int) -> float:
    """The score above which a class is suspected: what the luckiest of ``classes`` normal draws
    is expected to reach, and half a deviation more."""  # noqa: D205, D209
    return 0.5 + math.sqrt(2 * math.log(max(2, classes)))


def _search_family(
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    name: str,
    settings: ScanSettings,
    generator: torch.Generator,
) -> list[Found]:
    slots = [Slot(target) for target in range(classes)]
    gradient = GradientSettings(steps=settings.steps)
    best: list[Found] = []
    for _ in range(settings.restarts):
        found = cheapest_triggers(module, evidence, slots, FAMILIES[name], gradient, generator)
        best = [min(pair, key=lambda f: f.cost) for pair in zip(best or found, found, strict=True)]
    return best


def _search_bank(
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    settings: ScanSettings,
    generator: torch.Generator,
) -> list[Found]:
    shape = evidence.pixels.shape[1:]
    bank = build_bank((shape[0], shape[1], shape[2]), generator)
    bank = bank.drawn(settings.bank_candidates, generator)
    if len(bank) == 0:
        return [Found(Slot(target), math.inf, 0.0, None) for target in range(classes)]
    score = score_bank(module, evidence, bank, classes, generator)
    return [_cheapest_of_bank(module, evidence, score, target) for target in range(classes)]


def _cheapest_of_bank(
    module: nn.Module, evidence: Evidence, score: BankScore, target: int
) -> Found:
    """The smallest candidate that holds on all images, not only on the few it was scored on."""
    slot, success = Slot(target), score.success[:, target]
    area = score.bank.candidates[:, 0] * score.bank.candidates[:, 1]
    # Smallest area first, then highest success; success is at most 1, areas are whole numbers.
    rank = torch.where(success >= BANK_SUCCESS, area - success / 2, torch.inf)
    most = 0.0
    for row in rank.argsort()[:BANK_TRIES].tolist():
        if math.isinf(float(rank[row])):
            break
        trigger = score.bank.trigger(row, evidence.pixels.shape[-2], evidence.pixels.shape[-1])
        confirmed = success_rate(module, evidence, slot, trigger)
        most = max(most, confirmed)
        if confirmed >= BANK_SUCCESS:
            return Found(slot, float(area[row]), confirmed, trigger)
    return Found(slot, math.inf, most, None)


def _record(name: str, found: Sequence[Found]) -> SearchRecord:
    costs = tuple(f.cost for f in found)
    if name == BANK:
        # A class that no candidate reaches is dearer than any of the bank: twice the largest.
        largest = 2 * max((cost for cost in costs if math.isfinite(cost)), default=36.0)
        scores = cheapness_scores([min(cost, max(72.0, largest)) for cost in costs])
        sees, blind = BANK_SEES
        unit, threshold = "pixels", 2 * suspicion_threshold(len(found))
    else:
        family = FAMILIES[name]
        scores = cheapness_scores(costs)
        sees, blind, unit = family.sees, family.blind_to, family.cost_unit
        threshold = suspicion_threshold(len(found))
    return SearchRecord(
        name=name,
        sees=sees,
        blind_to=blind,
        cost_unit=unit,
        costs=costs,
        successes=tuple(f.success for f in found),
        scores=scores,
        threshold=threshold,
    )


BANK_SEES = (
    "small squares, bars and lines of saturated colours, checkers, stripes or binary noise, "
    "also where gradients are masked",
    "textures that are not in the bank, and everything larger than a few pixels a side",
)


def _suspects(
    records: Sequence[SearchRecord], found_by_search: Sequence[Sequence[Found]]
) -> tuple[Suspect, ...]:
    """Every class above a search's threshold whose trigger holds on all images, worst first."""
    suspects = [
        Suspect(
            target=found.slot.target,
            source=None,
            search=record.name,
            score=score,
            cost=found.cost,
            success=found.success,
            trigger=found.trigger,
        )
        for record, results in zip(records, found_by_search, strict=True)
        for found, score in zip(results, record.scores, strict=True)
        if score > record.threshold and found.trigger is not None
    ]
    return tuple(sorted(suspects, key=lambda suspect: -suspect.score))
