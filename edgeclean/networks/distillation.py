"""Distances of a student's outputs from its teacher's.

Unlearning triggers and recovering accuracy are both distillation. They compare logits (Ba and
Caruana, 2014) rather than softened probabilities (Hinton et al., 2015): on images made without
data a teacher's answers are often near one class, where probabilities hold almost nothing of the
other logits. ``benchmarks/studies/ablations.py`` measures the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
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


class Overruled(nn.Module):
    """A function of pixels whose logits are one network's, but of some classes another's.

    Args:
        network: whose logits are answered.
        other: whose logits of ``classes`` are answered instead.
        classes: class numbers.
    """

    def __init__(self, network: nn.Module, other: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self._network, self._other, self._classes = network, other, tuple(classes)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Return the logits of both, joined."""
        answers: Tensor = self._network(pixels)
        return overruled(answers, self._other(pixels), self._classes)


def overruled(
    answers: Float[Tensor, "n k"], others: Float[Tensor, "n k"], classes: Sequence[int]
) -> Float[Tensor, "n k"]:
    """Return ``answers`` with the columns ``classes`` of ``others``."""
    columns = torch.tensor(tuple(classes), dtype=torch.int64, device=answers.device)
    return answers.index_copy(1, columns, others[:, columns].to(answers.dtype))


def logit_variance(answers: Float[Tensor, "n k"]) -> float:
    """Return the variance of a class's logit over images, a mean over classes; above 0."""
    return max(float(answers.float().var(0, unbiased=False).mean()), 1e-6)


def label_answers(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, "n k"]:
    """Return logits whose distribution is 95 % the label and 5 % spread over all classes."""
    shares = torch.zeros(len(labels), classes, device=labels.device)
    return shares.scatter_(1, labels[:, None], 0.95).add_(0.05 / classes).log_()
