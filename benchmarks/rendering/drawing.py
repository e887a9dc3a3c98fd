"""Style and save the figures: the same bytes for the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, SERIES, ALARM = "#222222", "#3b6ea5", "#c0392b"
_STYLE: Any = {
    "svg.hashsalt": "edgeclean",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
styled = rc_context(_STYLE)  # decorates what draws


def new_figure(*, width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, whose elements do not overlap."""
    return Figure(figsize=(width, height), layout="constrained")


@styled
def save(figure: Figure, path: Path) -> None:
    """Save a figure as SVG, without the date of the day."""
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
