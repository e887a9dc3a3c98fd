"""The files of a network: what they hash to, and which of them travel to another machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edgeclean.errors import EdgecleanError, InputRejectedError
from edgeclean.files.reading import (
    is_folder,
    is_hollow,
    is_regular,
    open_regular,
    read_small_toml,
)
from edgeclean.fleet.plan import NetworkPlan
from edgeclean.load.hub_folder import files_of
from edgeclean.load.model_file import MAX_FILE_BYTES

BLOCK = 1 << 20
MOST_PICTURES = 1_000_000
MOST_BYTES = 2**41
MOST_TEXTS = 200  # of a folder of code


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFiles:
    """The hashes of what decides a network, and the files beside it.

    Attributes:
        sha256: of the checkpoint's bytes; None where the loader will refuse them by their size.
        model_sha256: of the model file; empty for none.
        beside: files that loading may read beside these: the architecture's code, the
            configuration of a hub folder, files with weights of an ONNX network.
        is_state_dict: whether the checkpoint is no ONNX file, by its name.
        key: names all of these files' bytes.
    """

    sha256: str | None
    model_sha256: str
    beside: tuple[Path, ...]
    is_state_dict: bool
    key: str


def look_at(network: NetworkPlan, seen: dict[Path, str]) -> NetworkFiles:
    """Hash the files of a network; nothing is parsed but the name of its architecture's code.

    Args:
        network: the network.
        seen: the hashes of labelled images, which networks share; filled as they come.

    Raises:
        InputRejectedError: a file cannot be read, or is not the one that the catalogue pins.
    """
    weights, *others = files_of(network.checkpoint)
    most = network.cells[0].options.settings.load.file_bytes
    sha256 = file_sha256(weights, most)
    if network.pin not in (None, sha256):
        raise InputRejectedError(
            f"{network.checkpoint} has the hash {sha256}, and the catalogue pins {network.pin}: "
            "it is another file; get the right one, or pin this one"
        )
    code = [] if network.model is None or not network.named else _code(network.model)
    beside = (*others, *code, *_weights_beside(weights))
    hashes = [sha256, *(file_sha256(path, most) for path in beside)]
    model = "" if network.model is None else str(file_sha256(network.model, MAX_FILE_BYTES))
    images = network.evaluate
    if images is not None and images not in seen:
        seen[images] = _images_key(images)
    own = "" if images is None else seen[images]
    named = [sha256, model, [path.name for path in beside], hashes, own]
    return NetworkFiles(
        sha256=sha256,
        model_sha256=model,
        beside=beside,
        is_state_dict=weights.suffix.lower() != ".onnx",
        key=hashlib.sha256(repr(named).encode()).hexdigest(),
    )


def file_sha256(path: Path, most: int) -> str | None:
    """Return the hash of a file; None for one that is larger, or nearly all hole.

    Raises:
        InputRejectedError: it cannot be read.
    """
    hashed = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > most or is_hollow(stream):
                return None
            left = most
            while left > 0 and (block := stream.read(min(BLOCK, left))):
                hashed.update(block)
                left -= len(block)
    except OSError as error:
        raise InputRejectedError(f"{path}: cannot be read ({error.strerror})") from None
    return hashed.hexdigest()


def pictures_of(folder: Path) -> list[Path]:
    """Return every file of a folder of labelled images, in order.

    Raises:
        InputRejectedError: it cannot be looked through, or has more than a million.
    """
    found: list[Path] = []
    try:
        for below in sorted(folder.iterdir()):
            found += sorted(below.iterdir()) if is_folder(below) else [below]
            if len(found) > MOST_PICTURES:
                raise InputRejectedError(f"{folder} has more than {MOST_PICTURES} pictures")
    except OSError as error:
        raise InputRejectedError(f"{folder}: cannot be read ({error.strerror})") from None
    return [one for one in found if is_regular(one)]


def _images_key(evaluate: Path) -> str:
    paths = pictures_of(evaluate) if is_folder(evaluate) else [evaluate]
    hashes = [f"{one.parent.name}/{one.name} {file_sha256(one, MOST_BYTES)}" for one in paths]
    return hashlib.sha256("\n".join(hashes).encode("utf-8", "surrogateescape")).hexdigest()


def _code(model: Path) -> list[Path]:
    """Return the texts of the user's own code that a model file names; loading says what is wrong.

    Those beside it as well, which it may import.
    """
    try:
        entries = read_small_toml(model, MAX_FILE_BYTES, hint="", error=InputRejectedError)
    except EdgecleanError:
        return []
    named = entries.get("architecture")
    name = named.rpartition(":")[0] if isinstance(named, str) else ""
    if not name.endswith(".py") or not is_regular(model.parent / name):
        return []
    texts = sorted(islice((model.parent / name).parent.glob("*.py"), MOST_TEXTS))
    return [one for one in texts if is_regular(one)]


def _weights_beside(weights: Path) -> list[Path]:
    """Return the files beside an ONNX file that may hold its weights, by the usual names."""
    if weights.suffix.lower() != ".onnx":
        return []
    beside = [
        weights.with_name(f"{name}{ending}")
        for name in (weights.name, weights.stem)
        for ending in (".data", "_data")
    ]
    return [one for one in beside if is_regular(one)]
