"""The normalisation between pixels in [0, 1] and a network's input: (pixel - mean) / std."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.networks.autocast import channels_last, device_of
from edgeclean.networks.state import ModelSpec, Network


class Normalize(nn.Module):
    """A module that computes (pixels - mean) / std for each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the network's own input."""
        normalised: Tensor = (pixels - self.mean) / self.std
        return normalised


def pixel_network(network: Network) -> nn.Sequential:
    """Return the network as a function of pixels, on its device; it shares the module."""
    scaling = Normalize(network.spec.mean, network.spec.std).to(device_of(network.module))
    return nn.Sequential(scaling, network.module)


def pixel_copy(network: Network) -> nn.Sequential:
    """Return a copy as a function of pixels: evaluation mode, channels-last, on its device."""
    function = copy.deepcopy(pixel_network(network)).eval()
    channels_last(function)
    return function


def normalize(pixels: Float[Tensor, "n c h w"], spec: ModelSpec) -> Float[Tensor, "n c h w"]:
    """Normalise pixels to the network's own input."""
    normalised: Tensor = Normalize(spec.mean, spec.std)(pixels)
    return normalised
