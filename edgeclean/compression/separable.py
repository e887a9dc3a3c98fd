"""Spatially separable kernels: Kx1 to a few channels and 1xK from them, or the other way round.

A kernel [out, in, kh, kw] is regrouped so that the taps of the first direction count as channels:
(in, kh) of them, with kw taps each, and the first convolution is an input factor of that kernel.
So what fits factors of the channel modes fits these as well, and their losses are alike.

Sources: Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank
expansions" (2014), scheme 2; fitted to what flows through the layer as in Zhang et al. (2015).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from edgeclean.compression.factorisation import (
    Axis,
    Factors,
    Ranks,
    Separable,
    SeparableKernel,
)
from edgeclean.compression.fit import ActivationFit, WeightFit
from edgeclean.compression.tucker import left_singular


class SeparableFit:
    """Separable kernels of one order at any rank, for the weights alone or for what flows in.

    For the weights it is the truncated singular value decomposition of the regrouped kernel, which
    is the optimum, and the loss is the kernel's energy. For what flows in see `ActivationFit`.
    """

    def __init__(
        self,
        kernel: Float[Tensor, "out in kh kw"],
        first: Axis,
        *,
        most: int,
        moment: Float[Tensor, "patch patch"] | None = None,
        ridge: float = 0.0,
    ) -> None:
        """Fit all ranks up to a highest one.

        Args:
            kernel: with taps on both sides.
            first: the direction of the first convolution.
            most: the highest rank that will be asked for.
            moment: of the input patches, over (in, kh, kw); None fits the weights.
            ridge: see `ActivationFit`.
        """
        self._first: Axis = first
        self._shape = tuple(kernel.shape)
        self._dtype = kernel.dtype
        self._regrouped = _regrouped(kernel.detach(), first)
        self._fit: ActivationFit | None = None
        if moment is not None:
            regrouped = _regrouped_moment(moment, self._shape, first)
            self._fit = ActivationFit(self._regrouped, regrouped, ridge, most_in=most)
            self._losses = self._fit.losses_in().cpu()
            return
        unfolded = self._regrouped.double().transpose(0, 1).flatten(1)
        vectors, values = left_singular(unfolded)
        self._basis = vectors[:, :most]
        kept, total = values.square().cumsum(0), float(unfolded.square().sum())
        losses = (1 - kept / total).clamp(0, 1) if total > 0 else torch.zeros_like(kept)
        self._losses = losses[:most].cpu()

    def loss(self, rank: int) -> float:
        """The fraction in [0, 1] that is lost at this rank."""
        return float(self._losses[min(rank, len(self._losses)) - 1])

    def at(self, rank: int) -> SeparableKernel:
        """The kernel of this rank, which the first convolution makes with orthonormal filters."""
        if self._fit is None:
            basis = self._basis[:, :rank]
            outer = torch.einsum("cr,ocht->orht", basis, self._regrouped.double())
        else:
            factors = self._fit.at((self._shape[0], rank))
            outer, factor = factors.core, factors.factor_in
            eye = torch.eye(self._regrouped.shape[1], dtype=outer.dtype, device=outer.device)
            basis = eye if factor is None else factor
        _, channels_in, height, width = self._shape
        inner = basis.T.contiguous()
        if self._first == "vertical":
            inner = inner.view(len(inner), channels_in, height, 1)
        else:
            inner = inner.view(len(inner), channels_in, 1, width)
            outer = outer.transpose(2, 3)
        return SeparableKernel(inner=inner.to(self._dtype), outer=outer.to(self._dtype))


class LayerFit:
    """The factors of one layer at the ranks of any form that was fitted; see `fit.Fit`."""

    def __init__(
        self, modes: WeightFit | ActivationFit | None, separable: Mapping[Axis, SeparableFit]
    ) -> None:
        """Take the fits of the channel modes, if there are any, and of separable kernels."""
        self._modes = modes
        self._separable = separable

    def loss(self, ranks: Ranks) -> float:
        """The fraction in [0, 1] that is lost at these ranks."""
        if isinstance(ranks, Separable):
            return self._separable[ranks.first].loss(ranks.rank)
        return self._of_modes().loss(ranks)

    def at(self, ranks: Ranks) -> Factors:
        """The factorisation at these ranks."""
        if isinstance(ranks, Separable):
            return self._separable[ranks.first].at(ranks.rank)
        return self._of_modes().at(ranks)

    def _of_modes(self) -> WeightFit | ActivationFit:
        if self._modes is None:
            raise ValueError("nothing was fitted to the channel modes")
        return self._modes


def _regrouped(
    kernel: Float[Tensor, "out in kh kw"], first: Axis
) -> Float[Tensor, "out grouped one taps"]:
    """The kernel whose channels are (in, taps of the first direction)."""
    if first == "horizontal":
        kernel = kernel.transpose(2, 3)
    out, channels_in, inner, outer = kernel.shape
    return kernel.reshape(out, channels_in * inner, 1, outer)


def _regrouped_moment(
    moment: Float[Tensor, "patch patch"], shape: tuple[int, ...], first: Axis
) -> Float[Tensor, "patch patch"]:
    """The moment of patches in the order of the regrouped kernel."""
    if first == "vertical":
        return moment
    sides = shape[1:]
    return moment.view(*sides, *sides).permute(0, 2, 1, 3, 5, 4).reshape(moment.shape)
