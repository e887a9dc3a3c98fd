"""Compress plainly: one rank fraction for every layer, nothing scaled, nothing recovered.

Tucker-2: Kim et al. (2016). Truncated SVD: the kernel as a matrix [out, in kh kw] (Clean &
Compact's "low-rank matrix decomposition"): a KxK convolution to r channels, then a 1x1. Neither
uses data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.data.images import LabelledImages
from edgeclean.compression.factorisation import Factorisation
from edgeclean.compression.tucker import factorise
from edgeclean.errors import RatioError, UsageError
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import trace_layers, with_layers
from edgeclean.networks.state import Network, TruncatedNetwork, following, record

Factorise = Callable[[Tensor], Factorisation]
HALVINGS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSettings:
    """Settings of the plain compressors.

    Attributes:
        ratio: the original's multiply-accumulates divided by the compressed network's.
    """

    ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise UsageError(f"ratio is {self.ratio}; it must be at least 1")


def plain_tucker(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: PlainSettings | None = None,
) -> TruncatedNetwork:
    """Compress by Tucker-2, both ranks at one fraction; ``clean`` and ``seed`` are unused."""
    return _compress(network, "plain-tucker", factorise, settings or PlainSettings())


def plain_svd(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: PlainSettings | None = None,
) -> TruncatedNetwork:
    """Compress by truncated SVD at one rank fraction; ``clean`` and ``seed`` are unused."""
    return _compress(network, "plain-svd", svd_factors, settings or PlainSettings())


def svd_factors(kernel: Float[Tensor, "out in kh kw"]) -> Factorisation:
    """Factor the kernel as U (S V): V's rows are small kernels, U mixes their outputs."""
    if kernel.shape[2:] == (1, 1):
        return factorise(kernel)
    left, values, right = torch.linalg.svd(kernel.detach().flatten(1).double(), full_matrices=False)
    core = (values[:, None] * right).reshape(-1, *kernel.shape[1:])
    return Factorisation(core=core.to(kernel.dtype), factor_out=left.to(kernel.dtype))


def _compress(
    network: Network, name: str, factors_of: Factorise, settings: PlainSettings
) -> TruncatedNetwork:
    """Truncate every layer; the rank fraction is bisected until the ratio is met from above."""
    convs = {
        layer.name: layer.module
        for layer in trace_layers(network.module, network.spec.input_shape)
        if not layer.reason and isinstance(layer.module, nn.Conv2d)
    }
    factors = {layer: factors_of(conv.weight) for layer, conv in convs.items()}
    shape = network.spec.input_shape
    allowed = count_macs(network.module, shape) / settings.ratio

    def at(fraction: float) -> nn.Module:
        blocks = {layer: _smaller(conv, factors[layer], fraction) for layer, conv in convs.items()}
        return with_layers(network.module, blocks).eval()

    low, high = 0.0, 1.0
    if count_macs(at(low), shape) > allowed:
        raise RatioError(
            f"{name}: ratio {settings.ratio} is out of reach with rank 1 everywhere; ask for less"
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if count_macs(at(middle), shape) <= allowed else (low, middle)
    module = at(low)
    made_by = record(name, module, network.spec, settings, {"rank_fraction": round(low, 6)})
    return following(network, TruncatedNetwork, module, made_by)


def _smaller(conv: nn.Conv2d, factors: Factorisation, fraction: float) -> nn.Module:
    """Return the truncated block, or the convolution itself where the block is no smaller."""
    rank_out, rank_in = (max(1, round(fraction * full)) for full in factors.core.shape[:2])
    if factors.factor_in is None:
        rank_in = factors.core.shape[1]
    if conv.kernel_size == (1, 1):
        rank_out = rank_in = min(rank_out, rank_in)
    block = factors.truncated(rank_out, rank_in).to_block(conv)
    return block if count_params(block) < count_params(conv) else conv
