"""A convolution as a product of small ones: over its channel modes, or over height and width.

Modes are counted as in the slides: mode 1 is the output channels, mode 2 the input channels. What
a layer may become is named by its ranks. Of the channel modes, W = G x1 U1 x2 U2, they are
(r_out, r_in); a rank equal to its channel count leaves that mode whole, without a factor. A
spatially separable kernel has one rank and an order. Ranks of None are the one convolution:

    both ranks below the channels    Tucker-2: `reduce` (1x1), `core` (KxK), `expand` (1x1, bias)
    one of them                      `core`, `expand` or `reduce`, `core`
    a 1x1 convolution                its singular value decomposition: `reduce`, `expand`
    separable                        `core_vertical` (Kx1) and `core_horizontal` (1xK), in one of
                                     the two orders; the bias is the second one's
    None                             the convolution itself

`Factorisation` and `SeparableKernel` hold the weights of any of these, `part_shapes` the
convolutions that it runs as: the one place where a cost comes from. Another kind is one more case
of all of them, and of `networks.blocks`, which knows blocks by their names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.networks.blocks import HORIZONTAL, VERTICAL, is_block, is_separable, whole_conv
from edgeclean.networks.layers import Layer, with_layers
from edgeclean.networks.shapes import ConvShape, mix_shape, pair_of

Axis = Literal["vertical", "horizontal"]
AXES: tuple[Axis, ...] = ("vertical", "horizontal")
ModeRanks: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Separable:
    """The rank of a spatially separable kernel.

    Attributes:
        first: the direction of the first convolution: "vertical" is Kx1, then 1xK.
        rank: the channels between the two.
    """

    first: Axis
    rank: int


Ranks: TypeAlias = ModeRanks | Separable


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
    def ranks(self) -> ModeRanks:
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
            layers[name] = _convolution(weight, bias, _all_of(conv) if name == spatial else _MIX)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SeparableKernel:
    """The weights of a spatially separable convolution: sums of outer products over the taps.

    Attributes:
        inner: of the first convolution: [rank, in, kh, 1], or [rank, in, 1, kw].
        outer: of the second one, along the other axis: [out, rank, 1, kw], or [out, rank, kh, 1].
    """

    inner: Float[Tensor, "rank in inner_h inner_w"]
    outer: Float[Tensor, "out rank outer_h outer_w"]

    @property
    def ranks(self) -> Separable:
        """The rank and the order; a first convolution of one tap is vertical."""
        vertical = self.inner.shape[3] == 1
        return Separable(first="vertical" if vertical else "horizontal", rank=len(self.inner))

    def kernel(self) -> Float[Tensor, "out in kh kw"]:
        """The one convolution's kernel, multiplied out in float64, in the weights' own type."""
        kernel = torch.einsum("orab,ricd->oiacbd", self.outer.double(), self.inner.double())
        out, channels_in, *taps = kernel.shape
        shape = out, channels_in, taps[0] * taps[1], taps[2] * taps[3]
        return kernel.reshape(shape).to(self.inner.dtype)

    def to_block(self, conv: nn.Conv2d) -> nn.Sequential:
        """A block with the convolution's stride, padding, dilation and bias, and these weights."""
        first, second = _in_order(self.ranks.first)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers[first] = _convolution(self.inner, None, _along(conv, first))
        layers[second] = _convolution(self.outer, conv.bias, _along(conv, second))
        return nn.Sequential(layers).train(conv.training)

    @classmethod
    def from_block(cls, block: nn.Sequential) -> SeparableKernel:
        """The weights of a block; exactly those it was made of."""
        inner, outer = (_weight(layer) for layer in block.children())
        return cls(inner=inner, outer=outer)


Factors: TypeAlias = Factorisation | SeparableKernel


def factors_of(block: nn.Sequential) -> Factors:
    """The weights of a block of either kind."""
    kind = SeparableKernel if is_separable(block) else Factorisation
    return kind.from_block(block)


def is_separated(shape: ConvShape) -> bool:
    """Whether a layer of this shape may become a spatially separable one: both sides have taps."""
    return min(shape.kernel) > 1


def full_separable_rank(shape: ConvShape, first: Axis) -> int:
    """The rank at which a separable kernel is exact for every kernel of this shape."""
    inner, outer = shape.kernel if first == "vertical" else shape.kernel[::-1]
    return min(shape.channels_in * inner, shape.channels_out * outer)


def order_of(ranks: Ranks | None) -> tuple[int, str, int, int]:
    """A key that sorts ranks of every form: the one convolution first, separable ones last."""
    if ranks is None:
        return 0, "", 0, 0
    if isinstance(ranks, Separable):
        return 2, ranks.first, ranks.rank, 0
    return 1, "", *ranks


def ranks_as_json(ranks: Ranks) -> list[int | str]:
    """[r_out, r_in], or the first direction and the rank: ["vertical", 12]."""
    return [ranks.first, ranks.rank] if isinstance(ranks, Separable) else [*ranks]


def ranks_from(entry: Sequence[int | str]) -> Ranks:
    """The ranks of two entries, the inverse of `ranks_as_json`.

    Raises:
        ValueError: they are neither two whole numbers nor a direction and a whole number.
    """
    first, second = entry
    if isinstance(first, int) and isinstance(second, int):
        return first, second
    for axis in AXES:
        if first == axis and isinstance(second, int):
            return Separable(first=axis, rank=second)
    raise ValueError(f"{list(entry)} are no ranks")


def part_shapes(shape: ConvShape, ranks: Ranks | None) -> tuple[ConvShape, ...]:
    """The convolutions that a layer of this shape runs as at these ranks, in the order they run."""
    if ranks is None:
        return (shape,)
    if isinstance(ranks, Separable):
        first, second = shape.vertical, shape.horizontal
        if ranks.first == "horizontal":
            first, second = second, first
        first = replace(first, channels_out=ranks.rank)  # it strides along its own axis only
        return first, replace(second, channels_in=ranks.rank, image=first.image_out)
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
    geometry = _all_of(whole_conv(block))
    return _convolution(factors_of(block).kernel(), bias, geometry).train(block.training)


def kernel_of(layer: Layer) -> Float[Tensor, "out in kh kw"]:
    """The kernel of a convolution, or the one that a block in its place multiplies out to."""
    if is_block(layer.module):
        return factors_of(layer.module).kernel()
    return cast(nn.Conv2d, layer.module).weight.detach()


def merged_module(module: nn.Module) -> nn.Module:
    """A copy in which every block is one convolution again: the network's original shape."""
    blocks = {name: one for name, one in module.named_modules() if is_block(one)}
    return with_layers(module, {name: merge_block(block) for name, block in blocks.items()})


class _Geometry(NamedTuple):
    stride: tuple[int, int]
    padding: str | tuple[int, int]
    dilation: tuple[int, int]


_MIX = _Geometry((1, 1), (0, 0), (1, 1))


def _all_of(conv: nn.Conv2d) -> _Geometry:
    padding = conv.padding if isinstance(conv.padding, str) else pair_of(conv.padding)
    return _Geometry(pair_of(conv.stride), padding, pair_of(conv.dilation))


def _along(conv: nn.Conv2d, name: str) -> _Geometry:
    """What a convolution's geometry is along the axis of one part; a word holds for both parts."""
    stride, padding, dilation = _all_of(conv)
    if name == VERTICAL:
        padding = padding if isinstance(padding, str) else (padding[0], 0)
        return _Geometry((stride[0], 1), padding, (dilation[0], 1))
    padding = padding if isinstance(padding, str) else (0, padding[1])
    return _Geometry((1, stride[1]), padding, (1, dilation[1]))


def _in_order(first: Axis) -> tuple[str, str]:
    return (VERTICAL, HORIZONTAL) if first == "vertical" else (HORIZONTAL, VERTICAL)


def _convolution(
    weight: Float[Tensor, "out in kh kw"], bias: Tensor | None, geometry: _Geometry
) -> nn.Conv2d:
    """A convolution with copies of these weights."""
    conv = nn.Conv2d(  # on no device: its own initial weights would draw from the global generator
        weight.shape[1],
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        stride=geometry.stride,
        padding=geometry.padding,
        dilation=geometry.dilation,
        bias=bias is not None,
        device="meta",
    )
    conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone())
    return conv


def _weight(layer: nn.Module) -> Tensor:
    return cast(nn.Conv2d, layer).weight.detach()
