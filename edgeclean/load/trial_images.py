"""Images that differ as much as real ones do, on which a network is compared with itself.

Two images of plain noise have the same mean, spread and maximum, up to chance. Code that takes
those over a whole batch then answers each of the two as it does alone, and nothing shows.
"""

from __future__ import annotations

from itertools import cycle

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_CELLS = 4  # along each side of a smooth image
# The darkest and the brightest that an image may have, and how much of it is noise. None is of one
# colour, or has equal neighbours: a division by an image's own spread and an order of its own
# places must give the same numbers in a batch as alone.
_KINDS = ((0.05, 0.3, 0.1), (0.0, 1.0, 1.0), (0.75, 0.95, 0.02), (0.5, 0.65, 1.0))


def trial_images(shape: tuple[int, int, int], count: int) -> Float[Tensor, "n c h w"]:
    """Return images of very different brightness, contrast and smoothness, as pixels in [0, 1].

    Args:
        shape: channels, height and width.
        count: how many. The same come at every call; of more than four, some differ less.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, shape[0], _CELLS, _CELLS, generator=generator)
    images = torch.rand(count, *shape, generator=generator)
    for image, cells, (low, high, noise) in zip(images, coarse, cycle(_KINDS), strict=False):
        smooth = functional.interpolate(cells[None], shape[1:], mode="bilinear")[0]
        image.lerp_(smooth, 1 - noise).mul_(high - low).add_(low)
    return images
