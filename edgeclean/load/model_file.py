"""What a checkpoint does not hold about its network, read from ``model.toml`` or from options.

::

    architecture = "resnet20"        # a table name, package.module:callable, file.py:callable, onnx
    input-shape = [3, 32, 32]        # channels, height, width
    classes = 10
    mean = [0.4914, 0.4822, 0.4465]  # of pixels in [0, 1], one number per channel
    std = [0.2470, 0.2435, 0.2616]

``file.py:callable`` is looked up beside the ``model.toml``; the text is kept as it was written,
and the caller gives the folder to ``load_checkpoint(..., code_folder=...)``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeclean.errors import EdgecleanError, InputRejectedError, UsageError
from edgeclean.files.reading import is_folder, read_small_toml
from edgeclean.files.text import counted, printable, shown
from edgeclean.load import hub_folder
from edgeclean.networks.state import ModelSpec

MAX_FILE_BYTES = 64 * 1024
MAX_SIDE = 4096
# ImageNet-21k has 21,843. Searches and targets take memory for each image and class.
MAX_CLASSES = 2**16
# One of a million 8-bit pixels one grey level off the others makes 4e-6. A smaller divisor is no
# deviation of images, and makes inputs whose squares leave float32.
MIN_STD = 1e-6
# Pixels in [0, 1] have a mean of 1 and a deviation of 0.5 at most, and a network for inputs in
# [-0.5, 0.5] a std of 1. Those of pixels in [0, 255] are larger than this, and would show every
# stage images that are nearly one colour.
MAX_STATISTIC = 4
KEYS = ("architecture", "input-shape", "classes", "mean", "std")
OPTIONS = {
    "architecture": "--arch",
    "input-shape": "--input-shape",
    "classes": "--classes",
    "mean": "--mean",
    "std": "--std",
}


def read_model_file(path: Path) -> ModelSpec:
    """Read a whole ``model.toml``; unknown and missing keys are errors.

    Raises:
        InputRejectedError: the file is missing, too large, not TOML, or a value is out of range.
    """
    entries = _read_toml(path)
    missing = [key for key in KEYS if key not in entries]
    if missing:
        raise InputRejectedError(
            f"{path}: missing {', '.join(missing)}; a model file needs {', '.join(KEYS)}"
        )
    return _spec(entries, name=_in_file(path), error=InputRejectedError)


def spec_from_options(  # noqa: PLR0913 - the options that say what a network is
    *,
    model_file: Path | None = None,
    arch: str | None = None,
    input_shape: str | None = None,
    classes: int | None = None,
    mean: str | None = None,
    std: str | None = None,
    checkpoint: Path | None = None,
) -> ModelSpec:
    """Combine command-line options with an optional model file; an option wins over the file.

    Args:
        model_file: a ``model.toml``, which may leave out what the options give.
        arch: the architecture, as in the model file.
        input_shape: ``CxHxW``, for instance ``3x32x32``.
        classes: the number of outputs.
        mean: comma-separated numbers, one per channel.
        std: comma-separated numbers above zero, one per channel.
        checkpoint: the file itself; an ONNX file says all but the scaling of its images, and a
            folder of the Hugging Face hub all (`hub_folder`).

    Raises:
        UsageError: an option is malformed, or something is given by neither.
        InputRejectedError: the model file is bad, or the ONNX file, if it is asked.
    """
    entries = {} if model_file is None else _read_toml(model_file)
    options: dict[str, Any] = {
        "architecture": arch,
        "input-shape": None if input_shape is None else _parse_shape(input_shape),
        "classes": classes,
        "mean": None if mean is None else _parse_numbers("--mean", mean),
        "std": None if std is None else _parse_numbers("--std", std),
    }
    given = {key: entry for key, entry in options.items() if entry is not None}
    _check_entries(given, name=OPTIONS.__getitem__, error=UsageError)
    merged = {**entries, **given}
    if checkpoint is not None and is_folder(checkpoint):
        merged = {**_stated_by_folder(checkpoint, merged), **merged}
    elif checkpoint is not None and checkpoint.suffix.lower() == ".onnx":
        merged = {**_stated(checkpoint, merged), **merged}
    missing = [OPTIONS[key] for key in KEYS if key not in merged]
    if missing:
        raise UsageError(
            f"the checkpoint does not say it and neither did you: give {', '.join(missing)}, "
            "or --model-file with a model.toml that holds them"
        )
    if model_file is None:
        return _spec(merged, name=OPTIONS.__getitem__, error=UsageError)
    in_file = _in_file(model_file)
    return _spec(
        merged,
        name=lambda key: OPTIONS[key] if key in given else in_file(key),
        # Only numbers for each channel are held against something that the other one may hold.
        error=UsageError if {"input-shape", "mean", "std"} & set(given) else InputRejectedError,
    )


def _stated_by_folder(folder: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a folder's ``config.json`` says of what is left out, each checked by itself."""
    if known.keys() >= set(KEYS):
        return {}
    stated = hub_folder.stated_by(folder)
    left_out = {key: entry for key, entry in stated.items() if key not in known}
    path = folder / hub_folder.CONFIG
    name = lambda key: printable(f"{path}: {hub_folder.KEYS[key]}")  # noqa: E731
    _check_entries(left_out, name=name, error=InputRejectedError)
    return left_out


def _stated(checkpoint: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an ONNX file says of itself, read only where something is left out."""
    stated: dict[str, Any] = {"architecture": "onnx"}
    name, _, output = known.get("architecture", "onnx").partition(":")
    if name != "onnx" or {"input-shape", "classes"} <= known.keys():
        return stated
    if not {"mean", "std"} <= known.keys():
        # Which no file says: that is told first, and the file is not read for nothing.
        return {**stated, "input-shape": [], "classes": 0}
    from edgeclean.load.limits import LoadLimits, read_input
    from edgeclean.load.onnx.asked import Asked
    from edgeclean.load.onnx.importer import describe_onnx

    limits, shape = LoadLimits(), known.get("input-shape")
    asked = Asked(
        input_shape=None if shape is None else (shape[0], shape[1], shape[2]),
        classes=known.get("classes"),
        output=output or None,
    )
    contents = read_input(checkpoint, limits.file_bytes)
    try:
        own, outputs = describe_onnx(contents, limits, folder=checkpoint.parent, asked=asked)
    except InputRejectedError as error:
        raise InputRejectedError(printable(f"{checkpoint}: {error}")) from None
    # One output is the logit of the second of two classes.
    return {**stated, "input-shape": list(own), "classes": max(2, outputs)}


def _in_file(path: Path) -> Callable[[str], str]:
    return lambda key: f"{path}: {key}"


def _read_toml(path: Path) -> dict[str, Any]:
    """Read the entries of a model file, each checked by itself."""
    hint = "a model file is a few lines of TOML"
    entries = read_small_toml(path, MAX_FILE_BYTES, hint=hint, error=InputRejectedError)
    _check_entries(entries, name=_in_file(path), error=InputRejectedError)
    return entries


def _spec(
    entries: Mapping[str, Any], *, name: Callable[[str], str], error: type[EdgecleanError]
) -> ModelSpec:
    channels, height, width = entries["input-shape"]
    _check_lengths(entries, name=name, error=error)
    return ModelSpec(
        architecture=entries["architecture"],
        input_shape=(channels, height, width),
        classes=entries["classes"],
        mean=tuple(float(number) for number in entries["mean"]),
        std=tuple(float(number) for number in entries["std"]),
    )


def check_spec(spec: ModelSpec) -> None:
    """Refuse a spec that was made in Python and says what no network and no images can have.

    Raises:
        UsageError: it does; the message names the field.
    """

    def name(key: str) -> str:
        return f"ModelSpec.{key.replace('-', '_')}"

    shape = list(spec.input_shape)
    if len(shape) != 3 or min(shape) < 1:  # an ONNX file may have larger sides than a model file
        raise UsageError(
            f"{name('input-shape')} is {shown(shape)}; it must be three whole numbers of at least "
            "1: channels, height, width"
        )
    entries = {
        "classes": operator.index(spec.classes),
        "mean": [float(number) for number in spec.mean],
        "std": [float(number) for number in spec.std],
    }
    _check_entries(entries, name=name, error=UsageError)
    _check_lengths({**entries, "input-shape": shape}, name=name, error=UsageError)


def _check_lengths(
    entries: Mapping[str, Any], *, name: Callable[[str], str], error: type[EdgecleanError]
) -> None:
    """Refuse scaling that has not one number for each channel."""
    channels = entries["input-shape"][0]
    for key in ("mean", "std"):
        count = len(entries[key])
        if count != channels:
            raise error(
                f"{name(key)} has {counted(count, 'number')} for {counted(channels, 'channel')}; "
                f"give one per channel of {name('input-shape')}"
            )


def _check_entries(
    entries: Mapping[str, Any], *, name: Callable[[str], str], error: type[EdgecleanError]
) -> None:
    """Check types and ranges of the given keys; ``name`` puts in words where a key was given."""
    for key, entry in entries.items():
        if key not in KEYS:
            where = name("unknown key")
            raise error(f"{where} {key[:60]!r}; allowed are {', '.join(KEYS)}")
        problem = _CHECKS[key](entry)
        if problem:
            raise error(f"{name(key)} is {shown(entry)}; it must be {problem}")


def _check_architecture(entry: Any) -> str:
    good = isinstance(entry, str) and 0 < len(entry) <= 500 and entry.isprintable()
    return "" if good else "a name of the table, package.module:callable or file.py:callable"


def _check_shape(entry: Any) -> str:
    good = (
        isinstance(entry, list)
        and len(entry) == 3
        and all(type(side) is int and 1 <= side <= MAX_SIDE for side in entry)
    )
    return "" if good else f"three whole numbers in 1..{MAX_SIDE}: channels, height, width"


def _check_classes(entry: Any) -> str:
    good = type(entry) is int and 2 <= entry <= MAX_CLASSES
    single = "; a network with one logit has two classes, give 2" if entry == 1 else ""
    return "" if good else f"a whole number in 2..{MAX_CLASSES}{single}"


def _check_mean(entry: Any) -> str:
    return "" if _are_statistics(entry) else f"a list of finite numbers{_OF_PIXELS}"


def _check_std(entry: Any) -> str:
    good = _are_statistics(entry) and all(number >= MIN_STD for number in entry)
    least = f" above zero, each at least {MIN_STD:g}"
    return "" if good else f"a list of finite numbers{least}{_OF_PIXELS}"


_OF_PIXELS = (
    f", none beyond {MAX_STATISTIC}: they are of pixels in [0, 1]; divide mean and std of pixels "
    "in [0, 255] by 255"
)


def _are_statistics(entry: Any) -> bool:
    # bool is an int to Python, and the comparison is false for NaN and infinity.
    return isinstance(entry, list) and all(
        type(number) in (int, float) and abs(number) <= MAX_STATISTIC for number in entry
    )


_CHECKS = {
    "architecture": _check_architecture,
    "input-shape": _check_shape,
    "classes": _check_classes,
    "mean": _check_mean,
    "std": _check_std,
}


def parse_classes(text: str) -> int:
    """Return the number given by ``--classes``; its range is checked with the other options.

    Raises:
        UsageError: it is no whole number, or has more digits than any allowed one.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise UsageError(f"--classes is {shown(text)}; it must be {_check_classes(text)}")
    return int(text)


def _parse_shape(text: str) -> list[int]:
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isascii() and side.isdigit() for side in sides):
        raise UsageError(
            f"--input-shape is {shown(text)}; it must be CHANNELSxHEIGHTxWIDTH, such as 3x32x32"
        )
    return [int(side[:9]) for side in sides]


def _parse_numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(
            f"{option} is {shown(text)}; it must be comma-separated numbers, one per channel"
        )
    return numbers
