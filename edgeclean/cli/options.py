"""Options that several commands share, and what they build.

Nothing heavy is imported before a command runs: `--help` and completion stay fast.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.errors import UsageError
from edgeclean.files.text import shown

if TYPE_CHECKING:
    from edgeclean.config import PipelineSettings
    from edgeclean.devices.targets import Target
    from edgeclean.networks.state import ModelSpec

NETWORK = "The network"
RUN = "The run"
SAY = "What is said"
DEFAULT_TARGET = "cpu"

Checkpoint = Annotated[
    Path,
    typer.Argument(help="Weights: .pt .pth .th .tar .bin .ckpt .safetensors, or an .onnx network."),
]
ModelFile = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "--model-file",
        help="A model.toml that says what the checkpoint does not; options win over it.",
        rich_help_panel=NETWORK,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="A built-in architecture, package.module:callable, file.py:callable (which runs that "
        "code), or onnx.",
        rich_help_panel=NETWORK,
    ),
]
InputShape = Annotated[str | None, typer.Option(help="Such as 3x32x32.", rich_help_panel=NETWORK)]
# A text to Typer, whose own refusal of a number would repeat the whole of it.
Classes = Annotated[
    str | None, typer.Option(metavar="INTEGER", help="Outputs.", rich_help_panel=NETWORK)
]
Mean = Annotated[
    str | None,
    typer.Option(help="Per channel, of pixels in [0, 1]: R,G,B.", rich_help_panel=NETWORK),
]
Std = Annotated[str | None, typer.Option(help="Per channel: R,G,B.", rich_help_panel=NETWORK)]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target", help="What to build for; `edgeclean targets` lists them.", rich_help_panel=RUN
    ),
]
TargetFile = Annotated[
    Path | None, typer.Option(help="A target profile of your own, as TOML.", rich_help_panel=RUN)
]
JetPack = Annotated[
    str | None,
    typer.Option("--jetpack", help="Of the Jetson, such as 5.1.2.", rich_help_panel=RUN),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32, fp16, bf16 or int8, in the ONNX graph; the target must compute in it.",
        rich_help_panel=RUN,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file with any setting of any stage.", rich_help_panel=RUN),
]
EffortLevel = Annotated[
    str | None,
    typer.Option(
        "--effort",
        help="How long every stage is: quick, standard or thorough; single settings win over it.",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Of every random choice; 0 if not given.", rich_help_panel=RUN),
]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1, max=1024, help="Processor threads; all cores if not given.", rich_help_panel=RUN
    ),
]
Gpu = Annotated[
    bool,
    typer.Option(
        "--gpu",
        help="Scan, purify and tune on this machine's CUDA GPU; the bytes differ from a CPU's.",
        rich_help_panel=RUN,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=SAY)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.", rich_help_panel=SAY)]


def model_spec(
    *,
    model: Path | None,
    arch: str | None,
    input_shape: str | None,
    classes: str | None,
    mean: str | None,
    std: str | None,
) -> tuple[ModelSpec, Path | None]:
    """The spec, and the folder that ``file.py:callable`` is relative to."""
    from edgeclean.load.model_file import parse_classes, spec_from_options

    spec = spec_from_options(
        model_file=model,
        arch=arch,
        input_shape=input_shape,
        classes=None if classes is None else parse_classes(classes),
        mean=mean,
        std=std,
    )
    from_file = model is not None and arch is None
    return spec, model.parent if from_file and model is not None else Path()


def pipeline_settings(
    config: Path | None,
    options: dict[str, Any],
    target_file: Path | None = None,
    *,
    tell: Callable[[str], None],
) -> tuple[PipelineSettings, Target]:
    """The configuration file with the options that were given on top, and the target they name.

    ``tell`` hears of words that have another name now.
    """
    from edgeclean.config import in_new_words, overlay, read_config, settings_for
    from edgeclean.devices.targets import load_target

    entries = overlay({} if config is None else read_config(config), without_none(options))
    entries = in_new_words(entries, tell)
    where = "options" if config is None else str(config)
    name, jetpack = entries.get("target"), entries.get("jetpack")
    for key, entry in (("target", name), ("jetpack", jetpack)):
        if not isinstance(entry, str | None):
            raise UsageError(f"{where}: {key} is {shown(entry)}; it must be a text")
    if name is None and target_file is None:
        name = DEFAULT_TARGET
    target = load_target(name, jetpack=jetpack, target_file=target_file)
    return settings_for(target, entries, where=where), target


def without_none(options: dict[str, Any]) -> dict[str, Any]:
    """Only the options that were given; nested tables that hold none are dropped."""
    kept = {}
    for key, entry in options.items():
        below = without_none(entry) if isinstance(entry, dict) else entry
        if below is not None and below != {}:
            kept[key] = below
    return kept


def run_options(seed: int | None, gpu: bool, effort: str | None) -> dict[str, Any]:
    """What the long commands share; without ``--gpu`` the configuration decides."""
    return {"seed": seed, "compute": "cuda" if gpu else None, "effort": effort}


def use_threads(threads: int | None) -> None:
    """Set PyTorch's threads for this whole program; a command may, the library may not."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
