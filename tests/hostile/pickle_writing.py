"""Pickles and torch.save archives written by hand.

To look at one: `python -m pickletools`.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_archives import zipped
from hostile_case import CANARY, CODE, Case, compressing
from torch import Tensor

TOUCH = f"touch {CANARY}"
PYTHON = f"open('{CANARY}', 'w').close()"


def text(word: str) -> bytes:
    """The opcode for a short text."""
    encoded = word.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def call(module: str, name: str, *words: str) -> bytes:
    """Opcodes that import a global and call it with texts."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(text, words)) + b"tR"


def dict_of(value: bytes) -> bytes:
    """A pickled dict with one entry, whose value these opcodes make."""
    return b"\x80\x02}" + text("w") + value + b"s."


def saved(tree: object, **options: Any) -> bytes:
    """As torch.save writes it."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these types are about to be dropped
        torch.save(tree, stream, **options)
    return stream.getvalue()


def tiny_weights(**changes: Tensor) -> dict[str, Tensor]:
    """A state dict that fits the case's architecture."""
    names: dict[str, Any] = {}
    exec(CODE, names)  # noqa: S102 - the text of hostile_case.py
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights: dict[str, Tensor] = names["tiny"](2).state_dict()
    return {**weights, **{name.replace("_", "."): one for name, one in changes.items()}}


class Storage:
    """Stands for a stored run of numbers in a pickle written by hand."""

    def __init__(self, numel: Any, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.identity = ("storage", kind, key, "cpu", numel)


class Rebuilt:
    """Stands for a tensor made of a storage."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (*self.parts, False, OrderedDict())


class Quantised(Rebuilt):
    """The same of a quantised tensor."""

    def __reduce__(self) -> tuple[Any, ...]:
        scheme = (torch.per_tensor_affine, 0.1, 0)
        return torch._utils._rebuild_qtensor, (*self.parts, scheme, False, OrderedDict())


class HandWriter(pickle.Pickler):
    """Writes the two above as torch.save would have."""

    def persistent_id(self, one: Any) -> Any:
        """What a storage is called in the file."""
        return one.identity if isinstance(one, Storage) else None


def by_hand(tree: object, storage: bytes = bytes(16)) -> bytes:
    """A torch.save archive around a tree with `Rebuilt` tensors."""
    stream = io.BytesIO()
    HandWriter(stream, protocol=2).dump(tree)
    return zipped(stream.getvalue(), {"0": storage})


def lying_record() -> bytes:
    """The sizes in a record's own header are not those of the archive's directory."""
    contents = by_hand({"w": Rebuilt(Storage(4), 0, (4,), (1,))})
    place = contents.index(b"a/data/0") - 30
    sizes = struct.pack("<II", 2**31 - 1, 2**31 - 1)
    return contents[: place + 18] + sizes + contents[place + 26 :]


def legacy_file() -> tuple[bytes, bytes]:
    """An old torch.save file: its magic number, protocol and system; and the tree behind them."""
    good = saved({"w": torch.ones(1)}, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(good)
    for _ in range(3):
        pickle.load(stream)  # noqa: S301 - our own
    return good[: stream.tell()], good[stream.tell() :]


def legacy_with_second_pickle() -> bytes:
    """The first pickles of an old torch.save file are what scanners read; the bait is behind."""
    head, tree = legacy_file()
    return head + dict_of(call("posix", "system", TOUCH)) + tree


def side_module(folder: Path) -> list[str]:
    """A module beside the checkpoint, which an import by name would run."""
    (folder / "evil.py").write_text(PYTHON, encoding="utf-8")
    return compressing(folder, "a.pth", zipped(dict_of(call("evil", "run"))))


def doubled(times: int) -> bytes:
    """A tuple of a tuple of a tuple, each twice: short to write, endless to hash."""
    return b")" + b"q\x00h\x00\x86" * times


def zip_case(
    name: str, story: str, payload: bytes | Callable[[], bytes], message: str, *, bait: bool = False
) -> Case:
    """A case whose pickle lies in a torch.save archive."""

    def build(folder: Path) -> list[str]:
        content = payload if isinstance(payload, bytes) else payload()
        return compressing(folder, "a.pth", zipped(content))

    return Case(kind="pickle", name=name, story=story, build=build, message=message, bait=bait)


def file_case(name: str, story: str, make: Callable[[], bytes], message: str) -> Case:
    """A case that is a whole file."""
    return Case(
        kind="pickle",
        name=name,
        story=story,
        build=lambda folder: compressing(folder, "a.pth", make()),
        message=message,
    )
