"""Check the tensors of a state dict, and put them into a module."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line, listed
from edgeclean.load.limits import LoadLimits

SHOWN = 5
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def check_count(names: Collection[str], limits: LoadLimits) -> None:
    """Refuse more tensors than the limit.

    Raises:
        InputRejectedError: giving their number.
    """
    if len(names) > limits.entries:
        raise InputRejectedError(
            f"the state dict has {len(names)} tensors; the limit entries is {limits.entries}"
        )


def check_layout(tensors: Mapping[str, Tensor], limits: LoadLimits) -> None:
    """Refuse tensors whose numbers are not simply stored in the file, before touching a number.

    A 1 KB file can hold a tensor of 10^9 elements by a stride of zero; copying it would take the
    machine's memory. Two names for one whole tensor are allowed: tied weights are saved so.

    Raises:
        InputRejectedError: naming the tensor.
    """
    check_count(tensors, limits)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS + INTEGERS:
            raise InputRejectedError(
                f"{name} is {_dtype(tensor)}; only plain floats and integers are read"
            )
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise InputRejectedError(
                f"{name} is a {tensor.device.type} tensor of layout {tensor.layout}, without "
                "numbers in the file; save it dense, from the CPU"
            )
        if _overlaps_itself(tensor):
            raise InputRejectedError(
                f"{name} of shape {_shape(tensor)} repeats its numbers (strides "
                f"{tuple(tensor.stride())}); save it contiguous"
            )
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > limits.file_bytes:
        raise InputRejectedError(
            f"the tensors take {total} bytes; the limit file_bytes is {limits.file_bytes}"
        )
    _check_sharing(tensors)


def fit_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], versions: Mapping[str, int] | None = None
) -> None:
    """Check every name, shape and number, then copy all of them into ``module``, as float32.

    Args:
        module: of the architecture; nothing else of it is changed.
        tensors: by the names that its state dict has.
        versions: of the layers' classes when the file was written, by the layers' names; a class
            may convert what an older version wrote. The present ones where nothing is said.

    Raises:
        InputRejectedError: see `check_names_and_shapes`; or numbers are not finite, differ under
            names that the architecture has for one tensor, or its own code refuses them.
    """
    needed = module.state_dict()
    check_names_and_shapes(needed, tensors)
    # Doubles are checked as the float32 that they become: 1e300 becomes infinity.
    narrowed = {
        name: tensor.to(needed[name].dtype) if _are_floats(tensor, needed[name]) else tensor
        for name, tensor in tensors.items()
    }
    _check_numbers(narrowed, needed)
    _check_tied(narrowed, needed)
    state = OrderedDict({**needed, **narrowed})
    metadata = getattr(needed, "_metadata", {})
    for name in metadata.keys() & (versions or {}).keys():
        metadata[name] = {**metadata[name], "version": (versions or {})[name]}
    state._metadata = metadata  # type: ignore[attr-defined]  # as PyTorch's own state dicts have it
    try:
        module.load_state_dict(state, strict=True)
    except Exception as error:  # noqa: BLE001 - a layer's own code may raise what it likes
        raise InputRejectedError(
            f"the architecture's own code does not take these weights ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from None


def check_names_and_shapes(needed: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not the architecture's.

    Args:
        needed: the architecture's own state dict; its numbers are not read.
        tensors: of the checkpoint.

    Raises:
        InputRejectedError: names are missing or unexpected (``num_batches_tracked`` may be
            missing), or shapes differ; the line names them and counts them.
    """
    missing = [
        name for name in needed if name not in tensors and not name.endswith(".num_batches_tracked")
    ]
    unexpected = [name for name in tensors if name not in needed]
    if missing or unexpected:
        raise InputRejectedError(
            f"the names do not match the architecture: missing {_listing(missing)}; unexpected "
            f"{_listing(unexpected)}; give the architecture that these weights were made for"
        )
    differing = [
        f"{name} is {_shape(tensor)} for {_shape(needed[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != needed[name].shape
    ]
    if differing:
        raise InputRejectedError(
            f"shapes do not match the architecture: {_listing(differing)}{_head(tensors, needed)}"
        )


def _head(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> str:
    """Return advice where all that differs is how many outputs the last layer has."""
    pairs = [
        (tensor.shape, needed[name].shape)
        for name, tensor in tensors.items()
        if tensor.shape != needed[name].shape
    ]
    heads = {(ours[:1], theirs[:1]) for ours, theirs in pairs}
    if (
        len(heads) != 1
        or not all(first and first[0] for first in next(iter(heads)))
        or any(ours[1:] != theirs[1:] for ours, theirs in pairs)
    ):
        return ""
    ((ours, theirs),) = heads
    return (
        f"; its last layer has {ours[0]} outputs, and the architecture's {theirs[0]}: give "
        f"--classes {ours[0]} if those are all; if you did, let its code take them as num_classes"
    )


def _check_numbers(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != needed[name].is_floating_point():
            raise InputRejectedError(
                f"{name} is {_dtype(tensor)}; the architecture has {_dtype(needed[name])}"
            )
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            where = (~finite).nonzero()[0].tolist()
            raise InputRejectedError(
                f"{name}: {int((~finite).sum())} of {tensor.numel()} numbers are NaN or infinite, "
                f"the first at {where}; a trained network has none"
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise InputRejectedError(f"{name} has variances below zero; no training makes these")


def _check_tied(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    """Refuse different numbers for one tensor of the architecture: the last would win."""
    known: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, own in needed.items():
        if (
            name not in tensors
            or own.layout is not torch.strided
            or not own.numel()
            or is_lazy(own)
        ):
            continue
        first = known.setdefault((own.data_ptr(), own.shape, own.stride()), name)
        if first != name and not torch.equal(tensors[first], tensors[name]):
            raise InputRejectedError(
                f"{first} and {name} are one tensor in the architecture and two in the file; give "
                "the code that made it"
            )


def _are_floats(*tensors: Tensor) -> bool:
    return all(tensor.is_floating_point() for tensor in tensors)


def _overlaps_itself(tensor: Tensor) -> bool:
    """Return whether two indices might name one element; exact for what torch.save writes.

    With strides in ascending order, an axis whose stride is larger than the furthest offset that
    the smaller ones reach cannot run into them.
    """
    if tensor.numel() == 0:
        return False
    reach = 0
    axes = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted(axis for axis in axes if axis[1] > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _check_sharing(tensors: Mapping[str, Tensor]) -> None:
    spans = sorted(
        ((*_span(tensor), name) for name, tensor in tensors.items() if tensor.numel()),
        key=lambda span: span[:2],
    )
    for (start, end, name), (next_start, next_end, next_name) in itertools.pairwise(spans):
        if next_start < end and (start, end) != (next_start, next_end):
            raise InputRejectedError(
                f"{name} and {next_name} share some of their numbers; save each on its own"
            )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and behind its last."""
    last = sum(
        stride * (size - 1) for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "scalar"


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _listing(names: list[str]) -> str:
    if not names:
        return "none"
    return f"{len(names)} ({listed(names, SHOWN)})"
