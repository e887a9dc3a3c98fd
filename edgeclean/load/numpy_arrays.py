"""Arrays of numpy in a pickle, read as data: model zoos of older tools keep weights so.

A pickle makes one by ``_reconstruct`` and a state, or, from protocol 5 on, by ``_frombuffer``
(``numpy.ndarray.__reduce_ex__``); the module that has these functions is ``numpy.core`` or
``numpy._core``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgeclean.load.pickles import StandIn, bytes_of, swapped_bytes

_CORE = ("numpy.core.", "numpy._core.")
_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}


def is_array(node: object) -> bool:
    """Return whether a node stands for an array of plain numbers."""
    parts = _parts(node)
    return parts is not None and _dtype(parts[1]) is not None


def array(node: object) -> Tensor:
    """Return the array that a node stands for, as a tensor of its own memory.

    Args:
        node: of which `is_array` is true.

    Raises:
        ValueError: its bytes are not those of its shape and type.
    """
    parts = _parts(node)
    assert parts is not None  # noqa: S101 - callers look first
    contents, kind, shape, by_columns = parts
    dtype = _dtype(kind)
    assert dtype is not None  # noqa: S101 - as above
    if type(shape) is not tuple or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array whose shape is not of whole numbers")
    numbers = bytearray(contents if isinstance(contents, bytearray) else bytes_of(contents))
    if len(numbers) != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{len(numbers)} bytes in an array of {shape}")
    if _order(kind) == ">":
        numbers = swapped_bytes(numbers, dtype.itemsize)
    flat = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
    if by_columns:
        return flat.view(shape[::-1]).permute(*reversed(range(len(shape))))
    return flat.view(shape)


def _parts(node: object) -> tuple[Any, Any, Any, bool] | None:
    """Return an array's bytes, type, shape, and whether its first axis is the fastest."""
    if not isinstance(node, StandIn) or not node.kind.startswith(_CORE):
        return None
    call = node.kind.partition("core.")[2]
    if call == "multiarray._reconstruct" and _is_tuple(node.state, 5):
        _, shape, kind, by_columns, contents = node.state
        return contents, kind, shape, by_columns is True
    if call == "numeric._frombuffer" and _is_tuple(node.arguments, 4):
        contents, kind, shape, order = node.arguments
        return contents, kind, shape, order == "F"
    return None


def _is_tuple(value: object, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length


def _dtype(kind: object) -> torch.dtype | None:
    if not isinstance(kind, StandIn) or kind.kind != "numpy.dtype" or not kind.arguments:
        return None
    name = kind.arguments[0]
    return _TYPES.get(name) if isinstance(name, str) else None


def _order(kind: StandIn) -> object:
    """Return how the bytes of a number are ordered: "<", ">" or "|"."""
    return kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "<"
