"""Search pairs of classes: triggers that move images of one class alone.

A source-specific backdoor leaves the images of all other classes as they are, so no trigger for
images of every class is cheap, and the other searches are blind to it. Here each pair of classes is
searched: from this class, to that one. What a pair costs depends on both of its classes, for some
classes are easy to reach and some easy to leave; a pair stands out by what is left of its cost when
both are taken away (`pair_scores`), in masks and in additive stamps together, and when what the way
back tells of it is (`one_way`). Such a pair is searched once more at full length, beside the way to
the same class from others, and is suspected where it is plainly cheaper (`CHEAP`).

Source of the kind: Tang et al. (2021), "Demon in the variant" (TaCT, USENIX Security). Pairs of
classes are searched by K-Arm (Shen et al., ICML 2021), with a bandit; ours are few enough for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linprog
from torch import Tensor, nn

from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.findings import SearchRecord, Suspect
from edgeclean.backdoor.gradient import (
    CHEAP,
    Evidence,
    Found,
    GradientSettings,
    Slot,
    cheapest_triggers,
)

FEWEST_PAIRED = 6  # classes; of fewer, two classes explain too much of any pair's cost
MOST_PAIRED = 11  # classes; of more, pairs are too many to search
# For each class. With 25 of them what a pair costs depends on which they are: in networks without
# such a backdoor a pair then stood out as far as one of the attack does.
FEWEST_IMAGES = 43
PAIR_FAMILIES = ("masked patch", "additive")
PAIR_IMAGES = 4  # of each pair in a step
LENGTH = 0.4  # of the steps of a search towards every class: nine times as many are searched
MOST_OTHERS = 5  # that what is suspected is held against
PAIRS_SEE = (
    "a patch or an additive stamp that moves images of one class to another, and no others",
    "stamps that move images of two or more classes but not of all, and warps",
)
_MOST_TOLD = 0.9  # of a pair by its way back; with all of it nothing would be left to judge
# Beyond what the luckiest of normal draws reaches, for rests have heavier tails: of eight networks
# of ten classes without such a backdoor (`benchmarks/results/source-specific.json`) the largest
# scores were 3.2 on average and spread by 0.3; of a Gumbel distribution like that, one in 1,000
# lies above 4.7.
_HEAVIER = 1.75
_LEAST_SPREAD = 0.05  # of log costs, where nearly all pairs cost the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The cheapest trigger from one class to another.

    Attributes:
        found: the trigger of the family in which the pair stands out most.
        family: that family's name.
        score: robust deviations below the other pairs, in the mean of the families, as far as the
            way back does not tell it.
    """

    found: Found
    family: str
    score: float


def has_pairs(classes: int, images: int) -> bool:
    """Return whether the pairs of so many classes are searched on so many images."""
    return FEWEST_PAIRED <= classes <= MOST_PAIRED and images >= FEWEST_IMAGES * classes


def pair_passes(classes: int, images: int, steps: int) -> int:
    """Return the passes, forward and back, of a search beside whose steps are ``steps``."""
    pairs = classes * (classes - 1) if has_pairs(classes, images) else 0
    return pairs * len(PAIR_FAMILIES) * PAIR_IMAGES * _length(steps)


def judged_pairs(
    name: str,
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[SearchRecord, list[Suspect]]:
    """Search every pair of classes; return the record, and the pairs that are suspected.

    The pairs that stand out are searched again at full length. The record has of each class the
    plainest pair that leads there: its cost, its success on images of its own source, and its
    score, which is 0 where others lead there nearly as cheaply. Networks of fewer than six classes,
    or of more than eleven, are not searched, nor is any on fewer than 43 images a class.

    Args:
        name: the search's name.
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        classes: the number of classes.
        steps: Adam steps of a search towards every class, of which a share is taken.
        generator: the source of starts and draws.
    """
    count = len(evidence.pixels)
    searched, threshold = has_pairs(classes, count), pair_threshold(classes)
    pairs = search_every_pair(module, evidence, classes, steps, generator) if searched else []
    plainest = plainest_of_targets(pairs)
    apart = [pair for pair in plainest.values() if pair.score > threshold]
    suspected: list[Pair] = []
    for pair in apart:
        again, share = searched_again(module, evidence, pair, classes, steps, generator)
        suspected += [again] * (share < CHEAP)
        plainest[pair.found.slot.target] = again if share < CHEAP else replace(again, score=0.0)
    unsearched = (
        f"everything here: pairs of {FEWEST_PAIRED} to {MOST_PAIRED} classes are searched, on "
        f"{FEWEST_IMAGES} images of each or more; these were {count} of {classes:,} classes"
    )
    nothing = Pair(found=Found(Slot(0), math.inf, 0.0, None), family="", score=0.0)
    of_class = [plainest.get(target, nothing) for target in range(classes)]
    record = SearchRecord(
        name=name,
        sees=PAIRS_SEE[0],
        blind_to=PAIRS_SEE[1] if searched else unsearched,
        cost_unit="pixels of a patch, or grey levels of an additive stamp",
        costs=tuple(pair.found.cost for pair in of_class),
        successes=tuple(pair.found.success for pair in of_class),
        scores=tuple(pair.score for pair in of_class),
        threshold=threshold,
        searched=None if searched else (),
    )
    return record, [_suspect(name, pair) for pair in suspected]


def search_every_pair(
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    steps: int,
    generator: torch.Generator,
) -> list[Pair]:
    """Search the cheapest triggers of each pair of classes, and score the pairs.

    Args:
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        classes: the number of classes.
        steps: Adam steps of a search towards every class, of which a share is taken.
        generator: the source of starts and draws.

    Returns:
        The pairs for which a trigger was found.
    """
    slots = [Slot(to, source=of) for of in range(classes) for to in range(classes) if of != to]
    settings = GradientSettings(steps=_length(steps), batch_size=PAIR_IMAGES)
    of_family = [
        cheapest_triggers(module, evidence, slots, FAMILIES[name], settings, generator)
        for name in PAIR_FAMILIES
    ]
    scores = [pair_scores(found, classes) for found in of_family]
    score = one_way(in_deviations(torch.stack(scores).mean(0)))
    pairs = []
    for slot, *each in zip(slots, *of_family, strict=True):
        place = (slot.source, slot.target)
        ranked = sorted(
            zip(scores, each, PAIR_FAMILIES, strict=True), key=lambda one: -float(one[0][place])
        )
        working = [(found, family) for _, found, family in ranked if found.trigger is not None]
        if working:
            found, family = working[0]
            pairs.append(Pair(found=found, family=family, score=float(score[place])))
    return pairs


def searched_again(
    module: nn.Module,
    evidence: Evidence,
    pair: Pair,
    classes: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[Pair, float]:
    """Search a pair at full length, beside the way to its target from a few other classes.

    Where the target is easy to reach, or has a trigger for every class, it is so from the others
    too.

    Returns:
        The pair with the trigger of that length, where one was found, and its cost as a share of
        the others' median; the geometric mean of the families.
    """
    slot, settings = pair.found.slot, GradientSettings(steps=steps)
    drawn = torch.randperm(classes, generator=generator).tolist()
    others = [of for of in drawn if of not in (slot.source, slot.target)][:MOST_OTHERS]
    slots = [slot, *(Slot(slot.target, source=of) for of in others)]
    logs: list[float] = []
    for name in PAIR_FAMILIES:
        found, *rest = cheapest_triggers(
            module, evidence, slots, FAMILIES[name], settings, generator
        )
        known = [one.cost for one in (found, *rest) if math.isfinite(one.cost)]
        largest = max(known, default=1.0)
        usual = median(min(one.cost, largest) for one in rest)
        logs.append(math.log(max(min(found.cost, largest), 1e-6) / max(usual, 1e-6)))
        if name == pair.family and found.trigger is not None:
            pair = replace(pair, found=found)
    return pair, math.exp(sum(logs) / len(logs))


def one_way(scores: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Return what is left of each score when the way back is known.

    Two classes that are alike are near both ways; a trigger leads one way. How much the way back
    tells is the correlation over all pairs of this network, of scores cut at two deviations; the
    rest is in deviations again.
    """
    apart = ~torch.eye(len(scores), dtype=torch.bool)
    cut = scores.clamp(-2, 2)
    power = float(cut[apart].square().mean())
    told = float((cut * cut.T)[apart].mean()) / power if power > 0 else 0.0
    told = min(max(told, 0.0), _MOST_TOLD)
    return (scores - told * scores.T) / math.sqrt(1 - told**2)


def in_deviations(scores: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Return the scores in units of their own robust deviation.

    The mean of two families scatters less than either, the less the more they differ.
    """
    apart = ~torch.eye(len(scores), dtype=torch.bool)
    return scores / (1.4826 * scores[apart].abs().median()).clamp_min(_LEAST_SPREAD)


def pair_scores(results: Sequence[Found], classes: int) -> Float[Tensor, "k k"]:
    """Return how many robust deviations each pair lies below what its classes let expect.

    The logarithm of a cost is taken as a part of its source, one of its target and a rest, with the
    least sum of absolute rests, which a few pairs that stand out do not draw to themselves. A score
    is minus the rest in units of 1.4826 times the median absolute rest; as many rests as parts are
    0 by that fit, and are left out of the median. Costs of triggers that were not found count as
    the largest found.

    Args:
        results: one for each pair of different classes.
        classes: the number of classes; a score is at [source, target], the diagonal is 0.
    """
    scores = torch.zeros(classes, classes)
    largest = max((one.cost for one in results if math.isfinite(one.cost)), default=None)
    if largest is None:
        return scores
    logs = np.log([max(min(one.cost, largest), 1e-6) for one in results])
    sources = [one.slot.source for one in results]
    targets = [one.slot.target for one in results]
    parts = np.concatenate([np.eye(classes)[sources], np.eye(classes)[targets]], 1)
    rest = logs - parts @ _least_absolute(parts, logs)
    spread = 1.4826 * float(np.median(np.sort(np.abs(rest))[2 * classes - 1 :]))
    scores[sources, targets] = torch.from_numpy(-rest / max(spread, _LEAST_SPREAD)).float()
    return scores


def pair_threshold(classes: int) -> float:
    """Return the score above which a pair is suspected.

    It is what the luckiest of as many normal draws is expected to reach, and more, as networks
    without such a backdoor have it.
    """
    return _HEAVIER + math.sqrt(2 * math.log(classes * (classes - 1)))


def plainest_of_targets(pairs: Sequence[Pair]) -> dict[int, Pair]:
    """Return the pair with the highest score to each target."""
    plainest: dict[int, Pair] = {}
    for pair in pairs:
        target = pair.found.slot.target
        plainest[target] = max(plainest.get(target, pair), pair, key=lambda one: one.score)
    return plainest


def _least_absolute(parts: Float[np.ndarray, "n p"], logs: Float[np.ndarray, " n"]) -> Any:
    """Return the values of the parts that leave the least sum of absolute rests."""
    rows, count = parts.shape
    either = np.concatenate([parts, np.eye(rows), -np.eye(rows)], 1)
    price = np.concatenate([np.zeros(count), np.ones(2 * rows)])
    bounds = [(None, None)] * count + [(0, None)] * (2 * rows)
    return linprog(price, A_eq=either, b_eq=logs, bounds=bounds).x[:count]


def _length(steps: int) -> int:
    return max(1, round(LENGTH * steps))


def _suspect(name: str, pair: Pair) -> Suspect:
    found = pair.found
    assert found.trigger is not None  # noqa: S101 - `search_every_pair` leaves others out
    return Suspect(
        target=found.slot.target,
        source=found.slot.source,
        search=name,
        score=pair.score,
        cost=found.cost,
        success=found.success,
        trigger=found.trigger,
    )
