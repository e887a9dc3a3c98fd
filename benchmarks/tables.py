"""Markdown out of a suite's JSON alone: ``python -m benchmarks.tables`` renders every suite again.

`smoke` and `cpu` become one matrix, defences by attacks, with a picture of each attack; `table2`
and `table4` take the deck's form, with the deck's own numbers where its public slides give them.
Over several seeds a cell is the mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.deck_numbers import TABLE_2_ACC, TABLE_4, TABLE_4_AVERAGES, TABLE_4_COLUMNS
from edgeclean.states import JsonValue

Cell = dict[str, JsonValue]
Record = dict[str, JsonValue]
RESULTS = Path(__file__).parent / "results"
BYTES_A_WEIGHT = 4
MEBI = 2**20


def render(name: str, results: Path = RESULTS) -> None:
    """``NAME.md`` from ``NAME.json``."""
    record = json.loads((results / f"{name}.json").read_text())
    (results / f"{name}.md").write_text(markdown(record))


def markdown(record: Record) -> str:
    """A suite's tables and pictures, with what they were measured on."""
    body = _FORMS.get(record["suite"], _matrix)(record)
    return "\n".join([*_heading(record), "", *body, *_pictures(record)]) + "\n"


def _heading(record: Record) -> list[str]:
    environment = record["environment"]
    lines = [
        f"`{record['command']}` on {environment['processor']}, device {environment['device']}, "
        f"code {', '.join(_codes(record['cells']))}.",
        "",
    ]
    for part in record["parts"]:
        training = part["training"]
        lines.append(
            f"{part['spec']['architecture'].rpartition(':')[2]} on {part['data_set']}: "
            f"{training['epochs']} epochs over {part['train_images'] or 'all'} training images, "
            f"measured on {part['test_images'] or 'all'} test images; seeds "
            f"{', '.join(map(str, part['seeds']))}. ANP, NAD, I-BAU and fine-tuning were given "
            f"{part['clean_images']} clean training images, the others none."
        )
        asked = len(part["asked"]["attacks"]) * len(part["asked"]["defences"]) * len(part["seeds"])
        have = sum(cell["data_set"] == part["data_set"] for cell in record["cells"])
        if have < asked:
            lines.append(f"**{have} of {asked} cells have been run; `-` marks the others.**")
    return lines


def _codes(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell["code"] for cell in cells)) or ["none"]


def _matrix(record: Record) -> list[str]:
    """ACC / ASR of every defence (row) against every attack (column)."""
    cells = record["cells"]
    attacks = _in_order(cells, "attack")
    lines = ["ACC / ASR in %; for the clean network ACC alone. DER: mean over the attacks.", ""]
    lines += _table_head(["defence", "given", "MACs left", *attacks, "DER"])
    for defence in _in_order(cells, "defence"):
        row = [cell for cell in cells if cell["defence"] == defence]
        given = "nothing" if row[0]["given"] == "none" else row[0]["given"].partition(" of ")[0]
        shares = [cell["macs"] / cell["macs_before"] for cell in row]
        ders = [cell["der"] for cell in row if cell.get("der") is not None]
        rates = [_rates(_only(row, attack=attack)) for attack in attacks]
        der = f"{100 * fmean(ders):.1f}" if ders else "-"
        lines.append(_line([defence, given, f"{fmean(shares):.2f}", *rates, der]))
    return lines


def _table_2(record: Record) -> list[str]:
    """Purifying and compressing: one row a system and ratio, as in the deck's Table 2."""
    cells = record["cells"]
    attacks = _in_order(cells, "attack")
    lines = _table_head(
        [
            "system",
            *(f"{attack}: ACC / ASR" for attack in attacks),
            "MACs left",
            "size, MiB",
            "ms for 100 images",
            "the deck's ACC",
        ]
    )
    for defence in _in_order(cells, "defence"):
        row = _only(cells, defence=defence)
        rates = [_rates(_only(row, attack=attack)) for attack in attacks]
        deck = f"{TABLE_2_ACC[defence]:.0f}" if defence in TABLE_2_ACC else "-"
        macs = fmean(cell["macs"] / cell["macs_before"] for cell in row)
        size = fmean(cell["params"] for cell in row) * BYTES_A_WEIGHT / MEBI
        times = [cell["ms_batch_100"] for cell in row if "ms_batch_100" in cell]
        time = f"{fmean(times):.2f}" if times else "-"
        lines.append(_line([defence, *rates, f"{macs:.2f}", f"{size:.2f}", time, deck]))
    return [
        *lines,
        "",
        "The public slides give no other number of their Table 2, and do not name its attack; "
        "theirs was timed on an RTX 3090.",
    ]


def _table_4(record: Record) -> list[str]:
    """Data sets and attacks by defences, ours beside the deck's."""
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
                    values.append(_deck_4(data_set, attack, TABLE_4_COLUMNS[defence]))
            lines.append(_line(values))
    return lines


def _deck_4(data_set: str, attack: str, column: int) -> str:
    averages = {"average": TABLE_4_AVERAGES[data_set]} if data_set in TABLE_4_AVERAGES else {}
    known = {**TABLE_4.get(data_set, {}), **averages}
    return "{:.2f} / {:.2f}".format(*known[attack][column]) if attack in known else "-"


def _pictures(record: Record) -> list[str]:
    pictures = record.get("pictures", {})
    if not pictures:
        return []
    lines = ["", "Each attack: clean, stamped, and the difference times ten.", ""]
    for attack, path in pictures.items():
        lines += [f"{attack}:", "", f"![{attack}]({path})", ""]
    return lines[:-1]


def _rates(cells: Sequence[Cell]) -> str:
    """Mean ACC / ASR of the cells; ACC alone where nothing was stamped."""
    if not cells:
        return "-"
    means = [
        fmean(cell[rate]["percent"] for cell in cells)
        for rate in ("acc", "asr")
        if all(rate in cell for cell in cells)
    ]
    return " / ".join(f"{mean:.1f}" for mean in means)


def _only(cells: Sequence[Cell], **wanted: str) -> list[Cell]:
    return [cell for cell in cells if all(cell[key] == value for key, value in wanted.items())]


def _in_order(cells: Sequence[Cell], key: str) -> list[str]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _table_head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


_FORMS: dict[str, Callable[[Record], list[str]]] = {"table2": _table_2, "table4": _table_4}


def main() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        if "suite" in json.loads(path.read_text()):
            render(path.stem)


if __name__ == "__main__":
    main()
