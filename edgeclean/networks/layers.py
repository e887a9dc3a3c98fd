"""The layers of a network as one forward pass shows them: where they run, and on what images.

A layer is one convolution or linear layer of the *original* network, under its dotted name; a
network that is decomposed already has the same layers, with blocks in place of convolutions.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from edgeclean.errors import UsageError
from edgeclean.files.nearest import nearest_or_known
from edgeclean.networks.blocks import block_shape, is_block, whole_conv
from edgeclean.networks.features import hooked
from edgeclean.networks.resized import inside
from edgeclean.networks.shapes import ConvShape, conv_shape

Image = tuple[int, ...]
_MATRIX_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer that multiplies by weights.

    Attributes:
        name: dotted, as in ``named_modules``.
        module: the layer itself, or the block that stands in its place.
        images_in: for every run in one forward pass, the extent of the input without its channels:
            (height, width) of a convolution; empty if the layer never runs.
        images_out: the same for the outputs.
        macs: multiply-accumulates of one image over all runs; of a block, those of its
            convolutions.
        owners: all dotted names under which this one module stands, ``name`` first.
        reason: why it must stay as it is; empty if it may be factored.
    """

    name: str
    module: nn.Module
    images_in: tuple[Image, ...]
    images_out: tuple[Image, ...]
    macs: int
    owners: tuple[str, ...]
    reason: str

    @property
    def runs(self) -> int:
        """The number of times that the layer runs in one forward pass."""
        return len(self.images_in)

    @property
    def pixels_in(self) -> int:
        """The input pixels of one image over all runs."""
        return sum(prod(image) for image in self.images_in)

    @property
    def pixels_out(self) -> int:
        """The output pixels of one image over all runs."""
        return sum(prod(image) for image in self.images_out)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape [out, in of one group, ...] of the layer's weight, or of its block's kernel."""
        if is_block(self.module):
            return block_shape(self.module)
        weight = self.module.weight
        return tuple(weight.shape) if isinstance(weight, Tensor) else ()

    @property
    def shapes(self) -> tuple[ConvShape, ...]:
        """The shape of the convolution in every run; empty for what is no ``nn.Conv2d`` or block.

        A block has that of the one convolution that it stands for.
        """
        conv = whole_conv(self.module) if is_block(self.module) else self.module
        if not isinstance(conv, nn.Conv2d):
            return ()
        out, channels_in = self.weight_shape[0], self.weight_shape[1] * conv.groups
        return tuple(
            replace(
                conv_shape(conv, (image[0], image[1])), channels_out=out, channels_in=channels_in
            )
            for image in self.images_in
        )

    @property
    def kind(self) -> str:
        """The kind in one word: linear, convolution, pointwise (1x1), depthwise, grouped, ..."""
        module = self.module
        if isinstance(module, nn.Linear):
            return "linear"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            return "depthwise" if module.groups == module.in_channels else "grouped"
        if isinstance(module, nn.Conv2d) or is_block(module):
            return "pointwise" if self.weight_shape[2:] == (1, 1) else "convolution"
        return type(module).__name__

    def describe(self) -> dict[str, Any]:
        """Return name, kind and shape, for the history."""
        out, channels_in, *kernel = self.weight_shape
        groups = int(getattr(self.module, "groups", 1))
        return {
            "name": self.name,
            "kind": self.kind,
            "out": out,
            "in": channels_in * groups,
            "kernel": kernel,
        }


def trace_layers(
    module: nn.Module, input_shape: tuple[int, int, int], *, keep: Collection[str] = ()
) -> tuple[Layer, ...]:
    """Return all layers in the order of ``named_modules``, from one run over an image of zeros.

    Args:
        module: the module of a plain, decomposed or truncated network; it is left as it was. Where
            it resizes its images, the layers have the names that they have without that.
        input_shape: channels, height and width of one image.
        keep: names of layers that must stay as they are.

    Raises:
        UsageError: a name in ``keep`` is no layer of the network.
    """
    named = inside(module)
    modules = _layer_modules(named)
    require_layers("--keep", keep, modules)
    traces = _traced(module, input_shape)
    owners: dict[int, list[str]] = {}
    for name, one in named.named_modules(remove_duplicate=False):
        owners.setdefault(id(one), []).append(name)
    tied = Counter(id(weight) for one in modules.values() for weight in one.parameters())
    return tuple(
        Layer(
            name=name,
            module=one,
            images_in=tuple(traces[id(one)].images_in),
            images_out=tuple(traces[id(one)].images_out),
            macs=sum(
                traces[id(part)].macs for part in (one.children() if is_block(one) else (one,))
            ),
            owners=tuple(owners[id(one)]),
            reason=_reason_to_stay(
                one,
                kept=name in keep,
                runs=bool(traces[id(one)].images_in),
                shared=any(tied[id(weight)] > 1 for weight in one.parameters()),
            ),
        )
        for name, one in modules.items()
    )


def conv_shapes(layers: Iterable[Layer]) -> dict[str, ConvShape]:
    """Return the shapes of all convolutions that run exactly once, by name.

    A convolution that runs more often is left out: its time is not that of one shape.
    """
    return {layer.name: layer.shapes[0] for layer in layers if len(layer.shapes) == 1}


def require_layers(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are no layers.

    Raises:
        UsageError: names the first unknown one and the layers nearest to it.
    """
    known = list(known)
    for name in names:
        if name not in known:
            hint = nearest_or_known(name, known, otherwise="none has a name like it")
            raise UsageError(
                f"{option} {name!r} is no layer of this network; {hint} (`edgeclean inspect` lists "
                "all)"
            )


def with_layers(module: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Copy the module and replace the named layers, wherever else they stand too."""
    changed = copy.deepcopy(module)
    by_identity = {id(changed.get_submodule(name)): new for name, new in replacements.items()}
    if id(changed) in by_identity:
        return by_identity[id(changed)]
    for parent in list(changed.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in by_identity:
                setattr(parent, child_name, by_identity[id(child)])
    return changed


@dataclass(slots=True)
class _Trace:
    """The inputs and outputs that a hook on one module has seen."""

    images_in: list[Image] = field(default_factory=list)
    images_out: list[Image] = field(default_factory=list)
    macs: int = 0

    def __call__(
        self, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Tensor
    ) -> None:
        entered = inputs[0] if inputs else named["input"]
        self.images_in.append(tuple(entered.shape[2:]))
        self.images_out.append(tuple(output.shape[2:]))
        if isinstance(layer, nn.Conv2d | nn.Linear):
            self.macs += output[0].numel() * layer.weight[0].numel()


def _layer_modules(root: nn.Module) -> dict[str, nn.Module]:
    blocks = {name: module for name, module in root.named_modules() if is_block(module)}
    inside = {id(layer) for block in blocks.values() for layer in block.children()}
    return {
        name: module
        for name, module in root.named_modules()
        if name in blocks or (isinstance(module, _MATRIX_LAYERS) and id(module) not in inside)
    }


def _traced(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[int, _Trace]:
    """Trace, by identity, the inputs of every matrix layer and every block in one forward pass."""
    traces = {
        id(one): _Trace()
        for one in module.modules()
        if isinstance(one, _MATRIX_LAYERS) or is_block(one)
    }
    weight = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype)
    with evaluating(module):
        handles = [
            one.register_forward_hook(traces[id(one)], with_kwargs=True)
            for one in module.modules()
            if id(one) in traces
        ]
        with hooked(handles), torch.no_grad():
            module(image)
    return traces


def evaluated(module: nn.Module) -> nn.Module:
    """Set evaluation mode in place, and return the module.

    Code that overrides ``train`` may return nothing, and then ``eval`` does too: no chain of calls
    may go through it.
    """
    module.eval()
    return module


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode meanwhile; afterwards every submodule is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _reason_to_stay(module: nn.Module, *, kept: bool, runs: bool, shared: bool) -> str:
    if kept:
        return "named by --keep"
    if not runs:
        return "does not run as a module in the forward pass"
    if is_block(module):
        return ""
    if isinstance(module, nn.Linear):
        return "a linear layer; only convolutions are factored"
    if type(module) is not nn.Conv2d:
        return f"a {type(module).__name__}; only plain Conv2d are factored"
    if module.groups == module.in_channels and module.groups > 1:
        return "depthwise"
    if module.groups > 1:
        return f"grouped ({module.groups} groups)"
    if module.padding_mode != "zeros":
        return f"pads by {module.padding_mode!r}, not by zeros"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks, which a block would lose"
    return "shares its weights with another layer" if shared else ""
