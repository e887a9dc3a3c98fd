"""Choose the clamp's threshold without data: the strongest that leaves the outputs as they were.

The deck takes tau as given. Here it falls from 1 in equal steps for as long as the scaled network
still gives most synthetic images the class that the unscaled one gives them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edgeclean.factors.scale import ScaleSettings, scale
from edgeclean.pixels import pixel_network
from edgeclean.progress import Progress, silent
from edgeclean.states import DecomposedNetwork, Network

STEPS = 20  # tau is 1, 0.95, ... 0.05
BATCH = 128


def choose_tau(
    network: DecomposedNetwork,
    pixels: Float[Tensor, "n c h w"],
    settings: ScaleSettings,
    *,
    progress: Progress = silent,
) -> ScaleSettings:
    """``settings`` with the least tau of the grid at which the outputs still agree.

    Args:
        network: decomposed, not yet scaled.
        pixels: images in [0, 1]; their labels have no say.
        settings: ``agreement`` is the share of images whose class must stay.
        progress: told after every tau that is tried.

    Returns:
        A tau in (0, 1]. At 1 with s_sigma = "max" nothing is clamped, so that one always agrees;
        with "std" it may not, and is returned all the same, as the gentlest of the grid.
    """
    wanted = _classes(network, pixels)
    chosen = 1.0
    for step in range(1, STEPS):
        progress("Choosing tau", step, STEPS)
        tau = round(1 - step / STEPS, 4)
        scaled = scale(network, replace(settings, tau=tau))
        agreed = (_classes(scaled, pixels) == wanted).double().mean()
        if float(agreed) < settings.agreement:
            break
        chosen = tau
    progress("Choosing tau", STEPS, STEPS)
    return replace(settings, tau=chosen)


@torch.no_grad()
def _classes(network: Network, pixels: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    function = pixel_network(network).eval()
    device = next((p.device for p in function.parameters()), pixels.device)
    return torch.cat([function(part.to(device)).argmax(1).cpu() for part in pixels.split(BATCH)])
