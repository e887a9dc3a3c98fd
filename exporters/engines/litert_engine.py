"""LiteRT (TensorFlow Lite): a network in PyTorch through litert-torch, run by its interpreter.

Its converter takes PyTorch, so the checked ONNX file becomes stock layers again first, by our own
importer. The file's input is [n, h, w, c], the layout that LiteRT computes in: no convolution has
a Transpose before it, and none stands at the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from exporters.confined import imported
from exporters.engines.tasks import CALIBRATION, fixed

FILE = "model.tflite"
NEEDS = "edgeclean[litert]"
WITH_WEIGHTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")


class LiteRTEngine:
    """LiteRT in its confined process (see `exporters.engines.tasks.Engine`)."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load for this machine's CPU, on which XNNPACK computes.

        Raises:
            InputRejectedError: LiteRT cannot load the file.
            ToolchainError: LiteRT is not installed.
        """
        del precision  # it is the file's
        runtime = imported("ai_edge_litert.interpreter", NEEDS)
        try:
            contents = (folder / FILE).read_bytes()
            self._interpreter: Any = runtime.Interpreter(
                model_content=contents, num_threads=threads
            )
            self._interpreter.allocate_tensors()
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
            shapes = [tuple(map(int, one["shape"])) for one in inputs]
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"LiteRT cannot load it: {first_line(error)}") from error
        if len(outputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4 or min(shapes[0]) < 1:
            raise InputRejectedError(
                f"LiteRT reads inputs {shapes} and {len(outputs)} outputs; one input of images and "
                "one output are needed"
            )
        ((batch, height, width, channels),) = shapes
        self.batch: int | None = batch
        self.input_shape = channels, height, width
        self._input, self._output = inputs[0], outputs[0]

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        """Import the ONNX file, and convert what came of it.

        Raises:
            InputRejectedError: the importer or LiteRT does not take the network.
            ToolchainError: LiteRT is not installed.
        """
        sides = fixed(shape, "LiteRT")
        converter = imported("litert_torch", NEEDS)
        import torch  # in this process for LiteRT alone: the others start without it

        from edgeclean.load.limits import LoadLimits
        from edgeclean.load.onnx.importer import import_plain

        module = import_plain(model, LoadLimits())
        images = torch.zeros(sides[0], *sides[2:], sides[1])
        try:
            last = converter.to_channel_last_io(module, args=[0])
            converter.convert(last, (images,)).export(str(folder / FILE))
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"LiteRT does not take the network: {first_line(error)}"
            ) from error
        if precision == "fp16":
            (folder / FILE).write_bytes(_in_half(folder / FILE))
        elif precision == "int8":
            (folder / FILE).write_bytes(_in_integers(folder))

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w].

        Raises:
            InputRejectedError: LiteRT cannot run it.
        """
        try:
            last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
            given = to_integers(last, self._input["dtype"], *self._input["quantization"])
            self._interpreter.set_tensor(self._input["index"], given)
            self._interpreter.invoke()
            made = self._interpreter.get_tensor(self._output["index"])
            logits = from_integers(made, *self._output["quantization"])
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"LiteRT cannot run it: {first_line(error)}") from error
        return logits


def to_integers(images: NDArray[np.float32], kind: Any, scale: float, zero: int) -> NDArray[Any]:
    """The images as the file's input holds them; as they are where it holds floats."""
    if np.dtype(kind).kind != "i":
        return images
    limits = np.iinfo(kind)
    levels = np.rint(images / np.float32(scale)) + zero
    held: NDArray[Any] = np.clip(levels, limits.min, limits.max).astype(kind)
    return held


def from_integers(logits: NDArray[Any], scale: float, zero: int) -> NDArray[np.float32]:
    """The logits as floats, whatever the file's output holds."""
    found = np.array(logits, np.float32)
    return found if logits.dtype.kind != "i" else (found - zero) * np.float32(scale)


def _in_integers(folder: Path) -> bytes:
    """The file all in INT8, weights by channel, by LiteRT's own quantiser on the images given.

    Ranges are the extremes over all images. The quantiser's default, a moving average of each
    image's extremes, clips what few images reach.

    Raises:
        InputRejectedError: there are no images, or the quantiser does not take the network.
    """
    quantizer = imported("ai_edge_quantizer.quantizer", NEEDS)
    calibrator = imported("ai_edge_quantizer.calibrator", NEEDS)
    recipes = imported("ai_edge_quantizer.recipe_manager", NEEDS)
    extremes = imported("ai_edge_quantizer.utils.qsv_utils", NEEDS).min_max_update
    recipe = imported("ai_edge_quantizer.recipe", NEEDS).static_wi8_ai8()
    runtime = imported("ai_edge_litert.interpreter", NEEDS)
    if not (folder / CALIBRATION).is_file():
        raise InputRejectedError("LiteRT calibrates INT8 on images, and none were given")
    images = np.load(folder / CALIBRATION, allow_pickle=False).transpose(0, 2, 3, 1)
    try:
        signatures = runtime.Interpreter(str(folder / FILE)).get_signature_list()
        ((name, ends),) = signatures.items()
        batch = [{ends["inputs"][0]: np.ascontiguousarray(one[None])} for one in images]
        asked = recipes.RecipeManager()
        asked.load_quantization_recipe(recipe)
        found = calibrator.Calibrator(str(folder / FILE), qsv_update_func=extremes)
        found.calibrate({name: batch}, asked)
        work = quantizer.Quantizer(str(folder / FILE))
        work.load_quantization_recipe(recipe)
        return bytes(work.quantize(found.get_model_qsvs()).quantized_model)
    except Exception as error:  # its exceptions share no narrower base class
        raise InputRejectedError(f"LiteRT cannot write it in INT8: {first_line(error)}") from error


def _in_half(path: Path) -> bytes:
    """The file with its weights stored in FP16, by LiteRT's own quantiser."""
    quantizer = imported("ai_edge_quantizer.quantizer", NEEDS)
    kinds = imported("ai_edge_quantizer.qtyping", NEEDS)
    half = kinds.TensorQuantizationConfig(num_bits=16, dtype=kinds.TensorDataType.FLOAT)
    config = kinds.OpQuantizationConfig(
        weight_tensor_config=half, compute_precision=kinds.ComputePrecision.FLOAT
    )
    work = quantizer.Quantizer(str(path))
    for operator in WITH_WEIGHTS:
        work.update_quantization_recipe(".*", operator, config, "float_casting")
    return bytes(work.quantize().quantized_model)
