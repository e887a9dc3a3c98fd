"""Which hidden channels a layer can do without, and what it becomes on those that are left.

A layer W reads n = channels x taps inputs x. On the kept ones S it becomes the layer W', b' whose
outputs come nearest to its own: least squares with a free bias, so that a channel that never
changes costs nothing. With D the covariance of x, shrunk towards its diagonal,

    W' = W D[:, S] D[S, S]^-1        b' = b + W mean(x) - W' mean(x[S])

and what is lost is the energy of W x - W' x[S] - (b' - b). Channels go one at a time, each time the
one that costs least given all that went before: W_c (D^-1)_cc^-1 W_c', with D^-1 downdated by the
rank of a channel's taps. One pass gives the order and the loss of every number of channels.

Sources: Optimal Brain Surgeon (Hassibi and Stork 1993) on the least-squares problem of He et al.,
"Channel pruning for accelerating very deep neural networks" (2017).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from edgeclean.compression.fit import Covariances, lower_triangle

_AT_ONCE = 16  # channels whose downdates are gathered into one product
_FLOOR = 1e-6  # of the mean variance: the least that an input is taken to have


class HiddenFit:
    """The order in which a layer's input channels go, and what each step loses."""

    def __init__(
        self,
        matrix: Float[Tensor, "out n"],
        moments: Covariances | None,
        *,
        channels: int,
        ridge: float,
        least: int = 1,
    ) -> None:
        """Eliminate channels down to the least number.

        Args:
            matrix: the layer's weights; the inputs of one channel stand beside each other.
            moments: of its inputs; None weighs by the weights alone.
            channels: their number, which divides n.
            ridge: how far a fit leans back to the weights; see `fit.ActivationFit`.
            least: the channels that are left at the end.
        """
        exact = matrix.detach().double()
        scale, damped = _correlations(exact.shape[1], moments, ridge, exact.device)
        self._channels = channels
        self.total = _energy(exact, moments, ridge)
        self._gone, self._lost = _eliminated(exact * scale, damped, channels, least)

    def loss(self, kept: int) -> float:
        """The share of the outputs' energy that is lost where so many channels are kept.

        The energy is the one that `fit.ActivationFit` counts, of the outputs without their bias.
        """
        if self.total <= 0 or kept >= self._channels:
            return 0.0
        lost = self._lost[self._channels - kept - 1]
        return min(1.0, max(0.0, lost / self.total))

    def kept(self, count: int) -> tuple[int, ...]:
        """The channels that are left when so many are, in their own order."""
        gone = set(self._gone[: self._channels - count])
        return tuple(channel for channel in range(self._channels) if channel not in gone)


def refitted(
    matrix: Float[Tensor, "out n"],
    moments: Covariances | None,
    entries: Int[Tensor, " k"],
    ridge: float,
) -> tuple[Float[Tensor, "out k"], Float[Tensor, " out"]]:
    """The layer on these of its inputs alone, and what is added to its bias, in float64.

    Args:
        matrix: the layer's weights.
        moments: of its inputs as it is fed now, crossed with those that its outputs are to come
            back from; None keeps the weights.
        entries: the kept inputs.
        ridge: see `HiddenFit`.
    """
    exact = matrix.detach().double()
    entries = entries.to(exact.device)
    if moments is None:
        return exact[:, entries], exact.new_zeros(len(exact))
    scale, damped = _correlations(exact.shape[1], moments, ridge, exact.device)
    share = _shrinkage(exact.shape[1], moments.patches, ridge)
    kept = scale[entries]
    target = (1 - share) * (exact @ moments.crossed[:, entries]) / kept + share * exact[
        :, entries
    ] * kept
    triangle = lower_triangle(damped[entries][:, entries])
    solved = torch.cholesky_solve(target.T, triangle).T / kept
    return solved, exact @ moments.reference_mean - solved @ moments.mean[entries]


def _shrinkage(inputs: int, patches: int, ridge: float) -> float:
    """The share of the diagonal: the ridge, and more where patches are too few for covariances."""
    return min(1.0, max(ridge / (1 + ridge), (inputs / patches) ** 2))


def _correlations(
    inputs: int, moments: Covariances | None, ridge: float, device: torch.device
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Deviations of the inputs, and their shrunk covariance in these units."""
    if moments is None:
        eye = torch.eye(inputs, dtype=torch.float64, device=device)
        return eye.new_ones(inputs), eye
    variance = moments.own.diagonal().clamp(min=0)
    level = float(variance.mean())
    scale = (variance + (_FLOOR * level if level > 0 else 1.0)).sqrt()
    share = _shrinkage(inputs, moments.patches, ridge)
    correlations = moments.own * ((1 - share) / torch.outer(scale, scale))
    correlations.diagonal().add_(share)
    return scale, correlations


def _energy(matrix: Tensor, moments: Covariances | None, ridge: float) -> float:
    """The energy of the outputs, as `fit.ActivationFit` counts it."""
    if moments is None:
        return float(matrix.square().sum())
    level = float((moments.own.diagonal() + moments.mean.square()).mean())
    outputs = float(
        ((matrix @ moments.own) * matrix).sum() + (matrix @ moments.mean).square().sum()
    )
    return outputs + (ridge * level if level > 0 else 1.0) * float(matrix.square().sum())


def _eliminated(
    matrix: Float[Tensor, "out n"], damped: Float[Tensor, "n n"], channels: int, least: int
) -> tuple[list[int], list[float]]:
    """The channels in the order in which they go, and the energy lost up to each."""
    taps = matrix.shape[1] // channels
    inverse = torch.cholesky_inverse(lower_triangle(damped))
    alive = torch.arange(channels)
    gone: list[int] = []
    lost: list[float] = []
    while len(alive) > least:
        count = len(alive)
        blocks = inverse.view(count, taps, count, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        blocks, dead = blocks.clone(), torch.zeros(count, dtype=torch.bool)
        factors = inverse.new_zeros(0, count * taps)
        for _ in range(min(_AT_ONCE, count - least)):
            costs = _costs(matrix, blocks, dead)
            place = int(costs.argmin())
            one = slice(place * taps, (place + 1) * taps)
            row = inverse[one] - factors[:, one].T @ factors
            root = lower_triangle(blocks[place])
            factor = torch.linalg.solve_triangular(root, row, upper=False)
            step = torch.linalg.solve_triangular(root, matrix[:, one].T.clone(), upper=False)
            matrix = matrix - step.T @ factor
            each = factor.view(taps, count, taps).permute(1, 0, 2)
            blocks -= each.transpose(1, 2) @ each
            factors, dead[place] = torch.cat([factors, factor]), True
            gone.append(int(alive[place]))
            lost.append((lost[-1] if lost else 0.0) + max(0.0, float(costs[place])))
        left = (~dead).repeat_interleave(taps).to(matrix.device)
        kept = factors[:, left]
        inverse = inverse[left][:, left].addmm_(kept.T, kept, alpha=-1)
        matrix, alive = matrix[:, left], alive[~dead]
    return gone, lost


def _costs(matrix: Tensor, blocks: Tensor, dead: Tensor) -> Float[Tensor, " channels"]:
    """What each channel costs that is left: tr(W_c (D^-1)_cc^-1 W_c')."""
    count, taps = blocks.shape[:2]
    each = matrix.view(len(matrix), count, taps).permute(1, 2, 0)
    grams = each @ each.transpose(1, 2)
    if taps == 1:
        costs = grams[:, 0, 0] / blocks[:, 0, 0]
    else:
        safe = blocks + dead.to(blocks.device)[:, None, None] * torch.eye(taps).to(blocks)
        costs = torch.linalg.solve(safe, grams).diagonal(dim1=1, dim2=2).sum(1)
    return costs.masked_fill(dead.to(costs.device), torch.inf)
