"""Render the tables of `benchmarks.studies.depthwise` out of its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NamedTuple

from benchmarks.environment import busy, wall_seconds
from benchmarks.suite.cells import Cell

DEPTHWISE = Path(__file__).parents[1] / "results" / "depthwise.json"
NETWORKS = ("efficientnet-lite0", "mobilenet-v2-badnets", "mobilenet-v2-clean")
SHRUNK = "efficientnet-lite0"  # of the others the planner keeps the images' size
RATIOS = (1.5, 2.0, 3.0, 4.0)
METHODS = ("none", "own-size", "guided", "pruned", "pruned-8")
EFFORTS = ("quick", "standard", "thorough")
NAMES = {
    "none": "edgeclean, `--purify none`",
    "own-size": "edgeclean, `--purify none`, images at their own size",
    "guided": "edgeclean, the default",
    "pruned": "torch-pruning, tuned",
    "pruned-8": "torch-pruning, rounded to 8, tuned",
}


class Key(NamedTuple):
    """What decides a row, in the order of the table."""

    network: str
    method: str
    effort: str
    ratio: float
    seed: int


def key_of(row: Cell) -> Key:
    """Return the key of a row of the results."""
    return Key(*(row[name] for name in Key._fields))


def is_asked(network: str, method: str) -> bool:
    """Return whether a method is one of a network's rows."""
    return method != "own-size" or network == SHRUNK


def table(rows: Mapping[Key, Cell], latencies: Mapping[str, Cell]) -> str:
    """Return a table for each network, one of the latencies, and what has not been run yet."""
    parts = [_of_network(name, rows) for name in NETWORKS]
    return "\n\n".join([*parts, _latency_table(latencies), _missing(rows)]) + "\n"


def _of_network(name: str, rows: Mapping[Key, Cell]) -> str:
    mine = sorted(
        (key for key in rows if key.network == name),
        key=lambda key: (key.ratio, METHODS.index(key.method), EFFORTS.index(key.effort), key.seed),
    )
    if not mine:
        return f"**{name}**: not yet run."
    measured = next((rows[key]["original"] for key in mine if "original" in rows[key]), None)
    before = f": {_rates(measured)} as it came" if measured else ""
    head = ["MACs", "method", "effort", "agreement", "ACC", "ASR", "MACs left", "parameters left"]
    head += ["wall s", "processor s", "peak MiB"]
    lines = [f"**{name}**{before}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [_line(key, rows[key]) for key in mine]
    refusals = dict.fromkeys(
        f"Refused at {key.ratio:g}x ({NAMES[key.method]}): {rows[key]['refused']}."
        for key in mine
        if "refused" in rows[key]
    )
    return "\n".join([*lines, *(["", *refusals] if refusals else [])])


def _rates(state: Cell) -> str:
    asr = f", ASR {state['asr']['percent']:.1f}" if "asr" in state else ""
    return f"ACC {state['acc']['percent']:.1f}{asr}"


def _line(key: Key, row: Cell) -> str:
    start = f"| {key.ratio:g}x | {NAMES[key.method]} | {key.effort} "
    if "refused" in row:
        return start + "| refused" + " | -" * 7 + " |"
    left, before = row["compressed"], row["original"]
    asr = f"{left['asr']['percent']:.1f}" if "asr" in left else "-"
    # A job that took up stages from an earlier one did not take its whole time.
    part = " (part)" if row["stages_taken_up"] else ""
    return start + (
        f"| {left['agreement']['percent']:.1f} | {left['acc']['percent']:.1f} | {asr} "
        f"| {left['macs'] / before['macs']:.3f} | {left['params'] / before['params']:.3f} "
        f"| {wall_seconds(row)}{part} | {row['processor_s']:.0f}{part} "
        f"| {row['peak_memory_mib']} |"
    )


def _latency_table(latencies: Mapping[str, Cell]) -> str:
    if not latencies:
        return "**Latency**: not yet measured."
    head = ["network", "MACs", "threads", "original ms", *NAMES.values()]
    lines = ["**Latency**: how many times faster, with the 95 % interval", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for cell in latencies.values():
        speeds = " | ".join(_speedup(cell["rows"].get(method)) for method in NAMES)
        first = f"{cell['rows']['original']['p50_ms']:.3g}{busy(cell)}"
        lines.append(
            f"| {cell['network']} | {cell['ratio']:g}x | {cell['threads']} | {first} | {speeds} |"
        )
    return "\n".join(lines)


def _speedup(row: Cell | None) -> str:
    if row is None:
        return "-"
    low, high = row["speedup_interval"]
    return f"{row['speedup']:.2f} [{low:.2f}, {high:.2f}]"


def _missing(rows: Mapping[Key, Cell]) -> str:
    """Say which rows of the quick level and seed 0 have not been run."""
    asked = [
        (network, method, ratio)
        for network, method, ratio in product(NETWORKS, METHODS, RATIOS)
        if is_asked(network, method)
    ]
    have = {(key.network, key.method, key.ratio) for key in rows}
    lacking = [one for one in asked if one not in have]
    if not lacking:
        return "All rows have been run."
    named: dict[str, list[str]] = {}
    for network, method, ratio in lacking:
        named.setdefault(f"{network}, {NAMES[method]}", []).append(f"{ratio:g}x")
    lines = [f"- {name}: {', '.join(ratios)}" for name, ratios in named.items()]
    return "\n".join([f"{len(lacking)} of {len(asked)} rows have not been run yet:", "", *lines])
