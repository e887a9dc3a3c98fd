"""Refuse a graph that says one thing twice: which of the two is meant depends on who reads it.

A tensor has room for its numbers in raw bytes, in a list for each type of number, and in a file
beside the model. No trainer fills two of them. One who does shows a scanner one set of weights, and
another to the runtime. So it is with two tensors of one name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from onnx import ModelProto, TensorProto

from edgeclean.errors import InputRejectedError

FIELDS = (
    "raw_data",
    "float_data",
    "double_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "string_data",
)


def check_doubles(model: ModelProto, tensors: Iterable[TensorProto]) -> None:
    """Refuse two sets of numbers in a tensor, parts of a tensor, and two tensors of one name.

    Args:
        model: the model, not yet checked otherwise.
        tensors: all its tensors, those in attributes included.

    Raises:
        InputRejectedError: names the tensor.
    """
    for tensor in tensors:
        filled = [name for name in FIELDS if len(getattr(tensor, name))]
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            filled.append("a file beside the model")
        if len(filled) > 1 or tensor.HasField("segment"):
            where = " and ".join(filled) if len(filled) > 1 else "a segment"
            raise InputRejectedError(
                f"tensor {tensor.name[:80]!r} has its numbers in {where}; one place, and the whole "
                "of it, is read: readers differ in which of two they take"
            )
    named = Counter(tensor.name for tensor in model.graph.initializer)
    twice = [name for name, times in named.items() if times > 1]
    if twice:
        raise InputRejectedError(
            f"the graph has {named[twice[0]]} tensors called {twice[0][:80]!r}; a name is of one"
        )
