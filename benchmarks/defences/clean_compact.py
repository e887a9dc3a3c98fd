"""Clean & Compact's method, made of edgeclean's stages: clamp, truncate, tune on synthetic images.

Source: Clean & Compact (ECCV 2024), slides 9 and 10: the singular values of every core clamped at
tau, the leading ranks kept, images synthesised through the constrained network, adversarial
versions of them beside them in the fine-tuning. The slides leave open, and this module chooses:
tau itself, the ranks (least discarded energy at one ratio of the whole network), the length of the
tuning. Deviation: the tuning distils the *infected* network's answers to the images before they
are attacked, where the slides use the class that each image was made for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from benchmarks.data.images import LabelledImages
from edgeclean.compression.clamp import ScaleSettings, scale
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.networks.state import FinetunedNetwork, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanCompactSettings:
    """Settings of the stages that the method is made of.

    Attributes:
        ratio: multiply-accumulates of the network over those of the outcome.
        scale: the clamp; no published source gives the paper's tau.
        synthesize: the images that the network is tuned on.
        finetune: the tuning, with adversarial images.
    """

    RECORDED_AS: ClassVar[str] = "DeckSettings"  # the name in results that are measured already

    ratio: float = 2.0
    scale: ScaleSettings = field(default_factory=lambda: ScaleSettings(tau=0.5))
    synthesize: SynthesizeSettings = field(default_factory=SynthesizeSettings)
    finetune: FinetuneSettings = field(
        default_factory=lambda: FinetuneSettings(adversarial_share=0.5, photograph_share=0.0)
    )


def clean_compact(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: CleanCompactSettings | None = None,
) -> FinetunedNetwork:
    """Purify and compress a network in one; ``clean`` is unused."""
    settings = settings or CleanCompactSettings()
    scaled = scale(decompose(network, DecomposeSettings()), settings.scale)
    by_energy = RankSettings(ratio=settings.ratio, sensitivity="energy", factors="weights")
    constrained = truncate(scaled, choose_ranks(scaled, by_energy), TruncateSettings())
    images = synthesize(network, settings.synthesize, seed=seed, classifier=constrained)
    return finetune(constrained, network, images, settings.finetune, seed=seed)
