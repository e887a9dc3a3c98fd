"""Every option that more than one command has, or that `compress` has, and what they build.

Nothing heavy is imported before a command runs: `--help` and completion stay fast.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.settings import without_none

if TYPE_CHECKING:
    from edgeclean.compression.latency_table import LatencyTable
    from edgeclean.config import PipelineSettings
    from edgeclean.devices.targets import Target
    from edgeclean.gates import Policy
    from edgeclean.images.labelled import LabelledImages
    from edgeclean.networks.state import ModelSpec, Network

NETWORK = "The network"
RUN = "The run"
OUTPUT = "The output on the terminal"
SIZE = "The goal: one of --ratio, --keep-accuracy, --speedup, --latency-budget-ms and --size-budget"
PURIFY = "Purification"
GATES = "Gates: a bundle that fails one is not written"

BundleFolder = Annotated[Path, typer.Argument(help="The folder of a bundle.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="Weights of PyTorch or safetensors, an ONNX network, or a folder of the Hugging Face "
        "hub with timm's config.json."
    ),
]
ModelFile = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "--model-file",
        help="A model.toml with what the checkpoint does not hold; options win over it.",
        rich_help_panel=NETWORK,
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="A built-in architecture, package.module:callable, file.py:callable (which runs that "
        "code), timm:NAME, torchvision:NAME, or onnx, or onnx:NAME for one of its outputs; an "
        ".onnx file needs none.",
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
StateDict = Annotated[
    str | None,
    typer.Option(
        "--state-dict",
        help="Which network of a checkpoint that holds several, such as model_ema.",
        rich_help_panel=NETWORK,
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="What to build for, cpu if not given; `edgeclean targets` lists them.",
        rich_help_panel=RUN,
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
RuntimeNames = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        help="What will run it: openvino, ncnn, mnn, litert, litert-micro, executorch, several "
        "with commas, or fastest of those installed; the target's own if not given.",
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
        help="How long every stage is: quick, standard (if not given) or thorough; single settings "
        "win over it.",
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
        min=1,
        max=1024,
        help="Processor threads of the stages, all cores if not given; of compress also those that "
        "latency is measured with, 1 if not given.",
        rich_help_panel=RUN,
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
    bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.", rich_help_panel=OUTPUT)]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The bundle's folder.", rich_help_panel=RUN)
]
Ratio = Annotated[
    float | None,
    typer.Option(
        help="How many times fewer MACs (or parameters), 1 or more; 2 if no goal is given.",
        rich_help_panel=SIZE,
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        help="How many times faster, 1 or more, by a latency table; measured here if none is "
        "given.",
        rich_help_panel=SIZE,
    ),
]
KeepAccuracy = Annotated[
    float | None,
    typer.Option(
        help="In place of --ratio: the largest ratio, of 1.25 to 8, whose forecast expects a loss "
        "of at most so many percentage points.",
        rich_help_panel=SIZE,
    ),
]
LatencyBudget = Annotated[
    float | None,
    typer.Option(
        "--latency-budget-ms",
        help="What one run may take, by a latency table; measured here if none is given.",
        rich_help_panel=SIZE,
    ),
]
SizeBudget = Annotated[
    str | None,
    typer.Option(help="What model.onnx may have: bytes, or 500kB, 2MiB.", rich_help_panel=SIZE),
]
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--latency-table",
        help="What each candidate of a layer takes on the device (`edgeclean latency-table`); with "
        "it no layer is made slower.",
        rich_help_panel=SIZE,
    ),
]
Measure = Annotated[
    str | None,
    typer.Option(help="What the ratio is of: macs (if not given) or params.", rich_help_panel=SIZE),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(help="A layer to leave whole; may be repeated.", rich_help_panel=SIZE),
]
Forms = Annotated[
    str | None,
    typer.Option(
        help="What layers may become, with commas between: tucker (low-rank factors), hidden "
        "(fewer of the channels inside a block), separable (a Kx1 and a 1xK convolution), and "
        "beside these resolution (the network sees its images smaller); by default all that serve "
        "the goal.",
        rich_help_panel=SIZE,
    ),
]
NoPhotographs = Annotated[
    bool,
    typer.Option(
        "--no-photographs",
        help="Recover accuracy on synthetic images alone, without crops of the ten public "
        "photographs that come with edgeclean.",
        rich_help_panel=RUN,
    ),
]
RankMultiple = Annotated[
    int | None,
    typer.Option(help="Ranks are multiples of this; the target has its own.", rich_help_panel=SIZE),
]
RanksFile = Annotated[
    Path | None,
    typer.Option(
        help='Ranks of single layers, as TOML: "layer1.0.conv1" = [8, 6], or ["vertical", 12] '
        'for a separable kernel, or "keep".',
        rich_help_panel=SIZE,
    ),
]
Purify = Annotated[
    str | None,
    typer.Option(
        help="guided (by the scan; if not given), clean-compact (clamp at tau, truncate, tune on "
        "labels), or none.",
        rich_help_panel=PURIFY,
    ),
]
Tau = Annotated[
    float | None,
    typer.Option(
        help="Clamp singular values at this share of the largest, above 0; if not given nothing is "
        "clamped, and with --purify clean-compact it is chosen on the synthetic images.",
        rich_help_panel=PURIFY,
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option(help="Sign the bundle with this private key (PEM).", rich_help_panel=RUN),
]
SignCertificate = Annotated[
    Path | None, typer.Option(help="The certificate of that key (PEM).", rich_help_panel=RUN)
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Where finished stages are kept, so that a run that was killed goes on from there; "
        "edgeclean's folder in your cache folder if not given.",
        rich_help_panel=RUN,
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no stage.", rich_help_panel=RUN)]
Opset = Annotated[
    int | None, typer.Option(help="ONNX opset; the target has its own.", rich_help_panel=RUN)
]
Depfile = Annotated[
    Path | None,
    typer.Option(
        "--depfile",
        help="Write what model.onnx was made from, for Make or Ninja, once it is made.",
        rich_help_panel=RUN,
    ),
]
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
MaxExpectedDrop = Annotated[
    float | None,
    typer.Option(
        help="Percentage points of accuracy that the forecast may expect to be lost; its expected "
        "value is compared. Refuses too where the forecast does not apply (exit code 5).",
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


def load_options(state_dict: str | None) -> dict[str, Any]:
    """What loading has options for."""
    return {"load": {"state_dict": state_dict}}


def note_loading(checkpoint: Path, network: Network, note: Callable[[str], None]) -> None:
    """Say what a folder states of its network, and what was done to names so that they fit."""
    from edgeclean.files.reading import is_folder
    from edgeclean.load.fitting import told

    if is_folder(checkpoint):
        spec = network.spec
        shape = "x".join(str(side) for side in spec.input_shape)
        note(
            f"{checkpoint}: {spec.architecture}, images of {shape}, {spec.classes} classes, mean "
            f"{', '.join(map(str, spec.mean))}, std {', '.join(map(str, spec.std))}"
        )
    for sentence in told(network.history[0].notes):
        note(sentence)


def runtime_options(names: str | None) -> dict[str, Any]:
    """The part of the settings that names runtimes; nothing where the option is not given."""
    if names is None:
        return {}
    return {"runtime": {"names": [name.strip() for name in names.split(",")]}}


def model_spec(  # noqa: PLR0913 - the options that say what a network is
    checkpoint: Path,
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
        checkpoint=checkpoint,
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
    note: Callable[[str], None],
) -> tuple[PipelineSettings, Target]:
    """The configuration file with the options that were given on top, and the target they name.

    ``note`` is given a line for each word that has another name now.
    """
    from edgeclean.config import configured, in_new_words, overlay, place_of_error, read_config

    own = {} if config is None else read_config(config)
    entries = in_new_words(overlay(own, without_none(options)), note)
    where = place_of_error(config, in_new_words(own))
    return configured(entries, target_file=target_file, where=where)


def run_options(seed: int | None, gpu: bool, effort: str | None) -> dict[str, Any]:
    """What the long commands share; without ``--gpu`` the configuration decides."""
    return {"seed": seed, "compute": "cuda" if gpu else None, "effort": effort}


def recovery(no_photographs: bool) -> dict[str, Any]:
    """What the recovery sees beside synthetic images; the configuration decides without it."""
    return {"finetune": {"photograph_share": 0.0 if no_photographs else None}}


def use_threads(threads: int | None) -> None:
    """Set PyTorch's threads for this whole program; a command may, the library may not."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def forms_of(words: str | None) -> list[str] | None:
    """The forms in an option, which `RankSettings` checks; None if it was not given."""
    return None if words is None else [word.strip() for word in words.split(",")]


def rank_goal(
    ratio: float | None,
    measure: str | None,
    rank_multiple: int | None,
    speedup: float | None,
    latency_budget_ms: float | None,
    size: str | None,
) -> dict[str, Any]:
    """The goal of the ranks as settings; `RankSettings` refuses two goals."""
    size_budget = None
    if size is not None:
        from edgeclean.gates import read_size

        size_budget = read_size(size)
    return {
        "ratio": ratio,
        "measure": measure,
        "rank_multiple": rank_multiple,
        "speedup": speedup,
        "latency_budget_ms": latency_budget_ms,
        "size_budget": size_budget,
    }


def read_table(path: Path | None) -> LatencyTable | None:
    """The latency table in a file; None if none is named."""
    if path is None:
        return None
    from edgeclean.compression.latency_table import read_latency_table

    return read_latency_table(path)


def read_gates(
    path: Path | None,
    fail_on_backdoor: bool | None,
    max_accuracy_drop: float | None,
    max_expected_drop: float | None,
    max_size: str | None,
    min_speedup: float | None,
) -> Policy:
    """The gates of the file, with the options that were given on top."""
    from edgeclean.gates import read_policy

    options = {
        "fail_on_backdoor": fail_on_backdoor,
        "max_accuracy_drop": max_accuracy_drop,
        "max_expected_drop": max_expected_drop,
        "max_size": max_size,
        "min_speedup": min_speedup,
    }
    return read_policy(path, without_none(options))


def labelled_images(path: Path | None, spec: ModelSpec) -> LabelledImages | None:
    """The user's images; None if none were named."""
    if path is None:
        return None
    from edgeclean.images.labelled import read_labelled_images

    return read_labelled_images(path, spec)
