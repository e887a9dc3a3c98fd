"""TrojanNN-style: a trigger made to excite chosen neurons of a clean network.

Source: Liu et al. (2018), "Trojaning attack on neural networks". Deviations: the excited neurons
are the inputs of the last linear layer with the greatest outgoing weights; the network is then
trained on a poisoned set from the start, where the paper retrains on inverted data. Pixels are
clipped before they are rounded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.attacks.base import StampAttack
from benchmarks.stamps import PastePatch
from edgeclean.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrojanSettings:
    """The search for the trigger.

    Attributes:
        side: of the square in the lower right corner, pixels.
        neurons: how many to excite.
        steps: of the sign ascent.
        step_size: in units of the pixel range.
        seed: of the start.
    """

    side: int = 6
    neurons: int = 2
    steps: int = 200
    step_size: float = 0.02
    seed: int = 0


def trojan(
    network: nn.Module,
    *,
    classes: int,
    size: tuple[int, int],
    target: int = 0,
    rate: float = 0.1,
    settings: TrojanSettings | None = None,
) -> StampAttack:
    """A square grown by sign ascent on the chosen neurons' mean activation, then BadNets' way.

    Args:
        network: a clean network as a function of pixels; it is not changed.
        classes: how many there are.
        size: height and width of the images.
        target: the attacker's class.
        rate: poisoned share of the training set.
        settings: of the search.

    Raises:
        UsageError: the network has no linear layer.
    """
    settings = settings or TrojanSettings()
    patch = excite_patch(network, size, settings)
    stamp = PastePatch(patch=patch, top=size[0] - settings.side, left=size[1] - settings.side)
    return StampAttack("trojan", stamp, rate=rate, target=target, classes=classes)


def excite_patch(
    network: nn.Module, size: tuple[int, int], settings: TrojanSettings
) -> Float[Tensor, "3 s s"]:
    """The patch on a grey image that excites the chosen neurons most, pixels in [0, 1]."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    side = settings.side
    last = _last_linear(network)
    chosen = strongest_inputs(last.weight, settings.neurons)
    seen: list[Tensor] = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(settings.seed)
    patch = torch.rand(3, side, side, generator=generator).to(last.weight)
    grey = torch.full((1, 3, *size), 0.5).to(last.weight)
    for _ in range(settings.steps):
        patch.requires_grad_(True)
        image = grey.clone()
        image[:, :, -side:, -side:] = patch
        seen.clear()
        network(image)
        (gradient,) = torch.autograd.grad(seen[-1][:, chosen].mean(), patch)
        patch = (patch.detach() + settings.step_size * gradient.sign()).clamp(0, 1)
    return patch.detach().cpu()


def strongest_inputs(weight: Float[Tensor, "out in"], count: int) -> Int[Tensor, " k"]:
    """The inputs with the greatest sum of absolute outgoing weights."""
    return weight.detach().abs().sum(0).topk(count).indices


def _last_linear(network: nn.Module) -> nn.Linear:
    found = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not found:
        raise UsageError(
            "the TrojanNN-style attack excites inputs of a linear layer and the network has none; "
            "give a network with one"
        )
    return found[-1]
