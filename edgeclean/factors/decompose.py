"""Stage: every eligible convolution becomes its full-rank Tucker-2 block; nothing is lost yet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgeclean.cost import count_macs, count_params
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.factors.blocks import factored_block, is_block
from edgeclean.factors.sites import Site, find_sites, with_layers
from edgeclean.progress import Progress, silent
from edgeclean.states import DecomposedNetwork, Network, StageRecord, settings_as_json


@dataclass(frozen=True, slots=True, kw_only=True)
class DecomposeSettings:
    """What to leave alone.

    Attributes:
        keep: dotted names of layers that stay as they are.
    """

    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.keep)) != len(self.keep):
            raise UsageError(f"--keep names a layer twice: {', '.join(self.keep)}; once is enough")


def decompose(
    network: Network, settings: DecomposeSettings, *, progress: Progress = silent
) -> DecomposedNetwork:
    """Replace every eligible convolution by a block of full ranks (see `blocks.py`).

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
    sites = find_sites(network, settings.keep)
    if any(is_block(site.module) for site in sites):
        raise UsageError("the network is decomposed already; decompose the original one")
    eligible = [site for site in sites if not site.reason]
    blocks: dict[str, nn.Module] = {}
    for done, site in enumerate(eligible):
        progress("Decomposing", done, len(eligible))
        blocks[site.name] = _block(site)
    module = with_layers(network.module, blocks).eval()
    progress("Decomposing", len(eligible), len(eligible))
    record = StageRecord(
        stage="decompose",
        settings=settings_as_json(settings),
        params=count_params(module),
        macs=count_macs(module, network.spec.input_shape),
        notes={
            "layers": [
                {**site.describe(), "replaced": not site.reason, "reason": site.reason}
                for site in sites
            ]
        },
    )
    return DecomposedNetwork(
        module=module,
        spec=network.spec,
        source_sha256=network.source_sha256,
        history=(*network.history, record),
    )


def _block(site: Site) -> nn.Module:
    try:
        return factored_block(site.conv())
    except ValueError as error:
        raise InputRejectedError(f"layer {site.name}: {error}") from error
