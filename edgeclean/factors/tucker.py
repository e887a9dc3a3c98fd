"""Tucker-2 of a convolution kernel: W = G x1 U1 x2 U2, over its channel modes only.

Modes are counted as in the slides: mode 1 is the output channels, mode 2 the input channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import tensorly
import torch
from jaxtyping import Float
from tensorly.tenalg import mode_dot, multi_mode_dot
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tucker2:
    """A kernel as a core between two orthonormal factors.

    Attributes:
        core: [r_out, r_in, kh, kw], in the basis of the factors.
        factor_out: [out, r_out] with orthonormal columns (U1).
        factor_in: [in, r_in] with orthonormal columns (U2).
        singular_values_out: of the kernel's mode-1 unfolding, all of them, descending.
        singular_values_in: of its mode-2 unfolding, all of them, descending.
    """

    core: Float[Tensor, "r_out r_in kh kw"]
    factor_out: Float[Tensor, "out r_out"]
    factor_in: Float[Tensor, "in r_in"]
    singular_values_out: Float[Tensor, " full_out"]
    singular_values_in: Float[Tensor, " full_in"]

    @property
    def ranks(self) -> tuple[int, int]:
        """(r_out, r_in)."""
        return self.core.shape[0], self.core.shape[1]

    def reconstruct(self) -> Float[Tensor, "out in kh kw"]:
        """The kernel again; equal to it at full rank."""
        with _torch_algebra():
            kernel: Tensor = multi_mode_dot(self.core, [self.factor_out, self.factor_in], [0, 1])
        return kernel

    def truncated(self, rank_out: int, rank_in: int) -> Tucker2:
        """The leading ranks only: G(1:R1, 1:R2), U1(1:R1), U2(1:R2).

        The squared error of the reconstruction is at most the energy (sum of squares) of the
        singular values left out in both modes together.

        Raises:
            ValueError: a rank does not lie between 1 and the present one.
        """
        if not (1 <= rank_out <= self.ranks[0] and 1 <= rank_in <= self.ranks[1]):
            raise ValueError(
                f"ranks ({rank_out}, {rank_in}) do not fit a core of ranks {self.ranks}; "
                "each must lie between 1 and the core's"
            )
        return Tucker2(
            core=self.core[:rank_out, :rank_in],
            factor_out=self.factor_out[:, :rank_out],
            factor_in=self.factor_in[:, :rank_in],
            singular_values_out=self.singular_values_out,
            singular_values_in=self.singular_values_in,
        )


def tucker2(
    kernel: Float[Tensor, "out in kh kw"],
    ranks: tuple[int, int] | None = None,
    *,
    sweeps: int = 0,
) -> Tucker2:
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
        Factors in the kernel's own type, whose columns have their largest entry positive, so that
        the signs are fixed.

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
    core, factor_out, factor_in, values_out, values_in = (part.to(kernel.dtype) for part in parts)
    return Tucker2(
        core=core,
        factor_out=factor_out,
        factor_in=factor_in,
        singular_values_out=values_out,
        singular_values_in=values_in,
    )


def full_ranks(kernel: Float[Tensor, "out in kh kw"]) -> tuple[int, int]:
    """The ranks at which Tucker-2 is exact for every kernel of this shape."""
    out, channels_in = kernel.shape[0], kernel.shape[1]
    taps = kernel.shape[2] * kernel.shape[3]
    return min(out, channels_in * taps), min(channels_in, out * taps)


def _orthogonal_iteration(
    kernel: Tensor, rank_out: int, rank_in: int, sweeps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Core, factors and singular values of both modes: the truncated SVD, then the sweeps."""
    basis_out, values_out = _left_singular(tensorly.unfold(kernel, 0))
    basis_in, values_in = _left_singular(tensorly.unfold(kernel, 1))
    factor_out, factor_in = basis_out[:, :rank_out], basis_in[:, :rank_in]
    for _ in range(sweeps):
        projected = mode_dot(kernel, factor_in, 1, transpose=True)
        factor_out = _left_singular(tensorly.unfold(projected, 0))[0][:, :rank_out]
        projected = mode_dot(kernel, factor_out, 0, transpose=True)
        factor_in = _left_singular(tensorly.unfold(projected, 1))[0][:, :rank_in]
    core = multi_mode_dot(kernel, [factor_out, factor_in], [0, 1], transpose=True)
    return core, factor_out, factor_in, values_out, values_in


def _pointwise(
    kernel: Tensor, rank_out: int, rank_in: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same of a 1x1 kernel, a matrix: one basis gives the other, and its SVD is the optimum."""
    matrix = kernel[..., 0, 0]
    if matrix.shape[0] > matrix.shape[1]:
        core, factor_in, factor_out, values, _ = _pointwise(
            kernel.transpose(0, 1), rank_in, rank_out
        )
        return core.transpose(0, 1), factor_out, factor_in, values, values
    basis, values = _left_singular(matrix)
    images = matrix.T @ basis[:, : max(rank_out, rank_in)]  # orthogonal, as long as the values
    factor, triangle = torch.linalg.qr(images)
    signs = torch.where(_largest(factor) < 0, -1.0, 1.0).to(factor.dtype)
    core = (triangle * signs.T).T[:rank_out, :rank_in, None, None]
    return core, basis[:, :rank_out], (factor * signs)[:, :rank_in], values, values


def fixed_signs(vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The same columns, each turned so that its largest entry is positive."""
    return vectors * torch.where(_largest(vectors) < 0, -1.0, 1.0).to(vectors.dtype)


def _largest(vectors: Tensor) -> Tensor:
    """[1, k]: of every column the entry of largest magnitude."""
    return vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))


def _left_singular(
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
