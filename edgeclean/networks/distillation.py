"""Distances of a student's outputs from its teacher's.

Unlearning triggers and recovering accuracy are both distillation. They compare logits (Ba and
Caruana, 2014) rather than softened probabilities (Hinton et al., 2015): on images made without
data a teacher's answers are often near one class, where probabilities hold almost nothing of the
other logits. ``benchmarks/studies/ablations.py`` measures the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Compare = Literal["logits", "probabilities", "labels"]
_TEMPERATURE = 2.0


@dataclass(frozen=True, slots=True)
class OutputDistance:
    """A distance of outputs, computed by calling it.

    Attributes:
        compare: ``logits``: mean squared difference over ``scale``; ``probabilities``: T^2 times
            the divergence of the student's softened distribution from the teacher's, T = 2;
            ``labels``: cross-entropy, where the answers stand for labels (`label_answers`).
        scale: the variance of the teacher's logits (`logit_variance`), which makes the first
            distance one of networks of any confidence.
    """

    compare: Compare
    scale: float

    def __call__(
        self, outputs: Float[Tensor, "n k"], answers: Float[Tensor, "n k"]
    ) -> Float[Tensor, ""]:
        """Return the distance of ``outputs`` from the teacher's ``answers``, a mean over images."""
        if self.compare == "logits":
            return (outputs - answers).square().mean() / self.scale
        if self.compare == "labels":
            return functional.cross_entropy(outputs, answers.softmax(1))
        log_odds = functional.log_softmax(outputs / _TEMPERATURE, 1)
        odds = (answers / _TEMPERATURE).softmax(1)
        return functional.kl_div(log_odds, odds, reduction="batchmean") * _TEMPERATURE**2


def logit_variance(answers: Float[Tensor, "n k"]) -> float:
    """Return the variance of a class's logit over images, a mean over classes; above 0."""
    return max(float(answers.float().var(0, unbiased=False).mean()), 1e-6)


def label_answers(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n k"]:
    """Return logits whose distribution is 95 % the label and 5 % spread over all classes."""
    return (0.95 * functional.one_hot(labels, classes) + 0.05 / classes).log()
