"""Check the hand-over kit of a bundle that is verified; nothing in it is run or decoded."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from edgeclean.bundle.handover_texts import CONVERTERS, ConverterTexts, image_name, written_texts
from edgeclean.errors import InputRejectedError
from edgeclean.version import __version__

ARRAY = "calibration.npy"
HEAD_BYTES = 128  # of a .npy file of few axes


def check_handover_files(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Check that a bundle's kit is the one that its manifest asks for; its hashes held before.

    Whoever changes a bundle can make its hashes fit: so the programs, which somebody is going to
    run, must be those that this version writes, and calibration images must be images.

    Args:
        manifest: the manifest, which fits its schema.
        files: every file of the bundle.

    Raises:
        InputRejectedError: the first file that is missing, unexpected or another one.
    """
    runtime = manifest["target"].get("runtime")
    own = {name: files[name] for name in files if name.partition("/")[0] in CONVERTERS}
    if runtime not in CONVERTERS:
        if own:
            raise InputRejectedError(f"{sorted(own)[0]} is of a kit that the target has none of")
        return
    converter, model = CONVERTERS[runtime], manifest["model"]
    if manifest["target"].get("converter_target") is None:
        raise InputRejectedError("the manifest does not name the chip that the kit is for")
    images = _images_in(own, runtime, converter, model["input_shape"])
    texts = written_texts(converter, manifest["target"], model, images)
    expected = {f"{runtime}/{name}": text.encode() for name, text in texts.items()}
    data = [name.partition("/")[2] for name in own if name not in expected]
    allowed = _data_names(converter, images)
    for name in sorted({*expected, *(f"{runtime}/{one}" for one in allowed)} - set(own)):
        raise InputRejectedError(f"{name} is missing from the bundle")
    for name in sorted(set(data) - set(allowed)):
        raise InputRejectedError(f"{runtime}/{name} is no part of the kit")
    if manifest["versions"].get("edgeclean") != __version__:
        return  # another version words its programs in another way
    for name, content in sorted(expected.items()):
        if own[name] != content:
            raise InputRejectedError(
                f"{name} is not what edgeclean {__version__} writes for this manifest: it was "
                "changed, and must not be run"
            )


def npy_head(shape: tuple[int, ...]) -> bytes:
    """Return what stands before the bytes of an array of this shape in a .npy file."""
    stream = io.BytesIO()
    about = {"shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(np.dtype("u1"))}
    npy.write_array_header_1_0(stream, about)
    return stream.getvalue()


def _data_names(converter: ConverterTexts, images: int) -> list[str]:
    if converter.layout == "png":
        return [image_name(number) for number in range(images)]
    return [ARRAY] if converter.layout else []


def _images_in(
    own: Mapping[str, bytes], runtime: str, converter: ConverterTexts, shape: list[int]
) -> int:
    """Return the number of calibration images, once they are what the converter reads.

    Raises:
        InputRejectedError: they are missing, or of another kind or shape.
    """
    channels, height, width = shape
    if not converter.layout:
        return 0
    if converter.layout == "png":
        names = [name for name in sorted(own) if name.startswith(f"{runtime}/images/")]
        for name in names:
            _check_png(own[name], name, (channels, height, width))
        return max(1, len(names))
    name = f"{runtime}/{ARRAY}"
    if name not in own:
        raise InputRejectedError(f"{name} is missing from the bundle")
    one = (height, width, channels) if converter.layout == "nhwc" else (channels, height, width)
    number, rest = divmod(len(own[name]) - HEAD_BYTES, math.prod(one))
    # Compared and not parsed: a head may say anything of what follows it.
    if number < 1 or rest or not own[name].startswith(npy_head((number, *one))):
        raise InputRejectedError(
            f"{name} does not hold bytes [n, {', '.join(map(str, one))}], as the converter reads it"
        )
    return number


def _check_png(content: bytes, name: str, shape: tuple[int, int, int]) -> None:
    """Refuse what is no picture of these sides; only its head is read, and nothing is decoded."""
    channels, height, width = shape
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    colour = {1: 0, 3: 2}.get(channels)
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour or 0])
    if colour is None or not content.startswith(head + sides):
        raise InputRejectedError(f"{name} is no PNG of {channels} channels, {height}x{width}")
