"""The user's own labelled images: a folder with a folder for each class, or one ``.npz`` pack.

They are the user's, yet they may come from anywhere: sizes are bounded and checked before any
memory is taken, only plain picture formats are decoded, and no pickle is read. An image must have
the network's own size: how to scale one decides the accuracy, so it is not decided here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from PIL import Image

from edgeclean.errors import InputRejectedError
from edgeclean.files.reading import is_folder, is_regular, unreadable
from edgeclean.files.text import first_line, printable
from edgeclean.images.packs import FREE_BYTES, open_pack
from edgeclean.load.limits import read_input
from edgeclean.networks.state import ModelSpec

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp"}
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP")
MODES = {1: "L", 3: "RGB"}
_PLAIN_MODES = ("1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")
_WHITE_OF_16_BITS = 65535
# Pillow reads the kinds in text, P1 to P3, in Python, and their comments by the square of their
# length.
_IN_TEXT = (b"P1", b"P2", b"P3")
# Four channels of 16 bits, four times: no encoder makes more of pixels. And what it adds to them.
BYTES_PER_PIXEL = 32
METADATA_BYTES = 2**20
MAX_IMAGES = 200_000
MAX_FILE_BYTES = 64 * 2**20
MAX_PACK_BYTES = 2 * 2**30
MAX_PIXEL_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Images with the class that each shows.

    Attributes:
        pixels: [n, c, h, w] of the network's own size.
        labels: [n], each below the network's number of classes.
        files: every file and folder that was read, for a dependency file.
    """

    pixels: UInt8[np.ndarray, "n c h w"]
    labels: Int[np.ndarray, " n"]
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.pixels)


def read_labelled_images(path: Path, spec: ModelSpec) -> LabelledImages:
    """Read an image folder or a pack.

    Args:
        path: a folder with one folder of pictures for each class, whose names are the classes'
            numbers, or, sorted, stand in the classes' order; or an ``.npz`` file with ``labels``
            [n] and either ``images`` [n, c, h, w] uint8 or the encoded pictures end to end in
            ``data`` with ``offsets`` [n + 1].
        spec: the channels, size and number of classes that they must have.

    Raises:
        InputRejectedError: something of it cannot be read, or does not fit the network.
    """
    if is_folder(path):
        return _read_folder(path, spec)
    if not is_regular(path):
        raise InputRejectedError(
            f"{printable(str(path))}: does not exist, or is neither a folder nor a regular file; "
            "name a folder of class folders or an .npz pack"
        )
    if path.suffix.lower() != ".npz":
        raise InputRejectedError(
            f"{printable(str(path))}: not a folder of class folders and not an .npz pack"
        )
    return _read_pack(path, spec)


def _read_folder(path: Path, spec: ModelSpec) -> LabelledImages:
    where = printable(str(path))
    folders = [entry for entry in _inside(path) if is_folder(entry)]
    if not folders:
        raise InputRejectedError(f"{where}: holds no folders; one for each class is needed")
    labels: list[int] = []
    pictures: list[Path] = []
    for label, folder in _numbered(folders, spec, where):
        inside = _inside(folder)
        for entry in inside:
            if entry.suffix.lower() not in SUFFIXES:
                raise InputRejectedError(
                    f"{printable(str(entry))}: not a picture; a class folder holds nothing but "
                    f"{', '.join(sorted(SUFFIXES))}"
                )
        pictures += inside
        labels += [label] * len(inside)
    try:
        _check_count(len(pictures), spec)
    except InputRejectedError as error:
        raise InputRejectedError(f"{where}: {error}") from None
    contents = ((read_input(file, MAX_FILE_BYTES), printable(str(file))) for file in pictures)
    pixels = _decode_all(contents, len(pictures), spec)
    return LabelledImages(
        pixels=pixels,
        labels=np.array(labels, dtype=np.int64),
        files=(path, *folders, *pictures),
    )


def _inside(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        where = printable(str(folder))
        raise InputRejectedError(f"{where}: {unreadable(folder, error)}") from None


def _numbered(folders: list[Path], spec: ModelSpec, where: str) -> list[tuple[int, Path]]:
    """Return the class of each folder: its name if all are numbers, else its place in order."""
    names = [folder.name for folder in folders]
    if all(name.isascii() and name.isdigit() and len(name) < 8 for name in names):
        numbers = [int(name) for name in names]
        if len(set(numbers)) == len(numbers) and max(numbers) < spec.classes:
            return list(zip(numbers, folders, strict=True))
        raise InputRejectedError(
            f"{where}: the class folders are numbered up to {max(numbers)}; each must be one of "
            f"0..{spec.classes - 1}, once"
        )
    if len(folders) != spec.classes:
        raise InputRejectedError(
            f"{where}: holds {len(folders)} class folders and the network has {spec.classes} "
            "classes; name the folders by the classes' numbers, or give all of them"
        )
    return list(enumerate(folders))


def _read_pack(path: Path, spec: ModelSpec) -> LabelledImages:
    """Read what is needed of a pack, the labels first: they say how large the rest may be."""
    with open_pack(path, MAX_PACK_BYTES) as pack:
        numbers = 8 * (MAX_IMAGES + 1)  # bytes of labels or offsets
        labels = _labels(pack.read("labels", numbers), spec) if "labels" in pack.names else None
        if labels is None or not ("images" in pack.names or {"data", "offsets"} <= pack.names):
            known = sorted({"labels", "images", "data", "offsets"} & pack.names)
            raise InputRejectedError(
                "a pack needs labels, and images or data with offsets; it has "
                f"{', '.join(known) or 'none of them'}"
            )
        size = len(labels) * math.prod(spec.input_shape)
        if "images" in pack.names:
            pixels = pack.read("images", max(size, FREE_BYTES))
            if pixels.dtype != np.uint8 or pixels.shape != (len(labels), *spec.input_shape):
                raise InputRejectedError(
                    f"images are {pixels.dtype} {pixels.shape}; the network and {len(labels)} "
                    f"labels need uint8 {(len(labels), *spec.input_shape)}"
                )
        else:
            offsets = pack.read("offsets", numbers)
            stored = pack.read("data", MAX_PIXEL_BYTES - size)
            _check_offsets(stored, offsets, len(labels))
            pixels = _decode_all(_cut(stored, offsets), len(labels), spec)
    return LabelledImages(pixels=pixels, labels=labels, files=(path,))


def _labels(labels: NDArray[Any], spec: ModelSpec) -> NDArray[np.int64]:
    if labels.ndim != 1:
        raise InputRejectedError(f"labels have the shape {labels.shape}; [n] is needed")
    _check_count(len(labels), spec)
    if not 0 <= int(labels.min()) <= int(labels.max()) < spec.classes:
        raise InputRejectedError(
            f"labels run from {labels.min()} to {labels.max()}; the network has the "
            f"classes 0..{spec.classes - 1}"
        )
    return labels.astype(np.int64)


def _check_count(count: int, spec: ModelSpec) -> None:
    size = count * int(np.prod(spec.input_shape))
    if not 1 <= count <= MAX_IMAGES or size > MAX_PIXEL_BYTES:
        raise InputRejectedError(
            f"holds {count} images, {size} bytes of pixels; 1 to {MAX_IMAGES} images and "
            f"{MAX_PIXEL_BYTES} bytes are read"
        )


def _check_offsets(stored: NDArray[Any], offsets: NDArray[Any], count: int) -> None:
    cut = (
        stored.ndim == 1
        and stored.dtype == np.uint8
        and offsets.shape == (count + 1,)
        and int(offsets[0]) == 0
        and int(offsets[-1]) == len(stored)
        and bool((offsets[:-1] < offsets[1:]).all())
    )
    if not cut:
        raise InputRejectedError(
            f"its offsets do not cut its data into {count} pictures; they must rise from 0 to the "
            "length of data, which is uint8"
        )


def _cut(stored: NDArray[np.uint8], offsets: NDArray[Any]) -> Iterator[tuple[bytes, str]]:
    """Yield the encoded pictures of a pack, with a name for each."""
    for index in range(len(offsets) - 1):
        content = stored[int(offsets[index]) : int(offsets[index + 1])].tobytes()
        yield content, f"image {index}"


def _decode_all(
    pictures: Iterable[tuple[bytes, str]], count: int, spec: ModelSpec
) -> UInt8[np.ndarray, "n c h w"]:
    pixels = np.empty((count, *spec.input_shape), dtype=np.uint8)
    for index, (content, name) in enumerate(pictures):
        pixels[index] = _decode(content, spec, name)
    return pixels


def _decode(content: bytes, spec: ModelSpec, name: str) -> UInt8[np.ndarray, "c h w"]:
    channels, height, width = spec.input_shape
    if channels not in MODES:
        raise InputRejectedError(
            f"{name}: a picture has 1 or 3 channels and the network takes {channels}; give an .npz "
            "pack with images"
        )
    _check_bytes(content, spec, name)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.size == (width, height):  # before a pixel is decoded
                pixels = np.asarray(_eight_bits(picture).convert(MODES[channels]), dtype=np.uint8)
                return pixels.reshape(height, width, channels).transpose(2, 0, 1)
            size = picture.size
    except Exception as error:  # noqa: BLE001 - decoders raise what they like on damaged bytes
        reason = first_line(error)
        raise InputRejectedError(f"{name}: not a picture ({printable(reason)})") from None
    raise InputRejectedError(
        f"{name}: has {size[0]}x{size[1]} pixels and the network takes {width}x{height}; scale the "
        "images in the way that the network was trained with"
    )


def _check_bytes(content: bytes, spec: ModelSpec, name: str) -> None:
    """Refuse what takes long to decode, or only to find the pixels in, by its bytes alone."""
    _, height, width = spec.input_shape
    most = BYTES_PER_PIXEL * width * height + METADATA_BYTES
    if len(content) > most:
        raise InputRejectedError(
            f"{name}: has {len(content)} bytes, and a picture of the {width}x{height} pixels that "
            f"the network takes has at most {most}; scale the images in the way that the network "
            "was trained with, and leave out what is no picture"
        )
    if content.startswith(_IN_TEXT):
        raise InputRejectedError(
            f"{name}: its pixels are written as text (P1 to P3 of PBM, PGM and PPM); save it as a "
            "binary one, P4 to P6, or as a PNG"
        )


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return the picture in a mode that Pillow converts without loss of meaning.

    Pillow clips grey levels of 16 bits at 255 instead of scaling them, and takes no transparent
    colours of a palette into RGB; transparency itself is dropped, as it is from other modes.

    Raises:
        ValueError: its numbers are no grey levels of 16 bits.
    """
    if picture.mode == "P":
        return picture.convert("RGBA")
    if picture.mode in _PLAIN_MODES:
        return picture
    levels = np.asarray(picture)
    whole = picture.mode.startswith("I") and levels.min() >= 0 and levels.max() <= _WHITE_OF_16_BITS
    if not whole:
        raise ValueError(f"its mode is {picture.mode}; grey or colours of 8 or 16 bits are read")
    scaled = (levels.astype(np.int64) * 255 + _WHITE_OF_16_BITS // 2) // _WHITE_OF_16_BITS
    return Image.fromarray(scaled.astype(np.uint8))
