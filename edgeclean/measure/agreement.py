"""Measure how often a network answers as the original does, on images that no stage tuned it on.

The images know nothing of what was done to the network, and need no labels: synthetic ones, made
from the original with a seed of their own, and procedural ones. Agreement on them is no accuracy;
`forecast` says what it was worth on the networks that the forecast was learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeclean.images.batchnorm import statistics_distance
from edgeclean.images.procedural import procedural_images
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.networks.autocast import device_of, exact_float32
from edgeclean.networks.batching import images_shown
from edgeclean.networks.distillation import logit_variance
from edgeclean.networks.pixels import normalize, pixel_copy
from edgeclean.networks.state import ModelSpec, Network, SyntheticImages
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting
from exporters.session import OnnxSession

BATCH = 128
OWN_SEED = 0x5EED  # added to a run's seed: no other stage draws the same images
UNLABELLED = 0
HOLDING_OUT = "Holding out images"  # the title that it is reported under


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSettings(Settings):
    """The images that agreement is measured on, and how short a search's recoveries are.

    The forecast was learnt with the defaults: other numbers of images add chance, and other steps
    make images of another kind.

    Attributes:
        synthetic: images made from the original.
        steps: Adam steps for each batch of those.
        procedural: procedural images.
        probe_share: the share of the recovery's steps that each ratio is tried with, where the
            largest ratio is looked for that keeps an accuracy.
    """

    synthetic: int = setting(160, at_least=1, at_most=10**5)
    steps: int = setting(12, at_least=1, at_most=10**6)
    procedural: int = setting(512, at_least=1, at_most=10**5)
    probe_share: float = setting(0.15, above=0, at_most=1)


def _synthetic(network: Network, settings: HeldOutSettings, seed: int) -> SyntheticImages:
    drawn = SynthesizeSettings(count=settings.synthetic, steps=settings.steps)
    return synthesize(network, drawn, seed=seed)


def _procedural(network: Network, settings: HeldOutSettings, seed: int) -> SyntheticImages:
    generator = torch.Generator().manual_seed(seed)
    pixels = procedural_images(settings.procedural, network.spec.input_shape, generator)
    labels = torch.full((len(pixels),), UNLABELLED)
    return SyntheticImages(pixels=pixels, labels=labels, origin="procedural prior")


# Each a function of the original, the settings and a seed; a calibration weighs those it knows.
KINDS: Mapping[str, Callable[[Network, HeldOutSettings, int], SyntheticImages]] = {
    "synthetic": _synthetic,
    "procedural": _procedural,
}


def held_out(
    network: Network, settings: HeldOutSettings, *, seed: int, progress: Progress = silent
) -> dict[str, SyntheticImages]:
    """Make the images of every kind in `KINDS`.

    Args:
        network: the network as it came.
        settings: see `HeldOutSettings`.
        seed: of the run; the images are drawn from seeds of their own.
        progress: called after every kind.
    """
    images = {}
    progress(HOLDING_OUT, 0, len(KINDS))
    for done, (kind, make) in enumerate(KINDS.items(), start=1):
        images[kind] = make(network, settings, (seed + OWN_SEED * done) % 2**63)
        progress(HOLDING_OUT, done, len(KINDS))
    return images


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How often two networks name the same class.

    Attributes:
        kind: of the images; see `KINDS`.
        images: that were counted: those that the original gives an unlearned class are left out,
            for they may carry what was unlearned.
        agreed: the share of them, in [0, 1], that both networks give the same class; 1 of none.
        agreed_where_sure: the same share of the half that the original is surest of, by the margin
            of its largest logit over the second; told, and not forecast by.
        distance: mean squared difference of the logits over the variance of the original's, each
            image's mean logit taken off; 0 for the same answers.
    """

    kind: str
    images: int
    agreed: float
    agreed_where_sure: float
    distance: float


Answers = Mapping[str, Float[Tensor, "n k"]]


@torch.no_grad()
def answers_of(network: Network, images: Mapping[str, SyntheticImages]) -> Answers:
    """Return the network's logits for the images of each kind, in float32 on the CPU."""
    function = pixel_copy(network)
    device = device_of(function)
    with exact_float32():
        return {
            kind: torch.cat([function(part.to(device)).float().cpu() for part in _parts(one)])
            for kind, one in images.items()
        }


def answers_of_file(
    model: bytes, spec: ModelSpec, images: Mapping[str, SyntheticImages]
) -> Answers:
    """Return the logits of an ONNX file, whose inputs are normalised as the original's are."""
    session = OnnxSession(model)
    return {
        kind: torch.cat(
            [
                torch.from_numpy(
                    session.predict(np.ascontiguousarray(normalize(part, spec).numpy()))
                )
                for part in _parts(one)
            ]
        )
        for kind, one in images.items()
    }


def _parts(images: SyntheticImages) -> Sequence[Float[Tensor, "m c h w"]]:
    return torch.split(images.pixels, images_shown(images.pixels.shape[1:], BATCH))


def agreements(
    original: Answers, other: Answers, unlearned: Sequence[int] = ()
) -> tuple[Agreement, ...]:
    """Return the agreement on each kind of images.

    Args:
        original: the answers of the network as it came.
        other: those of the network after purification, or compression.
        unlearned: the classes that purification unlearned.
    """
    found, gone = [], torch.tensor(tuple(unlearned), dtype=torch.int64)
    for kind, answers in original.items():
        counted = ~torch.isin(answers.argmax(1), gone)
        own, others = answers[counted], other[kind][counted]
        same = own.argmax(1) == others.argmax(1)
        found.append(
            Agreement(
                kind=kind,
                images=len(same),
                agreed=_share(same),
                agreed_where_sure=_share(same[_surer_half(own)]),
                distance=_distance(own, others),
            )
        )
    return tuple(found)


def _share(same: Bool[Tensor, " n"]) -> float:
    return float(same.double().mean()) if len(same) else 1.0


def _distance(own: Float[Tensor, "n k"], others: Float[Tensor, "n k"]) -> float:
    if not len(own):
        return 0.0
    first, second = (one.double() - one.double().mean(1, keepdim=True) for one in (own, others))
    return float((first - second).square().mean()) / logit_variance(first)


def _surer_half(answers: Float[Tensor, "n k"]) -> Int[Tensor, " m"]:
    """Return the images of the larger margins; of equal ones the earlier."""
    first, second = answers.topk(2, dim=1).values.unbind(1)
    return (first - second).argsort(descending=True, stable=True)[: -(-len(answers) // 2)]


def procedural_distance(network: Network, images: Mapping[str, SyntheticImages]) -> float | None:
    """Return the `statistics_distance` of the procedural images; None without BatchNorm.

    A network whose own images were far from photographs has other statistics.
    """
    return statistics_distance(pixel_copy(network), images["procedural"].pixels)
