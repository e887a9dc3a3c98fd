"""Tucker-2 of a convolution kernel by the higher-order SVD; of a 1x1 kernel, its plain SVD."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import tensorly
import torch
from jaxtyping import Float
from tensorly.tenalg import mode_dot, multi_mode_dot
from torch import Tensor

from edgeclean.compression.factorisation import Factorisation, ModeRanks


def tucker2(
    kernel: Float[Tensor, "out in kh kw"],
    ranks: ModeRanks | None = None,
    *,
    sweeps: int = 0,
) -> Factorisation:
    """Tucker-2 by the truncated higher-order SVD, through the Gram matrices of the unfoldings.

    A Gram matrix has only channels x channels entries, so its eigenvectors cost far less than the
    singular vectors of a wide unfolding. Squaring halves the digits of the *small* singular values
    (in float64 they are good to 1e-8 of the largest); the factors are orthonormal to rounding all
    the same, so the reconstruction at full rank is exact.

    Args:
        kernel: [out, in, kh, kw], real. Full ranks are computed in float64, lower ones in at least
            float32: there the truncation itself is orders of magnitude larger.
        ranks: (r_out, r_in); None keeps the full ranks min(out, in*kh*kw), min(in, out*kh*kw).
        sweeps: rounds of higher-order orthogonal iteration after the SVD; each costs as much as
            the SVD and lowers (never raises) the error at the given ranks. At full rank, and for a
            1x1 kernel, there is nothing to gain.

    Returns:
        Both factors, orthonormal and in the kernel's own type, with columns whose largest entry is
        positive, so that the signs are fixed.

    Raises:
        ValueError: a rank is not between 1 and the full one, or the kernel is not finite.

    Source: De Lathauwer, De Moor, Vandewalle, "A multilinear singular value decomposition" and "On
    the best rank-1 and rank-(R1, ..., RN) approximation" (2000); Kim et al. (2016) for Tucker-2.
    """
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("the kernel holds NaN or infinite weights; they cannot be decomposed")
    full = full_ranks(kernel)
    rank_out, rank_in = ranks or full
    if not (1 <= rank_out <= full[0] and 1 <= rank_in <= full[1]):
        raise ValueError(
            f"ranks ({rank_out}, {rank_in}) do not fit a kernel of shape {tuple(kernel.shape)}; "
            f"they must lie between (1, 1) and {full}"
        )
    precision = torch.float64 if (rank_out, rank_in) == full else torch.float32
    exact = kernel.detach().to(torch.promote_types(kernel.dtype, precision))
    with _torch_algebra():
        if kernel.shape[2:] == (1, 1):
            parts = _pointwise(exact, rank_out, rank_in)
        else:
            parts = _orthogonal_iteration(exact, rank_out, rank_in, sweeps)
    core, factor_out, factor_in = (part.to(kernel.dtype) for part in parts)
    return Factorisation(core=core, factor_out=factor_out, factor_in=factor_in)


def full_ranks(kernel: Float[Tensor, "out in kh kw"]) -> ModeRanks:
    """The ranks at which Tucker-2 is exact for every kernel of this shape."""
    out, channels_in = kernel.shape[0], kernel.shape[1]
    taps = kernel.shape[2] * kernel.shape[3]
    return min(out, channels_in * taps), min(channels_in, out * taps)


def factorise(kernel: Float[Tensor, "out in kh kw"]) -> Factorisation:
    """The factorisation at full ranks; of a 1x1 kernel, its singular value decomposition.

    Raises:
        ValueError: the kernel is not finite.
    """
    tucker = tucker2(kernel)
    if kernel.shape[2:] != (1, 1):
        return tucker
    factor_out = cast(Tensor, tucker.factor_out)
    mix_in = factor_out.double().T @ kernel.detach()[..., 0, 0].double()
    return Factorisation.of_matrix(mix_in.to(kernel.dtype), factor_out)


def singular_values(kernel: Float[Tensor, "out in kh kw"], mode: int) -> Float[Tensor, " full"]:
    """All singular values of the kernel's unfolding along mode 1 (out) or 2 (in), descending."""
    exact = kernel.detach().double().transpose(0, mode - 1)
    return left_singular(exact.flatten(1))[1].to(kernel.dtype)


def _orthogonal_iteration(
    kernel: Tensor, rank_out: int, rank_in: int, sweeps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Core and factors of both modes: the truncated SVD, then the sweeps."""
    factor_out = left_singular(tensorly.unfold(kernel, 0))[0][:, :rank_out]
    factor_in = left_singular(tensorly.unfold(kernel, 1))[0][:, :rank_in]
    for _ in range(sweeps):
        projected = mode_dot(kernel, factor_in, 1, transpose=True)
        factor_out = left_singular(tensorly.unfold(projected, 0))[0][:, :rank_out]
        projected = mode_dot(kernel, factor_out, 0, transpose=True)
        factor_in = left_singular(tensorly.unfold(projected, 1))[0][:, :rank_in]
    core = multi_mode_dot(kernel, [factor_out, factor_in], [0, 1], transpose=True)
    return core, factor_out, factor_in


def _pointwise(kernel: Tensor, rank_out: int, rank_in: int) -> tuple[Tensor, Tensor, Tensor]:
    """Core and factors of a 1x1 kernel: one basis gives the other, and its SVD is the optimum."""
    matrix = kernel[..., 0, 0]
    if matrix.shape[0] > matrix.shape[1]:
        core, factor_in, factor_out = _pointwise(kernel.transpose(0, 1), rank_in, rank_out)
        return core.transpose(0, 1), factor_out, factor_in
    basis, _ = left_singular(matrix)
    images = matrix.T @ basis[:, : max(rank_out, rank_in)]  # orthogonal, as long as the values
    factor, triangle = torch.linalg.qr(images)
    signs = torch.where(_largest(factor) < 0, -1.0, 1.0).to(factor.dtype)
    core = (triangle * signs.T).T[:rank_out, :rank_in, None, None]
    return core, basis[:, :rank_out], (factor * signs)[:, :rank_in]


def fixed_signs(vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The same columns, each with the sign that makes its largest entry positive."""
    return vectors * torch.where(_largest(vectors) < 0, -1.0, 1.0).to(vectors.dtype)


def _largest(vectors: Tensor) -> Tensor:
    """[1, k]: of every column the entry of largest magnitude."""
    return vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))


def left_singular(
    unfolding: Float[Tensor, "channels rest"],
) -> tuple[Float[Tensor, "channels rank"], Float[Tensor, " rank"]]:
    """Left singular vectors and values, descending, with fixed signs."""
    channels, rest = unfolding.shape
    rotation = None
    if channels > rest:
        # A Gram matrix larger than its rank would mix its null space into the small vectors, and
        # full rank would not be exact; the triangle of a QR has the same values and no null space.
        rotation, unfolding = torch.linalg.qr(unfolding)
    squares, ascending = torch.linalg.eigh(unfolding @ unfolding.T)
    vectors, values = ascending.flip(1), squares.flip(0).clamp(min=0).sqrt()
    if rotation is not None:
        vectors = rotation @ vectors
    return fixed_signs(vectors), values


@contextmanager
def _torch_algebra() -> Iterator[None]:
    """TensorLy on torch tensors, for this thread, for as long as needed; never nested.

    Nothing is set at import: a program that uses TensorLy with another backend keeps it.
    """
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        yield
