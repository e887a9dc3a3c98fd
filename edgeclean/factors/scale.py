"""Stage: clamp the singular values of every core at tau times the layer's own normaliser."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.cost import count_macs, count_params
from edgeclean.errors import UsageError
from edgeclean.factors.blocks import block_factors, block_of, merge_block
from edgeclean.factors.sites import find_sites, with_layers
from edgeclean.factors.tucker import tucker2
from edgeclean.progress import Progress, silent
from edgeclean.states import (
    DecomposedNetwork,
    Network,
    ScaledNetwork,
    StageRecord,
    settings_as_json,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSettings:
    """The clamp; the slides leave s_sigma and T2 open, so both readings are options.

    Attributes:
        tau: the threshold on normalised singular values, above 0; None scales nothing.
        s_sigma: the normaliser of each layer and mode: the largest of its singular values, or
            their standard deviation (of the population).
        t2: what the mode-2 clamp divides by: the norms of the mode-2 slices after the mode-1
            clamp ("recomputed", never a stronger clamp), or those before it ("original").
        agreement: where tau is chosen (`threshold.choose_tau`), the share of synthetic images that
            must keep their class; in (0, 1].
    """

    tau: float | None = None
    s_sigma: Literal["max", "std"] = "max"
    t2: Literal["original", "recomputed"] = "recomputed"
    agreement: float = 0.95

    def __post_init__(self) -> None:
        if self.tau is not None and not (self.tau > 0 and math.isfinite(self.tau)):
            raise UsageError(f"--tau {self.tau} is not above 0 and finite; leave it out for none")
        if not 0 < self.agreement <= 1:
            raise UsageError(f"agreement is {self.agreement}; it is a share above 0, at most 1")
        if self.s_sigma not in ("max", "std"):
            raise UsageError(f"--s-sigma {self.s_sigma!r} is unknown; it is 'max' or 'std'")
        if self.t2 not in ("original", "recomputed"):
            raise UsageError(f"--t2 {self.t2!r} is unknown; it is 'original' or 'recomputed'")


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
    blocks = {
        site.name: site.module
        for site in find_sites(network)
        if isinstance(site.module, nn.Sequential)
    }
    if not blocks:
        raise UsageError("no layer of the network is decomposed, so there is nothing to scale")
    scaled: dict[str, nn.Module] = {}
    clamped: dict[str, list[int]] = {}
    for done, (name, block) in enumerate(blocks.items()):
        progress("Scaling", done, len(blocks))
        if settings.tau is None:
            continue
        factors = block_factors(block)
        core, counts = _clamp(factors.core, settings.tau, settings)
        clamped[name] = list(counts)
        if any(counts):
            scaled[name] = block_of(merge_block(block), replace(factors, core=core))
    module = with_layers(network.module, scaled).eval()
    progress("Scaling", len(blocks), len(blocks))
    record = StageRecord(
        stage="scale",
        settings=settings_as_json(settings),
        params=count_params(module),
        macs=count_macs(module, network.spec.input_shape),
        notes={"scaled": settings.tau is not None, "clamped_out_in": clamped},
    )
    return ScaledNetwork(
        module=module,
        spec=network.spec,
        source_sha256=network.source_sha256,
        history=(*network.history, record),
    )


def scale_core(
    core: Float[Tensor, "r_out r_in kh kw"], settings: ScaleSettings
) -> Float[Tensor, "r_out r_in kh kw"]:
    """The deck's two steps on one core; in float64, returned in its own type."""
    return core if settings.tau is None else _clamp(core, settings.tau, settings)[0]


def normalised_spectra(
    network: Network, s_sigma: Literal["max", "std"] = "max"
) -> dict[str, tuple[Float[Tensor, " full_out"], Float[Tensor, " full_in"]]]:
    """Singular values over s_sigma of every convolution that may be factored, in both modes.

    Of a decomposed network, they are those of the kernels that its blocks multiply out to.
    """
    spectra = {}
    for site in find_sites(network):
        if not site.reason:
            tucker = tucker2(site.conv().weight)
            spectra[site.name] = (
                _normalised(tucker.singular_values_out, s_sigma),
                _normalised(tucker.singular_values_in, s_sigma),
            )
    return spectra


def _clamp(core: Tensor, tau: float, settings: ScaleSettings) -> tuple[Tensor, tuple[int, int]]:
    """The scaled core, and how many slices of each mode were made smaller."""
    exact = core.double()
    norms_out, norms_in = _slice_norms(exact, 0), _slice_norms(exact, 1)
    gain_out = _gains(norms_out, tau * _normaliser(norms_out, settings.s_sigma))
    scaled = exact * gain_out[:, None, None, None]
    divisor = _slice_norms(scaled, 1) if settings.t2 == "recomputed" else norms_in
    gain_in = _gains(divisor, tau * _normaliser(norms_in, settings.s_sigma))
    scaled = scaled * gain_in[None, :, None, None]
    return scaled.to(core.dtype), (int((gain_out < 1).sum()), int((gain_in < 1).sum()))


def _gains(divisor: Tensor, limit: Tensor) -> Tensor:
    """min(tau * s_sigma / T, 1); 1 where T is 0, as there is nothing to clamp."""
    return torch.where(divisor > limit, limit / divisor.clamp(min=1e-300), 1.0)


def _slice_norms(core: Tensor, mode: int) -> Tensor:
    norms: Tensor = core.transpose(0, mode).flatten(1).norm(dim=1)
    return norms


def _normaliser(values: Tensor, s_sigma: Literal["max", "std"]) -> Tensor:
    return values.max() if s_sigma == "max" else values.std(correction=0)


def _normalised(values: Tensor, s_sigma: Literal["max", "std"]) -> Tensor:
    spread = _normaliser(values, s_sigma)
    return values / spread if float(spread) > 0 else torch.zeros_like(values)
