"""Crops of photographs: whole, in range, and of the right place."""

import math

import pytest
import torch

from edgeclean.images.crops import (
    FOLDER,
    LEAST_AREA,
    LUMINANCE,
    Crops,
    cropped,
    draw_crops,
    photographs,
)

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 24, 48), (3, 224, 224), (2, 1, 17), (4, 5, 3)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_photographs_are_many_small_and_of_stated_origin():
    names = sorted(one.name for one in FOLDER.glob("*.webp"))
    assert len(photographs()) == len(names) == 10
    assert sum((FOLDER / name).stat().st_size for name in names) <= 10**6
    sources = (FOLDER / "SOURCES.md").read_text()
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
    assert set(crops.photograph.tolist()) == set(range(10))
    assert 0.3 < float((crops.angle == 0).float().mean()) < 0.7
