"""Images that differ as much as real ones do, on which a network is compared with itself.

Two images of plain noise have the same mean, spread and maximum, up to chance. Code that takes
those over a whole batch then answers each of the two as it does alone, and nothing shows.
"""

from __future__ import annotations

import copy
from itertools import cycle

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError

_EXACT = 1e-6  # of the largest answer, in float64
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


def refuse_rounding(module: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
    """Refuse a network whose answers to an image alone and in a batch differ in float32 alone.

    Args:
        module: in evaluation mode; it is left as it was. One that does not run in float64 is taken
            to differ there as well.
        images: at least two.

    Raises:
        InputRejectedError: in float64 the answers are the same.
    """
    try:
        exact, pixels = copy.deepcopy(module).double(), images.double()
        with torch.no_grad():
            together = exact(pixels.clone()).flatten(1)
            alone = torch.cat([exact(one[None].clone()).reshape(1, -1) for one in pixels])
        same = bool((together - alone).abs().max() <= _EXACT * alone.abs().max())
    except Exception:  # noqa: BLE001 - code of any kind raises what it likes
        return
    if same:
        raise InputRejectedError(
            "the network's answers are lost in rounding: in float32 an image has another one alone "
            "than in a batch, in float64 the same. Its numbers grow too large, or cancel out: are "
            "its weights the trained ones, and its BatchNorm statistics theirs?"
        )
