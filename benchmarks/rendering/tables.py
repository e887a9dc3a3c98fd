"""Render Markdown from a suite's columns alone; ``python -m benchmarks.suite.columns`` does it.

`smoke`, `cpu` and `signs` become one matrix, defences by attacks, with a picture of each attack;
`table2`, `table2-cpu` and `table4` look like those of Clean & Compact, with its own numbers where
the public slides give them. Over several seeds a cell is the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.rendering.clean_compact_numbers import (
    TABLE_2_ACC,
    TABLE_4,
    TABLE_4_AVERAGES,
    TABLE_4_COLUMNS,
)
from edgeclean.networks.state import JsonValue

Cell = dict[str, JsonValue]
Record = dict[str, JsonValue]
RESULTS = Path(__file__).parents[1] / "results"
BYTES_A_WEIGHT = 4
MEBI = 2**20
NOT_RUN = "not yet run"
RATES = ("acc", "asr")


def markdown(record: Record) -> str:
    """Return a suite's tables and pictures, with the environment they were measured in."""
    body = _TABLES.get(record["suite"], _matrix)(record) if record["cells"] else []
    return "\n".join([*_heading(record), "", *body, *_pictures(record)]) + "\n"


def _heading(record: Record) -> list[str]:
    cells = record["cells"]
    machines = dict.fromkeys(
        f"{at['processor']} (device {at['device']}, threads: {at['threads']})"
        for at in (cell["environment"] for cell in cells)
    )
    codes = dict.fromkeys(cell["environment"]["code"] for cell in cells)
    minutes = sum(column["seconds"] for column in record["columns"]) / 60
    lines = [
        f"`{record['command']}` on {', '.join(machines) or 'nothing yet'}; "
        f"code {', '.join(codes) or 'none'}. "
        f"The columns took {minutes:.0f} minutes in sum.",
        "",
    ]
    if whole := record["whole"]:
        lines[0] += f" In one go, {whole['jobs']} at a time: {whole['minutes']} minutes."
    for part in record["parts"]:
        training = part["training"]
        lines.append(
            f"{part['spec']['architecture'].rpartition(':')[2]} on {part['data_set']}: "
            f"{training['epochs']} epochs over {part['train_images'] or 'all'} training images, "
            f"measured on {part['test_images'] or 'all'} test images; seeds "
            f"{', '.join(map(str, part['seeds']))}. ANP, NAD, I-BAU and fine-tuning were given "
            f"{part['clean_images']} clean training images, the others none."
        )
        asked = len(part["attacks"]) * len(part["defences"]) * len(part["seeds"])
        have = sum(cell["data_set"] == part["data_set"] for cell in cells)
        if have < asked:
            lines.append(f"**{have} of {asked} cells have been run.**")
    lines += [column["remark"] for column in record["columns"] if "remark" in column]
    if any(cell.get("stale") for cell in cells):
        lines.append("`*`: run before the settings of that defence last changed.")
    return lines


def _matrix(record: Record) -> list[str]:
    """Return a table of ACC / ASR of every defence (row) against every attack (column).

    The DER of a row is over the attacked networks that there are; a row that lacks one has none.
    """
    cells, (part,) = record["cells"], record["parts"]
    attacks, there = part["attacks"], _attacked(_only(cells, defence="none"))
    asked = sum(name != "clean" for name in attacks) * len(part["seeds"])
    run = "" if len(there) == asked else f" on the {len(there)} of {asked} networks that have run"
    lines = [*_attack_table(record), "", *_scan_table(record)]
    lines += [
        f"ACC / ASR in %; for the clean network ACC alone. DER: mean over the attacks{run}.",
        "",
    ]
    lines += _table_head(["defence", "given", "MACs left", *attacks, "DER"])
    for defence in part["defences"]:
        row = _only(cells, defence=defence)
        given = "nothing" if row and row[0]["given"] == "none" else "1 %" if row else "-"
        shares = [cell["macs"] / cell["macs_before"] for cell in row]
        share = f"{fmean(shares):.2f}" if shares else "-"
        ders = [cell["der"] for cell in row if cell.get("der") is not None]
        rates = [_rates(_only(row, attack=attack), NOT_RUN) for attack in attacks]
        whole = bool(there) and _attacked(row) == there
        lines.append(_line([defence, given, share, *rates, _percent(ders) if whole else "-"]))
    return lines


def _attacked(cells: Sequence[Cell]) -> set[tuple[str, int]]:
    return {(cell["attack"], cell["seed"]) for cell in cells if cell.get("der") is not None}


def _attack_table(record: Record) -> list[str]:
    """Return a table of each attack's rates before any defence, beside clean training."""
    undefended = _only(record["cells"], defence="none")
    clean = [cell["acc"]["percent"] for cell in _only(undefended, attack="clean")]
    lines = ["The attacks, before any defence, in % with 95 % intervals:", ""]
    lines += _table_head(["attack", "ACC", "below clean training", "ASR", "RA", "training, min"])
    for attack in record["parts"][0]["attacks"]:
        cells = _only(undefended, attack=attack)
        if not cells:
            lines.append(_line([attack, NOT_RUN, "-", "-", "-", "-"]))
            continue
        fall = fmean(clean) - fmean(cell["acc"]["percent"] for cell in cells) if clean else None
        seconds = [
            sum(epoch["seconds"] for epoch in column["training"]["epochs"])
            for column in _only(record["columns"], attack=attack)
        ]
        values = [_interval(cells, key) for key in ("acc", "asr", "ra")]
        below = "-" if fall is None or attack == "clean" else f"{fall:.1f}"
        lines.append(_line([attack, values[0], below, *values[1:], f"{fmean(seconds) / 60:.1f}"]))
    return lines


def _scan_table(record: Record) -> list[str]:
    """Return a table of the scan of each network; a search can find more than one class."""
    cells = _only(record["cells"], defence="edgeclean-full-size")
    if not any("scan" in cell.get("notes", {}) for cell in cells):
        return []
    lines = ["What edgeclean's scan said of each network, most suspicious first:", ""]
    lines += _table_head(["attack", "target", "suspected: class, score (search)"])
    targets = {(one["attack"], one["seed"]): _target(one) for one in record["columns"]}
    for cell in cells:
        if "scan" not in cell.get("notes", {}):
            continue
        said = [
            f"{'all-to-all' if one['target'] is None else one['target']}, {one['score']:.1f} "
            f"({one['search']})"
            for one in cell["notes"]["scan"]["suspects"]
        ]
        target = targets[cell["attack"], cell["seed"]]
        lines.append(_line([cell["attack"], target, "; ".join(said) or "not found"]))
    return [*lines, ""]


def _target(column: Cell) -> str:
    if column["attack"] == "clean":
        return "-"
    target = column["attack_settings"]["target"]
    return "all-to-all" if target is None else str(target)


def _interval(cells: Sequence[Cell], key: str) -> str:
    """Write the rate of one seed with its interval, or the mean of several seeds alone."""
    if any(key not in cell for cell in cells):
        return "-"
    rates = [cell[key] for cell in cells]
    mean = f"{fmean(rate['percent'] for rate in rates):.1f}"
    return mean if len(rates) > 1 else f"{mean} ({rates[0]['low']:.1f}..{rates[0]['high']:.1f})"


def _percent(fractions: Sequence[float]) -> str:
    return f"{100 * fmean(fractions):.1f}"


def _table_2(record: Record) -> list[str]:
    """Return a row for each system and ratio, purified and compressed, as in the Table 2."""
    cells = record["cells"]
    attacks = _in_order(cells, "attack")
    lines = _table_head(
        [
            "system",
            *(f"{attack}: ACC / ASR / RA" for attack in attacks),
            "MACs left",
            "size, MiB",
            "ms for 100 images",
            "speed-up",
            "the deck's ACC",
        ]
    )
    for defence in _in_order(cells, "defence"):
        row = _only(cells, defence=defence)
        rates = [_rates(_only(row, attack=attack), keys=(*RATES, "ra")) for attack in attacks]
        theirs = f"{TABLE_2_ACC[defence]:.0f}" if defence in TABLE_2_ACC else "-"
        macs = fmean(cell["macs"] / cell["macs_before"] for cell in row)
        size = fmean(cell["params"] for cell in row) * BYTES_A_WEIGHT / MEBI
        times = [cell["ms_batch_100"] for cell in row if "ms_batch_100" in cell]
        time = f"{fmean(times):.2f}" if times else "-"
        faster = [cell["speedup"] for cell in row if "speedup" in cell]
        gain = f"{fmean(faster):.2f}" if faster else "-"
        lines.append(_line([defence, *rates, f"{macs:.2f}", f"{size:.2f}", time, gain, theirs]))
    return [
        *lines,
        "",
        "Speed-up: against the undefended network, which took turns with it on the same images. "
        "The public slides give no other number of their Table 2, and do not name its attack; "
        "theirs was timed on an RTX 3090.",
    ]


def _table_4(record: Record) -> list[str]:
    """Return a table of data sets and attacks by defences, ours beside Clean & Compact's."""
    cells = record["cells"]
    defences = _in_order(cells, "defence")
    head = ["data set", "attack"]
    for defence in defences:
        head += [defence, "deck"] if defence in TABLE_4_COLUMNS else [defence]
    lines = ["ACC / ASR in %; each column of ours is followed by the deck's where it has one.", ""]
    lines += _table_head(head)
    for data_set in _in_order(cells, "data_set"):
        of_set = _only(cells, data_set=data_set)
        rows = {name: _only(of_set, attack=name) for name in _in_order(of_set, "attack")}
        for attack, row in {**rows, "average": of_set}.items():
            values = [data_set, attack]
            for defence in defences:
                values.append(_rates(_only(row, defence=defence)))
                if defence in TABLE_4_COLUMNS:
                    values.append(_published_4(data_set, attack, TABLE_4_COLUMNS[defence]))
            lines.append(_line(values))
    return lines


def _published_4(data_set: str, attack: str, column: int) -> str:
    averages = {"average": TABLE_4_AVERAGES[data_set]} if data_set in TABLE_4_AVERAGES else {}
    known = {**TABLE_4.get(data_set, {}), **averages}
    return "{:.2f} / {:.2f}".format(*known[attack][column]) if attack in known else "-"


def _pictures(record: Record) -> list[str]:
    columns = [column for column in record["columns"] if "picture" in column]
    pictures = {
        f"{column['data_set']}, {column['attack']}": column["picture"] for column in columns
    }
    if not pictures:
        return []
    lines = ["", "Each attack: clean, stamped, and the difference times ten.", ""]
    for attack, path in pictures.items():
        lines += [f"{attack}:", "", f"![{attack}]({path})", ""]
    return lines[:-1]


def _rates(cells: Sequence[Cell], missing: str = "-", *, keys: Sequence[str] = RATES) -> str:
    """Write the mean rates of the cells; ACC alone where nothing was stamped."""
    if not cells:
        return missing
    means = [
        fmean(cell[rate]["percent"] for cell in cells)
        for rate in keys
        if all(rate in cell for cell in cells)
    ]
    stale = "*" if any(cell.get("stale") for cell in cells) else ""
    return " / ".join(f"{mean:.1f}" for mean in means) + stale


def _only(cells: Sequence[Cell], **values: str) -> list[Cell]:
    return [cell for cell in cells if all(cell[key] == value for key, value in values.items())]


def _in_order(cells: Sequence[Cell], key: str) -> list[str]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _table_head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


_TABLES: dict[str, Callable[[Record], list[str]]] = {
    "table2": _table_2,
    "table2-cpu": _table_2,
    "table4": _table_4,
}
