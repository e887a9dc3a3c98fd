"""The options of `edgeclean compress` that are gates, and what they build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgeclean.gates import Policy
    from edgeclean.images.labelled import LabelledImages
    from edgeclean.networks.state import ModelSpec

GATES = "Gates: a bundle that fails one is not written"

FailOnBackdoor = Annotated[
    bool | None,
    typer.Option(
        "--fail-on-backdoor/--no-fail-on-backdoor",
        help="Stop after the scan with exit code 4 if it suspects one.",
        rich_help_panel=GATES,
    ),
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        help="Labelled images of your own to measure accuracy on, and for nothing else: a folder "
        "with a folder for each class, or an .npz pack.",
        rich_help_panel=GATES,
    ),
]
MaxAccuracyDrop = Annotated[
    float | None,
    typer.Option(
        help="Percentage points of accuracy that may be lost on --evaluate (exit code 5).",
        rich_help_panel=GATES,
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        help="Of model.onnx: bytes, or such as 500kB or 2MiB (exit code 6).",
        rich_help_panel=GATES,
    ),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        help="Of the median latency on this machine's CPU (exit code 6).", rich_help_panel=GATES
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="A policy.toml with these gates; options win.", rich_help_panel=GATES
    ),
]


def policy_of(path: Path | None, **options: Any) -> Policy:
    """The gates of the file, with the options that were given on top."""
    from edgeclean.cli.options import without_none
    from edgeclean.gates import read_policy

    return read_policy(path, without_none(options))


def labelled_images(path: Path | None, spec: ModelSpec) -> LabelledImages | None:
    """The user's images; None if none were named."""
    if path is None:
        return None
    from edgeclean.images.labelled import read_labelled_images

    return read_labelled_images(path, spec)
