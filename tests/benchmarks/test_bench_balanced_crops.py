"""Crops that stand among synthetic images: beside them, repeatable, and as many of each class."""

import torch

from benchmarks.data.balanced_crops import balanced, with_crops
from edgeclean.networks.state import SyntheticImages


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_first_images_stay_and_as_many_crops_come_behind_them():
    pixels = torch.rand(40, 3, 8, 8, generator=generator())
    images = SyntheticImages(
        pixels=pixels, labels=torch.zeros(40, dtype=torch.int64), origin="procedural prior"
    )
    joined = with_crops(images, (3, 8, 8), seed=3)
    assert torch.equal(joined.pixels[:40], pixels)
    assert len(joined) == 80
    assert torch.equal(with_crops(images, (3, 8, 8), seed=3).pixels, joined.pixels)
    assert not torch.equal(with_crops(images, (3, 8, 8), seed=4).pixels[40:], joined.pixels[40:])


def test_of_each_class_as_many_come_as_it_has():
    given = torch.tensor([0] * 10 + [1] * 2 + [2] * 4)
    chosen = given[balanced(given, 9)]
    assert chosen.bincount().tolist() == [4, 2, 3]
    assert len(balanced(given, 9).unique()) == 9


def test_a_network_that_sees_a_class_in_few_crops_is_shown_as_many_of_it():
    pixels = torch.rand(60, 3, 8, 8, generator=generator())
    images = SyntheticImages(
        pixels=pixels, labels=torch.zeros(60, dtype=torch.int64), origin="procedural prior"
    )

    def bright(batch):
        return (batch.mean((1, 2, 3)) > 0.55).long()

    plain = bright(with_crops(images, (3, 8, 8), seed=3).pixels[60:])
    even = bright(with_crops(images, (3, 8, 8), seed=3, classes_of=bright).pixels[60:])
    assert 0 < int(plain.sum()) < 20
    assert int(even.sum()) == 30
