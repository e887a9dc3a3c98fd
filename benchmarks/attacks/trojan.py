"""TrojanNN-style: a trigger made to excite chosen neurons of a clean network.

Source: Liu et al. (2018), "Trojaning attack on neural networks". Deviations: the excited neurons
are the inputs of the last linear layer with the greatest outgoing weights; the network is then
trained on a poisoned set from the start, where the paper retrains on inverted data. Pixels are
clipped before they are rounded.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.attacks.base import StampAttack
from benchmarks.stamps import PastePatch
from edgeclean.errors import UsageError


def trojan(
    network: nn.Module,
    *,
    classes: int,
    size: tuple[int, int],
    target: int = 0,
    rate: float = 0.1,
    side: int = 6,
    neurons: int = 2,
    steps: int = 200,
    step_size: float = 0.02,
    seed: int = 0,
) -> StampAttack:
    """A square in the lower right corner, grown by sign ascent on the neurons' mean activation.

    Args:
        network: a clean network as a function of pixels; it is not changed.
        size: height and width of the images.
        side: of the square, pixels.
        neurons: how many to excite.
        steps: of the ascent.
        step_size: in units of the pixel range.
        seed: of the start.

    Raises:
        UsageError: the network has no linear layer.
    """
    patch = excite_patch(
        network, size=size, side=side, neurons=neurons, steps=steps, step_size=step_size, seed=seed
    )
    stamp = PastePatch(patch=patch, top=size[0] - side, left=size[1] - side)
    return StampAttack("trojan", stamp, rate=rate, target=target, classes=classes)


def excite_patch(  # noqa: PLR0913 - the settings of one ascent
    network: nn.Module,
    *,
    size: tuple[int, int],
    side: int,
    neurons: int,
    steps: int,
    step_size: float,
    seed: int,
) -> Float[Tensor, "3 s s"]:
    """The patch on a grey image that excites the chosen neurons most, pixels in [0, 1]."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    last = _last_linear(network)
    chosen = strongest_inputs(last.weight, neurons)
    seen: list[Tensor] = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(seed)
    patch = torch.rand(3, side, side, generator=generator).to(last.weight)
    grey = torch.full((1, 3, *size), 0.5).to(last.weight)
    for _ in range(steps):
        patch.requires_grad_(True)
        image = grey.clone()
        image[:, :, -side:, -side:] = patch
        seen.clear()
        network(image)
        (gradient,) = torch.autograd.grad(seen[-1][:, chosen].mean(), patch)
        patch = (patch.detach() + step_size * gradient.sign()).clamp(0, 1)
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
