"""Send every architecture of the table through the command line, from PyTorch and from ONNX.

``python -m benchmarks.architectures`` runs the cells that are missing, one after the other; a cell
joins ``results/architectures.json`` as it is done, and the table is made from that. The stages are
as short as they can be (``tiny.toml``): the table shows that the way holds to its end or is
refused at its beginning, and says nothing about accuracy or detection.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: processes are forked from this one

from benchmarks.architectures.cells import DEPTHS, INPUTS, run_cell
from benchmarks.architectures.results import RESULTS, known_cells, write_results
from benchmarks.architectures.table import TABLE
from benchmarks.environment import environment


def main() -> None:
    options = _parser().parse_args()
    cells, where = known_cells(options.results), environment()
    names = options.only or list(TABLE)
    for source in options.input or INPUTS:
        for name in names:
            known = cells.get((name, source))
            if known is not None and not _again(known, options.depth, options.again):
                continue
            cell = run_cell(name, source, options.depth)
            cells[name, source] = cell | {"code": where["code"]}
            write_results(cells, where, options.results)
            print(name, source, cell["outcome"], _why(cell), flush=True)
    write_results(cells, where, options.results)


def _again(known: dict[str, object], depth: str, again: str) -> bool:
    deeper = DEPTHS.index(depth) > DEPTHS.index(str(known["depth"]))
    return deeper or again == "all" or (again == "unless-passed" and known["outcome"] != "passed")


def _why(cell: dict[str, object]) -> str:
    steps = cell["steps"]
    assert isinstance(steps, dict)
    return "; ".join(f"{step}: {one['line']}" for step, one in steps.items() if one["line"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.architectures", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=TABLE, metavar="NAME", help="may be repeated"
    )
    parser.add_argument("--input", action="append", choices=INPUTS)
    parser.add_argument("--depth", choices=DEPTHS, default="compress", help="how far to go")
    parser.add_argument(
        "--again",
        choices=("missing", "unless-passed", "all"),
        default="missing",
        help="which cells are run: those missing, also those that did not pass, or all",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
