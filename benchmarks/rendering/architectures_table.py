"""Render the table of ``benchmarks.architectures`` from its cells alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edgeclean.networks.state import JsonValue

Cell = dict[str, JsonValue]
INPUTS = {"pytorch": "PyTorch", "onnx": "ONNX"}
NOTHING = "-"


def markdown(record: dict[str, JsonValue]) -> str:
    """Return what came of how many, a row for each architecture, and every refusal in its words."""
    cells: list[Cell] = record["cells"]
    lines = [*_counts(cells), "", *_table(cells)]
    if said := _said(cells):
        lines += ["", "What was said of those that did not pass:", "", *said]
    return "\n".join(lines) + "\n"


def _counts(cells: Sequence[Cell]) -> list[str]:
    names = {cell["name"] for cell in cells}
    lines = [f"{len(names)} architectures.", ""]
    for source, word in INPUTS.items():
        of = [cell for cell in cells if cell["input"] == source]
        counted = ", ".join(f"{count} {what}" for what, count in _outcomes(of).items())
        lines.append(f"- From {word}: {counted or 'not yet run'}.")
    return lines


def _outcomes(cells: Sequence[Cell]) -> dict[str, int]:
    """Count outcomes, the most frequent first; a cell that only went to `inspect` says so."""
    return dict(
        Counter(
            cell["outcome"] + (" as far as inspect" if cell["depth"] == "inspect" else "")
            for cell in cells
        ).most_common()
    )


def _table(cells: Sequence[Cell]) -> list[str]:
    rows: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault(cell["name"], {})[cell["input"]] = cell
    head = ["architecture", "image", "classes", "parameters", "MACs", "ACC / ASR planted"]
    for word in INPUTS.values():
        head += [f"from {word}", "MACs left", "parity", "ACC / ASR after", "processor s"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for name, by_input in rows.items():
        one = next(iter(by_input.values()))
        shape = "x".join(map(str, one["input_shape"]))
        values = [name, shape, str(one["classes"]), _thousands(one), _millions(one), _rates(one)]
        for source in INPUTS:
            values += _columns(by_input.get(source))
        lines.append(_line(values))
    return lines


def _columns(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["not yet run", *[NOTHING] * 4]
    spent = sum(step["processor_s"] for step in cell["steps"].values())
    if "parity" not in cell:
        return [cell["outcome"], *[NOTHING] * 3, f"{spent:.0f}"]
    return [
        cell["outcome"],
        f"{1 / cell['macs_ratio']:.2f}",
        f"{cell['parity']:.0e}",
        _rates(cell, "_after"),
        f"{spent:.0f}",
    ]


def _said(cells: Sequence[Cell]) -> list[str]:
    lines = []
    for cell in cells:
        for step, one in cell["steps"].items():
            if one["line"]:
                where = f"{cell['name']}, {INPUTS[cell['input']]}, {step}"
                late = f", while: {one['stage']}" if one["stage"] else ""
                text = one["line"].replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
                lines.append(f"- {where} ({one['exit_code']}{late}): {text}")
        if cell["outcome"] == "not exported":
            lines.append(f"- {cell['name']}: not exported by PyTorch: {cell['not_exported']}")
    return lines


def _thousands(cell: Cell) -> str:
    return f"{cell['params'] / 1e3:.0f} k" if "params" in cell else NOTHING


def _millions(cell: Cell) -> str:
    return f"{cell['macs'] / 1e6:.1f} M" if "macs" in cell else NOTHING


def _rates(cell: Cell, suffix: str = "") -> str:
    keys = (f"acc{suffix}", f"asr{suffix}")
    return " / ".join(f"{cell[key]:.0f}" for key in keys) if keys[0] in cell else NOTHING


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
