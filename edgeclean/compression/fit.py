"""Two ways to find low-rank factors of a kernel: for its weights alone, or for what flows in.

Both answer the same questions: what do ranks (r_out, r_in) lose, and which factors are theirs.
A rank equal to its channel count leaves that mode whole: there is no factor for it.

Second moments of what flows into a convolution, patch by patch, on given images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.compression.factorisation import Factorisation, Factors, ModeRanks, Ranks
from edgeclean.compression.flow import Flow
from edgeclean.compression.tucker import fixed_signs


@runtime_checkable  # the tests check types while they run
class Fit(Protocol):
    """The best factorisation of one kernel at any ranks, in some sense of best."""

    def loss(self, ranks: Ranks) -> float:
        """The fraction in [0, 1] that is lost at these ranks."""
        ...

    def at(self, ranks: Ranks) -> Factors:
        """The factorisation at these ranks."""
        ...


def lower_triangle(matrix: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The Cholesky factor of a second moment that rounding may have left just short of definite.

    Raises:
        ValueError: the matrix is far from positive definite, or not finite.
    """
    level = 1e-7 * float(matrix.diagonal().mean())
    for shift in (0.0, level, 10 * level, 100 * level, 1000 * level):
        shifted = matrix
        if shift:  # a moment may take hundreds of megabytes: copy it only if need be
            shifted = matrix.clone()
            shifted.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed:
            triangle: Tensor = factor
            return triangle
    raise ValueError("a second moment of the activations is not positive definite or not finite")


class WeightFit:
    """The leading ranks of the decomposition, as on the slides; the loss is the kernel's energy."""

    def __init__(self, full: Factorisation, channels: ModeRanks) -> None:
        """Take the orthonormal factorisation of a kernel with (out, in) channels at full ranks."""
        self._full = full
        self._channels = channels
        squares = full.core.double().square().sum(dim=(2, 3))
        self._kept = squares.cumsum(0).cumsum(1).cpu()

    def loss(self, ranks: ModeRanks) -> float:
        """Squared distance from the kernel over its square.

        The factors are orthonormal, so what leading ranks keep is the energy of their part of the
        core, exactly.
        """
        rows, columns = self._kept.shape
        total = float(self._kept[-1, -1])
        kept = float(self._kept[min(ranks[0], rows) - 1, min(ranks[1], columns) - 1])
        return max(0.0, 1 - kept / total) if total > 0 else 0.0

    def at(self, ranks: ModeRanks) -> Factorisation:
        """G(1:R1, 1:R2), U1(1:R1), U2(1:R2); a factor that stays square goes into the core."""
        rows, columns = self._kept.shape
        cut = self._full.truncated(min(ranks[0], rows), min(ranks[1], columns))
        if cut.core.shape[2:] == (1, 1):
            return cut
        core, factor_out, factor_in = cut.core, cut.factor_out, cut.factor_in
        if ranks[0] == self._channels[0] and factor_out is not None:
            core, factor_out = torch.einsum("rihw,or->oihw", core, factor_out), None
        if ranks[1] == self._channels[1] and factor_in is not None:
            core, factor_in = torch.einsum("orhw,ir->oihw", core, factor_in), None
        return Factorisation(core=core, factor_out=factor_out, factor_in=factor_in)


class ActivationFit:
    """Factors that keep the layer's *outputs* on given inputs; the loss is the outputs' energy.

    With C the second moment of the input patches, the squared change of the outputs is
    ||(W - W') C^1/2||^2. The input basis is that of W_(2) Cx^1/2 (Cx: the channels' own moment);
    given it, the core and the output basis are the best there are: a reduced-rank regression.
    Everything nests, so one Cholesky factorisation answers for all ranks.

    Source: reduced-rank regression (Izenman 1975); its use on a convolution's responses is due to
    Zhang et al., "Accelerating very deep convolutional networks" (2015), section 3.
    """

    def __init__(
        self,
        kernel: Float[Tensor, "out in kh kw"],
        moment: Float[Tensor, "patch patch"],
        ridge: float,
        *,
        most_in: int | None = None,
    ) -> None:
        """Take the kernel, C over (in, kh, kw), and the share of C's mean variance added to it.

        The ridge leans the fit towards that of the weights: directions that the inputs never show
        are cheap, but not free. Where no input rank above ``most_in`` will be asked for, nothing is
        computed or kept for those.
        """
        out, channels_in, height, width = kernel.shape
        self._shape = (out, channels_in, height, width)
        self._dtype = kernel.dtype
        self._taps = height * width
        self._matrix = kernel.detach().double().flatten(1)
        damped = moment.double().clone()
        level = float(damped.diagonal().mean())
        damped.diagonal().add_(ridge * level if level > 0 else 1.0)
        self._basis = self._input_basis(damped)[:, :most_in]
        crossed = self._matrix @ damped
        total = float((crossed * self._matrix).sum())
        crossed = self._rotate(crossed)
        damped = self._rotate(damped).T
        damped = self._rotate(damped)  # in two steps, so that the first copy is freed
        self._triangle = lower_triangle(damped)
        self._responses = torch.linalg.solve_triangular(
            self._triangle.T, crossed, upper=True, left=False
        )
        self._total = float(self._responses.square().sum()) if most_in is None else total
        # Not functools.cache on a method: the cycle through self would keep these matrices (200 MB
        # at 512 channels) until the garbage collector comes by.
        self._kept_energies: dict[int, Tensor] = {}

    def loss(self, ranks: ModeRanks) -> float:
        """Squared change of the outputs over their square, on the inputs that C is of."""
        kept = self._kept(ranks[1] if self._taps > 1 else self._shape[1])
        left = float(kept[min(ranks[0], len(kept)) - 1])
        return max(0.0, 1 - left / self._total) if self._total > 0 else 0.0

    def losses_in(self) -> Float[Tensor, " ranks"]:
        """The losses of the input ranks 1, 2, ... where the output mode stays whole."""
        kept = self._responses.square().sum(0).view(-1, self._taps).sum(1).cumsum(0)
        return (1 - kept / self._total).clamp(0, 1) if self._total > 0 else torch.zeros_like(kept)

    def at(self, ranks: ModeRanks) -> Factorisation:
        """A reduce with orthonormal rows, an expand with orthonormal columns, and their core."""
        out, channels_in, height, width = self._shape
        rank_out, rank_in = ranks
        whole_in = rank_in == channels_in or self._taps == 1
        seen = self._responses[:, : (channels_in if whole_in else rank_in) * self._taps]
        core = self._matrix
        if not whole_in:
            triangle = self._triangle[: seen.shape[1], : seen.shape[1]]
            core = torch.linalg.solve_triangular(triangle, seen, upper=False, left=False)
        factor_out = None
        if rank_out < out:
            vectors = torch.linalg.eigh(seen @ seen.T)[1].flip(1)[:, :rank_out]
            factor_out = fixed_signs(vectors)
            core = factor_out.T @ core
        if self._taps == 1 and factor_out is not None:
            return Factorisation.of_matrix(core.to(self._dtype), factor_out.to(self._dtype))
        return Factorisation(
            core=core.reshape(len(core), -1, height, width).to(self._dtype),
            factor_out=None if factor_out is None else factor_out.to(self._dtype),
            factor_in=None if whole_in else self._basis[:, :rank_in].to(self._dtype),
        )

    def _input_basis(self, moment: Tensor) -> Tensor:
        """[in, in], orthonormal; for every r its first r columns span the r best directions."""
        out, channels_in, _, _ = self._shape
        if self._taps == 1:
            return torch.eye(channels_in, dtype=moment.dtype, device=moment.device)
        blocks = moment.view(channels_in, self._taps, channels_in, self._taps)
        channel_moment = blocks.diagonal(dim1=1, dim2=3).mean(-1)
        values, vectors = torch.linalg.eigh(channel_moment)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        floor = float(values[-1]) * 1e-12
        inverse = (vectors * values.clamp(min=floor).rsqrt()) @ vectors.T
        unfolded = self._matrix.view(out, channels_in, -1).transpose(0, 1).flatten(1)
        weighted = root @ unfolded
        leading = torch.linalg.eigh(weighted @ weighted.T)[1].flip(1)
        # What the layer sees of x are the leading entries of leading' inverse x; a QR keeps the
        # span of every leading part, and orthonormal rows are kinder to low precision.
        return fixed_signs(torch.linalg.qr(inverse @ leading)[0])

    def _rotate(self, rows: Tensor) -> Tensor:
        """[n, in * taps] with its channels in the input basis."""
        if self._taps == 1:
            return rows
        by_channel = rows.reshape(len(rows), -1, self._taps)
        return torch.einsum("nit,ir->nrt", by_channel, self._basis).flatten(1)

    def _kept(self, rank_in: int) -> Tensor:
        """[n]: the energy of the responses that output ranks 1, 2, ... keep at this input rank."""
        if rank_in in self._kept_energies:
            return self._kept_energies[rank_in]
        seen = self._responses[:, : rank_in * self._taps]
        gram = seen @ seen.T if seen.shape[0] <= seen.shape[1] else seen.T @ seen
        energies: Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
        self._kept_energies[rank_in] = energies.cumsum(0).cpu()
        return self._kept_energies[rank_in]


_PATCHES_PER_ENTRY = 6  # a moment of n x n entries is settled by a few times n patches
_LEAST_PATCHES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Second moments of the patches that one convolution multiplies, as a network feeds them.

    Attributes:
        own: mean of p p', with p a patch as this network makes it.
        crossed: mean of q p', with q the same patch as the reference network makes it.
    """

    own: Float[Tensor, "patch patch"]
    crossed: Float[Tensor, "patch patch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Covariances:
    """Moments about the means of the patches that one layer multiplies, as a network feeds them.

    Attributes:
        own: covariance of p, a patch as this network makes it.
        crossed: covariance of q with p, with q the same patch as the reference network makes it.
        mean: of p.
        reference_mean: of q.
        patches: how many these are means over.
    """

    own: Float[Tensor, "patch patch"]
    crossed: Float[Tensor, "patch patch"]
    mean: Float[Tensor, " patch"]
    reference_mean: Float[Tensor, " patch"]
    patches: int


def input_moments(flow: Flow, layer: str, reference: Flow | None = None) -> Moments:
    """The moments of one layer's input patches.

    Args:
        flow: a network that holds the convolution or linear ``layer``, with images; run up to it.
        layer: its dotted name.
        reference: a network of the same layers with the same images; None for the one itself.
    """
    size = _multiplying(flow.module, layer).weight[0].numel()
    own = torch.zeros(size, size, device=flow.device, dtype=torch.float64)
    crossed = own if reference is None else torch.zeros_like(own)
    patches = 0
    for mine, theirs in _batches_of_patches(flow, layer, reference):
        own += mine @ mine.T
        if reference is not None:
            crossed += theirs @ mine.T
        patches += mine.shape[1]
    own /= patches
    if reference is not None:
        crossed /= patches
    return Moments(own=own, crossed=crossed)


def input_covariances(flow: Flow, layer: str, reference: Flow | None = None) -> Covariances:
    """The covariances of one layer's input patches; see `input_moments`.

    Patches are taken about the mean of the first batch, for a moment about zero settles no variance
    that is small beside the mean.
    """
    near: tuple[Tensor, Tensor] | None = None
    sums: list[Tensor] = []
    patches = 0
    for mine, theirs in _batches_of_patches(flow, layer, reference):
        if near is None:
            near = (_means(mine), _means(theirs))
        p, q = mine - near[0].to(mine), theirs - near[1].to(theirs)
        batch = [p @ p.T, p.sum(1, dtype=torch.float64)]
        if reference is not None:
            batch += [q @ p.T, q.sum(1, dtype=torch.float64)]
        more = [one.double() for one in batch]
        sums = [one.add_(other) for one, other in zip(sums, more, strict=True)] if sums else more
        patches += mine.shape[1]
    assert near is not None  # noqa: S101 - there is at least one image
    own, mean, *others = (one.div_(patches) for one in sums)
    own -= torch.outer(mean, mean)
    crossed, reference_mean = others or (own, mean)
    if others:
        crossed -= torch.outer(reference_mean, mean)
    return Covariances(
        own=own,
        crossed=crossed,
        mean=mean + near[0][:, 0],
        reference_mean=reference_mean + near[1][:, 0],
        patches=patches,
    )


def _multiplying(module: nn.Module, layer: str) -> nn.Conv2d | nn.Linear:
    conv = module.get_submodule(layer)
    if not isinstance(conv, nn.Conv2d | nn.Linear):
        raise TypeError(f"layer {layer} is a {type(conv).__name__}, not a convolution or linear")
    return conv


def _means(patches: Tensor) -> Float[Tensor, "patch 1"]:
    """In float64, of numbers that a patch can have."""
    return patches.mean(1, keepdim=True, dtype=torch.float64).to(patches.dtype).double()


def _batches_of_patches(
    flow: Flow, layer: str, reference: Flow | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield [patch, patches] of this network and of the reference, a few images at a time."""
    conv = _multiplying(flow.module, layer)
    size = conv.weight[0].numel()
    others = None if reference is None else reference.inputs(layer)
    for mine in flow.inputs(layer):
        most = max(_PATCHES_PER_ENTRY * size, _LEAST_PATCHES) * len(mine) // flow.images
        patches = _patches(conv, mine, most)
        yield patches, patches if others is None else _patches(conv, next(others), most)


def corrected_kernel(
    kernel: Float[Tensor, "out in kh kw"], moments: Moments, ridge: float
) -> Float[Tensor, "out in kh kw"]:
    """The kernel whose outputs on this network's patches come nearest to the reference's.

    Least squares with a ridge towards the kernel itself: it also undoes, as far as this layer can,
    what the layers before it changed.
    """
    matrix = kernel.detach().double().flatten(1)
    level = float(moments.own.diagonal().mean())
    damping = ridge * level if level > 0 else 1.0
    target = matrix @ moments.crossed + damping * matrix
    own = moments.own.clone()
    own.diagonal().add_(damping)
    solved = torch.cholesky_solve(target.T, lower_triangle(own)).T
    return solved.reshape(kernel.shape).to(kernel.dtype)


def _patches(conv: nn.Conv2d | nn.Linear, entered: Tensor, most: int) -> Tensor:
    """[in * kh * kw, patches], at most about ``most`` of them, evenly over the image."""
    if isinstance(conv, nn.Linear):
        return entered.float().T
    padding = conv.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if padding == "same":  # torch puts the odd pixel at the right and bottom
            entered = functional.pad(
                entered,
                (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2),
            )
        padding = (0, 0)
    unfolded: Tensor = functional.unfold(
        entered.float(), conv.kernel_size, conv.dilation, padding, conv.stride
    )
    patches = unfolded.permute(1, 0, 2).flatten(1)
    step = max(1, patches.shape[1] // max(1, most))
    while math.gcd(step, unfolded.shape[2]) > 1:  # or some places would never be among them
        step += 1
    return patches[:, ::step]
