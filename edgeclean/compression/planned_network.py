"""A network as ranks are planned for it: in its original shape, fitted and heard on images."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from edgeclean.compression.factorisation import (
    AXES,
    Factorisation,
    Factors,
    Ranks,
    is_separated,
    merged_module,
)
from edgeclean.compression.fit import (
    ActivationFit,
    Covariances,
    WeightFit,
    corrected_kernel,
    input_covariances,
    input_moments,
)
from edgeclean.compression.flow import Flow
from edgeclean.compression.hidden import HiddenFit, refitted
from edgeclean.compression.rank_grids import form_of, useful_rank
from edgeclean.compression.separable import LayerFit, SeparableFit
from edgeclean.compression.settings import Form
from edgeclean.compression.tucker import factorise
from edgeclean.compression.units import Unit, find_units
from edgeclean.errors import InputRejectedError
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_params
from edgeclean.networks.layers import Layer, evaluated, trace_layers
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import DecomposedNetwork, Network, SyntheticImages
from edgeclean.networks.steps import StepNetwork
from edgeclean.progress import Progress, silent

MODES: tuple[Form, ...] = ("tucker",)
_MOST_MACS = 36_000_000_000  # in one pass over the images, of which there are some per layer
_LEAST_IMAGES = 8
# Of a network that is a list of steps, which images pass once for all layers:
_FITTED = 4  # times as many images are fitted to,
_KEPT_BYTES = 2**30  # where no more than this is kept of them between two steps;
_HEARD = 16  # images are enough to weigh one choice against another
_LEFT_WHOLE = "kept whole when the network was decomposed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """A layer of a unit that is cut: what it computes with all channels there.

    Attributes:
        weight: of the layer's own shape; of one that reads the channels, zero for those that go.
        bias: of its outputs, the layer's own included; None leaves what there is.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The layers of one choice, fitted in order.

    Attributes:
        factors: by layer.
        refits: the producers and readers of the units that are cut, by layer too.
        change: squared change of the network's outputs over their square, both about their mean
            over the classes, on images that nothing was fitted to where there are others; 0 without
            images.
    """

    factors: Mapping[str, Factors]
    refits: Mapping[str, Refit]
    change: float


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
        units: whose hidden channels may go; none where that form was not asked for.
        others: normalised images that are not in `batch`, where there are others, to judge by.
        flow: `batch` on its way through `module`.
    """

    module: nn.Module
    layers: Mapping[str, Layer]
    blocks: Mapping[str, nn.Sequential]
    batch: Tensor | None
    ridge: float | None
    params: int
    macs: int
    units: tuple[Unit, ...] = ()
    others: Tensor | None = None
    flow: Flow | None = None

    @property
    def heard(self) -> Tensor | None:
        """The images on which effects are measured: some of `others`.

        On those that a layer was fitted to, few of them, its loss is a third of what it is on
        others: a choice by that would take most from the layers that are known worst.
        """
        if self.others is None or not isinstance(self.module, StepNetwork):
            return self.others
        return self.others[:: max(1, len(self.others) // _HEARD)][:_HEARD]

    @property
    def convs(self) -> dict[str, nn.Conv2d]:
        """The convolutions that may be factored, by name."""
        return {
            name: cast(nn.Conv2d, layer.module)
            for name, layer in self.layers.items()
            if not layer.reason
        }

    def fit(self, name: str, forms: Collection[Form] = MODES) -> LayerFit:
        """A way to factor one layer, as it stands in the network, in these forms.

        Raises:
            InputRejectedError: the layer holds NaN or infinite weights.
        """
        conv = self.convs[name]
        if not bool(torch.isfinite(conv.weight).all()):
            raise InputRejectedError(
                f"layer {name} holds NaN or infinite weights, so it cannot be decomposed; check "
                "the checkpoint"
            )
        moment = None
        if self.flow is not None and self.ridge is not None and {*forms} & {"tucker", "separable"}:
            moment = input_moments(self.flow, name).own
        return self._fit(name, conv.weight, moment, forms)

    def _fit(
        self, name: str, kernel: Tensor, moment: Tensor | None, forms: Collection[Form]
    ) -> LayerFit:
        """Fits of a kernel in a layer's place; without a moment it is the layer's own."""
        shape, ridge = self.layers[name].shapes[0], self.ridge or 0.0
        separable = {
            first: SeparableFit(
                kernel, first, most=useful_rank(shape, first), moment=moment, ridge=ridge
            )
            for first in (AXES if "separable" in forms and is_separated(shape) else ())
        }
        modes: WeightFit | ActivationFit | None = None
        if "tucker" in forms and moment is not None:
            modes = ActivationFit(kernel, moment, ridge)
        elif "tucker" in forms:
            block = self.blocks.get(name)
            full = factorise(kernel) if block is None else Factorisation.from_block(block)
            modes = WeightFit(full, shape.channels)
        return LayerFit(modes, separable)

    def covariances(self, unit: Unit) -> dict[str, Covariances]:
        """What a unit's readers are fed, by their names; empty where nothing is fitted to it."""
        if self.flow is None or self.ridge is None:
            return {}
        return {name: input_covariances(self.flow, name) for name in unit.readers}

    def hidden_fit(self, unit: Unit, least: int, moments: Mapping[str, Covariances]) -> HiddenFit:
        """The order in which a unit's channels go, by its consumer as it stands in the network.

        Args:
            unit: whose channels go.
            least: how many stay at least.
            moments: of its readers; see `covariances`.

        Raises:
            InputRejectedError: the consumer holds NaN or infinite weights.
        """
        weight = _weight(self.module, unit.consumer)
        if not bool(torch.isfinite(weight).all()):
            raise InputRejectedError(
                f"layer {unit.consumer} holds NaN or infinite weights, so nothing can be fitted to "
                "it; check the checkpoint"
            )
        fed = moments.get(unit.consumer)
        channels, ridge = unit.channels, self.ridge or 0.0
        return HiddenFit(
            weight.flatten(1), fed, channels=channels, ridge=ridge, least=min(least, channels)
        )

    def refit(
        self, unit: Unit, reader: str, kept: Sequence[int], moments: Covariances | None
    ) -> Refit:
        """One of a unit's readers on the kept channels alone.

        Args:
            unit: whose channels go.
            reader: one of its readers.
            kept: the channels that stay.
            moments: of what feeds the reader now, crossed with what does in this network, whose
                outputs are to come back; None keeps the weights.
        """
        layer, weight = self.module.get_submodule(reader), _weight(self.module, reader)
        matrix = weight.flatten(1)
        entries = unit.entries(torch.tensor(kept), matrix.shape[1]).to(weight.device)
        solved, bias = refitted(matrix, moments, entries, self.ridge or 0.0)
        whole = solved.new_zeros(matrix.shape)
        whole[:, entries] = solved
        if isinstance(layer.bias, Tensor):
            bias = bias + layer.bias.detach().double()
        return Refit(
            weight=whole.reshape(weight.shape).to(weight.dtype), bias=bias.to(weight.dtype)
        )

    def fit_in_order(
        self,
        ranks: Mapping[str, Ranks],
        cuts: Mapping[str, Sequence[int]],
        progress: Progress = silent,
    ) -> Fitted:
        """Layers fitted one after the other, each to what the truncated ones before it feed.

        Each makes the outputs of its own layer come back as near as it can to the original's, so
        errors do not pile up along the network. Without images there is nothing to fit: the
        factors are left out, and what is cut is fitted to the weights.

        Args:
            ranks: by layer.
            cuts: the kept channels, by unit.
            progress: told after every layer.

        Source: the asymmetric reconstruction of Zhang et al. (2015), section 3.3.
        """
        fitted: dict[str, Factors] = {}
        refits: dict[str, Refit] = {}
        consumed = {unit.consumer: unit for unit in self.units if unit.producer in cuts}
        truncated = copy.deepcopy(self.module)
        ridge = None if self.batch is None else self.ridge
        mine = None if self.batch is None else Flow(truncated, self.batch)
        tasks = [name for name in self.layers if name in ranks or name in consumed or name in cuts]
        for done, name in enumerate(tasks):
            progress("Fitting layers", done, len(tasks))
            if name in consumed:
                unit = consumed[name]
                for reader in unit.readers:  # squeezes first: the gates change what follows
                    fed = None
                    if mine is not None and ridge is not None:
                        fed = input_covariances(mine, reader, self.flow)
                    refit = self.refit(unit, reader, cuts[unit.producer], fed)
                    put_(truncated.get_submodule(reader), refit)
                    refits[reader] = refit
            elif mine is not None and ridge is not None:
                moments = input_moments(mine, name, self.flow)
                kernel = corrected_kernel(self.convs[name].weight, moments, ridge)
                if name in cuts:
                    refits[name] = Refit(weight=kernel, bias=None)
                    put_(truncated.get_submodule(name), refits[name])
                    continue
                fitted[name] = self._at(name, kernel, moments.own, ranks[name])
                _copy_(truncated, name, fitted[name])
            elif (
                self.batch is not None and name in ranks
            ):  # to be judged, as it will be cut from the weights
                kernel = self.convs[name].weight
                _copy_(truncated, name, self._at(name, kernel, None, ranks[name]))
        progress("Fitting layers", len(tasks), len(tasks))
        return Fitted(factors=fitted, refits=refits, change=self._change(truncated))

    def _at(self, name: str, kernel: Tensor, moment: Tensor | None, ranks: Ranks) -> Factors:
        forms: tuple[Form, ...] = (form_of(ranks),)
        return self._fit(name, kernel, moment, forms).at(ranks)

    def _change(self, truncated: nn.Module) -> float:
        if self.others is None:
            return 0.0
        with torch.no_grad():
            before, after = (
                one(self.others).flatten(1).double() for one in (self.module, truncated)
            )
        if before.shape[1] > 1:
            before, after = (one - one.mean(1, keepdim=True) for one in (before, after))
        square = float(before.square().sum())
        return float((after - before).square().sum()) / square if square > 0 else 0.0


def _copy_(module: nn.Module, name: str, factors: Factors) -> None:
    with torch.no_grad():
        module.get_parameter(f"{name}.weight").copy_(factors.kernel())


def put_(layer: nn.Module, refit: Refit) -> None:
    """Give a layer these weights, in place, and a bias where it has none."""
    layer.weight = nn.Parameter(refit.weight.detach().clone())
    if refit.bias is not None:
        layer.bias = nn.Parameter(refit.bias.detach().clone())


def _weight(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(f"{name}.weight").detach()


def planned_network(
    network: Network,
    keep: Collection[str],
    images: SyntheticImages | None,
    *,
    most_images: int,
    ridge: float | None,
    hidden: bool = False,
) -> PlannedNetwork:
    """The network with its layers, and images spread evenly over those that there are.

    A network of many MACs is measured on fewer images, so that the time stays within minutes. With
    ``hidden``, its units are found as well.

    Raises:
        UsageError: a name in ``keep`` is no layer of the network.
    """
    blocks = {name: one for name, one in network.module.named_modules() if is_block(one)}
    module = evaluated(merged_module(network.module))
    layers = trace_layers(module, network.spec.input_shape, keep=keep)
    if isinstance(network, DecomposedNetwork):
        layers = tuple(
            layer if layer.reason or layer.name in blocks else replace(layer, reason=_LEFT_WHOLE)
            for layer in layers
        )
    by_name = {layer.name: layer for layer in layers}
    units: tuple[Unit, ...] = ()
    if hidden:
        kept = {*keep, *_kept_before(network)}
        units = find_units(module, by_name, network.spec.input_shape, keep=kept)
    macs = sum(layer.macs for layer in layers)
    batch, others = None, None
    if images is not None:
        weight = next(module.parameters())
        batch, others = (
            normalize(images.pixels[rows], network.spec).to(
                device=weight.device, dtype=weight.dtype
            )
            for rows in _rows(len(images), module, by_name.values(), most_images)
        )
    return PlannedNetwork(
        module=module,
        layers=by_name,
        blocks=blocks,
        batch=batch,
        ridge=ridge,
        params=count_params(module),
        macs=macs,
        units=units,
        others=others,
        flow=None if batch is None else Flow(module, batch),
    )


def _rows(
    count: int, module: nn.Module, layers: Collection[Layer], most_images: int
) -> tuple[Tensor, Tensor]:
    """Which images to fit to, and which others to judge by, both spread evenly over all."""
    macs = sum(layer.macs for layer in layers)
    most = min(most_images, max(_LEAST_IMAGES, _MOST_MACS // max(1, macs)))
    every, step = torch.arange(count), max(1, count // most)
    if not isinstance(module, StepNetwork) or step < 2:
        return every[::step][:most], every[step // 2 :: step][:most]
    others = every[step // 2 :: step][:most]
    left = every[~torch.isin(every, others)]
    largest = max([1, *(prod(one.weight_shape[1:2]) * one.pixels_in for one in layers)])
    most = max(most, min(_FITTED * most, _KEPT_BYTES // (4 * largest)))
    return left[:: max(1, len(left) // most)][:most], others


def _kept_before(network: Network) -> set[str]:
    """The layers that were to stay whole when the network was decomposed."""
    records = (one for one in network.history if one.stage == "decompose")
    return {name for one in records for name in one.settings.get("keep", ())}
