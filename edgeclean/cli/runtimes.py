"""How a command shows what became of each runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeclean.cli.console import cells, plain_table

if TYPE_CHECKING:
    from rich.table import Table


def fastest_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What `--runtime fastest` kept, in words; None where every runtime was named.

    Those that were named are kept, or the run ended: one that is not was only tried.
    """
    if all(row["kept"] for row in rows):
        return None
    best = min((row for row in rows if row["kept"]), key=_median)
    return (
        f"the fastest runtime on this machine is {best['name']} {best['version']} "
        f"({_median(best):.3g} ms), and the bundle holds its files; a device may have another one"
    )


def _median(row: Mapping[str, Any]) -> float:
    return float(row["latency"]["compressed"]["p50_ms"])


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
