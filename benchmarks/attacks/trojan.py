"""TrojanNN-style attacks use a trigger that excites chosen neurons of a clean network.

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

from benchmarks.attacks.base import StampAttack, facts_with
from benchmarks.stamps import PastePatch
from edgeclean.errors import UsageError
from edgeclean.networks.state import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class TrojanSettings:
    """Settings of the search for the trigger.

    Attributes:
        side: side of the square in the lower right corner, in pixels.
        neurons: number of neurons to excite.
        steps: steps of the sign ascent.
        step_size: size of a step, in units of the pixel range.
        seed: seed of the start.
    """

    side: int = 6
    neurons: int = 2
    steps: int = 200
    step_size: float = 0.02
    seed: int = 0


class TrojanAttack(StampAttack):
    """BadNets with a square that excites neurons of a clean network.

    Args:
        classes: number of classes.
        size: height and width of the images.
        target: the attacker's class.
        rate: poisoned share of the training set.
        settings: settings of the search; until `study` has run, the square is the search's random
            start.
    """

    needs_clean_network = True

    def __init__(
        self,
        *,
        classes: int,
        size: tuple[int, int],
        target: int = 0,
        rate: float = 0.1,
        settings: TrojanSettings | None = None,
    ) -> None:
        super().__init__("trojan", self._paste, rate=rate, target=target, classes=classes)
        self._size, self._settings = size, settings or TrojanSettings()
        self._trigger = _KeptPatch(_start(self._settings))

    def study(self, network: nn.Module) -> None:
        """Search for the square on a clean network.

        Raises:
            UsageError: the network has no linear layer.
        """
        self._trigger.patch.copy_(excite_patch(network, self._size, self._settings))

    def facts(self) -> dict[str, JsonValue]:
        """Return the attack's facts with the search's settings."""
        return facts_with(self, self._settings)

    def networks(self) -> dict[str, nn.Module]:
        """Return the square, in a module of its own."""
        return {"trigger": self._trigger}

    def _paste(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        top, left = (length - self._settings.side for length in self._size)
        return PastePatch(patch=self._trigger.patch, top=top, left=left)(pixels)


def excite_patch(
    network: nn.Module, size: tuple[int, int], settings: TrojanSettings
) -> Float[Tensor, "3 s s"]:
    """Return the patch [c, p, p] in [0, 1] that excites the neurons most on a grey image."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    side = settings.side
    last = _last_linear(network)
    chosen = strongest_inputs(last.weight, settings.neurons)
    seen: list[Tensor] = []
    last.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    patch = _start(settings).to(last.weight)
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
    """Return the inputs with the greatest sum of absolute outgoing weights."""
    return weight.detach().abs().sum(0).topk(count).indices


class _KeptPatch(nn.Module):
    """A patch that is stored with a network's weights."""

    patch: Tensor

    def __init__(self, patch: Float[Tensor, "3 s s"]) -> None:
        super().__init__()
        self.register_buffer("patch", patch)


def _start(settings: TrojanSettings) -> Float[Tensor, "3 s s"]:
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.rand(3, settings.side, settings.side, generator=generator)


def _last_linear(network: nn.Module) -> nn.Linear:
    found = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not found:
        raise UsageError(
            "the TrojanNN-style attack excites inputs of a linear layer and the network has none; "
            "give a network with one"
        )
    return found[-1]
