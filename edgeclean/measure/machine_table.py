"""Measure a network's latency table on this machine, and check a table against this machine."""

from __future__ import annotations

from edgeclean.compression.factorisation import Ranks
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.planned_network import planned_network
from edgeclean.compression.settings import RankSettings
from edgeclean.compression.unit_candidates import cut_shapes
from edgeclean.environment import describe_environment
from edgeclean.errors import UsageError
from edgeclean.files.store import Store
from edgeclean.files.text import counted
from edgeclean.measure.block_latency import BlockLatencySettings, measure_table
from edgeclean.measure.latency import LatencySettings
from edgeclean.networks.layers import trace_layers
from edgeclean.networks.state import LoadedNetwork
from edgeclean.progress import Progress, silent
from exporters.onnx_exporter import ExportSettings, export_onnx


def measured_table(
    network: LoadedNetwork,
    settings: BlockLatencySettings,
    *,
    ranks: RankSettings | None = None,
    kept: Store | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Time the whole network and every layer of it that may be factored or cut, on this machine.

    Args:
        network: the network as it was loaded.
        settings: the length and the conditions of the measurement.
        ranks: the choice that the table is for: of the forms that it may choose, and of its
            overrides. None is the default one.
        kept: store of earlier measurements: rows measured on this device before are taken from
            it, so that a second run plans by the same numbers, and new rows are added.
        progress: called after every layer.

    Raises:
        ToolchainError: the backend's device is not there.
    """
    chosen = ranks or RankSettings()
    layers: dict[str, tuple[Ranks, ...]] = {}
    for layer in trace_layers(network.module, network.spec.input_shape):
        if not layer.reason:
            forced = chosen.overridden.get(layer.name)
            layers[layer.name] = () if forced is None else (forced,)
    model = export_onnx(network, ExportSettings(batch=settings.batch))
    planned = planned_network(network, (), None, most_images=1, ridge=None, hidden=True)
    return measure_table(
        *(network, layers),
        model=model,
        settings=settings,
        forms=chosen.of_layers,
        cuts=cut_shapes(planned, RankSettings()),
        kept=kept,
        progress=progress,
    )


def table_of_this_machine(
    network: LoadedNetwork,
    ranks: RankSettings,
    latency: LatencySettings,
    *,
    kept: Store | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Call `measured_table` for a choice of ranks, as the networks themselves are measured."""
    settings = BlockLatencySettings(threads=latency.threads, batch=latency.batch)
    return measured_table(network, settings, ranks=ranks, kept=kept, progress=progress)


def is_of_this_machine(table: LatencyTable) -> bool:
    """Return whether the table was measured with this ONNX Runtime on this processor."""
    here = describe_environment()
    runtime = f"onnxruntime {here.versions['onnxruntime']}"
    return table.device == here.processor and table.runtime.startswith(f"{runtime},")


def is_of_runtime(table: LatencyTable, name: str, version: str) -> bool:
    """Return whether the table was measured with this runtime on this processor."""
    here = describe_environment().processor
    return table.device == here and table.runtime.startswith(f"{name} {version},")


def check_table(table: LatencyTable, *, precision: str, threads: int, batch: int) -> None:
    """Refuse a table measured under other conditions than this run computes and measures in.

    Raises:
        UsageError: the precision differs; or the table is of this machine and threads or batch do.
    """
    if table.precision != precision:
        raise UsageError(
            f"the latency table is of {table.precision}, and the network is written in "
            f"{precision}; give a table of {precision}, or leave --precision at {table.precision}"
        )
    if is_of_this_machine(table) and (table.threads, table.batch) != (threads, batch):
        raise UsageError(
            f"the latency table was measured here with {counted(table.threads, 'thread')} at batch "
            f"{table.batch}, and this run measures with {threads} at batch {batch}; make them "
            "alike (--threads), or measure the table again"
        )
