"""A folder as the Hugging Face hub gives it for timm: `config.json` beside the weights.

The file is a stranger's: of it a few keys are read, each of its own type, and what is read becomes
entries of a model file, which are checked as those are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeclean.errors import InputRejectedError
from edgeclean.files.documents import parse_json
from edgeclean.files.reading import is_folder, is_regular, read_small_file
from edgeclean.files.text import first_line, printable

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MAX_CONFIG_BYTES = 8 * 2**20  # the labels of 21,000 classes stand in some
_PART = re.compile(r"-\d{5}-of-(\d{5})\.")  # in the name of a file that holds some of the weights
# What it is called in the file, by what a model file calls it.
KEYS = {
    "architecture": "architecture",
    "input-shape": "input_size",
    "classes": "num_classes",
    "mean": "mean",
    "std": "std",
}
# Arguments of the model that matter in training alone.
_TRAINING = ("drop_rate", "drop_path_rate", "drop_block_rate", "proj_drop_rate", "pos_drop_rate")


def weights_of(path: Path) -> Path:
    """Return the file of weights in such a folder; a path that is no folder stays what it is.

    Raises:
        InputRejectedError: the folder has none, or its weights are in several parts.
    """
    if not is_folder(path):
        return path
    for name in WEIGHTS:
        if is_regular(path / name):
            return path / name
    shown = printable(str(path))
    parts = [name for name in WEIGHTS if is_regular(path / f"{name}.index.json")]
    if parts:
        raise InputRejectedError(
            f"{shown}: the weights are in several parts ({parts[0]}.index.json); save them as one"
        )
    raise InputRejectedError(
        f"{shown}: a folder without {' or '.join(WEIGHTS)}; give the checkpoint's file"
    )


def hint_of_part(path: Path) -> str:
    """Return what to add to a refusal where a file's name says that others hold the rest; or ""."""
    parts = _PART.search(path.name)
    if parts is None or int(parts[1]) < 2:
        return ""
    return f"; by its name it is one of {int(parts[1])} parts of the weights: save them as one file"


def files_of(path: Path) -> list[Path]:
    """Return what is read of a checkpoint: the file itself, or those of its folder.

    Raises:
        InputRejectedError: see `weights_of`.
    """
    config = path / CONFIG
    return [weights_of(path), *([config] if is_folder(path) and is_regular(config) else [])]


def stated_by(folder: Path) -> dict[str, Any]:
    """Return the entries of a model file that the folder's ``config.json`` states, unchecked.

    Where there is no such file, it states nothing. ``architecture`` is ``timm:NAME``.

    Raises:
        InputRejectedError: the file is too large, no JSON object, or its network has arguments
            that are not known to leave it as it is.
    """
    path = folder / CONFIG
    if not is_regular(path):
        return {}
    document = _read(path)
    inner = document.get("pretrained_cfg", {})
    if not isinstance(inner, dict):
        raise InputRejectedError(f"{path}: pretrained_cfg is no object")
    found = {**{key: inner[key] for key in inner}, **document}
    entries = {ours: found[theirs] for ours, theirs in KEYS.items() if theirs in found}
    if isinstance(entries.get("architecture"), str):
        entries["architecture"] = f"timm:{entries['architecture']}"
        _check_arguments(path, document.get("model_args", {}))
    return entries


def _check_arguments(path: Path, arguments: Any) -> None:
    """Refuse arguments of the model: they would make it another one than its name says."""
    known = isinstance(arguments, dict) and all(key in _TRAINING for key in arguments)
    if not known:
        names = ", ".join(sorted(arguments)[:8]) if isinstance(arguments, dict) else "no object"
        raise InputRejectedError(
            printable(
                f"{path}: model_args ({names[:200]}) make another network than the architecture's "
                "name says, and are not read; name code that builds it with --arch"
            )
        )


def _read(path: Path) -> Mapping[str, Any]:
    contents = read_small_file(
        path, MAX_CONFIG_BYTES, hint="timm's is smaller", error=InputRejectedError
    )
    try:
        document = parse_json(contents)
    except ValueError as wrong:
        raise InputRejectedError(
            printable(f"{path}: not a JSON file ({first_line(wrong)})")
        ) from None
    if not isinstance(document, dict):
        raise InputRejectedError(f"{path}: not a JSON object")
    return document
