"""A factored convolution as stock modules: `reduce` (1x1), `core` (KxK), `expand` (1x1, bias).

A block is a plain ``nn.Sequential`` of two or three plain ``nn.Conv2d`` with these names, so that
exporters and state dicts need no special case:

    reduce, core, expand   both modes factored; stride, padding and dilation are the core's
    core, expand           only the output channels factored (the input rank is full)
    reduce, core           only the input channels factored
    reduce, expand         a 1x1 convolution in two; stride and padding are reduce's
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.factors.tucker import tucker2

_FORMS = (
    ("reduce", "core", "expand"),
    ("core", "expand"),
    ("reduce", "core"),
    ("reduce", "expand"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The weights of a block: kernel = core x1 factor_out x2 factor_in.

    A factor that is None is the identity. A 1x1 convolution has a diagonal core.
    """

    core: Float[Tensor, "r_out r_in kh kw"]
    factor_out: Float[Tensor, "out r_out"] | None
    factor_in: Float[Tensor, "in r_in"] | None

    def kernel(self) -> Float[Tensor, "out in kh kw"]:
        """The convolution's kernel, multiplied out in float64."""
        kernel = self.core.double()
        if self.factor_out is not None:
            kernel = torch.einsum("rihw,or->oihw", kernel, self.factor_out.double())
        if self.factor_in is not None:
            kernel = torch.einsum("orhw,ir->oihw", kernel, self.factor_in.double())
        return kernel.to(self.core.dtype)

    def truncated(self, rank_out: int, rank_in: int) -> Factors:
        """The leading ranks only."""
        return Factors(
            core=self.core[:rank_out, :rank_in],
            factor_out=None if self.factor_out is None else self.factor_out[:, :rank_out],
            factor_in=None if self.factor_in is None else self.factor_in[:, :rank_in],
        )


def is_block(module: nn.Module) -> bool:
    """Whether the module is one of the four forms above, and so can be merged."""
    if type(module) is not nn.Sequential:
        return False
    names = tuple(name for name, _ in module.named_children())
    layers = list(module.children())
    if names not in _FORMS or not all(_is_plain(layer) for layer in layers):
        return False
    carrier = _carrier(module)
    return all(layer.bias is None for layer in layers[:-1]) and all(
        layer is carrier or _is_channel_mix(layer) for layer in layers
    )


def factored_block(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution as a block of full ranks, of the same function to rounding.

    Raises:
        ValueError: the convolution is grouped, pads otherwise than by zeros, or is not finite.
    """
    if conv.groups != 1 or conv.padding_mode != "zeros":
        raise ValueError(
            f"a convolution with groups={conv.groups} and padding_mode={conv.padding_mode!r} has "
            "no Tucker-2 block; it must have groups=1 and padding_mode='zeros'"
        )
    return block_of(conv, factorize(conv.weight))


def factorize(kernel: Float[Tensor, "out in kh kw"]) -> Factors:
    """Full-rank factors; of a 1x1 kernel, those of its singular value decomposition."""
    tucker = tucker2(kernel)
    if kernel.shape[2:] != (1, 1):
        return Factors(core=tucker.core, factor_out=tucker.factor_out, factor_in=tucker.factor_in)
    mix_in = tucker.factor_out.double().T @ kernel.detach()[..., 0, 0].double()
    return pointwise_factors(mix_in.to(kernel.dtype), tucker.factor_out)


def block_of(conv: nn.Conv2d, factors: Factors) -> nn.Sequential:
    """A block with the convolution's stride, padding, dilation and bias, and these weights."""
    pointwise = conv.kernel_size == (1, 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    weights: list[tuple[str, Tensor]] = []
    if factors.factor_in is not None:
        mix = factors.factor_in.T
        if pointwise:  # the singular values go with the first of the two
            mix = factors.core[..., 0, 0] @ mix
        weights.append(("reduce", mix[..., None, None]))
    if not pointwise:
        weights.append(("core", factors.core))
    if factors.factor_out is not None:
        weights.append(("expand", factors.factor_out[..., None, None]))
    carrier = "reduce" if pointwise else "core"
    for name, weight in weights:
        bias = conv.bias if name == weights[-1][0] else None
        layers[name] = convolution(weight, bias, conv if name == carrier else None)
    return nn.Sequential(layers).train(conv.training)


def block_factors(block: nn.Sequential) -> Factors:
    """The weights of a block; exactly those it was made of, but for a 1x1's signs of zero."""
    layers = dict(block.named_children())
    mix_in = _weight(layers["reduce"])[..., 0, 0] if "reduce" in layers else None
    factor_out = _weight(layers["expand"])[..., 0, 0] if "expand" in layers else None
    if "core" in layers:
        factor_in = None if mix_in is None else mix_in.T
        return Factors(core=_weight(layers["core"]), factor_out=factor_out, factor_in=factor_in)
    return pointwise_factors(cast(Tensor, mix_in), factor_out)


def pointwise_factors(
    mix_in: Float[Tensor, "r in"], factor_out: Float[Tensor, "out r"] | None
) -> Factors:
    """Factors of a 1x1 block, whose `reduce` holds the singular values and the directions."""
    exact = mix_in.double()
    values = exact.norm(dim=1)
    directions = exact / values.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return Factors(
        core=torch.diag(values)[:, :, None, None].to(mix_in.dtype),
        factor_out=factor_out,
        factor_in=directions.T.to(mix_in.dtype),
    )


def merge_block(block: nn.Sequential) -> nn.Conv2d:
    """The one convolution of the same function: the inverse of `factored_block`.

    Raises:
        ValueError: the module is not a block.
    """
    if not is_block(block):
        raise ValueError("only a block of reduce, core, expand (see blocks.py) can be merged")
    layers = list(block.children())
    bias = cast(nn.Conv2d, layers[-1]).bias
    merged = convolution(block_factors(block).kernel(), bias, _carrier(block))
    return merged.train(block.training)


def convolution(
    weight: Float[Tensor, "out in kh kw"], bias: Tensor | None, geometry: nn.Conv2d | None = None
) -> nn.Conv2d:
    """A convolution with copies of these weights, and another's stride, padding and dilation."""
    conv = nn.Conv2d(  # on no device: its own initial weights would draw from the global generator
        weight.shape[1],
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=(1, 1) if geometry is None else _pair(geometry.stride),
        padding=(0, 0) if geometry is None else _pair_or_word(geometry.padding),
        dilation=(1, 1) if geometry is None else _pair(geometry.dilation),
        bias=bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def _pair(extent: tuple[int, ...]) -> tuple[int, int]:
    return extent[0], extent[1]


def _pair_or_word(padding: str | tuple[int, ...]) -> str | tuple[int, int]:
    return padding if isinstance(padding, str) else _pair(padding)


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"


def _is_channel_mix(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "same", "valid")
    )


def _carrier(block: nn.Sequential) -> nn.Conv2d:
    """The convolution of the block that has the stride, padding and dilation."""
    layers = dict(block.named_children())
    return cast(nn.Conv2d, layers.get("core", layers.get("reduce")))


def _weight(layer: nn.Module) -> Tensor:
    return cast(nn.Conv2d, layer).weight.detach()
