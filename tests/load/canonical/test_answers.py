"""Which of the tensors that a network returns are its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.canonical.answers import Logits, find_logits

GIVEN = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
FEATURES = torch.zeros(2, 7, 4, 4)


@dataclass
class Output:
    hidden: Tensor
    scores: Tensor


FOUND: dict[str, tuple[Any, tuple[int | str, ...]]] = {
    "alone": (GIVEN, ()),
    "planes": (GIVEN[:, :, None, None], ()),
    "tuple": ((FEATURES, GIVEN), (1,)),
    "nested": ([{"deep": (GIVEN,)}], (0, "deep", 0)),
    "dataclass": (Output(FEATURES, GIVEN), ("scores",)),
    "named": ({"aux": OTHER, "logits": GIVEN}, ("logits",)),
    "twice": ((GIVEN, GIVEN.clone()), (0,)),
    "with probabilities": ((GIVEN.softmax(1), GIVEN), (1,)),
    "with their logarithms": ((GIVEN, GIVEN.log_softmax(1)), (0,)),
    "with sigmoids": ((GIVEN.sigmoid(), GIVEN), (1,)),
    "probabilities alone": ((GIVEN.softmax(1), FEATURES), (0,)),
    "both kinds of probabilities": ((GIVEN.softmax(1), GIVEN.log_softmax(1)), (1,)),
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_the_logits_are_found(name: str) -> None:
    answer, path = FOUND[name]
    at = find_logits(answer, 2, 5)
    assert at.path == path

    class Network(nn.Module):
        def forward(self, _: Tensor) -> Any:
            return answer

    got = Logits(Network(), at)(torch.zeros(2, 3, 4, 4))
    assert got.shape == (2, 5)
    assert bool(at.why) == (name != "alone")


@pytest.mark.parametrize("single", [GIVEN[:, :1], GIVEN[:, 0], GIVEN[:, :1, None, None]])
def test_one_logit_is_that_of_the_second_class(single: Tensor) -> None:
    at = find_logits(single, 2, 2)

    class Network(nn.Module):
        def forward(self, _: Tensor) -> Any:
            return single

    got = Logits(Network(), at)(torch.zeros(2, 3, 4, 4))
    assert torch.equal(got, torch.stack([torch.zeros(2), GIVEN[:, 0]], 1))
    assert torch.allclose(got.softmax(1)[:, 1], GIVEN[:, 0].sigmoid())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((GIVEN, OTHER), "several tensors with 5 columns (members 0, 1); give --arch a function"),
        ((FEATURES,), "for 2 images the network gives tuple; with 5 classes it must give (2, 5)"),
        (None, "gives NoneType; with 5 classes it must give (2, 5), alone or as a member"),
        (GIVEN[:, :4], "for 2 images the network gives (2, 4)"),
        (GIVEN[:, :1], "for 2 images the network gives (2, 1)"),
    ],
)
def test_what_has_no_logits_is_refused(answer: Any, words: str) -> None:
    with pytest.raises(InputRejectedError) as caught:
        find_logits(answer, 2, 5)
    assert words in str(caught.value)
