"""What a confined process does with a runtime: convert a network for it, load it and run it.

This and the engines beside it are imported in that process alone, where every moment of starting
counts for each network that is measured: neither torch nor onnx is loaded here.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError

MODEL, IMAGES, SHAPE = "model.onnx", "images", "input.json"
CALIBRATION = "calibration.npy"  # in the folder that `Engine.write` works in


@runtime_checkable
class Engine(Protocol):
    """A runtime inside its confined process, where it may be imported.

    Attributes:
        input_shape: channels, height and width of one image.
        batch: images per run, or None where any number will do.
    """

    input_shape: tuple[int, int, int]
    batch: int | None

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load what `write` wrote into a folder.

        Raises:
            InputRejectedError: the runtime cannot load it.
            ToolchainError: the runtime is not installed.
        """
        ...

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        """Convert an ONNX file, in a folder that may hold other files afterwards.

        Args:
            model: the ONNX file.
            precision: that it is to be held in.
            shape: of its input, [n, c, h, w]; None for an open batch.
            folder: where to work.

        Raises:
            InputRejectedError: the runtime does not take the network.
            ToolchainError: the converter is not installed.
        """
        ...

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w]."""
        ...


def convert_task(given: Parcel) -> Parcel:
    """Convert; `ConfinedExporter.converted` asks for it.

    Raises:
        InputRejectedError: the runtime does not take the network.
        ToolchainError: the converter is not installed.
    """
    folder = Path("made")
    folder.mkdir()
    facts, model = given.facts, given.files[MODEL]
    if IMAGES in given.files:  # to calibrate on
        images = np.frombuffer(given.files[IMAGES], np.float32).reshape(facts["images"])
        np.save(folder / CALIBRATION, images, allow_pickle=False)
    engine_named(facts["engine"]).write(model, facts["precision"], facts["shape"], folder)
    made = {}
    for name in given.facts["files"]:
        if not (folder / name).is_file():
            raise InputRejectedError(f"the converter wrote no {name}: it does not take the network")
        made[name] = (folder / name).read_bytes()
    return Parcel(files=made)


def run_task(given: Parcel) -> Parcel:
    """Load a converted network and run it; `ConfinedRun.run` asks for it.

    Raises:
        InputRejectedError: the runtime cannot load the files, or does not take these images.
        ToolchainError: the runtime is not installed.
    """
    images = np.frombuffer(given.files[IMAGES], np.float32).reshape(given.facts["shape"])
    logits = predict(opened(given, "network", given.files), images)
    return Parcel(facts={"shape": list(logits.shape)}, files={"logits": logits.tobytes()})


def opened(given: Parcel, name: str, files: Mapping[str, bytes]) -> Engine:
    """An engine of the files, which are laid into a folder of this name; for tasks."""
    folder = Path(name)
    folder.mkdir()
    for file, content in files.items():
        if file != IMAGES:
            (folder / file).write_bytes(content)
    facts = given.facts
    return engine_named(facts["engine"])(folder, facts["precision"], facts["threads"])


def predict(engine: Engine, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits [n, classes] of any number of images; zeros fill up the last batch.

    Raises:
        InputRejectedError: the network takes images of another shape.
    """
    if engine.input_shape != images.shape[1:]:
        raise InputRejectedError(
            f"the network takes images {engine.input_shape}, and was given {images.shape[1:]}"
        )
    batch = engine.batch or len(images)
    logits = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        filling = np.zeros((batch - len(part), *images.shape[1:]), dtype=np.float32)
        found = engine.run(np.concatenate([part, filling]))
        logits.append(np.array(found, np.float32).reshape(batch, -1)[: len(part)])
    return np.concatenate(logits)


def engine_named(where: str) -> type[Engine]:
    """The class of ``module:name``; both are ours, and never an input's."""
    module, _, name = where.partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), name)
    return found


def write_shape(folder: Path, shape: Sequence[int | None]) -> None:
    """Keep an input's shape [n, c, h, w] beside files that do not say it."""
    (folder / SHAPE).write_text(json.dumps(list(shape)) + "\n", "ascii")


def read_shape(folder: Path) -> tuple[int, tuple[int, int, int]]:
    """The batch and the image's shape that `write_shape` kept.

    Raises:
        InputRejectedError: the file says something else.
    """
    try:
        sides = json.loads((folder / SHAPE).read_text("ascii"))
        batch, channels, height, width = (int(side) for side in sides)
        if not all(0 < side <= 2**16 for side in sides):
            raise ValueError(sides)
    except (ValueError, TypeError, OSError):
        raise InputRejectedError(f"{SHAPE} does not give the four sides of the input") from None
    return batch, (channels, height, width)


def fixed(shape: Sequence[int | None], runtime: str) -> list[int]:
    """The shape of an input whose batch is fixed; for converters that need that.

    Raises:
        InputRejectedError: the batch is left open.
    """
    sides = [side for side in shape if side is not None]
    if len(sides) != 4:
        raise InputRejectedError(
            f"{runtime} needs a fixed batch, and the file leaves it open; export it with a batch "
            "of 1"
        )
    return sides
