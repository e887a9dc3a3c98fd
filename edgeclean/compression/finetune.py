"""Recover accuracy after truncation: distil the purified teacher on synthetic images.

The student learns the teacher's logits, and its features behind some BatchNorms (FitNets, Romero
et al. 2015), on synthetic images and on crops of ten photographs that know nothing of the
network (`images.crops`), all shifted, mirrored, recoloured, mixed and patched. Switches, off by
default because they won no accuracy (``benchmarks/studies/ablations.py``): fresh BatchNorm
statistics first, and the paper's adversarial versions, on which the student's answer to an attacked
image is the teacher's answer to the image before the attack. Another, off for safety, lets the
network as it came teach what was not unlearned (`overrule`).

Source: Clean & Compact, slide 10. Deviation: distillation instead of labels, because images made
by a network say more through its outputs than through the class they were made for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.compression.judge import Judge
from edgeclean.compression.optimizer import MuonAndAdam
from edgeclean.errors import UsageError
from edgeclean.images.augment import augmented, mixed, patched, recoloured
from edgeclean.images.batchnorm import reestimate_batchnorm_, statistics_distance
from edgeclean.images.crops import cropped, draw_crops, photographs
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.batching import images_in_a_part
from edgeclean.networks.cost import count_macs
from edgeclean.networks.distillation import (
    Compare,
    OutputDistance,
    label_answers,
    logit_variance,
    overruled,
)
from edgeclean.networks.features import (
    UNIT_IMAGES,
    Features,
    channel_moments,
    feature_distance,
    feature_scales,
    of_channels,
    shared_taps,
)
from edgeclean.networks.finite import require_finite, require_finite_loss
from edgeclean.networks.folding import folding_norms, inference_copy, learning_folded
from edgeclean.networks.layers import evaluated
from edgeclean.networks.pixels import module_of, pixel_copy
from edgeclean.networks.resized import Resized
from edgeclean.networks.state import (
    FinetunedNetwork,
    JsonValue,
    Network,
    SyntheticImages,
    TruncatedNetwork,
    following,
    record,
)
from edgeclean.processes import return_freed_memory
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting

MOST_TIMES = 4.0  # the settings' steps, however small a network is
COMPARED = 128  # crops whose statistics are compared with a network's


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings(Settings):
    """Length and balance of the recovery.

    Attributes:
        steps: optimiser steps of a network of which half the multiply-accumulates are left, more of
            a smaller one, fewer of one that sees smaller images (`times_taught`); 0 re-estimates
            BatchNorm and does nothing else.
        batch_size: images a step.
        learning_rate: the share of its own size by which a step moves a kernel
            (`optimizer.MuonAndAdam`), warmed up, then falling along a cosine to nothing.
        relative: whether it is such a share, of kernels that have the BatchNorms behind them in
            them (`networks.folding.learning_folded`); else every parameter, as it is, moves by the
            rate itself, which no rate makes right for all layers (`benchmarks.studies.recovery`).
        optimizer: ``muon`` for the matrices among the weights (`optimizer.MuonAndAdam`), or
            ``adam`` for all.
        compare: what the student's outputs are compared by: the teacher's logits or softened
            probabilities (`networks.distillation.OutputDistance`), or ``labels``, the classes that
            the images were made for (the paper's; images are then not mixed).
        feature_weight: of the features' loss beside the outputs'.
        adversarial_share: of each batch that is also shown attacked.
        epsilon: of the attack, in pixels of range [0, 1].
        photograph_share: of each batch that is crops of photographs where these have a network's
            own BatchNorm statistics, less the further they lie from them (`share_of_crops`).
        reestimate: whether BatchNorm statistics are set anew before the first step.
        overrule: whether the network as it came answers for the classes that were not unlearned. A
            student may learn the backdoor again from it; `benchmarks.studies.ablations` tries it.
    """

    steps: int = setting(1800, at_least=0, at_most=10**6)
    batch_size: int = setting(64, at_least=2, at_most=2**14)
    learning_rate: float = setting(3e-3, above=0, at_most=10)
    relative: bool = True
    optimizer: Literal["muon", "adam"] = "muon"
    compare: Compare = "logits"
    feature_weight: float = setting(1.0, at_least=0, at_most=1000)
    adversarial_share: float = setting(0.0, at_least=0, at_most=1)
    epsilon: float = setting(8 / 255, at_least=0, at_most=1)
    photograph_share: float = setting(0.5, at_least=0, at_most=1)
    reestimate: bool = False
    overrule: bool = False

    def check_together(self) -> None:
        """Refuse labels where something else is to be learned that has none."""
        if self.compare == "labels" and self.photograph_share + self.feature_weight > 0:
            raise UsageError(
                "labels are compared without a teacher or images that have none; set "
                "feature_weight and photograph_share to 0"
            )


def finetune(  # noqa: PLR0913 - a student, who teaches it, on what
    network: Network,
    teacher: Network,
    images: SyntheticImages,
    settings: FinetuneSettings,
    *,
    seed: int,
    progress: Progress = silent,
    original: Network | None = None,
    unlearned: Sequence[int] = (),
    judge: Judge | None = None,
) -> FinetunedNetwork:
    """``network`` taught by ``teacher`` on images that neither was trained on.

    What was taught is kept only where outputs for procedural images, from which nothing was learned
    by default, did not move further from the teacher's than they were: a network that forgot little
    can unlearn more by its synthetic images than it learns. Labels, and the network as it came, ask
    for other answers than the teacher's: what they taught is kept.

    Args:
        network: truncated; its BatchNorms (or, without any, its convolutions) carry the names
            that they have in the teacher.
        teacher: the purified network.
        images: synthesised from the teacher.
        settings: see `FinetuneSettings`.
        seed: of every draw.
        progress: told after each step.
        original: the network as it came, which answers for the classes that were not
            ``unlearned``, where the settings let it; None where the teacher answers for all.
        unlearned: the classes that purification unlearned.
        judge: of the teacher, by which what was taught is kept; None draws one.

    Raises:
        NotFiniteError: a step's loss, or what the last step left, is not finite.
    """
    module, notes = _taught(network, teacher, images, settings, seed, progress, original, unlearned)
    require_finite(module, "finetune")  # before a network that is not takes its place
    return_freed_memory()  # of large images, gigabytes that the steps had
    others = settings.compare == "labels" or (settings.overrule and original is not None)
    kept = notes["steps"] == 0 or others or not _harmed(module, network, judge or Judge.of(teacher))
    if not kept:
        module = evaluated(copy.deepcopy(network.module))
    made_by = record("finetune", module, network.spec, settings, {**notes, "kept": kept})
    return following(network, FinetunedNetwork, module, made_by)


def _harmed(taught: nn.Module, network: Network, judge: Judge) -> bool:
    """Whether procedural images, which taught nothing, are answered less as the teacher does."""
    return judge.change(taught) > judge.change(network.module)


def left_out(network: Network) -> str | None:
    """Return what a reader must know of a recovery that was not kept; None of one that was.

    Args:
        network: what `finetune` returned, or a later stage made of it.
    """
    if all(one.notes.get("kept", True) for one in network.history if one.stage == "finetune"):
        return None
    return (
        "Recovery was left out: it moved the answers to images that nothing was fitted to further "
        "from the purified network's, so the network is as truncation left it."
    )


def _taught(  # noqa: PLR0913 - as `finetune`
    network: Network,
    teacher: Network,
    images: SyntheticImages,
    settings: FinetuneSettings,
    seed: int,
    progress: Progress,
    original: Network | None,
    unlearned: Sequence[int],
) -> tuple[nn.Module, dict[str, JsonValue]]:
    """Return what the steps made of a network, and what is noted of them."""
    generator = torch.Generator().manual_seed(seed)
    learner, master = pixel_copy(network), pixel_copy(teacher)
    if settings.reestimate:
        reestimate_batchnorm_(learner, images.pixels)
    channels = network.channels if isinstance(network, TruncatedNetwork) else {}
    steps = round(settings.steps * times_taught(network, teacher))
    share, distance = 0.0, None
    if steps > 0:
        share, distance = share_of_crops(master, network.spec.input_shape, settings, generator)
    training = _Training(learner, master, images, settings, channels, share)
    if original is not None and settings.overrule:
        training.overrule(pixel_copy(original), unlearned)
    first, last = training.run(steps, generator, progress)
    module = evaluated(copy.deepcopy(module_of(learner, network)))
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
        parameter.grad = None
    losses = {"loss_first": first, "loss_last": last}
    crops = {"photograph_share": round(share, 4), "photograph_distance": distance}
    return module, {"images": len(images), "steps": steps, **losses, **crops}


def photographs_seen(network: Network) -> dict[str, JsonValue] | None:
    """Return how many photographs a recovery saw crops of, their share, and how far they lay.

    Args:
        network: what `finetune` returned, or a later stage made of it.

    Returns:
        None where a recovery saw none.
    """
    for one in network.history:
        if one.stage == "finetune" and one.notes.get("photograph_share", 0) > 0:
            share, distance = one.notes["photograph_share"], one.notes["photograph_distance"]
            return {"count": len(photographs()), "share": share, "distance": distance}
    return None


def times_of(ratio: float) -> float:
    """Return how many times as long a network cut to one in ``ratio`` is taught as a half."""
    return min(MOST_TIMES, max(1.0, ratio - 1))


def times_taught(network: Network, teacher: Network) -> float:
    """Return how many times the settings' steps a network is taught: once where half is left.

    A network of which ranks and channels left one in r multiply-accumulates is taught r - 1 times
    as long, but at least once and at most `MOST_TIMES`: the more they took, the slower it comes
    back. Pixels do not come back, and a network from which little else was taken forgets more about
    real images than synthetic ones teach it. So one that sees smaller images is taught for the
    share of that which is the multiply-accumulates taken by ranks and channels, of what they would
    have had to take alone.

    Args:
        network: compressed.
        teacher: the same network before, which sees images at their own size.
    """
    shape = network.spec.input_shape
    left, before = (count_macs(one.module, shape) for one in (network, teacher))
    alone = before
    if isinstance(network.module, Resized) and not isinstance(teacher.module, Resized):
        alone = count_macs(teacher.module, (shape[0], *network.module.resize.size))
    if left == 0:
        return 1.0  # no layer was counted
    times = times_of(alone / left)
    taken, whole = 1 - left / alone, 1 - left / before
    if alone == before or whole <= 0:
        return times
    return times * min(1.0, max(0.0, taken / whole))


def share_of_crops(
    master: nn.Module,
    shape: tuple[int, int, int],
    settings: FinetuneSettings,
    generator: torch.Generator,
) -> tuple[float, float | None]:
    """Return the share of each batch that crops of photographs have, and how far they lie.

    A network's BatchNorms say what images it was trained on. The distance of crops from them is in
    the network's own variances (`images.batchnorm.statistics_distance`): at 1, where they lie a
    whole deviation off, crops weigh half of what they weigh at 0. Of a network without BatchNorm
    nothing is known, and its synthetic images are made near procedural ones, which photographs are
    at least as natural as: there they weigh all. Where the distance is beyond float32 they weigh
    nothing.

    Args:
        master: the teacher, as a function of pixels.
        shape: channels, height and width of one image.
        settings: `FinetuneSettings`.
        generator: of the crops that are compared.
    """
    if settings.photograph_share == 0:
        return 0.0, None
    distance = statistics_distance(master, cropped(draw_crops(COMPARED, shape, generator), shape))
    if distance is None:
        return settings.photograph_share, None
    if not math.isfinite(distance):
        return 0.0, None
    return settings.photograph_share / (1 + distance), round(distance, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """What the distances of outputs and features are in."""

    likeness: OutputDistance
    classes: int
    scales: dict[str, Tensor]


class _Training:
    """One student, one teacher, one set of images."""

    def __init__(
        self,
        learner: nn.Module,
        master: nn.Module,
        synthetic: SyntheticImages,
        settings: FinetuneSettings,
        kept: Mapping[str, tuple[int, ...]],
        crops: float,
    ) -> None:
        self._learner, self._settings = learner, settings
        self._taps = shared_taps(learner, master) if settings.feature_weight > 0 else []
        self._master = inference_copy(master, synthetic.pixels)
        self._original: nn.Module | None = None
        self._unlearned: tuple[int, ...] = ()
        self._synthetic, self._crops = synthetic, round(crops * settings.batch_size)
        self._device = device_of(learner)
        self._kept = {
            f"1.{name}": torch.tensor(channels, device=self._device)
            for name, channels in kept.items()
        }
        fitting = images_in_a_part(synthetic.pixels.shape[1:], learner)
        self._at_once = max(1, int(fitting / (1 + settings.adversarial_share)))

    def overrule(self, original: nn.Module, unlearned: Sequence[int]) -> None:
        """Let another function of pixels answer for all classes but the ``unlearned`` ones."""
        self._original = inference_copy(original, self._synthetic.pixels)
        self._unlearned = tuple(unlearned)

    def run(
        self, steps: int, generator: torch.Generator, progress: Progress
    ) -> tuple[float | None, float | None]:
        """So many steps; the mean loss of the first and of the last tenth."""
        settings = self._settings
        losses: list[float] = []
        progress("Recovering accuracy", 0, steps)
        if steps == 0:
            return None, None
        taps = self._taps
        folded = learning_folded if settings.relative else folding_norms
        with (
            folded(self._learner, self._synthetic.pixels),
            Features(self._learner, taps) as own,
            Features(self._master, taps) as given,
        ):
            parameters = list(self._learner.parameters())
            optimizer = MuonAndAdam(
                self._learner,
                settings.learning_rate,
                _warm_cosine(steps),
                matrices=settings.optimizer == "muon",
                relative=settings.relative,
            )
            features = (own, given)
            units = self._units(given)
            for step in range(steps):
                optimizer.zero_grad()
                losses.append(self._learn(features, units, generator))
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimizer.step()
                progress("Recovering accuracy", step + 1, steps)
        return _mean_of_ends(losses)

    def _units(self, given: Features) -> _Units:
        """The units of some images' outputs and features, of as many at once as fit."""
        answers, moments = [], []
        for part in self._synthetic.pixels[:UNIT_IMAGES].split(self._at_once):
            answers.append(self._answers(part))
            moments.append(channel_moments(of_channels(given.take(), self._kept)))
        return _Units(
            likeness=OutputDistance(self._settings.compare, logit_variance(torch.cat(answers))),
            classes=answers[0].shape[1],
            scales=feature_scales(moments),
        )

    def _batch(
        self, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]:
        """Synthetic images and crops, augmented and mixed, and, where compared, labels."""
        size = self._settings.batch_size
        rows = torch.randint(len(self._synthetic), (size - self._crops,), generator=generator)
        drawn = self._synthetic.pixels[rows]
        if self._crops > 0:  # drawn anew: no two batches have the same
            channels, height, width = self._synthetic.pixels.shape[1:]
            shape = channels, height, width
            drawn = torch.cat([drawn, cropped(draw_crops(self._crops, shape, generator), shape)])
        order = torch.randperm(size, generator=generator)
        pixels = recoloured(augmented(drawn[order].to(self._device), generator), generator)
        if self._settings.compare == "labels":  # a mixture has none, and nothing is a crop
            return self._placed(pixels), self._synthetic.labels[rows][order]
        pixels = patched(mixed(pixels, generator), generator)
        return self._placed(pixels), torch.zeros(size, dtype=torch.int64)

    def _learn(
        self, features: tuple[Features, Features], units: _Units, generator: torch.Generator
    ) -> float:
        """The gradients of a new batch, in parts that fit into memory, and its loss."""
        (pixels, labels), total = self._batch(generator), 0.0
        for start in range(0, len(pixels), self._at_once):
            part = slice(start, start + self._at_once)
            share = len(pixels[part]) / len(pixels)
            loss = share * self._loss(pixels[part], labels[part], features, units, generator)
            require_finite_loss(loss, "finetune")
            loss.backward()
            total += float(loss.detach())
        return total

    def _loss(
        self,
        pixels: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " m"],
        features: tuple[Features, Features],
        units: _Units,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        own, given = features
        attacked_count = int(len(pixels) * self._settings.adversarial_share)
        if self._settings.compare == "labels":
            answers = label_answers(labels, units.classes).to(self._device)
        else:
            answers = self._answers(pixels)
        taught = of_channels(given.take(), self._kept)
        attacked = self._attacked(pixels[:attacked_count], answers[:attacked_count], generator)
        own.take()  # the attack's
        with mixed_precision(self._device):
            outputs = self._learner(torch.cat([pixels, attacked])).float()
        loss = units.likeness(outputs, torch.cat([answers, answers[:attacked_count]]))
        if taught:
            distance = feature_distance(own.take(), taught, units.scales, len(pixels))
            loss = loss + self._settings.feature_weight * distance
        return loss

    def _placed(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        return pixels.to(self._device, memory_format=torch.channels_last)

    @torch.no_grad()
    def _answers(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        placed = self._placed(pixels)
        with mixed_precision(self._device):
            answers: Tensor = self._master(placed)
            if self._original is not None:
                answers = overruled(self._original(placed), answers, self._unlearned)
        return answers.float()

    def _attacked(
        self,
        pixels: Float[Tensor, "n c h w"],
        answers: Float[Tensor, "n k"],
        generator: torch.Generator,
    ) -> Float[Tensor, "n c h w"]:
        """One untargeted sign step away from the teacher's answer, from a random start.

        Source: fast adversarial training (Wong et al., ICLR 2020).
        """
        if len(pixels) == 0:
            return pixels
        epsilon = self._settings.epsilon
        start = epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)
        moved = (pixels + start.to(self._device)).clamp(0, 1).requires_grad_()
        with mixed_precision(self._device):
            log_odds = functional.log_softmax(self._learner(moved).float(), 1)
        loss = functional.kl_div(log_odds, answers.softmax(1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        stepped = moved.detach() + 1.25 * epsilon * gradient.sign()
        bounded = torch.maximum(torch.minimum(stepped, pixels + epsilon), pixels - epsilon)
        return bounded.clamp(0, 1)


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """Return a schedule: ten steps of warm-up, and a cosine down to nothing."""
    return lambda step: (
        min(1.0, (step + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * step / max(1, steps)))
    )


def _mean_of_ends(losses: list[float]) -> tuple[float | None, float | None]:
    if not losses:
        return None, None
    tenth = max(1, len(losses) // 10)
    first, last = losses[:tenth], losses[-tenth:]
    return round(sum(first) / len(first), 4), round(sum(last) / len(last), 4)
