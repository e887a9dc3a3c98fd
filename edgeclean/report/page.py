"""Render the report as one self-contained page: no script, nothing loaded, under 1.5 MB.

The page shows the JSON document, and beside it pictures that only a page can hold: reconstructed
triggers and synthetic images. Nothing reaches the page unescaped: layer names come from strangers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

import jinja2
from jaxtyping import Float
from torch import Tensor

from edgeclean.backdoor.findings import ScanReport, Suspect
from edgeclean.files.text import printable
from edgeclean.networks.state import JsonValue, SyntheticImages
from edgeclean.report import figures
from edgeclean.report.report import byte_size, check_report, si_number

MOST_TRIGGERS = 8  # as files of the bundle
SHOWN_TRIGGERS = 4  # on the page, at most so many pixels wide
PICTURE_SIDE = 96


def render_html(
    manifest: Mapping[str, JsonValue],
    document: Mapping[str, JsonValue],
    *,
    images: SyntheticImages,
    scan: ScanReport,
) -> str:
    """Return the HTML page of a report.

    Args:
        manifest: the bundle's manifest, whose files the page lists.
        document: the whole report.
        images: the synthetic images, which the page shows as a contact sheet.
        scan: the scan, whose reconstructed triggers the page shows.

    Raises:
        jsonschema.ValidationError: the report does not keep to its schema.
    """
    check_report(document)
    template = _templates().get_template("report.html.j2")
    latency, layers = document["latency"], document["layers"]
    return template.render(
        report=document,
        files=manifest["files"],
        purified=_purified_sentence(document),
        suspicion=", ".join(scan.suspicions),
        ran=[one for one in document["scan"]["searches"] if one["searched"] != []],
        not_run=[one for one in document["scan"]["searches"] if one["searched"] == []],
        smaller=[row for row in layers if row["fate"] in ("factored", "cut")],
        whole=[row for row in layers if row["fate"] not in ("factored", "cut")],
        triggers=[
            _trigger_pictures(one, images) | {"still": still}
            for one, still in zip_longest(
                scan.suspects[:SHOWN_TRIGGERS], document["trigger_success"][:SHOWN_TRIGGERS]
            )
        ],
        contact_sheet=figures.contact_sheet(images.pixels),
        latency_svg=latency
        and figures.latency_plot(
            latency["original"]["latencies_ms"], latency["compressed"]["latencies_ms"]
        ),
        macs_svg=figures.macs_plot(sorted(layers, key=lambda row: -row["macs_before"])),
        spectra_svg=figures.spectra_plot(document["spectra"]) if document["spectra"] else None,
        scores_svg=_score_plots(document["scan"]),
    )


def trigger_files(scan: ScanReport) -> dict[str, bytes]:
    """Return the reconstructed triggers as PNG files by name, for the bundle."""
    return {
        f"trigger-{number}-{_goal_in_name(suspect)}.png": figures.png_bytes(
            trigger_picture(suspect)
        )
        for number, suspect in enumerate(scan.suspects[:MOST_TRIGGERS])
    }


def _goal_in_name(suspect: Suspect) -> str:
    if suspect.target is None:
        return "all-to-all"
    start = "" if suspect.source is None else f"class-{suspect.source}-to-"
    return f"{start}class-{suspect.target}"


def trigger_picture(suspect: Suspect) -> Float[Tensor, "c h w"]:
    """Return the pattern where the trigger acts, over mid grey, neither black nor white."""
    return suspect.pattern * suspect.mask + 0.5 * (1 - suspect.mask)


def _purified_sentence(document: Mapping[str, Any]) -> str:
    if document["scan"]["structure"]["findings"]:
        return "The graph is as it came: no purification of weights removes what it does itself."
    if document["purify"]["changed"]:
        return "The network in this bundle was purified; that is not proof that nothing is left."
    return "No weight was changed by purification."


def _score_plots(scan: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": search["name"],
            "svg": figures.scores_plot(
                search,
                _marked(
                    [s["target"] for s in scan["suspects"] if s["search"] == search["name"]], search
                ),
                index,
            ),
        }
        for index, search in enumerate(scan["searches"])
        if search["searched"] != []  # nothing to draw
    ]


def _marked(targets: Sequence[int | None], search: Mapping[str, Any]) -> list[int]:
    """Return the classes that a plot marks: the suspects; for all-to-all, those above the line."""
    if None in targets:
        return [
            label
            for label, score in enumerate(search["scores"])
            if score is not None and score >= search["threshold"]
        ]
    return sorted({target for target in targets if target is not None})


def _trigger_pictures(suspect: Suspect, images: SyntheticImages) -> dict[str, JsonValue]:
    """Return pictures of the trigger, of its mask, and of an image without and with it."""
    goal = -1 if suspect.target is None else suspect.target
    moved = images.labels != goal if suspect.source is None else images.labels == suspect.source
    others = moved.nonzero().flatten()
    sample = images.pixels[int(others[0]) if len(others) else 0]
    return {
        "target": suspect.target,
        "source": suspect.source,
        "search": suspect.search,
        "score": suspect.score,
        "success": suspect.success,
        **{
            name: figures.png_uri(figures.at_most(picture, PICTURE_SIDE))
            for name, picture in (
                ("pattern", trigger_picture(suspect)),
                ("mask", suspect.mask[None]),
                ("sample", sample),
                ("stamped", suspect.trigger.stamp(sample[None])[0]),
            )
        },
    }


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgeclean.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = printable
    environment.filters["si"] = si_number
    environment.filters["bytes"] = byte_size
    return environment
