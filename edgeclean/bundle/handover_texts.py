"""The texts of hand-over kits: what to read, and the program that calls a vendor's converter.

They follow from a bundle's manifest and the number of calibration images alone, so that `verify`
can compare them. A program copies what it needs into a new folder and works there: converters leave
files about, a bundle holds nothing but its own, and some read a path with a space as two.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Layout = Literal["png", "nhwc", "nchw", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConverterTexts:
    """What the kit for one converter consists of.

    Attributes:
        title: the converter's name in words.
        layout: of the calibration images: PNG files; one array of bytes [n, h, w, c] or
            [n, c, h, w]; "" for none.
        texts: files by name, with placeholders.
        run: the command, from the folder that holds the bundle.
        makes: what the command makes.
        feeds: what the converted network is fed with.
        needs: where the converter is to be had.
        read: how the operators that it takes were checked.
        tried: whether the kit's commands were ever tried.
    """

    title: str
    layout: Layout
    texts: Mapping[str, str]
    run: str
    makes: str
    feeds: str
    needs: str
    read: str
    tried: str


def written_texts(
    converter: ConverterTexts, target: Mapping[str, Any], model: Mapping[str, Any], images: int
) -> dict[str, str]:
    """Return every text of a kit, by its name in the kit's folder.

    Args:
        converter: the kit's texts.
        target: the target's profile, as JSON.
        model: the manifest's description of ``model.onnx``.
        images: number of calibration images.
    """
    channels, height, width = model["input_shape"]
    words = {
        "chip": target["converter_target"],
        "channels": str(channels),
        "height": str(height),
        "width": str(width),
        "mean": _numbers(model["mean"]),
        "std": _numbers(model["std"]),
        "mean255": _numbers([255 * float(one) for one in model["mean"]]),
        "std255": _numbers([255 * float(one) for one in model["std"]]),
        "images": str(images),
        "listed": "".join(f"{image_name(number)}\n" for number in range(images)),
        "opset": str(model["opset"]),
    }
    readme = {"README.md": _readme(converter)}
    return {name: _filled(text, words) for name, text in {**readme, **converter.texts}.items()}


def image_name(number: int) -> str:
    """Return the name of a calibration image in the kit's folder."""
    return f"images/{number:03}.png"


def _filled(text: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():  # not str.format: the programs have braces of their own
        text = text.replace(f"<{name}>", word)
    return text


def _numbers(numbers: list[Any]) -> str:
    return ", ".join(repr(float(one)) for one in numbers)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100, break_on_hyphens=False)


def _readme(one: ConverterTexts) -> str:
    calibration = {
        "png": "`images/` and `dataset.txt`: <images> calibration images as PNG files",
        "nhwc": "`calibration.npy`: <images> calibration images, bytes [n, height, width, channel]",
        "nchw": "`calibration.npy`: <images> calibration images, bytes [n, channel, height, width]",
        "": "",
    }[one.layout]
    if calibration:
        calibration = _wrapped(
            f"{calibration}, pixels from 0 to 255, not normalised. They are synthetic, made from "
            "the network alone; images of your own camera may calibrate it better."
        )
    parts = [
        f"# Hand-over to {one.title}",
        _wrapped(
            f"{one.title} has not run here: nothing of what it makes of this network was checked. "
            f"{one.tried} Compare what it makes with `golden.safetensors`, which holds images and "
            "logits, before you trust it."
        ),
        "```sh",
        f"{one.run}\n```",
        _wrapped(f"The last word names a new folder. {one.makes} {one.needs}"),
        _wrapped(
            "The network is `model.onnx` of this bundle: opset <opset>, batches of one image "
            f"<channels>x<height>x<width>. {one.read}"
        ),
        _wrapped(one.feeds),
        calibration,
    ]
    return "\n\n".join(part for part in parts if part).replace("```sh\n\n", "```sh\n") + "\n"


_PYTHON_HEAD = '''\
"""Convert the network of this bundle: python3 convert.py OUTPUT, a folder that is made.

Written by edgeclean, which has not run the converter.
"""

import os
import shutil
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent


def start(*names):
    """Copy the network and these files into the new folder, and work there."""
    if len(sys.argv) != 2:
        sys.exit("usage: python3 convert.py OUTPUT, a folder that does not exist yet")
    output = Path(sys.argv[1])
    try:
        output.mkdir(parents=True)
    except OSError as error:
        sys.exit(f"{output} cannot be made: {error.strerror}; name a new folder")
    shutil.copy(str(KIT.parent / "model.onnx"), str(output))
    for name in names:
        copy = shutil.copytree if (KIT / name).is_dir() else shutil.copy
        copy(str(KIT / name), str(output / name))
    os.chdir(str(output))


'''

_RKNN = (
    _PYTHON_HEAD
    + """\
def check(code, what):
    if code != 0:
        sys.exit(f"RKNN-Toolkit2 failed: {what} returned {code}")


def main():
    from rknn.api import RKNN

    start("dataset.txt", "images")
    rknn = RKNN(verbose=True)
    rknn.config(
        mean_values=[[<mean255>]],
        std_values=[[<std255>]],
        target_platform="<chip>",
    )
    check(rknn.load_onnx(model="model.onnx"), "load_onnx")
    check(rknn.build(do_quantization=True, dataset="dataset.txt"), "build")
    check(rknn.export_rknn("model.rknn"), "export_rknn")
    rknn.release()


main()
"""
)

_ESP_DL = (
    _PYTHON_HEAD
    + """\
def main():
    import numpy as np
    import torch
    from esp_ppq.api import espdl_quantize_onnx
    from torch.utils.data import DataLoader

    start("calibration.npy")
    pixels = torch.from_numpy(np.load("calibration.npy", allow_pickle=False))
    mean = torch.tensor([<mean>]).reshape(1, -1, 1, 1)
    std = torch.tensor([<std>]).reshape(1, -1, 1, 1)
    images = (pixels.float() / 255 - mean) / std
    espdl_quantize_onnx(
        onnx_import_file="model.onnx",
        espdl_export_file="model.espdl",
        calib_dataloader=DataLoader(images, batch_size=1, shuffle=False),
        calib_steps=len(images),
        input_shape=[1, <channels>, <height>, <width>],
        inputs=None,
        target="<chip>",
        num_of_bits=8,
        collate_fn=lambda batch: batch,
        dispatching_override=None,
        device="cpu",
        error_report=True,
        skip_export=False,
        export_test_values=True,
        verbose=1,
    )


main()
"""
)

_SHELL_HEAD = """\
#!/bin/sh
# Convert the network of this bundle: sh convert.sh OUTPUT, a folder that is made.
# Written by edgeclean, which has not run the converter.
set -eu
if [ "$#" -ne 1 ]; then
  echo "usage: sh convert.sh OUTPUT, a folder that does not exist yet" >&2
  exit 2
fi
kit=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd -P)
mkdir -- "$1"
cp -- "$kit/../model.onnx" "$1/"
"""

_HAILO = (
    _SHELL_HEAD
    + """\
cp -- "$kit/calibration.npy" "$kit/model.alls" "$1/"
cd -- "$1"
hailo parser onnx model.onnx --net-name model --hw-arch <chip> --har-path model.har -y
hailo optimize model.har --hw-arch <chip> --calib-set-path calibration.npy \\
  --model-script model.alls --output-har-path model_optimized.har
hailo compiler model_optimized.har --hw-arch <chip> --output-dir .
"""
)

_STEDGEAI = (
    _SHELL_HEAD
    + """\
cd -- "$1"
stedgeai analyze --model model.onnx --type onnx --target <chip>
stedgeai validate --model model.onnx --type onnx --target <chip> --mode host
stedgeai generate --model model.onnx --type onnx --target <chip> --name network --output generated
"""
)

_UNTRIED = "The commands follow its documentation and were never tried."
_LISTED = "Its operators are among those that the converter's documentation lists."
_PIXELS = (
    "Mean and standard deviation become part of the converted network: feed it with pixels from 0 "
    "to 255, channels in the order of the training images (RGB)."
)

CONVERTERS: Mapping[str, ConverterTexts] = {
    "rknn": ConverterTexts(
        title="RKNN-Toolkit2 (Rockchip)",
        layout="png",
        texts={"convert.py": _RKNN, "dataset.txt": "<listed>"},
        run="python3 build/rknn/convert.py converted",
        makes="`model.rknn` appears in it, in INT8 for <chip>.",
        feeds=_PIXELS,
        needs="It needs `pip install rknn-toolkit2`, in a virtual environment of its own.",
        read=_LISTED,
        tried="The commands were tried with RKNN-Toolkit2 2.5.0, on a small network.",
    ),
    "hailo": ConverterTexts(
        title="the Hailo Dataflow Compiler",
        layout="nhwc",
        texts={
            "convert.sh": _HAILO,
            "model.alls": "normalization1 = normalization([<mean255>], [<std255>])\n",
        },
        run="sh build/hailo/convert.sh converted",
        makes="`model.hef` appears in it, in INT8 for <chip>.",
        feeds=_PIXELS,
        needs="It needs the Dataflow Compiler of Hailo's developer zone.",
        read="Which operators the compiler takes is not public, so that was not checked: "
        "`hailo parser` says it within seconds.",
        tried=_UNTRIED,
    ),
    "stedgeai": ConverterTexts(
        title="ST Edge AI Core",
        layout="",
        texts={"convert.sh": _STEDGEAI},
        run="sh build/stedgeai/convert.sh converted",
        makes="`generated/` in it holds the C code for <chip>; what flash and memory it needs is "
        "printed.",
        feeds="The input is float32, one normalised image: (pixel in [0, 1] - mean) / std with "
        "mean <mean> and std <std>. A network in INT8 is quantised already, with one symmetric "
        "scale for each tensor.",
        needs="It needs ST Edge AI Core of st.com. Give a series such as stm32n6 as --target in "
        "convert.sh where you have one.",
        read="`stedgeai supported-ops --type onnx` lists the operators that it takes; that was not "
        "checked here.",
        tried=_UNTRIED,
    ),
    "esp-dl": ConverterTexts(
        title="ESP-PPQ (Espressif)",
        layout="nchw",
        texts={"convert.py": _ESP_DL},
        run="python3 build/esp-dl/convert.py converted",
        makes="`model.espdl` appears in it, in INT8 for <chip>.",
        feeds="The input is one normalised image: (pixel in [0, 1] - mean) / std with mean <mean> "
        "and std <std>, quantised by the input's own scale.",
        needs="It needs `pip install esp-ppq`, in a virtual environment of its own.",
        read=_LISTED,
        tried="The commands were tried with ESP-PPQ 1.3.12, on a small network.",
    ),
}
