"""Which channels of a network are one and the same, as one forward pass shows it.

Every function that PyTorch runs is recorded, whoever calls it: stock layers, steps of a graph, or a
user's code. A value has its channels on its second axis. What computes each channel from the same
channel alone (activations, BatchNorm, depthwise convolutions, poolings, reshapes that keep the
axis) leaves them what they are; a dense convolution or linear layer reads one group of channels and
makes another. What is neither is not guessed at: the groups that it touches are fixed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgeclean.networks.features import hooked
from edgeclean.networks.layers import evaluating

_IMAGES = 2  # one alone would not tell the axis of the images from others of length one


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A parameter or buffer that has one entry for each channel, along one of its axes."""

    module: str
    name: str
    axis: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A dense layer that reads a group of channels.

    Attributes:
        layer: its dotted name.
        spread: how many of its inputs belong to one channel: more than 1 behind a flattened plane.
        pooled: whether the value that it reads has a single place.
        when: the number of the call.
    """

    layer: str
    spread: int
    pooled: bool
    when: int


@dataclass(slots=True)
class Channels:
    """One group of channels.

    Attributes:
        count: how many there are.
        fixed: whether something is done with them that is not known to keep them apart.
        makers: the dense layers that make them, in the order of their calls.
        readers: the dense layers that read them, likewise.
        held: what has an entry for each of them, beside those layers.
        gates: the makers whose outputs, of a single place, are multiplied into the others'.
        shaped: the modules that give a value of them another shape, which may be fixed in them.
    """

    count: int
    fixed: bool = False
    makers: list[str] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)
    shaped: list[str] = field(default_factory=list)


def channel_groups(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Channels, ...]:
    """Return all groups that are not fixed, in the order in which they are first made.

    Args:
        module: any network; it is run once, and left as it was.
        input_shape: channels, height and width of one image.
    """
    recorder = _Recorder(module)
    weight = next(module.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_IMAGES, *input_shape, generator=generator)
    images = images.to(device=weight.device, dtype=weight.dtype)
    with evaluating(module), torch.no_grad(), recorder.listening(module):
        recorder.begin(images)
        with recorder:
            answer = module(images)
    for one in answer if isinstance(answer, tuple | list) else [answer]:
        recorder.fix(one)
    groups = list(recorder.groups())
    uses = Counter(held for one in groups for held in set(one.held))
    return tuple(
        one
        for one in groups
        if one.makers and not one.fixed and all(uses[held] == 1 for held in one.held)
    )


@dataclass(slots=True)
class _Value:
    """The group of a tensor's channels, and how many entries of its second axis are one channel."""

    group: int
    spread: int = 1


_ATEN = torch.ops.aten
_RESHAPES = {
    *(_ATEN.view, _ATEN._unsafe_view, _ATEN.reshape, _ATEN.squeeze, _ATEN.unsqueeze),
    *(_ATEN.expand, _ATEN.flatten),
}
_PLANES = {  # each channel's plane from its own; the first argument is the value
    *(_ATEN.max_pool2d_with_indices, _ATEN.avg_pool2d, _ATEN._adaptive_avg_pool2d),
    *(_ATEN.adaptive_avg_pool2d, _ATEN.adaptive_max_pool2d, _ATEN.max_pool2d),
    *(_ATEN.upsample_nearest2d, _ATEN.upsample_bilinear2d, _ATEN.upsample_bicubic2d),
    *(_ATEN._upsample_nearest_exact2d, _ATEN.reflection_pad2d, _ATEN.replication_pad2d),
}
_SAME = {  # entry by entry, without PyTorch's own mark for that
    *(_ATEN.hardswish, _ATEN.hardswish_, _ATEN._to_copy, _ATEN.detach, _ATEN.alias),
    *(_ATEN.log_sigmoid_forward, _ATEN.lift_fresh),
}
_REDUCTIONS = {_ATEN.mean, _ATEN.sum, _ATEN.amax, _ATEN.amin, _ATEN.var, _ATEN.std}
_NORMS = {
    *(_ATEN.native_batch_norm, _ATEN._native_batch_norm_legit_no_training),
    *(_ATEN.cudnn_batch_norm, _ATEN.miopen_batch_norm),
}
_PRODUCTS = {_ATEN.mul, _ATEN.mul_}
_VIEWS = {_ATEN.view, _ATEN.unsqueeze, _ATEN.detach, _ATEN.alias, _ATEN.expand, _ATEN.reshape}


class _Recorder(TorchDispatchMode):
    """Follows the channels of every value through the functions that are called."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owners: dict[int, tuple[str, str] | None] = {}
        for name, part in module.named_modules():
            for own, tensor in _own_tensors(part):
                # What stands in two places is nobody's to cut.
                self._owners[id(tensor)] = None if id(tensor) in self._owners else (name, own)
        self._modules = dict(module.named_modules())
        self._parents: list[int] = []
        self._groups: list[Channels] = []
        self._values: dict[int, _Value] = {}
        self._alive: list[Any] = []  # an id is unique only while its tensor lives
        self._turned: dict[int, Tensor] = {}  # a weight that was transposed, or viewed
        self._dense_calls: dict[str, list[int]] = {}  # the groups that a layer read and made
        self._calls = 0
        self._running = ""

    @contextmanager
    def listening(self, module: nn.Module) -> Iterator[None]:
        """Know meanwhile which of the modules without others inside is running."""

        def note(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                self._running = name

            return hook

        leaves = [(name, one) for name, one in module.named_modules() if not any(one.children())]
        handles = [one.register_forward_pre_hook(note(name)) for name, one in leaves]
        handles += [one.register_forward_hook(note("")) for _, one in leaves]
        with hooked(handles):
            yield

    def begin(self, images: Tensor) -> None:
        """Take the images, whose channels are fixed."""
        self._alive.append(images)
        self._values[id(images)] = _Value(self._new(images.shape[1], fixed=True))

    def groups(self) -> Iterator[Channels]:
        """Yield every group once."""
        for index, group in enumerate(self._groups):
            if self._root(index) == index:
                yield group

    def fix(self, value: Any) -> None:
        """Mark the channels of a value as ones that must stay."""
        if isinstance(value, Tensor) and id(value) in self._values:
            self._of(value).fixed = True

    def __torch_dispatch__(
        self, called: Any, types: Any, taken: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        out = called(*taken, **(named or {}))
        self._calls += 1
        given = [one for one in _tensors((taken, named or {})) if id(one) in self._values]
        made = list(_tensors(out))
        self._alive += [*made, *_tensors(taken)]
        if not given:
            if (
                called.overloadpacket in {_ATEN.t, *_VIEWS}
                and made
                and isinstance(taken[0], Tensor)
            ):
                self._turned[id(made[0])] = self._turned.get(id(taken[0]), taken[0])
            return out
        value = self._follow(called, taken, named or {}, given, made)
        if value is None:
            for one in given:
                self.fix(one)
        for index, one in enumerate(made):
            known = value if index == 0 else None
            size = one.shape[1] if one.dim() > 1 else 1
            self._values[id(one)] = known or _Value(self._new(size, fixed=True))
        return out

    def _follow(
        self,
        called: Any,
        taken: tuple[Any, ...],
        named: dict[str, Any],
        given: list[Tensor],
        made: list[Tensor],
    ) -> _Value | None:
        """Return what the first output's channels are; None for what is not known."""
        packet = called.overloadpacket
        first = taken[0] if taken else None
        if not made or made[0].dim() < 2 or any(one.dim() < 2 for one in given):
            return None
        if packet is _ATEN.convolution:
            return self._convolution(taken, made[0]) if len(given) == 1 else None
        if packet in (_ATEN.addmm, _ATEN.mm):
            return self._linear(taken, named, made[0]) if len(given) == 1 else None
        handlers: list[tuple[bool, Callable[[], _Value | None]]] = [
            (packet in _NORMS, lambda: self._kept(first, list(taken[1:5]))),
            (packet is _ATEN._prelu_kernel, lambda: self._kept(first, [taken[1]])),
            (packet in _RESHAPES, lambda: self._reshaped(first, made[0])),
            (packet in _PLANES, lambda: self._of_planes(first)),
            (
                packet is _ATEN.constant_pad_nd and len(taken) > 1 and len(taken[1]) <= 4,
                lambda: self._of_planes(first),
            ),
            (packet in _REDUCTIONS, lambda: self._reduced(first, taken, named)),
            (packet is _ATEN.permute and len(taken) > 1, lambda: self._permuted(first, taken[1])),
            (packet in _SAME, lambda: self._values.get(id(first))),
            (
                torch.Tag.pointwise in called.tags,
                lambda: self._joined(packet, taken, given, made[0]),
            ),
        ]
        for applies, handler in handlers:
            if applies:
                return handler() if len(given) == 1 or handler is handlers[-1][1] else None
        return None

    def _convolution(self, taken: tuple[Any, ...], made: Tensor) -> _Value | None:
        if len(taken) < 9:  # by name, as only a graph of its own would
            return None
        entered, weight, bias, transposed, groups = *taken[:3], taken[6], taken[8]
        value, owner = self._values.get(id(entered)), self._owner(weight)
        if value is None or owner is None or transposed or value.spread != 1 or entered.dim() != 4:
            return None
        if groups == 1:
            return self._dense(entered, owner, bias, made)
        if owner[1] != "weight" or not groups == entered.shape[1] == made.shape[1]:
            return None
        self._hold(value, Held(*owner, 0))
        return self._kept(entered, [bias])

    def _linear(self, taken: tuple[Any, ...], named: dict[str, Any], made: Tensor) -> _Value | None:
        if len(taken) < 2:
            return None
        entered, turned = taken[-2:]
        weight = self._turned.get(id(turned))
        value, owner = self._values.get(id(entered)), self._owner(weight)
        plain = named.get("alpha", 1) == named.get("beta", 1) == 1
        if value is None or owner is None or weight is None or not plain:
            return None
        return self._dense(entered, owner, taken[0] if len(taken) == 3 else None, made)

    def _dense(
        self, entered: Tensor, owner: tuple[str, str], bias: Any, made: Tensor
    ) -> _Value | None:
        layer, name = owner
        part, value = self._modules[layer], self._values[id(entered)]
        if name != "weight" or not isinstance(part, nn.Conv2d | nn.Linear):
            return None
        if bias is not None and self._owner(bias) != (layer, "bias"):
            return None
        group = self._of(entered)
        again = layer in self._dense_calls
        pooled = prod(entered.shape[2:]) == 1 and value.spread == 1
        group.readers.append(
            Reader(layer=layer, spread=value.spread, pooled=pooled, when=self._calls)
        )
        out = self._new(made.shape[1], fixed=again)
        self._groups[out].makers.append(layer)
        calls = self._dense_calls.setdefault(layer, [])
        calls += [self._root(value.group), out]
        if again:  # one weight for two values: their channels are not told apart here
            for one in calls:
                self._groups[self._root(one)].fixed = True
        return _Value(out)

    def _kept(self, entered: Any, constants: list[Any]) -> _Value | None:
        """A function that has numbers of its own for every channel."""
        value = self._values.get(id(entered))
        if value is None:
            return None
        for one in constants:
            if isinstance(one, Tensor) and not self._holds(value, one):
                return None
        return value

    def _holds(self, value: _Value, constant: Tensor) -> bool:
        """Note a constant with one entry for each channel, or one for all; False for another."""
        if constant.numel() == 1:
            return True
        group = self._groups[self._root(value.group)]
        source = self._turned.get(id(constant), constant)
        owner = self._owner(source)
        axes = [axis for axis, size in enumerate(source.shape) if size == group.count]
        if owner is None or value.spread != 1 or len(axes) != 1 or source.numel() != group.count:
            return False
        self._hold(value, Held(*owner, axes[0]))
        return True

    def _hold(self, value: _Value, held: Held) -> None:
        group = self._groups[self._root(value.group)]
        if held not in group.held:
            group.held.append(held)

    def _reshaped(self, entered: Any, made: Tensor) -> _Value | None:
        """Row-major, so the channels stay apart where their axis is still behind the images'."""
        value, group = self._values[id(entered)], self._of(entered)
        count = group.count
        if made.shape[0] != entered.shape[0] or made.shape[1] % count:
            return None
        if self._running and self._running not in group.shaped:
            group.shaped.append(self._running)
        return _Value(value.group, made.shape[1] // count)

    def _of_planes(self, entered: Any) -> _Value | None:
        value = self._values[id(entered)]
        return value if entered.dim() == 4 else None

    def _reduced(
        self, entered: Any, taken: tuple[Any, ...], named: dict[str, Any]
    ) -> _Value | None:
        axes = taken[1] if len(taken) > 1 else named.get("dim")
        if axes is None or not isinstance(axes, list | tuple) or not axes:
            return None
        inner = all(axis % entered.dim() >= 2 for axis in axes)
        return self._values[id(entered)] if inner else None

    def _permuted(self, entered: Any, order: list[int]) -> _Value | None:
        return self._values[id(entered)] if list(order[:2]) == [0, 1] else None

    def _joined(
        self, packet: Any, taken: tuple[Any, ...], given: list[Tensor], made: Tensor
    ) -> _Value | None:
        """Entry by entry, of one value and constants, or of several values."""
        if any(one.dim() != made.dim() for one in given):
            return None
        wide = [one for one in given if one.shape[1] == made.shape[1]]
        if not wide or any(one.shape[1] != 1 for one in given if one.shape[1] != made.shape[1]):
            return None
        for one in given:  # a map for all channels alike
            if one.shape[1] != made.shape[1]:
                self.fix(one)
        value = self._values[id(wide[0])]
        for one in _tensors(taken):
            if id(one) not in self._values and not self._aligned(value, one, made):
                return None
        for one in wide[1:]:
            self._unite(packet, wide[0], one)
        return _Value(self._root(value.group), value.spread)

    def _aligned(self, value: _Value, constant: Tensor, made: Tensor) -> bool:
        """Whether a constant's entries, spread as numpy does, are those of the channels."""
        axis = 1 - made.dim() + constant.dim()
        if axis < 0 or constant.shape[axis] == 1:
            return constant.dim() <= made.dim()
        return constant.numel() == constant.shape[axis] and self._holds(value, constant)

    def _unite(self, packet: Any, one: Tensor, other: Tensor) -> None:
        left, right = self._values[id(one)], self._values[id(other)]
        into, gone = self._root(left.group), self._root(right.group)
        if into == gone:
            return
        later, group = (one, into) if into > gone else (other, gone)  # a gate hangs on the other
        gate = packet in _PRODUCTS and prod(later.shape[2:]) == 1
        kept, lost = self._groups[into], self._groups[gone]
        alike = kept.count == lost.count and left.spread == right.spread == 1
        if gate:
            kept.gates += self._groups[group].makers
        kept.fixed |= lost.fixed or not (gate and alike)
        kept.makers += lost.makers
        kept.readers = sorted([*kept.readers, *lost.readers], key=lambda reader: reader.when)
        kept.held += lost.held
        kept.shaped += lost.shaped
        kept.gates += lost.gates
        self._parents[gone] = into

    def _owner(self, tensor: Any) -> tuple[str, str] | None:
        return self._owners.get(id(tensor))

    def _of(self, value: Tensor) -> Channels:
        return self._groups[self._root(self._values[id(value)].group)]

    def _root(self, index: int) -> int:
        while self._parents[index] != index:
            self._parents[index] = self._parents[self._parents[index]]
            index = self._parents[index]
        return index

    def _new(self, count: int, *, fixed: bool = False) -> int:
        self._groups.append(Channels(count=count, fixed=fixed))
        self._parents.append(len(self._parents))
        return len(self._parents) - 1


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
        if tensor is not None:
            yield name, tensor


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, tuple | list):
        for one in nested:
            yield from _tensors(one)
    elif isinstance(nested, dict):
        yield from _tensors(list(nested.values()))
