"""Write a hand-over kit: what a vendor's own converter needs beside ``model.onnx``.

The converter is no part of this program and is never called. A kit lies in a folder with its name:
a page to read, the program that calls it, and calibration images in the form that it reads.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from jaxtyping import Float
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import Tensor

from edgeclean.bundle.handover_check import ARRAY, npy_head
from edgeclean.bundle.handover_texts import CONVERTERS, ConverterTexts, image_name, written_texts
from edgeclean.devices.targets import Target
from edgeclean.errors import InputRejectedError, UsageError
from exporters.onnx_check import open_onnx, opset_of
from exporters.precision.int8 import PAIRS

MOST_IMAGES = 64  # what the vendors' guides calibrate on: 20 to 100, or 64
MOST_BYTES = 2**25  # of all images: a bundle is no place for data


def check_handover(model: bytes, target: Target) -> None:
    """Check that a network has the form that the target's converter takes, if it has one.

    Args:
        model: the ONNX file.
        target: the device.

    Raises:
        InputRejectedError: the converter's documentation does not list an operator, or images have
            channels that it cannot calibrate on.
        UsageError: the batch is not one image, the opset is out of reach, or INT8 has another form.
    """
    if target.runtime not in CONVERTERS:
        return
    proto = open_onnx(model)
    title = CONVERTERS[target.runtime].title
    batch, channels = (one.dim_value for one in proto.graph.input[0].type.tensor_type.shape.dim[:2])
    if batch != 1:
        raise UsageError(
            f"the kit for {target.name} takes batches of one image, and the network has "
            f"{batch or 'an open batch'}; leave export.batch at 1"
        )
    if not target.opset_min <= opset_of(proto) <= target.opset_max:
        raise UsageError(
            f"the network is at opset {opset_of(proto)}, and {title} reads {target.opset_min} to "
            f"{target.opset_max}; leave export.opset out"
        )
    if CONVERTERS[target.runtime].layout == "png" and channels not in (1, 3):
        raise InputRejectedError(
            f"{title} calibrates on pictures of 1 or 3 channels, and the network's images have "
            f"{channels}; choose another target"
        )
    used = {node.op_type for node in proto.graph.node}
    unknown = sorted(used - {*target.operators, *PAIRS}) if target.operators else []
    if unknown:
        raise InputRejectedError(
            f"the network uses {', '.join(unknown)}, and the documentation of {title} does not "
            f"list {'it' if len(unknown) == 1 else 'them'}; if your version takes it, name it as "
            "one of `operators` in a --target-file"
        )
    if target.scales == "tensor":
        _check_scales(proto, target)


def _check_scales(proto: onnx.ModelProto, target: Target) -> None:
    """Refuse pairs with more than one scale for a tensor, or with another zero point than 0."""
    constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type not in PAIRS:
            continue
        scale, zero = (constants.get(name) for name in node.input[1:3])
        if scale is None or zero is None or scale.size != 1 or zero.any():
            raise UsageError(
                f"{target.name} takes INT8 with one symmetric scale for each tensor, and "
                f"{node.name!r} has {'none' if scale is None else scale.size}; leave "
                "precision.scales out"
            )


def handover_files(
    target: Target, model: Mapping[str, Any], pixels: Float[Tensor, "n c h w"]
) -> dict[str, bytes]:
    """Return every file of the target's kit, by its name in the bundle; none without a converter.

    Args:
        target: the device.
        model: the manifest's description of ``model.onnx``: input shape, mean, std, opset.
        pixels: [n, c, h, w] synthetic images in [0, 1] to calibrate on.
    """
    if target.runtime not in CONVERTERS:
        return {}
    converter = CONVERTERS[target.runtime]
    most = max(1, min(MOST_IMAGES, MOST_BYTES // pixels[0].numel()))
    levels = (pixels[:most].detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()
    about = {"converter_target": target.converter_target}
    texts = written_texts(converter, about, model, _number(converter, len(levels)))
    files = {name: text.encode() for name, text in texts.items()}
    files |= _calibration(converter, levels)
    return {f"{target.runtime}/{name}": content for name, content in files.items()}


def _number(converter: ConverterTexts, images: int) -> int:
    return images if converter.layout else 0


def _calibration(converter: ConverterTexts, levels: NDArray[np.uint8]) -> dict[str, bytes]:
    """The images [n, c, h, w] in the form that the converter reads, by name."""
    if converter.layout == "png":
        return {image_name(number): _png(one) for number, one in enumerate(levels)}
    if not converter.layout:
        return {}
    axes = (0, 2, 3, 1) if converter.layout == "nhwc" else (0, 1, 2, 3)
    array = np.ascontiguousarray(levels.transpose(axes))
    return {ARRAY: npy_head(array.shape) + array.tobytes()}


def _png(levels: NDArray[np.uint8]) -> bytes:
    """An image [c, h, w] of 1 or 3 channels."""
    stream = io.BytesIO()
    plane = levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))
    Image.fromarray(plane).save(stream, format="PNG")
    return stream.getvalue()
