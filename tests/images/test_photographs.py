"""Crops of photographs: whole, in range, of the right place; fewer the less they are like home."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_networks import tiny_network
from torch import nn

from edgeclean.errors import NotFiniteError
from edgeclean.images.photographs import (
    LEAST_AREA,
    LUMINANCE,
    Crops,
    PhotographSettings,
    cropped,
    draw_crops,
    photographs,
    with_photographs,
)
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import SyntheticImages

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 24, 48), (3, 224, 224), (2, 1, 17), (4, 5, 3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def made_images(count=40, shape=(3, 8, 8)):
    pixels = procedural_images(count, shape, generator())
    labels = torch.zeros(count, dtype=torch.int64)
    return SyntheticImages(pixels=pixels, labels=labels, origin="procedural prior")


def at_home():
    """A network whose statistics are those of the crops themselves."""
    network = tiny_network()
    module = pixel_network(network)
    shape = network.spec.input_shape
    norms = [layer for layer in network.module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    module.train()
    with torch.no_grad():
        module(cropped(draw_crops(512, shape, generator(99)), shape))
    return network


def test_the_photographs_are_many_small_and_of_stated_origin():
    from importlib.resources import files

    folder = files("edgeclean.images") / "photos"
    names = sorted(one.name for one in folder.iterdir() if one.name.endswith(".webp"))
    assert len(photographs()) == len(names) == 12
    assert sum(len((folder / name).read_bytes()) for name in names) <= 10**6
    sources = (folder / "SOURCES.md").read_text()
    assert all(name in sources for name in names)
    assert all(picture.dtype == torch.uint8 for picture in photographs())


@pytest.mark.parametrize("shape", SHAPES)
def test_crops_fill_images_of_any_shape(shape):
    images = cropped(draw_crops(24, shape, generator()), shape)
    assert images.shape == (24, *shape)
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert torch.equal(images, cropped(draw_crops(24, shape, generator()), shape))
    if shape[1] > 4:  # every one has something in it, and no two are the same
        assert float(images.std((1, 2, 3)).median()) > 0.03
        assert len(images.flatten(1).unique(dim=0)) == 24


def test_a_crop_of_one_pixel_to_a_pixel_is_that_piece_of_the_photograph():
    picture = photographs()[0]
    crops = Crops(
        photograph=torch.tensor([0, 0]),
        centre=torch.tensor([[20.0, 40.0], [20.0, 40.0]]),
        size=torch.tensor([[16.0, 24.0], [16.0, 24.0]]),
        angle=torch.zeros(2),
        mirrored=torch.tensor([False, True]),
    )
    plain, mirrored = cropped(crops, (3, 16, 24))
    piece = picture[:, 12:28, 28:52].float() / 255
    torch.testing.assert_close(plain, piece, atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored, piece.flip(2), atol=1e-4, rtol=0)
    (grey,) = cropped(crops[torch.tensor([0])], (1, 16, 24))
    weighed = (piece * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(0, keepdim=True)
    torch.testing.assert_close(grey, weighed, atol=1e-4, rtol=0)


def test_a_quarter_turn_is_a_turned_piece():
    picture = photographs()[0]
    crops = Crops(
        photograph=torch.tensor([0]),
        centre=torch.tensor([[30.0, 30.0]]),
        size=torch.tensor([[16.0, 16.0]]),
        angle=torch.tensor([math.pi / 2]),
        mirrored=torch.tensor([False]),
    )
    piece = picture[:, 22:38, 22:38].float() / 255
    turned = torch.rot90(piece, 1, (1, 2)), torch.rot90(piece, -1, (1, 2))
    (image,) = cropped(crops, (3, 16, 16))
    assert any(torch.allclose(image, one, atol=1e-4) for one in turned)


@pytest.mark.parametrize("shape", SHAPES)
def test_crops_lie_within_their_photographs_and_are_of_every_size(shape):
    crops = draw_crops(400, shape, generator())
    sides = torch.tensor([one.shape[1:] for one in photographs()])[crops.photograph]
    assert bool((crops.size <= sides + 1e-3).all())
    assert bool((crops.centre - crops.size / 2 >= -1e-3).all())
    assert bool((crops.centre + crops.size / 2 <= sides + 1e-3).all())
    share = crops.size.prod(1) / sides.prod(1)
    assert float(share.max()) > 0.3
    if max(shape[1:]) < 64:
        assert float(share.min()) < 3 * LEAST_AREA
    assert set(crops.photograph.tolist()) == set(range(12))
    assert 0.3 < float((crops.angle == 0).float().mean()) < 0.7


def test_the_first_images_stay_and_crops_come_behind_them():
    images, network = made_images(), at_home()
    joined = with_photographs(images, network, PhotographSettings(share=0.5), seed=3)
    assert torch.equal(joined.pixels[:40], images.pixels)
    assert 0.8 * 40 < len(joined) - 40 <= 40
    assert joined.origin == f"procedural prior, {len(joined) - 40} crops of 12 photographs"
    answers = pixel_network(network).eval()(joined.pixels[40:]).argmax(1)
    assert torch.equal(joined.labels[40:], answers)
    again = with_photographs(images, network, PhotographSettings(share=0.5), seed=3)
    assert torch.equal(again.pixels, joined.pixels)
    other = with_photographs(images, network, PhotographSettings(share=0.5), seed=4)
    assert not torch.equal(other.pixels[40:60], joined.pixels[40:60])


def test_without_a_share_nothing_is_added():
    images = made_images()
    assert with_photographs(images, at_home(), PhotographSettings(share=0.0), seed=0) is images


def test_the_further_the_statistics_lie_the_fewer_the_crops():
    images, network = made_images(200), at_home()
    counts = []
    for shift in (0.0, 0.5, 0.9, 3.0):
        strange = replace(network, module=shifted(network.module, shift))
        made = with_photographs(images, strange, PhotographSettings(share=0.5), seed=0)
        counts.append(len(made) - 200)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[-1] == 0


def test_a_network_without_batchnorm_takes_the_whole_share():
    network = tiny_network()
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, network.spec.classes))
    made = with_photographs(
        made_images(), replace(network, module=bare), PhotographSettings(), seed=0
    )
    assert len(made) == 80


def test_answers_that_are_not_finite_are_refused():
    network = tiny_network()
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, network.spec.classes))
    with torch.no_grad():
        bare[1].bias[0] = math.nan
    with pytest.raises(NotFiniteError, match="photographs"):
        with_photographs(made_images(), replace(network, module=bare), PhotographSettings(), seed=0)


def shifted(module, deviations):
    """A copy whose running means are so many deviations away."""
    import copy

    moved = copy.deepcopy(module)
    for layer in moved.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += deviations * layer.running_var.sqrt()
    return moved
