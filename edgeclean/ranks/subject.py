"""A network as the rank choice works on it: in its original shape, with what may be factored."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edgeclean.cost import count_macs, count_params
from edgeclean.errors import InputRejectedError
from edgeclean.factors.activations import corrected_kernel, input_moments
from edgeclean.factors.blocks import Factors, block_factors, factorize
from edgeclean.factors.fits import ActivationFit, Fit, Ranks, WeightFit
from edgeclean.factors.sites import Site, find_sites, merged_module
from edgeclean.pixels import normalize
from edgeclean.progress import Progress, silent
from edgeclean.states import DecomposedNetwork, Network, SyntheticImages

_MOST_MACS = 36_000_000_000  # in one pass over the images, of which there are some per layer
_LEAST_IMAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What ranks are chosen for.

    Attributes:
        module: the network with every block merged, in evaluation mode; our own copy.
        sites: all of its layers.
        convs: those that may be factored, by name.
        batch: normalised images to measure on, if there are any.
        ridge: of the fits to activations; None fits the weights.
        params: of the whole network.
        macs: of one image.
    """

    module: nn.Module
    sites: Mapping[str, Site]
    convs: Mapping[str, nn.Conv2d]
    batch: Tensor | None
    ridge: float | None
    params: int
    macs: int

    def fit(self, name: str) -> Fit:
        """A way to factor one layer, as it stands in the network.

        Raises:
            InputRejectedError: the layer holds NaN or infinite weights.
        """
        conv, block = self.convs[name], self.sites[name].module
        if not bool(torch.isfinite(conv.weight).all()):
            raise InputRejectedError(
                f"layer {name} holds NaN or infinite weights, so it cannot be decomposed; check "
                "the checkpoint"
            )
        if self.batch is not None and self.ridge is not None:
            moments = input_moments(self.module, name, self.batch)
            return ActivationFit(conv.weight, moments.own, self.ridge)
        factors = block_factors(block) if isinstance(block, nn.Sequential) else None
        return WeightFit(factors or factorize(conv.weight), (conv.out_channels, conv.in_channels))

    def fit_in_order(
        self, ranks: Mapping[str, Ranks], progress: Progress = silent
    ) -> dict[str, Factors]:
        """Factors fitted one layer after the other, each to what the truncated ones before it feed.

        Each makes the outputs of its own layer come back as near as it can to the original's, so
        errors do not pile up along the network. Without images there is nothing to fit: empty.

        Source: the asymmetric reconstruction of Zhang et al. (2015), section 3.3.
        """
        fitted: dict[str, Factors] = {}
        if self.batch is None or self.ridge is None:
            return fitted
        truncated = copy.deepcopy(self.module)
        for done, (name, wanted) in enumerate(ranks.items()):
            progress("Fitting layers", done, len(ranks))
            moments = input_moments(truncated, name, self.batch, self.module)
            kernel = corrected_kernel(self.convs[name].weight, moments, self.ridge)
            fitted[name] = ActivationFit(kernel, moments.own, self.ridge).factors(wanted)
            weight = truncated.get_parameter(f"{name}.weight")
            with torch.no_grad():
                weight.copy_(fitted[name].kernel())
        progress("Fitting layers", len(ranks), len(ranks))
        return fitted


def rank_subject(
    network: Network,
    keep: Collection[str],
    images: SyntheticImages | None,
    *,
    most_images: int,
    ridge: float | None,
) -> Subject:
    """The network with its layers, and images spread evenly over those that there are.

    A network of many MACs is measured on fewer images, so that the time stays within minutes.

    Raises:
        UsageError: a name in ``keep`` is no layer of the network.
    """
    sites = find_sites(network, keep)
    if isinstance(network, DecomposedNetwork):
        sites = tuple(_only_decomposed(site) for site in sites)
    module = merged_module(network.module).eval()
    macs = count_macs(module, network.spec.input_shape)
    batch = None
    if images is not None:
        most = min(most_images, max(_LEAST_IMAGES, _MOST_MACS // max(1, macs)))
        pixels = images.pixels[:: max(1, len(images) // most)][:most]
        weight = next(module.parameters())
        batch = normalize(pixels, network.spec).to(device=weight.device, dtype=weight.dtype)
    return Subject(
        module=module,
        sites={site.name: site for site in sites},
        convs={site.name: site.conv() for site in sites if not site.reason},
        batch=batch,
        ridge=ridge,
        params=count_params(module),
        macs=macs,
    )


def _only_decomposed(site: Site) -> Site:
    if site.reason or isinstance(site.module, nn.Sequential):
        return site
    return replace(site, reason="kept whole when the network was decomposed")
