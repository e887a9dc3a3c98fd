"""Hold labelled images to measure with, and read the stored WebP packs.

Readers of the official archives are in ``archives.py``. Nothing here downloads.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from edgeclean.errors import InputRejectedError

PACK_FOLDER = Path("../shared/data")
MAX_PACK_BYTES = 2 << 30
MAX_SIDE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        pixels: [n, c, h, w] uint8; `floats` gives what a network takes.
        labels: [n] int64.
        classes: the classes' names, by label.
    """

    pixels: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise ValueError(
                f"{len(self.pixels)} images but {len(self.labels)} labels; each image needs one"
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.classes
        ):
            raise InputRejectedError(
                f"labels run from {int(self.labels.min())} to {int(self.labels.max())} but there "
                f"are {len(self.classes)} classes; check that the class list belongs to the set"
            )

    def __len__(self) -> int:
        return self.pixels.shape[0]

    def floats(self) -> Float[Tensor, "n c h w"]:
        """Return all pixels as float32 in [0, 1] (four times the memory)."""
        return self.pixels.float() / 255

    def select(self, chosen: Tensor) -> LabelledImages:
        """Return the images at the given positions, or where a boolean mask is true."""
        return LabelledImages(
            pixels=self.pixels[chosen], labels=self.labels[chosen], classes=self.classes
        )

    def first(self, count: int) -> LabelledImages:
        """Return the first ``count`` images (a view)."""
        return LabelledImages(
            pixels=self.pixels[:count], labels=self.labels[:count], classes=self.classes
        )

    def sample(self, count: int, seed: int) -> LabelledImages:
        """Draw ``count`` images without repetition, from ``seed``."""
        if count > len(self):
            raise ValueError(f"asked for {count} images of {len(self)}; ask for fewer")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.select(order[:count])


def read_pack(path: Path | str, limit: int | None = None) -> LabelledImages:
    """Read a pack of encoded images, which lie end to end with offsets, labels and class names.

    Args:
        path: the ``.npz`` file.
        limit: number of images to read, from the first on; None for all.

    Raises:
        InputRejectedError: the file is missing, is no pack, or holds images of unequal size.
    """
    path = Path(path)
    if not path.is_file():
        raise InputRejectedError(
            f"no image pack at {path}; give the path of an .npz pack, or read the official archive "
            f"with one of the readers in benchmarks/data/archives.py"
        )
    if path.stat().st_size > MAX_PACK_BYTES:
        raise InputRejectedError(f"{path} is larger than {MAX_PACK_BYTES} bytes; split it")
    try:
        with np.load(path, allow_pickle=False) as pack:
            encoded, offsets, labels = pack["data"], pack["offsets"], pack["labels"]
            classes = tuple(str(name) for name in pack["classes"])
    except (ValueError, KeyError, OSError) as error:
        raise InputRejectedError(
            f"{path} is no image pack ({error}); it needs data, offsets, labels and classes"
        ) from error
    _check_pack(path, encoded, offsets, labels)
    count = len(labels) if limit is None else min(limit, len(labels))
    pixels = _decode_all(path, encoded, offsets, count)
    return LabelledImages(
        pixels=pixels,
        labels=torch.from_numpy(labels[:count].astype(np.int64)),
        classes=classes,
    )


def _check_pack(path: Path, encoded: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> None:
    in_order = (
        encoded.ndim == 1
        and encoded.dtype == np.uint8
        and offsets.ndim == 1
        and len(offsets) == len(labels) + 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(encoded)
        and bool(np.all(np.diff(offsets) > 0))
    )
    if not in_order:
        raise InputRejectedError(
            f"{path}: {len(labels)} labels, {len(offsets)} offsets and {encoded.size} bytes do not "
            f"fit; a pack has one more offset than labels, rising from 0 to the number of bytes"
        )


def _decode_all(
    path: Path, encoded: np.ndarray, offsets: np.ndarray, count: int
) -> UInt8[Tensor, "n c h w"]:
    if count == 0:
        return torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
    first = decode_image(encoded[offsets[0] : offsets[1]].tobytes(), str(path))
    pixels = np.empty((count, *first.shape), dtype=np.uint8)
    for index in range(count):
        content = encoded[offsets[index] : offsets[index + 1]].tobytes()
        image = decode_image(content, f"{path}, image {index}")
        if image.shape != first.shape:
            raise InputRejectedError(
                f"{path}: image {index} is {image.shape}, the first is {first.shape}; "
                f"all images of a pack have one size"
            )
        pixels[index] = image
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def decode_image(content: bytes, name: str) -> np.ndarray:
    """Decode one RGB image to uint8 [h, w, 3].

    Raises:
        InputRejectedError: the bytes are no image, or a side is longer than `MAX_SIDE`.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > MAX_SIDE:
                raise InputRejectedError(
                    f"{name}: {image.size[0]}x{image.size[1]} pixels; at most {MAX_SIDE} a side"
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputRejectedError(f"{name}: not an image that can be read ({error})") from error
