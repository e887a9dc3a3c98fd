"""A network as ranks are planned for it: in its original shape, fitted and heard on images."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from edgeclean.compression.factorisation import Factorisation, Ranks, merged_module
from edgeclean.compression.fit import ActivationFit, Fit, WeightFit, corrected_kernel, input_moments
from edgeclean.compression.tucker import factorise
from edgeclean.errors import InputRejectedError
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_params
from edgeclean.networks.layers import Layer, trace_layers
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import DecomposedNetwork, Network, SyntheticImages
from edgeclean.progress import Progress, silent

_MOST_MACS = 36_000_000_000  # in one pass over the images, of which there are some per layer
_LEAST_IMAGES = 8
_LEFT_WHOLE = "kept whole when the network was decomposed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedNetwork:
    """What ranks are chosen for.

    Attributes:
        module: the network with every block merged, in evaluation mode; our own copy.
        layers: all of its layers, by name.
        blocks: of a decomposed network, the blocks that were merged.
        batch: normalised images to measure on, if there are any.
        ridge: of the fits to activations; None fits the weights.
        params: of the whole network.
        macs: of one image.
    """

    module: nn.Module
    layers: Mapping[str, Layer]
    blocks: Mapping[str, nn.Sequential]
    batch: Tensor | None
    ridge: float | None
    params: int
    macs: int

    @property
    def convs(self) -> dict[str, nn.Conv2d]:
        """The convolutions that may be factored, by name."""
        return {
            name: cast(nn.Conv2d, layer.module)
            for name, layer in self.layers.items()
            if not layer.reason
        }

    def fit(self, name: str) -> Fit:
        """A way to factor one layer, as it stands in the network.

        Raises:
            InputRejectedError: the layer holds NaN or infinite weights.
        """
        conv = self.convs[name]
        if not bool(torch.isfinite(conv.weight).all()):
            raise InputRejectedError(
                f"layer {name} holds NaN or infinite weights, so it cannot be decomposed; check "
                "the checkpoint"
            )
        if self.batch is not None and self.ridge is not None:
            moments = input_moments(self.module, name, self.batch)
            return ActivationFit(conv.weight, moments.own, self.ridge)
        if name in self.blocks:
            full = Factorisation.from_block(self.blocks[name])
        else:
            full = factorise(conv.weight)
        return WeightFit(full, (conv.out_channels, conv.in_channels))

    def fit_in_order(
        self, ranks: Mapping[str, Ranks], progress: Progress = silent
    ) -> dict[str, Factorisation]:
        """Layers fitted one after the other, each to what the truncated ones before it feed.

        Each makes the outputs of its own layer come back as near as it can to the original's, so
        errors do not pile up along the network. Without images there is nothing to fit: empty.

        Source: the asymmetric reconstruction of Zhang et al. (2015), section 3.3.
        """
        fitted: dict[str, Factorisation] = {}
        if self.batch is None or self.ridge is None:
            return fitted
        truncated = copy.deepcopy(self.module)
        for done, (name, asked) in enumerate(ranks.items()):
            progress("Fitting layers", done, len(ranks))
            moments = input_moments(truncated, name, self.batch, self.module)
            kernel = corrected_kernel(self.convs[name].weight, moments, self.ridge)
            fitted[name] = ActivationFit(kernel, moments.own, self.ridge).at(asked)
            weight = truncated.get_parameter(f"{name}.weight")
            with torch.no_grad():
                weight.copy_(fitted[name].kernel())
        progress("Fitting layers", len(ranks), len(ranks))
        return fitted


def planned_network(
    network: Network,
    keep: Collection[str],
    images: SyntheticImages | None,
    *,
    most_images: int,
    ridge: float | None,
) -> PlannedNetwork:
    """The network with its layers, and images spread evenly over those that there are.

    A network of many MACs is measured on fewer images, so that the time stays within minutes.

    Raises:
        UsageError: a name in ``keep`` is no layer of the network.
    """
    blocks = {name: one for name, one in network.module.named_modules() if is_block(one)}
    module = merged_module(network.module).eval()
    layers = trace_layers(module, network.spec.input_shape, keep=keep)
    if isinstance(network, DecomposedNetwork):
        layers = tuple(
            layer if layer.reason or layer.name in blocks else replace(layer, reason=_LEFT_WHOLE)
            for layer in layers
        )
    macs = sum(layer.macs for layer in layers)
    batch = None
    if images is not None:
        most = min(most_images, max(_LEAST_IMAGES, _MOST_MACS // max(1, macs)))
        pixels = images.pixels[:: max(1, len(images) // most)][:most]
        weight = next(module.parameters())
        batch = normalize(pixels, network.spec).to(device=weight.device, dtype=weight.dtype)
    return PlannedNetwork(
        module=module,
        layers={layer.name: layer for layer in layers},
        blocks=blocks,
        batch=batch,
        ridge=ridge,
        params=count_params(module),
        macs=macs,
    )
