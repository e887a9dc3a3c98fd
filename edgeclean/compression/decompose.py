"""Stage: every eligible convolution becomes its full-rank Tucker-2 block; nothing is lost yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from edgeclean.compression.settings import MOST_LAYER_NAME, MOST_LAYERS
from edgeclean.compression.tucker import factorise
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.networks.blocks import is_block
from edgeclean.networks.layers import Layer, evaluated, trace_layers, with_layers
from edgeclean.networks.state import DecomposedNetwork, Network, following, record
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DecomposeSettings(Settings):
    """What to leave alone.

    Attributes:
        keep: dotted names of layers that stay as they are.
    """

    keep: tuple[str, ...] = setting((), longest=MOST_LAYER_NAME, entries=(0, MOST_LAYERS))

    def check_together(self) -> None:
        """Refuse a layer that is named twice."""
        if len(set(self.keep)) != len(self.keep):
            raise UsageError(f"--keep names a layer twice: {', '.join(self.keep)}; once is enough")


def decompose(
    network: Network, settings: DecomposeSettings, *, progress: Progress = silent
) -> DecomposedNetwork:
    """Replace every eligible convolution by a block of full ranks (see `networks.blocks`).

    Grouped and depthwise convolutions, linear layers and those in ``settings.keep`` stay, and the
    history says of each why.

    Returns:
        A network of the same function: to 1e-4 in float32. It is larger than the source; only
        `truncate` makes it smaller.

    Raises:
        UsageError: ``keep`` names no layer, or the network is decomposed already.
        InputRejectedError: a layer holds NaN or infinite weights.

    Source: Clean & Compact (ECCV 2024), step 1: W = G x1 U1 x2 U2.
    """
    layers = trace_layers(network.module, network.spec.input_shape, keep=settings.keep)
    if any(is_block(layer.module) for layer in layers):
        raise UsageError("the network is decomposed already; decompose the original one")
    eligible = [layer for layer in layers if not layer.reason]
    blocks: dict[str, nn.Module] = {}
    for done, layer in enumerate(eligible):
        progress("Decomposing", done, len(eligible))
        blocks[layer.name] = _block_of(layer)
    module = evaluated(with_layers(network.module, blocks))
    progress("Decomposing", len(eligible), len(eligible))
    notes = {
        "layers": [
            {**layer.describe(), "replaced": not layer.reason, "reason": layer.reason}
            for layer in layers
        ]
    }
    made_by = record("decompose", module, network.spec, settings, notes)
    return following(network, DecomposedNetwork, module, made_by)


def factored_block(conv: nn.Conv2d) -> nn.Sequential:
    """The convolution as a block of full ranks, of the same function to rounding.

    Raises:
        ValueError: the convolution is grouped, pads otherwise than by zeros, or is not finite.
    """
    if conv.groups != 1 or conv.padding_mode != "zeros":
        raise ValueError(
            f"a convolution with groups={conv.groups} and padding_mode={conv.padding_mode!r} has "
            "no Tucker-2 block; it must have groups=1 and padding_mode='zeros'"
        )
    return factorise(conv.weight).to_block(conv)


def _block_of(layer: Layer) -> nn.Module:
    try:
        return factored_block(cast(nn.Conv2d, layer.module))
    except ValueError as error:
        raise InputRejectedError(f"layer {layer.name}: {error}") from error
