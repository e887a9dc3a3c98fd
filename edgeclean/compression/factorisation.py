"""A convolution as a product of small ones: W = G x1 U1 x2 U2, over its channel modes only.

Modes are counted as in the slides: mode 1 is the output channels, mode 2 the input channels. What
a layer may become is named by its ranks (r_out, r_in); a rank equal to its channel count leaves
that mode whole, without a factor, and ranks of None are the one convolution that it was:

    both ranks below the channels    Tucker-2: `reduce` (1x1), `core` (KxK), `expand` (1x1, bias)
    one of them                      `core`, `expand` or `reduce`, `core`
    a 1x1 convolution                its singular value decomposition: `reduce`, `expand`
    None                             the convolution itself

`Factorisation` holds the weights of any of these, `part_shapes` the convolutions that it runs as:
the one place where a cost comes from. Another kind (spatially separable kernels, other channels
inside) is one more case of both, and of `networks.blocks`, which knows blocks by their names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.networks.blocks import is_block, spatial_part
from edgeclean.networks.layers import Layer, with_layers
from edgeclean.networks.shapes import ConvShape, mix_shape

Ranks = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Factorisation:
    """The weights of a factored convolution: kernel = core x1 factor_out x2 factor_in.

    Attributes:
        core: [r_out, r_in, kh, kw]; diagonal in a 1x1 convolution that is factored.
        factor_out: [out, r_out] (U1); None is the identity.
        factor_in: [in, r_in] (U2); likewise.
    """

    core: Float[Tensor, "r_out r_in kh kw"]
    factor_out: Float[Tensor, "out r_out"] | None = None
    factor_in: Float[Tensor, "in r_in"] | None = None

    @property
    def ranks(self) -> Ranks:
        """(r_out, r_in)."""
        return self.core.shape[0], self.core.shape[1]

    def kernel(self) -> Float[Tensor, "out in kh kw"]:
        """The convolution's kernel, multiplied out in float64, in the core's own type."""
        kernel = self.core.double()
        if self.factor_out is not None:
            kernel = torch.einsum("rihw,or->oihw", kernel, self.factor_out.double())
        if self.factor_in is not None:
            kernel = torch.einsum("orhw,ir->oihw", kernel, self.factor_in.double())
        return kernel.to(self.core.dtype)

    def truncated(self, rank_out: int, rank_in: int) -> Factorisation:
        """The leading ranks only: G(1:R1, 1:R2), U1(1:R1), U2(1:R2).

        Where the factors are orthonormal, the squared error of the kernel is at most the energy
        (sum of squares) of the singular values left out in both modes together.

        Raises:
            ValueError: a rank does not lie between 1 and the present one.
        """
        if not (1 <= rank_out <= self.ranks[0] and 1 <= rank_in <= self.ranks[1]):
            raise ValueError(
                f"ranks ({rank_out}, {rank_in}) do not fit a core of ranks {self.ranks}; "
                "each must lie between 1 and the core's"
            )
        return Factorisation(
            core=self.core[:rank_out, :rank_in],
            factor_out=None if self.factor_out is None else self.factor_out[:, :rank_out],
            factor_in=None if self.factor_in is None else self.factor_in[:, :rank_in],
        )

    def to_block(self, conv: nn.Conv2d) -> nn.Sequential:
        """A block with the convolution's stride, padding, dilation and bias, and these weights.

        Raises:
            ValueError: neither mode has a factor, so this is one convolution and no block.
        """
        pointwise = conv.kernel_size == (1, 1)
        weights: list[tuple[str, Tensor]] = []
        if self.factor_in is not None:
            mix = self.factor_in.T
            if pointwise:  # the singular values go with the first of the two
                mix = self.core[..., 0, 0] @ mix
            weights.append(("reduce", mix[..., None, None]))
        if not pointwise:
            weights.append(("core", self.core))
        if self.factor_out is not None:
            weights.append(("expand", self.factor_out[..., None, None]))
        if len(weights) < 2:
            raise ValueError("a factorisation without factors is one convolution, not a block")
        spatial = "reduce" if pointwise else "core"
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for name, weight in weights:
            bias = conv.bias if name == weights[-1][0] else None
            layers[name] = _convolution(weight, bias, conv if name == spatial else None)
        return nn.Sequential(layers).train(conv.training)

    @classmethod
    def from_block(cls, block: nn.Sequential) -> Factorisation:
        """The weights of a block; exactly those it was made of, but for a 1x1's signs of zero."""
        layers = dict(block.named_children())
        mix_in = _weight(layers["reduce"])[..., 0, 0] if "reduce" in layers else None
        factor_out = _weight(layers["expand"])[..., 0, 0] if "expand" in layers else None
        if "core" in layers:
            factor_in = None if mix_in is None else mix_in.T
            return cls(core=_weight(layers["core"]), factor_out=factor_out, factor_in=factor_in)
        return cls.of_matrix(cast(Tensor, mix_in), factor_out)

    @classmethod
    def of_matrix(
        cls, mix_in: Float[Tensor, "r in"], factor_out: Float[Tensor, "out r"] | None
    ) -> Factorisation:
        """Weights of a 1x1 block, whose `reduce` holds the singular values and the directions."""
        exact = mix_in.double()
        values = exact.norm(dim=1)
        directions = exact / values.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
        return cls(
            core=torch.diag(values)[:, :, None, None].to(mix_in.dtype),
            factor_out=factor_out,
            factor_in=directions.T.to(mix_in.dtype),
        )


def part_shapes(shape: ConvShape, ranks: Ranks | None) -> tuple[ConvShape, ...]:
    """The convolutions that a layer of this shape runs as at these ranks, in the order they run."""
    if ranks is None:
        return (shape,)
    rank_out, rank_in = ranks
    expand = mix_shape(rank_out, shape.channels_out, shape.image_out)
    if shape.pointwise:  # stride and padding are the first one's
        return replace(shape, channels_out=rank_in), expand
    core = replace(shape, channels_out=rank_out, channels_in=rank_in)
    reduce = mix_shape(shape.channels_in, rank_in, shape.image)
    return (
        *(() if rank_in == shape.channels_in else (reduce,)),
        core,
        *(() if rank_out == shape.channels_out else (expand,)),
    )


def cost_of(runs: Sequence[ConvShape], ranks: Ranks | None) -> tuple[int, int]:
    """Parameters without the bias, and multiply-accumulates of one image, of a layer at ranks.

    Args:
        runs: the layer's shape in every run of one forward pass; at least one.
        ranks: see `part_shapes`.
    """
    params = sum(part.params for part in part_shapes(runs[0], ranks))
    return params, sum(part.macs for shape in runs for part in part_shapes(shape, ranks))


def merge_block(block: nn.Module) -> nn.Conv2d:
    """The one convolution of the same function: the inverse of `Factorisation.to_block`.

    Raises:
        ValueError: the module is not a block.
    """
    if not is_block(block):
        raise ValueError("only a block (see networks/blocks.py) can be merged")
    bias = cast(nn.Conv2d, list(block.children())[-1]).bias
    kernel = Factorisation.from_block(block).kernel()
    return _convolution(kernel, bias, spatial_part(block)).train(block.training)


def kernel_of(layer: Layer) -> Float[Tensor, "out in kh kw"]:
    """The kernel of a convolution, or the one that a block in its place multiplies out to."""
    if is_block(layer.module):
        return Factorisation.from_block(layer.module).kernel()
    return cast(nn.Conv2d, layer.module).weight.detach()


def merged_module(module: nn.Module) -> nn.Module:
    """A copy in which every block is one convolution again: the network's original shape."""
    blocks = {name: one for name, one in module.named_modules() if is_block(one)}
    return with_layers(module, {name: merge_block(block) for name, block in blocks.items()})


def _convolution(
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


def _weight(layer: nn.Module) -> Tensor:
    return cast(nn.Conv2d, layer).weight.detach()
