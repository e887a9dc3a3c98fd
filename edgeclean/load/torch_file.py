"""What `torch.save` and `pickle.dump` wrote, read without PyTorch's loader or Python's.

The pickle is read as data (`pickles`), so that whatever lies beside the weights needs no code of
whoever wrote it. A network is a dict of tensors by name, or a whole pickled module, whose tensors
lie in its ``_parameters`` and ``_buffers``; its numbers are read last, and only its own.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import listed
from edgeclean.load.asked_for import beside_tensors, code_asked_for
from edgeclean.load.limits import ZIP_MAGIC
from edgeclean.load.numpy_arrays import array, is_array
from edgeclean.load.pickles import (
    Named,
    PickledTree,
    StandIn,
    Stored,
    bytes_of,
    read_pickle,
    swapped_bytes,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MOST_WRAPPED = 8  # a parameter in another
REBUILT = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
UNREADABLE = ("_rebuild_meta_tensor_no_storage", "_rebuild_sparse_tensor", "_rebuild_qtensor")
WRAPPED = (
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
    *("torch._utils._rebuild_device_tensor_from_cpu_tensor", "torch._utils._rebuild_xla_tensor"),
)
TYPED = ("torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type")
PLAIN_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", *WRAPPED[2:4])
PORTION = 2**20  # bytes that are unpacked at a time
STORED_AS = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}


class TorchFile:
    """The tree in a file of ``torch.save`` (an archive or its older form) or ``pickle.dump``."""

    def __init__(self, contents: bytes, *, nested: bool = False) -> None:
        """Read the tree; the numbers stay where they are.

        Raises:
            InputRejectedError: it asks for what runs, fetches or writes something.
            ValueError: it is damaged; other exceptions as well, see `read_pickle`.
        """
        self._nested = nested
        self._read: dict[str, Tensor] = {}
        self._inner: dict[int, TorchFile] = {}
        self._fetch: Callable[[str, int], bytearray] = _nothing
        zipped = contents.startswith(ZIP_MAGIC)
        self.tree = self._archive(contents) if zipped else self._stream(contents)

    def tensor(self, node: StandIn, name: str) -> Tensor:
        """Return the tensor that a node stands for, without copying its numbers.

        Args:
            node: of which `is_tensor` is true.
            name: what it is called in a refusal.

        Raises:
            InputRejectedError: it has no plain numbers in the file.
            ValueError, RuntimeError: its numbers lie outside of what is stored.
        """
        node = cast(StandIn, _innermost(node))
        if is_array(node):
            return array(node)
        call = node.kind.removeprefix("torch._utils.")
        if call in UNREADABLE:
            return _unreadable(node, name)
        parts = node.arguments if call in REBUILT else node.state
        stored, offset, size, stride, *more = parts
        if call != "_rebuild_tensor" and len(more) > 2 and more[-1] and isinstance(more[-1], dict):
            raise ValueError("a view that negates or conjugates")
        numbers, dtype = self._numbers(stored)
        if call == "_rebuild_tensor_v3":
            dtype = _dtype(more[2])
            numbers = numbers.view(torch.uint8).view(dtype)
        return numbers.as_strided(_whole(size), _whole(stride), *_whole((offset,)))

    def _numbers(self, stored: Any) -> tuple[Tensor, torch.dtype]:
        """Return a storage's numbers [n], the same tensor for the same storage."""
        if isinstance(stored, StandIn) and stored.kind == "torch.storage._load_from_bytes":
            return self._within(stored)
        if not isinstance(stored, Stored):
            raise ValueError(f"a tensor without a storage, but with a {type(stored).__name__}")
        _, _, key, _, count, *view = stored.identity
        dtype = _dtype_of(stored)
        size = dtype.itemsize
        if key not in self._read:
            found = self._fetch(key, size)
            if len(found) != size * count:
                raise ValueError(f"{len(found)} bytes where {count} numbers should be")
            empty = torch.empty(0, dtype=torch.uint8)
            self._read[key] = torch.frombuffer(found, dtype=torch.uint8) if found else empty
        numbers = self._read[key].view(dtype)
        if view and view[0] is not None:
            _, start, length = view[0]
            numbers = numbers.as_strided(_whole((length,)), (1,), *_whole((start,)))
        return numbers, dtype

    def _within(self, node: StandIn) -> tuple[Tensor, torch.dtype]:
        """Return a storage that was pickled without `torch.save`, which is a file of its own."""
        if id(node) not in self._inner:
            if self._nested:
                raise ValueError("files within files")
            self._inner[id(node)] = TorchFile(bytes_of(node.arguments[0]), nested=True)
        inner = self._inner[id(node)]
        return inner._numbers(inner.tree.root)

    def _archive(self, contents: bytes) -> PickledTree:
        archive = zipfile.ZipFile(io.BytesIO(contents))
        for member in archive.infolist():
            if not member.CRC:  # torch.save may leave the checksums out, to be faster
                del member.CRC
        folder = archive.namelist()[0].partition("/")[0]
        swapped = False
        if f"{folder}/byteorder" in archive.namelist():
            swapped = archive.read(f"{folder}/byteorder").decode() != sys.byteorder

        def fetch(key: str, size: int) -> bytearray:
            member = archive.getinfo(f"{folder}/data/{key}")
            numbers = bytearray(member.file_size)
            with archive.open(member) as stream:
                for start in range(0, len(numbers), PORTION):
                    numbers[start : start + PORTION] = stream.read(PORTION)
            return swapped_bytes(numbers, size) if swapped else numbers

        self._fetch = fetch
        return _read_harmless(io.BytesIO(archive.read(f"{folder}/data.pkl")))

    def _stream(self, contents: bytes) -> PickledTree:
        stream = io.BytesIO(contents)
        first = _read_harmless(stream)
        if type(first.root) is not int or first.root != MAGIC_NUMBER:
            return first  # of pickle.dump
        if _read_harmless(stream).root != PROTOCOL_VERSION:
            raise ValueError("a version of torch.save that is not known")
        _read_harmless(stream)  # what machine it was written on
        tree = _read_harmless(stream)
        keys = _read_harmless(stream)
        places = _places(stream, keys.root, tree.stored, len(contents))

        def fetch(key: str, size: int) -> bytearray:
            start, count = places[key]
            return bytearray(contents[start : start + count * size])

        self._fetch = fetch
        return tree


def _read_harmless(stream: io.BytesIO) -> PickledTree:
    """Return one pickle's tree, unless it asks for code."""
    tree = read_pickle(stream)
    if code_asked_for(tree.names, tree.attributes):
        raise InputRejectedError(
            f"its pickle asks for code: {listed(beside_tensors(tree.names))}; nothing was run. "
            "Whoever made this file meant to run something where it is loaded: do not use its "
            "weights; ask for safetensors or torch.save(model.state_dict(), ...)"
        )
    return tree


def is_tensor(node: object) -> bool:
    """Return whether a node of a tree stands for a tensor, or for an array of numpy."""
    node = _innermost(node)
    if not isinstance(node, StandIn):
        return False
    call = node.kind.removeprefix("torch._utils.")
    return call in (*REBUILT, *UNREADABLE) or _is_old_tensor(node) or is_array(node)


def in_words(node: object) -> str:
    """Return what a node stands for, for a message: a class of Python, or what it asks for."""
    if is_tensor(node):
        return "Tensor"
    if isinstance(node, StandIn):
        if node.kind.startswith("torch._tensor._rebuild_from_type") and len(node.arguments) > 1:
            return in_words(node.arguments[1])
        return node.kind or "call"
    return node.full if isinstance(node, Named) else type(node).__name__


def _innermost(node: object) -> object:
    """Return the tensor in a parameter and other wrappings of plain tensors."""
    for _ in range(MOST_WRAPPED):
        if not isinstance(node, StandIn) or not node.arguments:
            break
        if node.kind in WRAPPED:
            node = node.arguments[0]
        elif node.kind in TYPED and in_words(node.arguments[1]) in PLAIN_CLASSES:
            node = StandIn(node.arguments[0], node.arguments[2])
        else:
            break
    return node


def _unreadable(node: StandIn, name: str) -> Tensor:
    """Return a tensor without numbers, or say what it is instead of a plain one."""
    if node.kind.endswith("_rebuild_meta_tensor_no_storage"):
        dtype, size, stride, *_ = node.arguments
        return torch.empty_strided(_whole(size), _whole(stride), dtype=_dtype(dtype), device="meta")
    if node.kind.endswith("_rebuild_sparse_tensor"):
        raise InputRejectedError(
            f"{name} is a sparse tensor of layout {_layout(node)}, and only dense ones are read; "
            "save it dense: tensor.to_dense()"
        )
    kind = str(_dtype_of(node.arguments[0])).removeprefix("torch.")
    raise InputRejectedError(f"{name} is {kind}; only plain floats and integers are read")


def _is_old_tensor(node: StandIn) -> bool:
    """Return whether it is one of PyTorch 0.1: an object of its class, and a state."""
    module, _, name = node.kind.rpartition(".")
    of_torch = module in ("torch", "torch.cuda") and name.endswith("Tensor")
    return of_torch and isinstance(node.state, tuple) and len(node.state) == 4


def _places(
    stream: io.BytesIO, keys: list[str], stored: tuple[Stored, ...], end: int
) -> dict[str, tuple[int, int]]:
    """Return the first byte and the count of each storage that lies behind the pickles."""
    kinds: dict[str, Stored] = {}
    for one in stored:
        kinds.setdefault(one.identity[2], one)
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        start = stream.tell()
        length = count * _dtype_of(kinds[key]).itemsize
        if not 0 <= length <= end - start:
            raise ValueError(f"storage {key} is cut short")
        places[key] = start, count
        stream.seek(start + length)
    return places


def _dtype_of(stored: Any) -> torch.dtype:
    """Return the type of a storage's numbers."""
    what, kind, *_ = stored.identity
    if what != "storage" or not isinstance(kind, Named):
        raise ValueError(f"a storage of type {in_words(kind)}")
    name = kind.full.rpartition(".")[2]
    if name not in STORED_AS:
        raise ValueError(f"a storage of type {kind.full[:100]}")
    return STORED_AS[name]


def _dtype(node: Any) -> torch.dtype:
    dtype = getattr(torch, node.full.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{node.full[:100]} is no type of numbers")
    return dtype


def _whole(numbers: Any) -> tuple[int, ...]:
    """Return a shape or strides; PyTorch's own class for them is a tuple as well."""
    if isinstance(numbers, StandIn) and numbers.kind == "torch.Size":
        (numbers,) = numbers.arguments
    if type(numbers) is not tuple or not all(
        type(one) is int and 0 <= one < 2**63 for one in numbers
    ):
        raise ValueError("a tensor whose shape is not of whole numbers")
    return numbers


def _layout(node: StandIn) -> str:
    (layout, *_) = node.arguments
    named = layout.arguments[0] if isinstance(layout, StandIn) and layout.arguments else None
    return named[:100] if isinstance(named, str) else "unknown"


def _nothing(key: str, _size: int) -> bytearray:
    raise ValueError(f"no storage {key!r}")
