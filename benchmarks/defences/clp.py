"""CLP prunes the channels with an outlying Lipschitz bound. It uses no data.

Source: Zheng et al. (2022), "Data-free backdoor removal based on channel Lipschitzness". A
convolution is paired with the BatchNorm that takes *its output*, seen in a forward pass; the
public code pairs by the order of definition, which goes wrong on pre-activation networks. A
BatchNorm fed by a sum (no single convolution) is not scored. Deviation: the variance has
BatchNorm's eps added, as it has when the network runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from benchmarks.data.images import LabelledImages
from benchmarks.defences.base import batch_norms, copied, defended
from edgeclean.errors import UsageError
from edgeclean.networks.state import Network, PurifiedNetwork

Handle = torch.utils.hooks.RemovableHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class ClpSettings:
    """Settings of CLP.

    Attributes:
        u: channels above mean + u standard deviations of their layer are pruned.
    """

    u: float = 3.0

    def __post_init__(self) -> None:
        if self.u < 0:
            raise UsageError(f"u is {self.u}; it must not be negative (the paper's is 3)")


def clp(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: ClpSettings | None = None,
) -> PurifiedNetwork:
    """Set scale and shift of every outlying channel to zero; ``clean`` and ``seed`` are unused.

    The history's notes give the pruned channels by BatchNorm, and those that were not scored.
    """
    settings = settings or ClpSettings()
    module = copied(network)
    pairs = conv_norm_pairs(module, network.spec.input_shape)
    norms = batch_norms(module)
    pruned: dict[str, list[int]] = {}
    for name, conv in pairs.items():
        outlying = outliers(channel_lipschitz(conv, norms[name]), settings.u)
        pruned[name] = outlying.nonzero().flatten().tolist()
        with torch.no_grad():
            norms[name].weight[outlying] = 0
            norms[name].bias[outlying] = 0
    notes = {"pruned": pruned, "not_scored": sorted(set(norms) - set(pairs))}
    return defended(network, module, "clp", settings, notes)


def channel_lipschitz(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Float[Tensor, " out"]:
    """Return for each channel k the largest singular value of W_k [in, kh kw] |scale_k| / std_k."""
    assert norm.running_var is not None
    factor = norm.weight.detach().abs() / (norm.running_var + norm.eps).sqrt()
    spectral = torch.linalg.matrix_norm(conv.weight.detach().flatten(2), ord=2)
    bounds: Tensor = spectral * factor
    return bounds


def outliers(bounds: Float[Tensor, " out"], u: float) -> Bool[Tensor, " out"]:
    """Return the bounds above the mean plus u (unbiased) standard deviations, as a mask."""
    return bounds > bounds.mean() + u * bounds.std()


def conv_norm_pairs(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, nn.Conv2d]:
    """Return the convolution whose very output is a BatchNorm's input, for each such BatchNorm."""
    producers: dict[int, nn.Conv2d] = {}
    pairs: dict[str, nn.Conv2d] = {}
    outputs: list[Tensor] = []  # kept alive, or a new tensor could take a freed one's identity

    def remember(conv: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        outputs.append(output)
        producers[id(output)] = conv

    def look_up(name: str) -> object:
        def hook(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if id(inputs[0]) in producers:
                pairs[name] = producers[id(inputs[0])]

        return hook

    handles: list[Handle] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(remember))
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine:
            handles.append(layer.register_forward_pre_hook(look_up(name)))  # type: ignore[arg-type]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *input_shape, device=next(module.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return pairs
