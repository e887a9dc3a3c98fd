"""A latency table as a JSON file: strictly read, for it may come from anywhere.

The file keeps to ``schemas/latency-table.schema.json``. Beyond the schema, a layer stands in it
once, a pair of ranks once within its layer, each layer has its one convolution, and no rank is
above its channel count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import jsonschema

from edgeclean.compress.latency_table import LatencyTable, NetworkTime, TimedRanks
from edgeclean.errors import UsageError
from edgeclean.networks.shapes import ConvShape
from edgeclean.small_files import first_line, read_small_file

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
        document = json.loads(
            contents.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is not a JSON document ({first_line(error)})") from None
    wrong = jsonschema.exceptions.best_match(_validator().iter_errors(document))
    if wrong is not None:
        place = "/".join(str(step) for step in wrong.absolute_path) or "the top level"
        raise UsageError(
            f"{where}: is not a latency table at {place}: {wrong.message[:200]}; "
            "`edgeclean latency-table` writes one"
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
    found: dict[tuple[int, int] | None, TimedRanks] = {}
    most = shape.channels
    for entry in entries:
        ranks = None if entry["ranks"] is None else (entry["ranks"][0], entry["ranks"][1])
        if ranks in found:
            raise UsageError(f"{place} has the ranks {entry['ranks']} twice; keep one of them")
        if ranks is not None and (
            ranks[0] > most[0] or ranks[1] > most[1] or (shape.pointwise and ranks[0] != ranks[1])
        ):
            raise UsageError(
                f"{place} has ranks {list(ranks)}, which do not fit a layer with {list(most)} "
                "channels (a 1x1 convolution has one rank, given twice)"
            )
        found[ranks] = TimedRanks(
            ranks=ranks, ms=float(entry["ms"]), spread_ms=float(entry["spread_ms"])
        )
    if None not in found:
        raise UsageError(f"{place} lacks the one convolution (ranks null) to compare with")
    return tuple(found.values())


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


@cache
def _validator() -> Any:
    schema = resources.files("edgeclean").joinpath("schemas/latency-table.schema.json")
    return jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
