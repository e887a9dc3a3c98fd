"""Stage: clamp the singular values of every core at tau times the layer's own normaliser.

The paper's slides take tau as given. `choose_tau` chooses it without data: it falls from 1 in equal
steps for as long as the scaled network still gives most synthetic images the class that the
unscaled one gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeclean.compression.factorisation import Factorisation, merge_block
from edgeclean.compression.whole import why_none
from edgeclean.errors import UsageError
from edgeclean.networks.batching import images_shown
from edgeclean.networks.blocks import is_block
from edgeclean.networks.layers import evaluated, with_layers
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import (
    DecomposedNetwork,
    Network,
    ScaledNetwork,
    following,
    record,
)
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting

STEPS = 20  # of the grid on which tau is chosen: 1, 0.95, ... 0.05
BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings(Settings):
    """The clamp; the slides leave s_sigma and T2 open, so both readings are options.

    Attributes:
        tau: the threshold on normalised singular values, above 0; None scales nothing.
        s_sigma: the normaliser of each layer and mode: the largest of its singular values, or
            their standard deviation (of the population).
        t2: what the mode-2 clamp divides by: the norms of the mode-2 slices after the mode-1
            clamp ("recomputed", never a stronger clamp), or those before it ("original").
        agreement: where tau is chosen (`choose_tau`), the share of synthetic images that
            must keep their class; in (0, 1].
    """

    tau: float | None = setting(None, above=0, at_most=10**6)
    s_sigma: Literal["max", "std"] = "max"
    t2: Literal["original", "recomputed"] = "recomputed"
    agreement: float = setting(0.95, above=0, at_most=1)


def scale(
    network: DecomposedNetwork, settings: ScaleSettings, *, progress: Progress = silent
) -> ScaledNetwork:
    """Multiply the slices of every core by min(tau * s_sigma / T, 1), mode 1 and then mode 2.

    Returns:
        A network of the same shapes, in which no singular value of any kernel is larger than
        before, in either mode. With s_sigma = "max" and tau >= 1 it is the same network.

    Raises:
        UsageError: nothing in the network is decomposed.

    Source: Clean & Compact (ECCV 2024), steps 2 and 3. For a higher-order SVD the norm of the i-th
    slice of the core is the i-th singular value of that mode's unfolding, which gives T1 and T2.
    """
    blocks = {name: module for name, module in network.module.named_modules() if is_block(module)}
    if not blocks:
        raise UsageError(why_none(_recorded_layers(network)))
    scaled: dict[str, nn.Module] = {}
    clamped: dict[str, list[int]] = {}
    for done, (name, block) in enumerate(blocks.items()):
        progress("Scaling", done, len(blocks))
        if settings.tau is None:
            continue
        factorisation = Factorisation.from_block(block)
        core, counts = clamped_core(factorisation.core, settings.tau, settings)
        clamped[name] = list(counts)
        if any(counts):
            scaled[name] = replace(factorisation, core=core).to_block(merge_block(block))
    module = evaluated(with_layers(network.module, scaled))
    progress("Scaling", len(blocks), len(blocks))
    notes = {"scaled": settings.tau is not None, "clamped_out_in": clamped}
    made_by = record("scale", module, network.spec, settings, notes)
    return following(network, ScaledNetwork, module, made_by)


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
    asked = _classes(network, pixels)
    chosen = 1.0
    for step in range(1, STEPS):
        progress("Choosing tau", step, STEPS)
        tau = round(1 - step / STEPS, 4)
        scaled = scale(network, replace(settings, tau=tau))
        agreed = (_classes(scaled, pixels) == asked).double().mean()
        if float(agreed) < settings.agreement:
            break
        chosen = tau
    progress("Choosing tau", STEPS, STEPS)
    return replace(settings, tau=chosen)


def clamped_core(
    core: Float[Tensor, "r_out r_in kh kw"], tau: float, settings: ScaleSettings
) -> tuple[Float[Tensor, "r_out r_in kh kw"], tuple[int, int]]:
    """The core after both steps, computed in float64, and how many slices of each mode shrank."""
    exact = core.double()
    norms_out, norms_in = _slice_norms(exact, 0), _slice_norms(exact, 1)
    gain_out = _gains(norms_out, tau * _normaliser(norms_out, settings.s_sigma))
    scaled = exact * gain_out[:, None, None, None]
    divisor = _slice_norms(scaled, 1) if settings.t2 == "recomputed" else norms_in
    gain_in = _gains(divisor, tau * _normaliser(norms_in, settings.s_sigma))
    scaled = scaled * gain_in[None, :, None, None]
    return scaled.to(core.dtype), (int((gain_out < 1).sum()), int((gain_in < 1).sum()))


def _recorded_layers(network: Network) -> list[dict[str, Any]]:
    """The layers that `decompose` recorded."""
    records = [one for one in network.history if one.stage == "decompose"]
    return list(records[-1].notes["layers"]) if records else []


def _gains(divisor: Tensor, limit: Tensor) -> Tensor:
    """min(tau * s_sigma / T, 1); 1 where T is 0, as there is nothing to clamp."""
    return torch.where(divisor > limit, limit / divisor.clamp(min=1e-300), 1.0)


def _slice_norms(core: Tensor, mode: int) -> Tensor:
    norms: Tensor = core.transpose(0, mode).flatten(1).norm(dim=1)
    return norms


def _normaliser(values: Tensor, s_sigma: Literal["max", "std"]) -> Tensor:
    return values.max() if s_sigma == "max" else values.std(correction=0)


@torch.no_grad()
def _classes(network: Network, pixels: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    function = pixel_network(network).eval()
    device = next((p.device for p in function.parameters()), pixels.device)
    parts = pixels.split(images_shown(pixels.shape[1:], BATCH))
    return torch.cat([function(part.to(device)).argmax(1).cpu() for part in parts])
