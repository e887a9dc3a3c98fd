"""Build the networks of `benchmarks.studies.latency`: an original, ours, and two peers' of it.

All weights are random, so nothing here measures accuracy: the benchmark is about time. The
kernels' singular values fall as those of trained kernels do (`benchmarks.studies.tucker`), and
without a trained network our ranks are planned by that energy instead of measured effects; the
peers take the same share of every layer, as they do by default.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from benchmarks.studies.tucker import make_kernel
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.cost import count_macs
from edgeclean.networks.layers import Layer, trace_layers, with_layers
from edgeclean.networks.state import LoadedNetwork, ModelSpec, Network, record
from exporters.onnx_exporter import ExportSettings, export_onnx

NETWORKS = {
    "cifar-resnet18": 32,
    "resnet18": 224,
    "resnet50": 224,
    "mobilenet-v2": 224,
    "vgg16-bn": 224,
}
HALVINGS = 10
ROUND_TO = 8  # what torch-pruning recommends


def original(name: str) -> LoadedNetwork:
    """Return a freshly initialised network of the table, the same one every time."""
    side = NETWORKS[name]
    spec = ModelSpec(
        architecture=name,
        input_shape=(3, side, side),
        classes=10 if side == 32 else 1000,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_architecture(name, spec, ()).eval()
    for layer in module.modules():
        if type(layer) is nn.Conv2d and layer.groups == 1:
            kernel = make_kernel("falling", tuple(layer.weight.shape))
            # The norm of the initialisation: numbers that die out would be slow or fast for that.
            layer.weight.data = kernel * (layer.weight.data.norm() / kernel.norm())
    return LoadedNetwork(
        module=module,
        spec=spec,
        source_sha256="0" * 64,
        history=(record("load", module, spec, {}, {}),),
    )


def ours(network: LoadedNetwork, ratio: float, table: LatencyTable) -> Network:
    """Decompose, plan by the table and energy, and truncate; nothing is tuned."""
    settings = RankSettings(ratio=ratio, rank_multiple=8, sensitivity="energy", factors="weights")
    decomposed = decompose(network, DecomposeSettings())  # type: ignore[arg-type]
    return truncate(decomposed, choose_ranks(decomposed, settings, table=table), TruncateSettings())


def channel_pruned(network: LoadedNetwork, ratio: float, round_to: int | None = None) -> Network:
    """Prune the same share of every layer's channels by torch-pruning, tied ones as one."""
    import torch_pruning  # of the extra "bench": a machine without it builds the others

    shape = network.spec.input_shape
    allowed = count_macs(network.module, shape) / ratio

    def at(share: float) -> nn.Module:
        module = copy.deepcopy(network.module)
        pruner = torch_pruning.pruner.BasePruner(
            module,
            torch.zeros(1, *shape),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=share,
            round_to=round_to,
            ignored_layers=[m for m in module.modules() if isinstance(m, nn.Linear)][-1:],
        )
        pruner.step()
        return module.eval()

    module = _bisected(at, lambda module: count_macs(module, shape) <= allowed)
    return _as_network(network, module, count_macs(module, shape))


def factorised(network: LoadedNetwork, ratio: float) -> Network:
    """Factor by tensorly-torch's Tucker `FactorizedConv`, at one share of all layers' channels."""
    layers = [
        layer
        for layer in trace_layers(network.module, network.spec.input_shape)
        if not layer.reason
    ]
    whole = count_macs(network.module, network.spec.input_shape)
    allowed = whole / ratio

    def macs(share: float) -> int:
        return whole - sum(max(0, layer.macs - _tucker_macs(layer, share)) for layer in layers)

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if macs(middle) <= allowed else (low, middle)
    blocks = {
        layer.name: _tucker_layer(cast(nn.Conv2d, layer.module), low, seed)
        for seed, layer in enumerate(layers)
        if _tucker_macs(layer, low) < layer.macs
    }
    module = with_layers(network.module, blocks).eval()
    return _as_network(network, module, macs(low))


def exported(network: Network) -> bytes:
    """Export a network as ONNX for one image, by edgeclean's own exporter for all of them."""
    return export_onnx(network, ExportSettings(batch=1))


def _tucker_layer(conv: nn.Conv2d, share: float, seed: int) -> nn.Module:
    """Return a layer with random factors: a decomposition takes minutes and changes no time.

    Each layer has its own, for a file holds equal weights once.
    """
    from tltorch import FactorizedConv

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer: nn.Module = FactorizedConv.from_conv(
            conv,
            rank=(*_ranks(conv, share), *conv.kernel_size),
            factorization="tucker",
            implementation="factorized",
            decompose_weights=False,
        )
    return layer


def _ranks(conv: nn.Conv2d, share: float) -> tuple[int, int]:
    rank_out, rank_in = (
        max(1, round(share * channels)) for channels in (conv.out_channels, conv.in_channels)
    )
    return rank_out, rank_in


def _tucker_macs(layer: Layer, share: float) -> int:
    conv = cast(nn.Conv2d, layer.module)
    rank_out, rank_in = _ranks(conv, share)
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    after = (rank_out * rank_in * taps + conv.out_channels * rank_out) * layer.pixels_out
    return rank_in * conv.in_channels * layer.pixels_in + after


def _bisected(at: Callable[[float], nn.Module], is_small: Callable[[nn.Module], bool]) -> nn.Module:
    """Return the largest network within the allowed cost."""
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        module = at(middle)
        if is_small(module):
            high, best = middle, module
        else:
            low = middle
    if best is None:
        raise ValueError("the ratio is out of reach by pruning channels")
    return best


def _as_network(network: LoadedNetwork, module: nn.Module, macs: int) -> Network:
    made_by = replace(record("peer", module, network.spec, {}, {}), macs=macs)
    return replace(network, module=module, history=(made_by,))
