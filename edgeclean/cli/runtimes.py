"""How a command shows what became of each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeclean.cli.console import cells, plain_table

if TYPE_CHECKING:
    from rich.table import Table


def runtime_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """One table of the report's rows; none where there is nothing but ONNX Runtime."""
    if not rows:
        return []
    from edgeclean.report.report import byte_size

    table = plain_table("runtime", ">file", ">parity", ">original p50", ">compressed p50", ">ratio")
    for row in rows:
        name = f"{row['name']} {row['version']}{'' if row['kept'] else ' (not kept)'}"
        if row["problem"] is not None:
            table.add_row(*cells(name, row["problem"]))
            continue
        times = row["latency"]
        milliseconds = (f"{times[one]['p50_ms']:.3g} ms" for one in ("original", "compressed"))
        parity = "" if row["parity"] is None else f"{row['parity']:.1e}"
        size = byte_size(row["bytes"]["compressed"])
        if row.get("arena_bytes") is not None:
            size += f", arena {byte_size(row['arena_bytes'])}"
        table.add_row(*cells(name, size, parity, *milliseconds, f"{times['speedup']:.2f}x"))
    return [table]
