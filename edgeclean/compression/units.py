"""Units: hidden channels that one convolution makes and one layer reads, and nothing else touches.

    inverted residual    1x1, depthwise, [squeeze-excite], 1x1: the expanded channels
    basic block          3x3, 3x3: those between
    bottleneck           1x1, 3x3, 1x1: two units that share the middle convolution
    plain chain          every convolution but the last; the last one too where a linear layer
                         reads it

Such channels have no residual coupling, so any of them can go, with everything that belongs to it
(`networks.channels` finds out what does). That it can is tried on the network itself: permuted, the
channels must give the same outputs; cut, the network must still run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from edgeclean.load.onnx.moves import Expand, Reshape
from edgeclean.networks.channels import Channels, Held, channel_groups
from edgeclean.networks.layers import Layer, evaluated, evaluating
from edgeclean.networks.operations import Operation

_TOLERANCE = 1e-3  # of the largest output: sums in another order
_MOST_TRIALS = 64  # of a network that came to make them long
LEAST_CHANNELS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Hidden channels with all that belongs to them.

    Attributes:
        channels: how many there are.
        producer: the convolution that makes them; also the unit's name.
        consumer: the convolution or linear layer that reads them.
        spread: inputs of a linear consumer that belong to one channel.
        squeezes: layers that read the pooled channels for gates.
        gates: layers that make a factor for each channel.
        held: numbers of other modules for each channel: BatchNorm, depthwise convolutions, ...
        shaped: modules that give the channels' values another shape.
    """

    channels: int
    producer: str
    consumer: str
    spread: int
    squeezes: tuple[str, ...]
    gates: tuple[str, ...]
    held: tuple[Held, ...]
    shaped: tuple[str, ...] = ()

    @property
    def readers(self) -> tuple[str, ...]:
        """The layers whose inputs are cut: squeezes first, the consumer last."""
        return *self.squeezes, self.consumer

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that change with the channels."""
        held = (one.module for one in self.held)
        return tuple(dict.fromkeys((self.producer, *held, *self.gates, *self.readers)))

    def entries(self, kept: Int[Tensor, " k"], inputs: int) -> Int[Tensor, " n"]:
        """Return which of a reader's inputs, ``inputs`` in all, belong to these channels."""
        spread = inputs // self.channels
        return (kept[:, None] * spread + torch.arange(spread)).flatten()


def find_units(
    module: nn.Module,
    layers: Mapping[str, Layer],
    input_shape: tuple[int, int, int],
    *,
    keep: Collection[str] = (),
) -> tuple[Unit, ...]:
    """Return the units of a network, in the order in which their channels are made.

    Args:
        module: in its original shape; it is left as it was.
        layers: all of its layers, by name. Producers, and consumers that are convolutions, are
            among those without a reason to stay.
        input_shape: channels, height and width of one image.
        keep: names of layers that may not change.
    """
    units = [
        unit
        for group in channel_groups(module, input_shape)
        if (unit := _unit_of(group, layers)) is not None and not set(unit.modules) & set(keep)
    ]
    inner = {name for unit in units for name in (*unit.squeezes, *unit.gates)}
    outer = [unit for unit in units if unit.producer not in inner and unit.consumer not in inner]
    return tuple(_sound(module, outer, input_shape))


def cut_(module: nn.Module, unit: Unit, kept: Int[Tensor, " k"]) -> None:
    """Leave the kept channels of a unit, in their order, and change the module in place.

    Args:
        module: holds the unit's layers in their original shape, but for channels of other units.
        unit: whose channels are cut.
        kept: their indices.
    """
    for name in (unit.producer, *unit.gates):
        layer = module.get_submodule(name)
        for own in ("weight", "bias"):
            if getattr(layer, own) is not None:
                _pick_(layer, own, 0, kept)
    for one in unit.held:
        _pick_(module.get_submodule(one.module), one.name, one.axis, kept)
    for name in unit.readers:
        inputs = module.get_parameter(f"{name}.weight").shape[1]
        _pick_(module.get_submodule(name), "weight", 1, unit.entries(kept, inputs))
    for name in unit.modules:
        _count_(module.get_submodule(name))
    for name in unit.shaped:
        _shape_(module.get_submodule(name), unit.channels, len(kept))


def _unit_of(group: Channels, layers: Mapping[str, Layer]) -> Unit | None:
    producers = [name for name in group.makers if name not in group.gates]
    if len(producers) != 1 or not group.readers or group.count < LEAST_CHANNELS:
        return None
    *sides, main = group.readers
    names = [*group.makers, *(one.layer for one in group.readers)]
    if len(set(names)) != len(names) or (sides and not group.gates):
        return None
    if not all(one.pooled and one.spread == 1 for one in sides):
        return None
    if not all(_is_stock(layers.get(name)) for name in names):
        return None
    ends = [layers[name] for name in (producers[0], main.layer)]
    if not all(_may_be_cut(one) for one in ends) or isinstance(ends[0].module, nn.Linear):
        return None
    if isinstance(ends[1].module, nn.Conv2d) and main.spread != 1:
        return None
    return Unit(
        channels=group.count,
        producer=producers[0],
        consumer=main.layer,
        spread=main.spread,
        squeezes=tuple(one.layer for one in sides),
        gates=tuple(dict.fromkeys(group.gates)),
        held=tuple(group.held),
        shaped=tuple(dict.fromkeys(group.shaped)),
    )


def _is_stock(layer: Layer | None) -> bool:
    """Whether the layer is stock, runs once under one name, and shares no weight."""
    if layer is None or layer.runs != 1 or len(layer.owners) != 1:
        return False
    return type(layer.module) in (nn.Conv2d, nn.Linear)


def _may_be_cut(layer: Layer) -> bool:
    return not layer.reason or isinstance(layer.module, nn.Linear)


def _sound(
    module: nn.Module, units: list[Unit], input_shape: tuple[int, int, int]
) -> Iterable[Unit]:
    """Return those whose channels can be permuted and cut; tried together, then in halves."""
    weight = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, *input_shape, generator=generator)
    images = images.to(device=weight.device, dtype=weight.dtype)
    with evaluating(module), torch.no_grad():
        expected = module(images)

    def holds(some: Sequence[Unit]) -> bool:
        return _stays(module, some, images, expected) and _runs(module, some, images, expected)

    trials = iter(range(_MOST_TRIALS))

    def sound(some: list[Unit]) -> list[Unit]:
        """Those of some that hold together; halves where they do not, as long as trials last."""
        if not some or next(trials, None) is None:
            return []
        if holds(some):
            return some
        half = len(some) // 2
        return [*sound(some[:half]), *sound(some[half:])] if half else []

    found = sound(units)
    return found if len(found) == len(units) or not found or holds(found) else []


def _stays(module: nn.Module, units: Sequence[Unit], images: Tensor, expected: Tensor) -> bool:
    given = _tried(module, units, images, lambda count: torch.arange(count).flip(0))
    if given is None or given.shape != expected.shape:
        return False
    # "<=", so that a NaN counts as a difference.
    return bool((given - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _runs(module: nn.Module, units: Sequence[Unit], images: Tensor, expected: Tensor) -> bool:
    given = _tried(module, units, images, lambda count: torch.arange(count // 2))
    return given is not None and given.shape == expected.shape


def _tried(
    module: nn.Module, units: Sequence[Unit], images: Tensor, kept: Callable[[int], Tensor]
) -> Tensor | None:
    """Return the outputs with these channels of every unit; None where the network does not run."""
    changed = evaluated(copy.deepcopy(module))
    for unit in units:
        cut_(changed, unit, kept(unit.channels))
    try:
        with torch.no_grad():
            outputs: Tensor = changed(images)
    except (RuntimeError, ValueError, IndexError, AttributeError, AssertionError, TypeError):
        return None  # code that has the number of channels written into it
    return outputs


def _pick_(layer: nn.Module, name: str, axis: int, entries: Tensor) -> None:
    """Leave these entries of a parameter's or buffer's axis."""
    tensor = getattr(layer, name)
    picked = tensor.detach().index_select(axis, entries.to(tensor.device)).contiguous()
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(picked, requires_grad=tensor.requires_grad))
    else:
        setattr(layer, name, picked)


def _shape_(step: nn.Module, before: int, after: int) -> None:
    """Set the shape that is fixed in a step of a graph; its second axis is that of the channels."""
    if isinstance(step, Reshape | Expand) and step.shape[0] > 0:
        step.shape = (step.shape[0] // before * after, *step.shape[1:])
    elif isinstance(step, Operation):
        step.arguments = tuple(
            type(one)([one[0], one[1] // before * after, *one[2:]])
            if isinstance(one, list | tuple) and len(one) > 1 and _is_count(one[1])
            else one
            for one in step.arguments
        )


def _is_count(entry: object) -> bool:
    return isinstance(entry, int) and entry > 1


def _count_(layer: nn.Module) -> None:
    """Set a stock layer's own numbers of channels by its weights."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:  # depthwise
            layer.groups = layer.in_channels = layer.out_channels = layer.weight.shape[0]
        else:
            layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
        layer.num_features = len(layer.running_mean)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.numel()
