"""The gradient search: the cheapest trigger of one family for every slot at once.

Source: Neural Cleanse (Wang et al., IEEE S&P 2019), section IV, on synthetic instead of clean
images; its schedule of the cost's weight, one per slot. We add slots restricted to one source
class, slots without a target (`ELSEWHERE`, `TOGETHER`), families other than masks, and the check of
every result on all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edgeclean.backdoor.families import Family
from edgeclean.backdoor.triggers import Trigger
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.batching import images_in_a_part, images_shown
from edgeclean.networks.finite import require_finite_loss
from edgeclean.processes import return_freed_memory
from edgeclean.settings import Settings, setting

ANY = -1  # a slot's source when it takes images of every class, and its image when it takes all
ELSEWHERE = -2  # a slot's target when every image is to leave the class that it has
TOGETHER = -3  # a slot's target when images are to leave for one class, whichever that comes to be
CHEAP = 0.6  # of what comparable triggers cost, for one that is not natural
_NOTHING = -1e4  # a log-probability that is none; an infinite one would have no gradient
# As rare as a class may count at the start: one that no image shows there is no find.
_RAREST = -30.0


@dataclass(frozen=True, slots=True)
class Slot:
    """One hypothesis: images of ``source``, or `ANY`, can be sent to ``target``.

    The target is a class, `ELSEWHERE` or `TOGETHER`, which may come to be one of ``among``; () for
    any. With ``image`` it is about that one image alone.
    """

    target: int
    source: int = ANY
    image: int = ANY
    among: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Images with the predictions of the network under test, which take the place of labels."""

    pixels: Float[Tensor, "n c h w"]
    predictions: Int[Tensor, " n"]

    def of_source(self, source: int) -> Evidence:
        """Return the evidence of one class's images alone; of all with `ANY`, or if it has none."""
        own = self.predictions == source
        return Evidence(self.pixels[own], self.predictions[own]) if bool(own.any()) else self

    def usable(self, slot: Slot) -> Bool[Tensor, " n"]:
        """Mark the images that a slot may use: not yet of the target, and of its source."""
        usable = self.predictions != slot.target
        if slot.image != ANY:
            usable = usable & (torch.arange(len(usable)) == slot.image)
        return usable if slot.source == ANY else usable & (self.predictions == slot.source)


@dataclass(frozen=True, slots=True)
class Found:
    """The cheapest trigger of one slot that still works.

    ``cost`` is in the family's unit; infinite, with no trigger, if none worked. ``success`` is the
    share of all usable images that it sends to the target; where none worked, the highest running
    share that the search came to.
    """

    slot: Slot
    cost: float
    success: float
    trigger: Trigger | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSettings(Settings):
    """The length of a gradient search, and when a trigger counts as working.

    Attributes:
        steps: the number of Adam steps.
        batch_size: images for each slot in a step.
        success: the share of a slot's images that a trigger must send to its target.
        slots_at_once: the most; of large images they are as many as fit into memory (`batching`).
    """

    steps: int = setting(100, at_least=1, at_most=10**6)
    batch_size: int = setting(16, at_least=1, at_most=2**14)
    success: float = setting(0.95, above=0, at_most=1)
    slots_at_once: int = setting(64, at_least=1, at_most=10**4)


def cheapest_triggers(
    module: nn.Module,
    evidence: Evidence,
    slots: list[Slot],
    family: type[Family],
    settings: GradientSettings,
    generator: torch.Generator,
) -> list[Found]:
    """Search, for each slot, the cheapest trigger of ``family`` with enough running success.

    ``module`` is a function of pixels for inference. The least running success is
    ``settings.success``. Slots with fewer than two usable images come back as not found, but for
    those of one image alone.
    """
    found: list[Found] = []
    fitting = images_in_a_part(evidence.pixels.shape[1:], module) // settings.batch_size
    at_once = max(1, min(settings.slots_at_once, fitting))
    for start in range(0, len(slots), at_once):
        chunk = slots[start : start + at_once]
        found += _search_chunk(module, evidence, chunk, family, settings, generator)
        return_freed_memory()  # of large images, which are few at once, it would grow by chunks
    return found


def _search_chunk(
    module: nn.Module,
    evidence: Evidence,
    slots: list[Slot],
    family: type[Family],
    settings: GradientSettings,
    generator: torch.Generator,
) -> list[Found]:
    channels, height, width = evidence.pixels.shape[1:]
    hypothesis = family(len(slots), (channels, height, width), generator)
    optimizer = torch.optim.Adam(hypothesis.parameters(), lr=family.learning_rate, betas=(0.5, 0.9))
    pools = [evidence.usable(slot).nonzero().flatten() for slot in slots]
    targets = torch.tensor([slot.target for slot in slots])
    tracker = _Tracker(slots, hypothesis.cost_weight())
    handicap = None
    for step in range(settings.steps):
        rows = torch.stack([_draw(pool, settings.batch_size, generator) for pool in pools])
        logits = logits_of(module, hypothesis.stamp(evidence.pixels[rows]))
        own = evidence.predictions[rows]
        if step == 0:
            handicap = _handicap(slots, logits.detach(), own)
        cost = hypothesis.cost()
        optimizer.zero_grad()
        loss = class_loss(logits, targets, own, handicap).mean(1) + tracker.weight * cost
        require_finite_loss(loss, f"{family.name} search")
        loss.sum().backward()
        hits = success_of(logits.detach(), targets, own, handicap)
        tracker.update(step, hits, cost.detach(), settings.success, hypothesis)
        optimizer.step()
    return [
        _confirmed(module, evidence, slot, tracker.best[index], tracker.most[index])
        if len(pools[index]) > (slot.image == ANY)
        else Found(slot, float("inf"), 0.0, None)
        for index, slot in enumerate(slots)
    ]


def _handicap(
    slots: list[Slot], logits: Float[Tensor, "k b classes"], own: Int[Tensor, "k b"]
) -> Float[Tensor, "k classes"] | None:
    """Return the log share of each class at the start; prohibitive for those closed to a slot.

    Without it, the class that most stamps lead to anyway would win before another can rise. None
    where every slot has a target.
    """
    if all(slot.target != TOGETHER for slot in slots):
        return None
    handicap = _log_shares(logits, own).clamp_min(_RAREST)
    for row, slot in enumerate(slots):
        if slot.among:
            closed = torch.ones(logits.shape[2], dtype=torch.bool)
            closed[list(slot.among)] = False
            handicap[row, closed] = -_NOTHING
    return handicap


def class_loss(
    logits: Float[Tensor, "k b classes"],
    targets: Int[Tensor, " k"],
    own: Int[Tensor, "k b"],
    handicap: Float[Tensor, "k classes"] | None = None,
) -> Float[Tensor, "k b"]:
    """Return the cross-entropy to each row's target; for `ELSEWHERE`, -log of all but ``own``.

    For `TOGETHER` it is one number for all images of a row: -log of the root of the summed squares
    of the classes' mean probabilities, where an image's own class counts as 0. That is -log q if
    all go to one class, with q on the average, and more if they part. Each is counted in units of
    what the logarithm ``handicap`` says, if it is given: a class then counts by its growth.
    """
    everything = logits.logsumexp(2)
    asked = targets.clamp_min(0)[:, None].expand_as(own)
    toward = everything - logits.gather(2, asked[..., None])[..., 0]
    others = logits.scatter(2, own[..., None], -torch.inf).logsumexp(2)
    loss = torch.where(targets[:, None] == ELSEWHERE, everything - others, toward)
    together = targets == TOGETHER
    if bool(together.any()):
        apart = -0.5 * (2 * _growth(logits, own, handicap)).logsumexp(1)
        loss = torch.where(together[:, None], apart[:, None], loss)
    return loss


def arrived(
    logits: Float[Tensor, "k b classes"], targets: Int[Tensor, " k"], own: Int[Tensor, "k b"]
) -> Bool[Tensor, "k b"]:
    """Mark the images that have their row's target class."""
    given = logits.argmax(2)
    return torch.where(targets[:, None] == ELSEWHERE, given != own, given == targets[:, None])


def success_of(
    logits: Float[Tensor, "k b classes"],
    targets: Int[Tensor, " k"],
    own: Int[Tensor, "k b"],
    handicap: Float[Tensor, "k classes"] | None = None,
) -> Float[Tensor, " k"]:
    """Return the share of each row's images that went to its target, of those not of it before.

    For `TOGETHER` the target is the class whose mean probability for images of other classes is
    highest, or has grown most over the ``handicap``.
    """
    together = targets == TOGETHER
    if bool(together.any()):
        targets = torch.where(together, _growth(logits, own, handicap).argmax(1), targets)
    others = own != targets[:, None]
    hits = arrived(logits, targets, own) & others
    return hits.sum(1) / others.sum(1).clamp_min(1)


def _growth(
    logits: Float[Tensor, "k b classes"],
    own: Int[Tensor, "k b"],
    handicap: Float[Tensor, "k classes"] | None,
) -> Float[Tensor, "k classes"]:
    shares = _log_shares(logits, own)
    return shares if handicap is None else shares - handicap


def _log_shares(
    logits: Float[Tensor, "k b classes"], own: Int[Tensor, "k b"]
) -> Float[Tensor, "k classes"]:
    """Return the log of each class's mean probability over a row; an image's own class adds 0."""
    odds = logits.log_softmax(2).scatter(2, own[..., None], _NOTHING)
    return odds.logsumexp(1) - math.log(logits.shape[1])


class _Tracker:
    """The running success, its highest, the cost weight and the best trigger of each slot."""

    def __init__(self, slots: list[Slot], weight: float) -> None:
        self.weight = torch.full((len(slots),), weight)
        self._limits = (weight / 10, weight * 300)
        self._success = torch.zeros(len(slots))
        self._costs = [float("inf")] * len(slots)
        self.most = [0.0] * len(slots)
        self.best: list[tuple[float, Trigger] | None] = [None] * len(slots)

    def update(
        self, step: int, hits: Tensor, cost: Tensor, success: float, hypothesis: Family
    ) -> None:
        """Keep cheaper triggers that work, and raise the cost's weight where one does."""
        self._success = hits if step == 0 else 0.7 * self._success + 0.3 * hits
        works = self._success > success
        self.most = [max(pair) for pair in zip(self.most, self._success.tolist(), strict=True)]
        self.weight = torch.where(works, self.weight * 1.12, self.weight / 1.08)
        self.weight = self.weight.clamp(*self._limits)
        for slot in works.nonzero().flatten().tolist():
            if float(cost[slot]) < self._costs[slot]:
                self._costs[slot] = float(cost[slot])
                self.best[slot] = (float(cost[slot]), hypothesis.trigger(slot))


def _draw(pool: Tensor, count: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Draw ``count`` entries of ``pool`` with repetition; index 0 where the pool is empty."""
    if len(pool) == 0:
        return torch.zeros(count, dtype=torch.int64)
    return pool[torch.randint(len(pool), (count,), generator=generator)]


def logits_of(
    module: nn.Module, images: Float[Tensor, "k b c h w"]
) -> Float[Tensor, "k b classes"]:
    """Return the module's outputs, in float32 on the CPU."""
    device = device_of(module)
    flat = images.flatten(0, 1).to(device, memory_format=torch.channels_last)
    with mixed_precision(device):
        logits: Tensor = module(flat)
    return logits.float().cpu().view(*images.shape[:2], -1)


def _confirmed(
    module: nn.Module,
    evidence: Evidence,
    slot: Slot,
    best: tuple[float, Trigger] | None,
    most: float,
) -> Found:
    if best is None:
        return Found(slot, float("inf"), most, None)
    cost, trigger = best
    return Found(slot, cost, success_rate(module, evidence, slot, trigger), trigger)


@torch.no_grad()
def success_rate(module: nn.Module, evidence: Evidence, slot: Slot, trigger: Trigger) -> float:
    """Return the share of the slot's usable images sent to its target; 0 without any image."""
    usable = evidence.usable(slot)
    if not bool(usable.any()):
        return 0.0
    own, given = evidence.predictions[usable], given_classes(module, evidence, slot, trigger)
    if slot.target == TOGETHER:
        sink = sink_of(own, given, slot.among)
        given, own = given[own != sink], own[own != sink]
        return float((given == sink).float().mean()) if len(own) else 0.0
    hits = given != own if slot.target == ELSEWHERE else given == slot.target
    return float(hits.float().mean())


def sink_of(own: Int[Tensor, " n"], given: Int[Tensor, " n"], among: Sequence[int] = ()) -> int:
    """Return the class, of ``among`` or of all, that most images leave for; -1 if none leaves."""
    left = given[given != own]
    if among:
        left = left[torch.isin(left, torch.tensor(among))]
    return int(left.bincount().argmax()) if len(left) else -1


@torch.no_grad()
def given_classes(
    module: nn.Module, evidence: Evidence, slot: Slot, trigger: Trigger
) -> Int[Tensor, " m"]:
    """Return the classes that the slot's usable images are given with the trigger on."""
    shown = images_shown(evidence.pixels.shape[1:])
    batches = evidence.pixels[evidence.usable(slot)].split(shown)
    given = [logits_of(module, trigger.stamp(batch).unsqueeze(0))[0].argmax(1) for batch in batches]
    return torch.cat(given) if given else torch.zeros(0, dtype=torch.int64)
