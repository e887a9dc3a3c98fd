"""What a checkpoint does not say of itself, read from ``model.toml`` or from options.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeclean.errors import EdgecleanError, InputRejectedError, UsageError
from edgeclean.printable import shown
from edgeclean.small_files import read_small_toml
from edgeclean.states import ModelSpec

MAX_FILE_BYTES = 64 * 1024
MAX_SIDE = 4096
MAX_CLASSES = 1_000_000
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
    _check_entries(entries, where=str(path), error=InputRejectedError)
    missing = [key for key in KEYS if key not in entries]
    if missing:
        raise InputRejectedError(
            f"{path}: missing {', '.join(missing)}; a model file needs {', '.join(KEYS)}"
        )
    return _spec(entries, where=str(path), error=InputRejectedError)


def spec_from_options(
    *,
    model_file: Path | None = None,
    arch: str | None = None,
    input_shape: str | None = None,
    classes: int | None = None,
    mean: str | None = None,
    std: str | None = None,
) -> ModelSpec:
    """Combine command-line options with an optional model file; an option wins over the file.

    Args:
        model_file: a ``model.toml``, which may leave out what the options give.
        arch: as in the model file.
        input_shape: ``CxHxW``, for instance ``3x32x32``.
        classes: the number of outputs.
        mean: comma-separated numbers, one per channel.
        std: likewise, each above zero.

    Raises:
        UsageError: an option is malformed, or something is given by neither.
        InputRejectedError: the model file is bad.
    """
    entries = {} if model_file is None else _read_toml(model_file)
    options: dict[str, Any] = {
        "architecture": arch,
        "input-shape": None if input_shape is None else _parse_shape(input_shape),
        "classes": classes,
        "mean": None if mean is None else _parse_numbers("--mean", mean),
        "std": None if std is None else _parse_numbers("--std", std),
    }
    if model_file is not None:
        _check_entries(entries, where=str(model_file), error=InputRejectedError)
    merged = {**entries, **{key: given for key, given in options.items() if given is not None}}
    missing = [OPTIONS[key] for key in KEYS if key not in merged]
    if missing:
        raise UsageError(
            f"the checkpoint does not say it and neither did you: give {', '.join(missing)}, "
            "or --model-file with a model.toml that holds them"
        )
    if model_file is not None and not any(options[key] for key in ("input-shape", "mean", "std")):
        return _spec(merged, where=str(model_file), error=InputRejectedError)
    return _spec(merged, where="options", error=UsageError)


def _read_toml(path: Path) -> dict[str, Any]:
    hint = "a model file is a few lines of TOML"
    return read_small_toml(path, MAX_FILE_BYTES, hint=hint, error=InputRejectedError)


def _spec(entries: Mapping[str, Any], *, where: str, error: type[EdgecleanError]) -> ModelSpec:
    _check_entries(entries, where=where, error=error)
    channels, height, width = entries["input-shape"]
    for key in ("mean", "std"):
        if len(entries[key]) != channels:
            raise error(
                f"{where}: {key} has {len(entries[key])} numbers for {channels} channels; "
                "give one per channel"
            )
    return ModelSpec(
        architecture=entries["architecture"],
        input_shape=(channels, height, width),
        classes=entries["classes"],
        mean=tuple(float(number) for number in entries["mean"]),
        std=tuple(float(number) for number in entries["std"]),
    )


def _check_entries(entries: Mapping[str, Any], *, where: str, error: type[EdgecleanError]) -> None:
    """Types and ranges of the keys that are there."""
    for key, entry in entries.items():
        if key not in KEYS:
            raise error(f"{where}: unknown key {key[:60]!r}; allowed are {', '.join(KEYS)}")
        problem = _CHECKS[key](entry)
        if problem:
            raise error(f"{where}: {key} is {shown(entry)}; it must be {problem}")


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
    return "" if good else f"a whole number in 2..{MAX_CLASSES}"


def _check_mean(entry: Any) -> str:
    return "" if _are_finite(entry) else "a list of finite numbers"


def _check_std(entry: Any) -> str:
    good = _are_finite(entry) and all(number > 0 for number in entry)
    return "" if good else "a list of finite numbers above zero"


def _are_finite(entry: Any) -> bool:
    # bool is an int to Python, and abs() < 1e6 is false for NaN and infinity; larger numbers
    # than that are no statistics of pixels in [0, 1], and would overflow float32.
    return isinstance(entry, list) and all(
        type(number) in (int, float) and abs(number) < 1e6 for number in entry
    )


_CHECKS = {
    "architecture": _check_architecture,
    "input-shape": _check_shape,
    "classes": _check_classes,
    "mean": _check_mean,
    "std": _check_std,
}


def _parse_shape(text: str) -> list[int]:
    sides = text.lower().split("x")
    if len(sides) != 3 or not all(side.isascii() and side.isdigit() for side in sides):
        raise UsageError(
            f"--input-shape is {text[:60]!r}; it must be CHANNELSxHEIGHTxWIDTH, such as 3x32x32"
        )
    return [int(side[:9]) for side in sides]


def _parse_numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(
            f"{option} is {text[:60]!r}; it must be comma-separated numbers, one per channel"
        )
    return numbers
