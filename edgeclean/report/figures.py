"""Draw the report's figures: plots as inline SVG, pictures as PNG.

The same numbers give the same bytes.

Plots take their colours from the page: matplotlib draws in placeholder colours, which are replaced
by CSS variables, so one drawing serves light and dark, screen and print. Each has an accessible
name. Plots are drawn as wide as a phone, so that their text stays legible there.
"""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from edgeclean.files.text import short_label

INK, MUTED, GRID, ORIGINAL, COMPRESSED, ALARM = (
    f"#0{digit}0{digit}0{digit}" for digit in range(1, 7)
)
CSS_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ORIGINAL: "var(--original)",
    COMPRESSED: "var(--compressed)",
    ALARM: "var(--alarm)",
}
FONT_PT = 9.5
STYLE: Any = {  # the stubs of rcParams list every key that there is
    "svg.hashsalt": "edgeclean",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a layer's name may hold a dollar sign
    "font.family": "DejaVu Sans",  # comes with matplotlib: text is measured alike everywhere
    "font.size": FONT_PT,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.titlesize": FONT_PT,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": FONT_PT,
}
WIDTH_IN = 4.25  # 306 points: on a phone about 1 point of the drawing to 1 CSS pixel
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
MOST_SPECTRA = 8
MOST_BARS = 48
MOST_SINGLE_BARS = 120
MOST_NAMED = 6  # suspected classes over a plot
SHEET_IMAGES = 48
SHEET_SIDE = 48


def latency_plot(original_ms: Sequence[float], compressed_ms: Sequence[float]) -> str:
    """Draw the cumulative distributions of both networks' latencies, in milliseconds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.0), layout="constrained")
        axes = figure.add_subplot()
        both = np.concatenate([original_ms, compressed_ms])
        # A machine's hiccups must not squeeze the two curves together: they may leave the plot.
        slower = max(float(np.median(original_ms)), float(np.median(compressed_ms)))
        right = 1.15 * min(float(np.percentile(both, 99)), 4 * slower)
        for name, colour, latencies in (
            ("original", ORIGINAL, original_ms),
            ("compressed", COMPRESSED, compressed_ms),
        ):
            ordered = np.sort(np.asarray(latencies))
            share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
            label = f"{name}, median {np.median(ordered):.3g} ms"
            axes.step([ordered[0], *ordered, right], [0, *share, 100], colour, lw=1.8, label=label)
            axes.plot([np.median(ordered)], [50], "o", color=colour, ms=4.5)
        axes.set_xlim(0, right)
        axes.set_ylim(0, 102)
        axes.set_xlabel("latency of one run, ms")
        axes.set_ylabel("share of runs, %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=1)
        return _inline_svg(
            figure,
            "latency",
            "Cumulative distribution of the latencies of the original and the compressed network; "
            f"medians {np.median(original_ms):.3g} ms and {np.median(compressed_ms):.3g} ms",
        )


def _say_if_empty(axes: Axes, heights: Sequence[float]) -> None:
    """Say it where no bar has a height: it looks as if the drawing had failed."""
    if not any(heights):
        words = "no class scores above 0"
        axes.text(0.5, 0.4, words, transform=axes.transAxes, ha="center", color=MUTED)


def scores_plot(search: Mapping[str, Any], suspects: Sequence[int], index: int) -> str:
    """Draw one search's score of every class; suspected classes stand out by colour and by name.

    Args:
        search: the report's entry: "name", "scores", "threshold", and "searched" where not every
            class was.
        suspects: the classes that this search suspects.
        index: number of the search in the page, which keeps names unique.
    """
    searched = search.get("searched")
    labels = list(range(len(search["scores"])) if searched is None else searched)
    heights = [max(0.0, search["scores"][label]) for label in labels]
    places = range(len(labels))
    marked = [labels.index(label) for label in suspects]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.7), layout="constrained")
        axes = figure.add_subplot()
        colours = [ALARM if place in marked else ORIGINAL for place in places]
        if len(heights) <= MOST_SINGLE_BARS:
            axes.bar(places, heights, color=colours, width=0.72)
        else:  # one path instead of a thousand
            axes.fill_between(places, heights, step="mid", color=ORIGINAL, lw=0)
            axes.bar(marked, [heights[place] for place in marked], color=ALARM, width=2)
        axes.axhline(search["threshold"], color=MUTED, lw=1, ls=(0, (3, 2)))
        _say_if_empty(axes, heights)
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 1.25 * max(search["threshold"], *heights, 0.0))
        which = "class " if searched is None else "class, of those that were searched\n"
        axes.set_xlabel(f"{which}(dashed: where suspicion begins)")
        axes.set_ylabel("outlier score")
        if len(heights) <= 12:
            axes.set_xticks(places, [str(label) for label in labels])
        named = ", ".join(str(label) for label in suspects) or "none"
        if suspects:  # over the plot: beside one another the bars are narrower than any word
            few = len(suspects) <= MOST_NAMED
            axes.set_title(f"suspected: {named if few else f'{len(suspects)} classes'}")
        return _inline_svg(
            figure,
            f"scores{index}",
            f"Outlier score of {'every' if searched is None else 'every searched'} class by the "
            f"search {short_label(search['name'], 60)}; "
            f"suspected classes: {named}",
        )


def spectra_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Draw the normalised singular values of the layers that changed most, before and after.

    Args:
        layers: the report's entries (see `layer_table.Spectrum`), the most important first.
    """
    shown = layers[:MOST_SPECTRA]
    columns = 2
    rows = max(1, -(-len(shown) // columns))
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.45 + 1.25 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, layer in zip(grid.flat, shown, strict=False):
            _draw_spectrum(axes, layer)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_visible(False)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper center", ncols=4)
        figure.supxlabel("singular value, by size", fontsize=FONT_PT, color=MUTED)
        return _inline_svg(
            figure,
            "spectra",
            "Normalised singular values of the original and of the compressed network's kernels, "
            f"output mode, for {len(shown)} layers",
        )


def macs_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Draw the MACs of every layer, the original's behind the compressed network's.

    Args:
        layers: the report's entries: "name", "macs_before", "macs_after".
    """
    shown = layers[:MOST_BARS]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, max(1.4, 1.1 + 0.17 * len(shown))), layout="constrained")
        axes = figure.add_subplot()
        rows = np.arange(len(shown))
        before = [layer["macs_before"] / 1e6 for layer in shown]
        after = [layer["macs_after"] / 1e6 for layer in shown]
        axes.barh(rows, before, color=ORIGINAL, height=0.78, alpha=0.45, label="original")
        axes.barh(rows, after, color=COMPRESSED, height=0.42, label="compressed")
        axes.set_yticks(rows, [short_label(layer["name"], 22) for layer in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        # Of the figure: beside long names the plot is narrower than these words.
        words = "million multiply-accumulates for one image"
        figure.supxlabel(words, fontsize=FONT_PT, color=MUTED)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        return _inline_svg(
            figure,
            "macs",
            f"Multiply-accumulates of {len(shown)} layers in the original and the compressed "
            f"network; in all {sum(before):.3g} and {sum(after):.3g} million",
        )


def contact_sheet(pixels: Float[Tensor, "n c h w"]) -> str:
    """Return the first 48 images as a PNG data URI, in rows of eight, at most 48 pixels a side."""
    chosen = at_most(pixels[:SHEET_IMAGES], SHEET_SIDE)
    side = chosen.shape[-2:]
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = torch.ones(chosen.shape[1], rows * (side[0] + 1) - 1, columns * (side[1] + 1) - 1)
    for number, image in enumerate(chosen):
        top, left = (number // columns) * (side[0] + 1), (number % columns) * (side[1] + 1)
        sheet[:, top : top + side[0], left : left + side[1]] = image
    return png_uri(sheet)


def at_most(pixels: Float[Tensor, "*n c h w"], side: int) -> Float[Tensor, "*n c h2 w2"]:
    """Shrink images by area so that neither side is longer than ``side`` pixels.

    Smaller images are returned as they are.
    """
    height, width = pixels.shape[-2:]
    shrink = side / max(height, width)
    if shrink >= 1:
        return pixels
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    batch = pixels.reshape(-1, *pixels.shape[-3:])
    small = torch.nn.functional.interpolate(batch, size, mode="area")
    return small.reshape(*pixels.shape[:-2], *size)


def png_uri(image: Float[Tensor, "c h w"]) -> str:
    """Return the data URI of an image's PNG file (`png_bytes`), to stand in a page."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode("ascii")


def png_bytes(image: Float[Tensor, "c h w"]) -> bytes:
    """Return an image in [0, 1] as a PNG file; without 3 channels, the first one is shown."""
    levels = (image.detach().cpu().float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
    array = levels.permute(1, 2, 0).numpy() if levels.shape[0] == 3 else levels[0].numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _draw_spectrum(axes: Axes, layer: Mapping[str, Any]) -> None:
    positions, after = layer["positions"], layer["compressed"]
    axes.plot(positions, layer["before"], color=ORIGINAL, lw=2.4, label="original")
    if layer["scaled"] is not None:
        axes.plot(positions, layer["scaled"], color=ALARM, lw=1.2, label="scaled")
    axes.plot(positions[: len(after)], after, color=COMPRESSED, lw=1.5, label="compressed")
    if layer["rank"] is not None and layer["rank"] < positions[-1]:
        axes.axvline(layer["rank"], color=MUTED, lw=1, ls=(0, (3, 2)), label="rank kept")
    axes.set_title(short_label(layer["name"], 24))
    axes.set_ylim(0, None)
    axes.set_xlim(0, positions[-1] + 1)


def _inline_svg(figure: Figure, prefix: str, description: str) -> str:
    """Return the figure as an <svg> element that can stand in a page beside others."""
    stream = io.BytesIO()
    canvas: Any = FigureCanvasSVG(figure)  # its print methods have no types
    canvas.print_svg(stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(stream.getvalue())  # noqa: S314 - drawn by us a line above
    for parent in list(root.iter()):
        for child in list(parent):
            # The style element would apply to the whole page; its two rules are in the template.
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute)
    root.set("role", "img")
    root.set("aria-label", description)
    text = ElementTree.tostring(root, encoding="unicode")
    # Names are unique in one drawing only.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, variable)
    return text
