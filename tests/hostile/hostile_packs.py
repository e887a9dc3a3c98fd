"""Packs of labelled images, given to `--evaluate`: archives that unpack to more than they hold."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_case import Case, hole
from hostile_settings import weights

GIB = 2**30


def _written(**members: object) -> Callable[[Path], None]:
    """An archive of arrays; bytes stand for a file as it is, an int for so many zeros behind it."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, member in members.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    if isinstance(member, np.ndarray | np.generic):
                        plain = io.BytesIO()
                        np.lib.format.write_array(plain, np.asarray(member), allow_pickle=True)
                        stream.write(plain.getvalue())
                    elif isinstance(member, tuple):
                        start, zeros = member
                        stream.write(start)
                        for _ in range(zeros // 2**20):
                            stream.write(bytes(2**20))

    return write


def _head(shape: str, descr: str = "|u1") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"


def _zeros(count: int, descr: str = "|u1") -> tuple[bytes, int]:
    return _head(f"({count},)", descr), count


def _crowd(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(12_000):
            archive.writestr(f"{index:060}.npy", b"")


def _hollow(path: Path) -> None:
    _written(labels=LABELS)(path)
    content = path.read_bytes()
    hole(path, GIB)
    with path.open("ab") as stream:
        stream.write(content)


LABELS = np.zeros(2, np.int64)
PIXELS = np.zeros(96, np.uint8)
PACKS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("a gigabyte of labels", "zeros, a megabyte packed", _written(labels=_zeros(GIB)), "the most"),
    (
        "a gigabyte of offsets",
        "zeros that became a list of Python",
        _written(labels=LABELS, data=PIXELS, offsets=_zeros(GIB)),
        "offsets claims 1073741824 bytes",
    ),
    (
        "a gigabyte of pictures",
        "zeros between two offsets",
        _written(labels=LABELS, data=_zeros(GIB), offsets=np.array([0, 5, GIB])),
        "data unpacks to 1073741824 bytes from",
    ),
    (
        "a gigabyte of images",
        "more than the labels say",
        _written(labels=LABELS, images=_zeros(GIB)),
        "images claims 1073741824 bytes",
    ),
    (
        "a gigabyte of labelled images",
        "as many as the labels say: a black image packs well",
        _written(
            labels=np.zeros(200_000, np.uint8),
            images=(_head("(200000, 3, 4, 4)"), 0),
            more=_zeros(2**20),
        ),
        "images claims 9600000 bytes and holds 0",
    ),
    (
        "a header of 4 GiB",
        "the second form of the header has a length of 32 bits",
        _written(labels=(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", 512 * 2**20)),
        "not an .npz pack",
    ),
    (
        "data without sides",
        "an array of no dimension has no length",
        _written(labels=LABELS, data=np.uint8(1), offsets=np.array([0, 1, 2])),
        "do not cut its data",
    ),
    (
        "labels without sides",
        "one number is no list",
        _written(labels=np.int64(1), images=PIXELS),
        "the shape",
    ),
    (
        "objects",
        "a pickle in an array",
        _written(labels=np.array([{}, {}], object), images=PIXELS),
        "whole numbers",
    ),
    (
        "offsets below zero",
        "pictures from behind the end",
        _written(labels=LABELS, data=PIXELS, offsets=np.array([0, -5, 96])),
        "do not cut its data",
    ),
    (
        "sides below zero",
        "two of them make a size above it",
        _written(labels=(_head("(-2, -4)"), 0)),
        "labels claims 8 bytes and holds 0",
    ),
    ("twelve thousand names", "a directory to get lost in", _crowd, "directory is larger than"),
    ("a gigabyte of nothing", "a sparse file", _hollow, "nearly all of the file is a hole"),
    ("no archive", "a script", lambda path: path.write_text("import os"), "not an .npz pack"),
]


def _built(write: Callable[[Path], object]) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        write(folder / "p.npz")
        return weights(folder, "--model", "model.toml", "--evaluate", "p.npz")

    return build


PACKED = [
    Case(kind="pack", name=name, story=story, build=_built(write), message=message)
    for name, story, write, message in PACKS
]
