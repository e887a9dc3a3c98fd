"""BatchNorm as part of the convolution before it, for networks in evaluation mode.

There a BatchNorm is an affine map of each channel, yet it costs a pass over the activations in
each direction, which for small layers is as much as the convolution itself. Teachers and networks
under test have it folded into their weights for good (`inference_copy`). A network that learns
either keeps its parameters, and scales its weights by them at every pass (`folding_norms`), or
learns the folded weights, which say how much a step of them changes (`learning_folded`).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeclean.networks.autocast import channels_last, device_of, exact_float32, has_fast_bfloat16
from edgeclean.networks.features import hooked

_EXAMPLES = 8
_PLAIN = (nn.Conv2d, nn.Linear)  # a subclass may make its weight at every pass
_TOLERANCE = 1e-3  # of the largest output; folding in float32 moves outputs by about 1e-6 of it


def inference_copy(function: nn.Module, pixels: Float[Tensor, "n c h w"]) -> nn.Module:
    """Return a copy of ``function`` for forward passes under `mixed_precision`, without gradients.

    A folded BatchNorm leaves an identity under its name. Weights are rounded to bfloat16 where
    autocast would do so at every pass.
    """
    plain = folded_copy(function, pixels)
    if has_fast_bfloat16(device_of(plain)):
        for layer in plain.modules():
            if type(layer) in _PLAIN:
                layer.to(torch.bfloat16)
    return channels_last(plain)


def folded_copy(module: nn.Module, images: Float[Tensor, "n c h w"]) -> nn.Module:
    """Return a copy of ``module`` with each BatchNorm in the convolution before it, in float32.

    Args:
        module: for inference; a folded BatchNorm leaves an identity under its name.
        images: what it takes; a few of them show what follows what.
    """
    plain = copy.deepcopy(module).eval().requires_grad_(False)
    for name, layer in _folded_by_name(plain, images).items():
        if isinstance(layer, NormedConv):
            plain.set_submodule(name, fuse_conv_bn_eval(layer.conv, layer.norm))
        else:
            plain.set_submodule(name, layer)
    return plain


@contextmanager
def folding_norms(
    module: nn.Module, pixels: Float[Tensor, "n c h w"], *, damped: bool = False
) -> Iterator[None]:
    """Let ``module`` compute its BatchNorms with the convolutions before them, meanwhile.

    The function and the parameters, the very tensors, stay the same; afterwards so do the layers.
    Gradients too, unless they are ``damped``: a step of a channel's kernel changes what the channel
    computes by the square of what the BatchNorm multiplies it by. Where that is above one and above
    the median of the layer's channels, the kernel's gradient is divided by what it is above. So a
    channel that died in training, all but nothing in weight and in variance and multiplied by the
    reciprocal root of epsilon, learns no faster than the others, and the first steps do not wake
    it.
    """
    folded = _folded_by_name(module, pixels)
    for layer in folded.values():
        if isinstance(layer, NormedConv):
            layer.damped = damped
    kept = {name: module.get_submodule(name) for name in folded}
    _swap(module, folded)
    try:
        yield
    finally:
        _swap(module, kept)


@contextmanager
def learning_folded(module: nn.Module, pixels: Float[Tensor, "n c h w"]) -> Iterator[None]:
    """Let ``module`` learn the weights that its convolutions make with the BatchNorms after them.

    Meanwhile such a pair is one convolution, whose weight and bias are parameters of their own.
    Afterwards the layers and their parameters, the very tensors, are back, and compute what was
    learned.

    A step of a convolution's own weight says little of what it changes where the BatchNorm behind
    it multiplies it: a channel that died in training, all but nothing in weight and in variance,
    is multiplied by the reciprocal root of epsilon, and the first steps wake it. Parameters that
    have other uses, or a BatchNorm that has none, learn as in `folding_norms`.
    """
    folded = _folded_by_name(module, pixels)
    kept = {name: module.get_submodule(name) for name in folded}
    used_twice = _used_twice(module)
    learned = {
        name: fuse_conv_bn_eval(layer.conv, layer.norm)
        for name, layer in folded.items()
        if isinstance(layer, NormedConv) and layer.norm.affine and used_twice.isdisjoint(layer.ids)
    }
    _swap(module, folded | learned)
    try:
        yield
    finally:
        _swap(module, kept)
    for name, conv in learned.items():
        layer = folded[name]
        assert isinstance(layer, NormedConv)  # noqa: S101 - chosen so above
        layer.learn_(conv)


def _used_twice(module: nn.Module) -> set[int]:
    """Return which parameters, by their `id`, the module has under more than one name."""
    times = Counter(id(one) for _, one in module.named_parameters(remove_duplicate=False))
    return {one for one, count in times.items() if count > 1}


class NormedConv(nn.Module):
    """A convolution and the BatchNorm after it, in evaluation mode, in one pass."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.damped = False

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d p q"]:
        """Return ``norm(conv(input))``; callers may name ``input`` as they do for `nn.Conv2d`."""
        outputs: Tensor = self.conv._conv_forward(input, *self._weight_and_bias())
        return outputs

    @property
    def ids(self) -> set[int]:
        """The `id` of every parameter."""
        return {id(one) for one in self.parameters()}

    @torch.no_grad()
    def learn_(self, folded: nn.Conv2d) -> None:
        """Compute what a convolution does, with its weight for the convolution's.

        The statistics are those of the outputs that the weight now makes, by the scale that it had
        before; the BatchNorm divides by them, and multiplies by as much.
        """
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None  # noqa: S101 - _pairs chose it
        assert norm.running_var is not None  # noqa: S101
        assert folded.bias is not None  # noqa: S101 - fusion gave it one
        scale = self._scale()
        norm.running_mean.mul_(scale)
        norm.running_var.mul_(scale.square())
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(folded.bias + norm.running_mean)
        conv.weight.copy_(folded.weight)
        if conv.bias is not None:
            conv.bias.mul_(scale)
            norm.bias.sub_(conv.bias)

    def _weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Fuse as torch.nn.utils.fusion.fuse_conv_bn_weights does, which cuts the gradients off."""
        conv, norm, scale = self.conv, self.norm, self._scale()
        assert norm.running_mean is not None  # noqa: S101 - _pairs chose it
        weight, offset = conv.weight, conv.bias
        if self.damped:
            squares = scale.detach().square()
            most = squares.median().clamp(min=1)
            share = most / squares.clamp(min=most)
            weight = _with_share_of_gradient(weight, share.view(-1, 1, 1, 1))
            offset = None if offset is None else _with_share_of_gradient(offset, share)
        shift = -norm.running_mean if offset is None else offset - norm.running_mean
        bias = shift * scale if norm.bias is None else shift * scale + norm.bias
        return weight * scale.view(-1, 1, 1, 1), bias

    def _scale(self) -> Float[Tensor, " d"]:
        """What the BatchNorm multiplies each channel by."""
        norm = self.norm
        assert norm.running_var is not None  # noqa: S101 - _pairs chose it
        scale = (norm.running_var + norm.eps).rsqrt()
        return scale if norm.weight is None else scale * norm.weight


def _with_share_of_gradient(parameter: Tensor, share: Tensor) -> Tensor:
    """Return the parameter, which will be given that share of the gradient."""
    fixed = parameter.detach()
    return fixed + share * (parameter - fixed)


def _folded_by_name(module: nn.Module, pixels: Float[Tensor, "n c h w"]) -> dict[str, nn.Module]:
    """Return the modules to put under which names, so that the outputs stay the same.

    Which BatchNorm takes the output of which convolution is seen by running a few images. That
    nothing else takes it, as the shortcut of a pre-activation block may, and that both run once,
    shows in the comparison: of all pairs together, and where that fails of each.
    """
    example = pixels[:_EXAMPLES].to(device_of(module))
    pairs = [_folded(module, *names) for names in _pairs(module, example)]
    together = {name: layer for pair in pairs for name, layer in pair.items()}
    if _stays_the_same(module, together, example):
        return together
    sound = [pair for pair in pairs if _stays_the_same(module, pair, example)]
    return {name: layer for pair in sound for name, layer in pair.items()}


def _folded(module: nn.Module, conv_name: str, norm_name: str) -> dict[str, nn.Module]:
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d)  # noqa: S101 - _pairs chose them
    assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
    return {conv_name: NormedConv(conv, norm), norm_name: nn.Identity()}


@torch.no_grad()
def _stays_the_same(
    module: nn.Module, layers: dict[str, nn.Module], example: Float[Tensor, "n c h w"]
) -> bool:
    kept = {name: module.get_submodule(name) for name in layers}
    with exact_float32():
        expected = module(example)
        _swap(module, layers)
        try:
            given = module(example)
        except AttributeError:  # code that reads its layers' weights itself
            return False
        finally:
            _swap(module, kept)
    # "<=", so that a NaN counts as a difference.
    return bool((given - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _swap(module: nn.Module, layers: dict[str, nn.Module]) -> None:
    for name, layer in layers.items():
        module.set_submodule(name, layer)


@torch.no_grad()
def _pairs(module: nn.Module, example: Float[Tensor, "n c h w"]) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the BatchNorms seen to take their outputs."""
    makers: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is unique only while its tensor lives
    pairs: list[tuple[str, str]] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def ran(
            _layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
        ) -> None:
            entered = inputs[0] if inputs else named["input"]
            if type(layer) is nn.Conv2d:
                makers[id(output)] = name
                alive.append(output)
            elif id(entered) in makers:
                pairs.append((makers[id(entered)], name))

        return layer.register_forward_hook(ran, with_kwargs=True)

    handles = [
        watch(name, layer)
        for name, layer in module.named_modules()
        if type(layer) is nn.Conv2d
        or (type(layer) is nn.BatchNorm2d and layer.running_var is not None)
    ]
    with hooked(handles):
        module(example)
    return pairs
