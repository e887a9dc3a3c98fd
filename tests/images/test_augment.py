"""What recovery does to its images: colours as a whole, pieces in place, mixtures in range."""

import torch

from edgeclean.images.augment import augmented, mixed, patched, recoloured
from edgeclean.images.procedural import procedural_images
from edgeclean.images.synthesize import shifted, total_variation

COUNT = 64


def pixels(low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return low + (high - low) * torch.rand(COUNT, 3, 10, 12, generator=generator)


def test_every_view_keeps_shape_and_range_and_repeats_with_its_seed():
    for view in (augmented, mixed, patched, recoloured):
        first = view(pixels(), torch.Generator().manual_seed(3))
        assert first.shape == pixels().shape
        assert float(first.min()) >= 0
        assert float(first.max()) <= 1
        assert torch.equal(first, view(pixels(), torch.Generator().manual_seed(3)))
        assert not torch.equal(first, pixels())


def test_views_are_made_where_the_images_are():
    """PyTorch refuses to mix devices, and one that holds no numbers shows that as a GPU would."""
    elsewhere = pixels().to("meta")
    for view in (augmented, mixed, patched, recoloured):
        assert view(elsewhere, torch.Generator().manual_seed(3)).device.type == "meta"


def test_sides_of_one_pixel_are_not_shifted_and_their_images_are_numbers():
    """Signals are images of one row; priors, smoothness and views must make sense of them."""
    for shape in ((3, 1, 32), (3, 32, 1), (1, 1, 1), (2, 2, 3)):
        images = procedural_images(COUNT, shape, torch.Generator().manual_seed(0))
        assert images.shape == (COUNT, *shape)
        assert images.isfinite().all()
        assert float(images.std(0).min()) > 0  # different images
        for view in (augmented, mixed, patched, recoloured, shifted):
            seen = view(images, torch.Generator().manual_seed(3))
            assert seen.shape == images.shape
            assert seen.isfinite().all()
        assert total_variation(images).isfinite()
    row = torch.rand(2, 3, 1, 9, generator=torch.Generator().manual_seed(0))
    assert float(total_variation(row)) == float((row[..., 1:] - row[..., :-1]).abs().mean())
    assert float(total_variation(row.transpose(2, 3))) == float(total_variation(row))


def test_new_colours_are_one_contrast_and_one_shift_for_each_channel_of_an_image():
    before = pixels(0.499, 0.501)  # far from where pixels are cut off
    after = recoloured(before, torch.Generator().manual_seed(0))
    free = ((after > 0) & (after < 1)).flatten(1).all(1)
    assert int(free.sum()) > COUNT / 2
    spread = (after - after.mean((2, 3), keepdim=True))[free]
    original = (before - before.mean((2, 3), keepdim=True))[free]
    contrast = (spread * original).sum((1, 2, 3)) / original.square().sum((1, 2, 3))
    torch.testing.assert_close(spread, original * contrast.view(-1, 1, 1, 1), rtol=1e-2, atol=1e-5)
    assert float(contrast.min()) < 0.9 < 1.1 < float(contrast.max())


def test_a_patch_is_a_rectangle_of_another_image_at_its_own_place():
    before = pixels()
    after = patched(before, torch.Generator().manual_seed(0))
    changed = (after != before).any(1)
    touched = changed.flatten(1).any(1)
    assert 0.25 < float(touched.float().mean()) < 0.75
    for image, mask in zip(after[touched], changed[touched], strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)
        source = (before[:, :, mask] == image[:, mask]).flatten(1).all(1)
        assert bool(source.any())
