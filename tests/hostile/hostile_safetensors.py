"""Safetensors files: no code is possible, so it is lengths, offsets and numbers that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hostile_case import Case, compressing, hole
from pickle_writing import tiny_weights


def headed(header: bytes, numbers: bytes = b"") -> bytes:
    """A file with this header."""
    return struct.pack("<Q", len(header)) + header + numbers


def one_tensor(**changes: Any) -> bytes:
    """A file of one tensor of one float, with something about it changed."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}
    return headed(json.dumps({"w": entry}).encode(), b"1234")


def two_tensors(first: list[int], second: list[int]) -> bytes:
    """Two tensors of two floats each, at these offsets of 16 bytes."""
    entries = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets}
        for name, offsets in (("v", first), ("w", second))
    }
    return headed(json.dumps(entries).encode(), bytes(16))


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
PARSER = "not a valid safetensors file"
FILES: list[tuple[str, str, Callable[[], bytes], str]] = [
    ("seven bytes", "shorter than the length of its header", lambda: b"\x01" * 7, "shorter than"),
    (
        "header of 2^62 bytes",
        "a reader that allocates first, and looks later",
        lambda: struct.pack("<Q", 2**62) + b"{}",
        "header claims 4611686018427387904 bytes",
    ),
    (
        "header over the limit",
        "17 MiB of JSON for no tensor at all",
        lambda: headed(b"{" + b" " * (17 * 2**20) + b"}"),
        "limit header_bytes is 16777216",
    ),
    ("no JSON", "a damaged header", lambda: headed(b"{nonsense"), "header is not valid"),
    ("not UTF-8", "a damaged header", lambda: headed(b'{"\xff\xfe": 1}'), "header is not valid"),
    (
        "deep JSON",
        "a hundred thousand brackets overflow a parser that recurses",
        lambda: headed(b"[" * 100_000),
        "header is not valid",
    ),
    ("a list", "JSON, but not a table of tensors", lambda: headed(b"[]"), "must be an object"),
    (
        "one name twice",
        "a scanner reads the first tensor of that name, the loader the last",
        lambda: headed(b'{"w":' + ENTRY + b',"w":' + ENTRY + b"}", b"1234"),
        "given twice",
    ),
    (
        "one key twice inside",
        "two shapes for one tensor",
        lambda: headed(b'{"w":{"shape":[9],' + ENTRY[1:] + b"}", b"1234"),
        "given twice",
    ),
    ("cut off", "the numbers end early", lambda: one_tensor()[:-2], PARSER),
    (
        "more behind",
        "bytes that no tensor names: a place to hide",
        lambda: one_tensor() + b"MZ",
        PARSER,
    ),
    ("unknown type", "a number type of the future", lambda: one_tensor(dtype="F3"), PARSER),
    ("negative shape", "a shape of -1", lambda: one_tensor(shape=[-1]), PARSER),
    (
        "shape that overflows",
        "2^32 times 2^32 times 4 bytes are 0 to a careless multiplication",
        lambda: one_tensor(shape=[2**32, 2**32], data_offsets=[0, 0]),
        PARSER,
    ),
    ("shape and offsets differ", "more numbers than bytes", lambda: one_tensor(shape=[9]), PARSER),
    (
        "offsets backwards",
        "an end before its start",
        lambda: one_tensor(data_offsets=[4, 0]),
        PARSER,
    ),
    (
        "offsets outside",
        "beyond the end of the file",
        lambda: one_tensor(data_offsets=[0, 2**40]),
        PARSER,
    ),
    ("shared bytes", "two tensors in one place", lambda: two_tensors([0, 8], [4, 12]), PARSER),
    (
        "a gap",
        "bytes between two tensors, a place to hide",
        lambda: two_tensors([0, 8], [12, 16]),
        PARSER,
    ),
    ("empty", "no tensor at all", lambda: headed(b"{}"), "not a filled state dict"),
    (
        "escape in a name",
        "a tensor's name, waiting to be printed",
        lambda: safetensors.torch.save({"w\x1b[2J": torch.ones(1)}),
        "which is no name",
    ),
    (
        "8-bit floats",
        "numbers that this network was never trained in",
        lambda: safetensors.torch.save({"w": torch.ones(2).to(torch.float8_e4m3fn)}),
        "only plain floats and integers",
    ),
    (
        "infinity",
        "weights that no training makes",
        lambda: safetensors.torch.save(
            tiny_weights(**{"4_bias": torch.tensor([1.0, float("inf")])})
        ),
        "4.bias: 1 of 2 numbers are NaN or infinite",
    ),
    (
        "integers as weights",
        "a cast away from being accepted",
        lambda: safetensors.torch.save(tiny_weights(**{"4_bias": torch.tensor([1, 2])})),
        "4.bias is int64; the architecture has float32",
    ),
    (
        "wrong shape",
        "one weight with its axes exchanged",
        lambda: safetensors.torch.save(tiny_weights(**{"4_weight": torch.ones(16, 2)})),
        "4.weight is 16x2 for 2x16",
    ),
    (
        "20,001 tensors",
        "one over the limit",
        lambda: headed(json.dumps({f"w{i}": {} for i in range(20_001)}).encode()),
        "at most 20000 tensors",
    ),
]


def _hole(folder: Path) -> list[str]:
    hole(folder / "a.safetensors", 2 * 2**30, struct.pack("<Q", 2) + b"{}")
    return compressing(folder, "a.safetensors", None)


def _pipe(folder: Path) -> list[str]:
    import os

    os.mkfifo(folder / "a.safetensors")
    return compressing(folder, "a.safetensors", None)


def _device(folder: Path) -> list[str]:
    (folder / "a.safetensors").symlink_to("/dev/zero")
    return compressing(folder, "a.safetensors", None)


def _case(name: str, story: str, build: Callable[[Path], list[str]], message: str) -> Case:
    return Case(kind="safetensors", name=name, story=story, build=build, message=message)


SAFETENSORS = [
    *(
        _case(
            name,
            story,
            lambda folder, make=make: compressing(folder, "a.safetensors", make()),  # type: ignore[misc]
            message,
        )
        for name, story, make, message in FILES
    ),
    _case("2 GiB of nothing", "a sparse file", _hole, "larger than 1073741824 bytes"),
    _case("a pipe", "opening it would wait for ever", _pipe, "not a regular file"),
    _case("endless zeros", "a link to a device without an end", _device, "not a regular file"),
    _case(
        "classes that are not there",
        "a model.toml for 65,536 classes: building that network takes 1.5 GB, the file a few bytes",
        lambda folder: compressing(
            folder,
            "a.safetensors",
            safetensors.torch.save({"w": torch.ones(1)}),
            *("--arch=vgg19-bn", "--classes=65536", "--input-shape=3x224x224"),
            *("--mean=0,0,0", "--std=1,1,1"),
        ),
        "names do not match the architecture",
    ),
    _case(
        "images of 4096 x 4096",
        "true weights, and an image shape for which they take 40 GB",
        lambda folder: (
            compressing(
                folder,
                "a.safetensors",
                safetensors.torch.save(tiny_weights()),
                *("--arch=net.py:wide", "--classes=2", "--input-shape=3x4096x4096"),
                *("--mean=0,0,0", "--std=1,1,1"),
            )
            if _write_wide(folder)
            else []
        ),
        "activations at once; the limit operands is 67108864",
    ),
]


def _write_wide(folder: Path) -> int:
    """Pooled to one number, any image shape fits."""
    code = (
        "from torch import nn\n"
        "def wide(classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),\n"
        "        nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(16, classes))\n"
    )
    return (folder / "net.py").write_text(code, encoding="utf-8")
