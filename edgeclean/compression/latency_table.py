"""How long a layer takes on one device at every rank, as numbers that ranks are chosen by.

Who measures, and how, is no matter here: `measure.block_latency` does on this machine; a file may
come from a device. What is timed stands between two borders that are alike for all ranks of a
layer, so differences against the one convolution are what counts.

A latency table as a JSON file: strictly read, for it may come from anywhere.

The file keeps to ``schemas/latency-table.schema.json``. Beyond the schema, a layer stands in it
once, a pair of ranks once within its layer, each layer has its one convolution, and no rank is
above its channel count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeclean.compression.factorisation import (
    ModeRanks,
    Ranks,
    Separable,
    full_separable_rank,
    is_separated,
    order_of,
    ranks_as_json,
    ranks_from,
)
from edgeclean.errors import UsageError
from edgeclean.files.documents import parse_json
from edgeclean.files.reading import read_small_file
from edgeclean.files.schema import first_violation
from edgeclean.files.text import first_line
from edgeclean.networks.shapes import ConvShape
from edgeclean.networks.state import JsonValue

TimeKind = Literal["", "measured", "estimated"]

FORMAT = "edgeclean-latency-table-1"
NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRanks:
    """One factorisation of one layer.

    Attributes:
        ranks: (r_out, r_in), where a rank equal to its channel count means that this mode is not
            factored; or those of a separable kernel. None is the one convolution.
        ms: median milliseconds.
        spread_ms: between the first and the third quartile.
    """

    ranks: Ranks | None
    ms: float
    spread_ms: float

    @property
    def ns(self) -> int:
        """The median in whole nanoseconds, which budgets add up exactly."""
        return round(self.ms * NS_PER_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """What a latency table says of one layer.

    Attributes:
        dense_ns: of the one convolution.
        ns: of every factorisation that was measured, by its ranks.
    """

    dense_ns: int
    ns: Mapping[Ranks, int]

    def at(self, ranks: Ranks | None) -> tuple[int, TimeKind]:
        """Nanoseconds at these ranks; of the one convolution for None.

        Ranks that were not measured are estimated to take as long as the quickest measured ones
        that are no lower, or as the one convolution where there are none.
        """
        if ranks is None:
            return self.dense_ns, "measured"
        if ranks in self.ns:
            return self.ns[ranks], "measured"
        larger = [ns for one, ns in self.ns.items() if _is_within(ranks, one)]
        return min([*larger, self.dense_ns]), "estimated"


def _is_within(ranks: Ranks, others: Ranks) -> bool:
    """Whether ranks are of the same form as others, and no higher."""
    if isinstance(ranks, Separable) or isinstance(others, Separable):
        return (
            isinstance(ranks, Separable)
            and isinstance(others, Separable)
            and ranks.first == others.first
            and ranks.rank <= others.rank
        )
    return ranks[0] <= others[0] and ranks[1] <= others[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTimes:
    """What a latency table says of one convolution that is left with fewer channels.

    Attributes:
        ns: by channels (out, in); the whole layer's are among them.
    """

    ns: Mapping[tuple[int, int], int]

    def at(self, channels: tuple[int, int]) -> tuple[int, TimeKind]:
        """Nanoseconds with these channels.

        Channels that were not measured are estimated to take as long as the quickest measured ones
        that are no fewer.
        """
        if channels in self.ns:
            return self.ns[channels], "measured"
        larger = (
            ns for (out, into), ns in self.ns.items() if out >= channels[0] and into >= channels[1]
        )
        return min(larger), "estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTime:
    """The whole original network on the same device.

    Attributes:
        layers_sha256: of the shapes of its layers; see `layers_digest`.
        ms: median milliseconds of one batch.
        spread_ms: between the first and the third quartile.
    """

    layers_sha256: str
    ms: float
    spread_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """What a plan, a manifest and a report name a table by; see `LatencyTable`."""

    sha256: str
    device: str
    runtime: str
    threads: int
    batch: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """What one device was measured to take.

    Attributes:
        device: its name, such as the processor's.
        runtime: what computes, with its version.
        threads: of the runtime, inside one operator.
        batch: images in one run.
        precision: that the layers were computed in: fp32, fp16, bf16 or int8.
        versions: of the software that measured.
        network: None where only blocks were measured; budgets of milliseconds need it.
        blocks: the times of each shape; the one convolution's is among them.
    """

    device: str
    runtime: str
    threads: int
    batch: int
    precision: str
    versions: Mapping[str, str]
    network: NetworkTime | None
    blocks: Mapping[ConvShape, tuple[TimedRanks, ...]]

    @property
    def sha256(self) -> str:
        """The SHA-256 of `canonical`, which names the table."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The table as JSON: sorted keys and blocks, one block to a line."""
        head = {
            "format": FORMAT,
            "device": self.device,
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "precision": self.precision,
            "versions": dict(self.versions),
            "network": None
            if self.network is None
            else {name: getattr(self.network, name) for name in NetworkTime.__slots__},
        }
        blocks = ",\n".join(
            json.dumps(block_as_json(key, self.blocks[key]), sort_keys=True)
            for key in sorted(self.blocks)
        )
        opened = json.dumps(head, sort_keys=True, indent=1)[:-2]  # without the closing brace
        return f'{opened},\n "blocks": [\n{blocks}\n]}}\n'.encode()

    def times(self, shape: ConvShape) -> LayerTimes | None:
        """The times of a layer of this shape; None where the table does not know it."""
        if shape not in self.blocks:
            return None
        ns = {timed.ranks: timed.ns for timed in self.blocks[shape]}
        return LayerTimes(
            dense_ns=ns[None], ns={ranks: one for ranks, one in ns.items() if ranks is not None}
        )

    def cut_times(self, whole: ConvShape) -> CutTimes | None:
        """The times of a layer of this shape with fewer channels; None where there are none."""
        ns = {
            shape.channels: next(one.ns for one in forms if one.ranks is None)
            for shape, forms in self.blocks.items()
            if replace(shape, channels_out=1, channels_in=1)
            == replace(whole, channels_out=1, channels_in=1)
            and all(one <= most for one, most in zip(shape.channels, whole.channels, strict=True))
        }
        return CutTimes(ns=ns) if whole.channels in ns and len(ns) > 1 else None

    def network_ns(self, layers_sha256: str) -> int | None:
        """Nanoseconds of the network of these layers (`layers_digest`); None if not here."""
        if self.network is None or self.network.layers_sha256 != layers_sha256:
            return None
        return round(self.network.ms * NS_PER_MS)

    def facts(self) -> TableFacts:
        """What the table is named by."""
        return TableFacts(
            sha256=self.sha256,
            device=self.device,
            runtime=self.runtime,
            threads=self.threads,
            batch=self.batch,
            precision=self.precision,
        )


def block_as_json(shape: ConvShape, timed: Iterable[TimedRanks]) -> dict[str, JsonValue]:
    """One block of the file; the one convolution comes first, then by ranks."""
    ordered = sorted(timed, key=lambda one: order_of(one.ranks))
    return {
        "layer": shape.as_json(),
        "forms": [
            {
                "ranks": None if one.ranks is None else ranks_as_json(one.ranks),
                "ms": one.ms,
                "spread_ms": one.spread_ms,
            }
            for one in ordered
        ],
    }


def layers_digest(shapes: Iterable[ConvShape]) -> str:
    """Names a network's layers, in any order, whatever its weights are."""
    listed = sorted(json.dumps(one.as_json(), sort_keys=True) for one in shapes)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


MAX_FILE_BYTES = 16 << 20


def read_latency_table(path: Path) -> LatencyTable:
    """Read and check a whole table.

    Raises:
        UsageError: the file cannot be read, is over 16 MiB, is not JSON, or is not such a table.
    """
    contents = read_small_file(path, MAX_FILE_BYTES, hint="a latency table is not")
    return parse_latency_table(contents, where=str(path))


def parse_latency_table(contents: bytes, *, where: str) -> LatencyTable:
    """The table in these bytes.

    Raises:
        UsageError: see `read_latency_table`; the line begins with ``where``.
    """
    try:
        document = parse_json(contents)
    except ValueError as error:
        raise UsageError(f"{where}: is not a JSON document ({first_line(error)})") from None
    violation = first_violation(document, "latency-table")
    if violation is not None:
        raise UsageError(
            f"{where}: is not a latency table {violation}; `edgeclean latency-table` writes one"
        )
    return _table(document, where)


def _table(document: Mapping[str, Any], where: str) -> LatencyTable:
    blocks: dict[ConvShape, tuple[TimedRanks, ...]] = {}
    for number, block in enumerate(document["blocks"]):
        shape = _shape(block["layer"])
        place = f"{where}: blocks/{number}"
        if shape in blocks:
            raise UsageError(f"{place} is of the same layer as one before; keep one of them")
        blocks[shape] = _timed(shape, block["forms"], place)
    network = document["network"]
    return LatencyTable(
        **{
            name: document[name]
            for name in ("device", "runtime", "threads", "batch", "precision", "versions")
        },
        network=None
        if network is None
        else NetworkTime(
            layers_sha256=network["layers_sha256"],
            ms=float(network["ms"]),
            spread_ms=float(network["spread_ms"]),
        ),
        blocks=blocks,
    )


def _shape(layer: Mapping[str, Any]) -> ConvShape:
    fields: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in layer.items()
    }
    return ConvShape(**fields)


def _timed(
    shape: ConvShape, entries: Sequence[Mapping[str, Any]], place: str
) -> tuple[TimedRanks, ...]:
    """The times of one layer.

    Raises:
        UsageError: ranks are given twice, its ranks do not fit, or the one convolution is missing.
    """
    found: dict[Ranks | None, TimedRanks] = {}
    for entry in entries:
        ranks = None if entry["ranks"] is None else ranks_from(entry["ranks"])
        if ranks in found:
            raise UsageError(f"{place} has the ranks {entry['ranks']} twice; keep one of them")
        if ranks is not None:
            _check_fits(shape, ranks, place)
        found[ranks] = TimedRanks(
            ranks=ranks, ms=float(entry["ms"]), spread_ms=float(entry["spread_ms"])
        )
    if None not in found:
        raise UsageError(f"{place} lacks the one convolution (ranks null) to compare with")
    return tuple(found.values())


def _check_fits(shape: ConvShape, ranks: Ranks, place: str) -> None:
    """Refuse ranks that no layer of this shape has.

    Raises:
        UsageError: they are above the channel counts, or separable and no side has taps.
    """
    if isinstance(ranks, Separable):
        most = full_separable_rank(shape, ranks.first) if is_separated(shape) else 0
        if ranks.rank > most:
            raise UsageError(
                f"{place} has ranks {ranks_as_json(ranks)}, which do not fit a layer with "
                f"{list(shape.channels)} channels and a kernel of {list(shape.kernel)}"
            )
    elif not _fits_modes(shape, ranks):
        raise UsageError(
            f"{place} has ranks {list(ranks)}, which do not fit a layer with "
            f"{list(shape.channels)} channels (a 1x1 convolution has one rank, given twice)"
        )


def _fits_modes(shape: ConvShape, ranks: ModeRanks) -> bool:
    within = all(rank <= most for rank, most in zip(ranks, shape.channels, strict=True))
    return within and not (shape.pointwise and ranks[0] != ranks[1])
