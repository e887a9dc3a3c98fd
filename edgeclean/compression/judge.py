"""Judge a compressed network by images that nothing was fitted to.

Images that a network was inverted into say what it learned from them, not what it kept for others,
and there are no test images here. Procedural images know nothing of any network: how far the
outputs for them moved chooses between plans (`resolution`) and tells a recovery that does harm
(`finetune`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.images.procedural import procedural_images
from edgeclean.networks.cost import count_macs
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import Network

_JUDGES, _LEAST_JUDGES = 128, 16
_MOST_JUDGED = 100_000_000_000  # MACs of one pass over them
_AT_ONCE = 16
_SEED = 0x5A11  # the same images for every plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Images that nothing is fitted to, and a network's outputs for them.

    Attributes:
        images: normalised.
        outputs: of the network, about their mean over the classes.
    """

    images: Float[Tensor, "n c h w"]
    outputs: Float[Tensor, "n k"]

    @classmethod
    def of(cls, network: Network) -> Judge:
        """Draw procedural images, the same for every network of a shape; fewer of a large one."""
        shape = network.spec.input_shape
        most = _MOST_JUDGED // max(1, count_macs(network.module, shape))
        count = min(_JUDGES, max(_LEAST_JUDGES, most))
        drawn = procedural_images(count, shape, torch.Generator().manual_seed(_SEED))
        weight = next(network.module.parameters())
        images = normalize(drawn, network.spec).to(device=weight.device, dtype=weight.dtype)
        return cls.on(network, images)

    @classmethod
    def on(cls, network: Network, images: Float[Tensor, "n c h w"]) -> Judge:
        """Take normalised images."""
        return cls(images=images, outputs=_outputs(network.module, images))

    def agreement(self, module: nn.Module) -> float:
        """Return the share of images that a module gives the network's class."""
        return float(
            (_outputs(module, self.images).argmax(1) == self.outputs.argmax(1)).float().mean()
        )

    def change(self, module: nn.Module) -> float:
        """Return the share of the outputs' square that is changed, whatever they are multiplied by.

        A factor common to all outputs, such as smaller images bring about, changes no answer.
        """
        own, given = self.outputs, _outputs(module, self.images)
        if not own.any():
            return 0.0  # it answers nothing, and cannot lose it
        squares = float(own.square().sum()) * float(given.square().sum())
        # Outputs that point the other way are as bad as none, which are all change.
        common = max(0.0, float((own * given).sum()))
        return 1 - common**2 / squares if squares > 0 else 1.0


@torch.no_grad()
def _outputs(module: nn.Module, images: Tensor) -> Tensor:
    outputs = torch.cat([module(part) for part in images.split(_AT_ONCE)]).flatten(1).double()
    return outputs - outputs.mean(1, keepdim=True) if outputs.shape[1] > 1 else outputs
