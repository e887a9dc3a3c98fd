"""What was asked of the ranks, held against what came out: never slower, never larger.

A plan by a latency table adds up the times of single layers. The whole network is measured on the
same device all the same, and one that is slower there is refused, whatever its plan said.
"""

from __future__ import annotations

from edgeclean.errors import BudgetError
from edgeclean.runtime.latency import LatencyReport

_NOTHING_WRITTEN = "no bundle was written, and one that was there is unchanged"


def refuse_slower(latency: LatencyReport) -> None:
    """Refuse a network that the whole 95 % interval says is slower than the original.

    Raises:
        BudgetError: it is; on a device that the ranks were chosen for, that is never shipped.
    """
    if latency.speedup_high < 1:
        raise BudgetError(
            "the compressed network is slower than the original on the machine that its latency "
            f"table was measured on ({latency.speedup:.2f}x, 95 % interval "
            f"{latency.speedup_low:.2f} to {latency.speedup_high:.2f}): {_NOTHING_WRITTEN}; "
            "measure the table again on a quiet machine (`edgeclean latency-table`), or ask for a "
            "higher --speedup"
        )


def refuse_larger(size_budget: int | None, onnx_bytes: int) -> None:
    """Refuse a file above the asked size.

    Raises:
        BudgetError: it is above.
    """
    if size_budget is not None and onnx_bytes > size_budget:
        raise BudgetError(
            f"model.onnx has {onnx_bytes} bytes, and --size-budget {size_budget} was asked: "
            f"{_NOTHING_WRITTEN}; ask for a little less"
        )
