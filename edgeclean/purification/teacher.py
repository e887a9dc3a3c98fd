"""Who teaches after the first round: the network as it came, but not of the suspected classes.

A backdoor that one round of unlearning had removed came back in part in the next, although no
stamped image was taught as the trigger would have it. What brings it back is what the infected
network says of its target class: a student that teaches itself keeps the backdoor out, but drifts.
Leaving out, or teaching by the student, the images that the infected network alone gives to a
suspected class was not enough; so every image's logits of the suspected classes are taken from the
student that the round before left (`overrule` in `PurifySettings`; `benchmarks.ablations` switches
it off).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.frozen import frozen
from edgeclean.purification.unlearn import Ground


def overruled(
    ground: Ground, infected: nn.Module, student: nn.Module, suspected: Sequence[int]
) -> Ground:
    """The ground with a new teacher: the infected network, with the student's suspected logits.

    Args:
        ground: of the round before.
        infected: function of pixels, frozen.
        student: as the round before left it; it is copied.
        suspected: class numbers. `ELSEWHERE`, which is none, leaves the infected network alone:
            an all-to-all backdoor has no class of its own.
    """
    classes = [target for target in suspected if target >= 0]
    if not classes:
        return ground
    teacher = _Overruled(infected, frozen(student, ground.synthetic), classes)
    return replace(ground, teacher=teacher)


class _Overruled(nn.Module):
    def __init__(self, infected: nn.Module, student: nn.Module, classes: Sequence[int]) -> None:
        super().__init__()
        self._infected, self._student, self._classes = infected, student, list(classes)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        answers: Tensor = self._infected(pixels)
        columns = torch.tensor(self._classes, device=answers.device)
        return answers.index_copy(1, columns, self._student(pixels)[:, self._classes])
