"""The normalisation between pixels in [0, 1] and a network's input: (pixel - mean) / std."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.networks.autocast import channels_last, device_of
from edgeclean.networks.resized import Resized, like
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
    """Return the network as a function of pixels, on its device; it shares the module.

    Its layers are those of ``1``, also where the network resizes its images: that is a part of
    ``0``, so that a student which does and a teacher which does not have the same names.
    """
    module = network.module
    scaling = Normalize(network.spec.mean, network.spec.std).to(device_of(module))
    if isinstance(module, Resized):
        return nn.Sequential(nn.Sequential(scaling, module.resize), module.network)
    return nn.Sequential(scaling, module)


def module_of(function: nn.Module, network: Network) -> nn.Module:
    """Return the module out of a function that `pixel_network` or `pixel_copy` made of a network.

    It shares what the function holds by now.
    """
    return like(network.module, function.get_submodule("1"))


def pixel_copy(network: Network) -> nn.Sequential:
    """Return a copy as a function of pixels: evaluation mode, channels-last, on its device."""
    function = copy.deepcopy(pixel_network(network)).eval()
    channels_last(function)
    return function


def normalize(pixels: Float[Tensor, "n c h w"], spec: ModelSpec) -> Float[Tensor, "n c h w"]:
    """Normalise pixels to the network's own input."""
    normalised: Tensor = Normalize(spec.mean, spec.std)(pixels)
    return normalised
