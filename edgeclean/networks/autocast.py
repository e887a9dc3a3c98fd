"""Mixed precision where the processor has it: bfloat16 autocast, else plain float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 convolutions run on dedicated instructions of this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type == "cpu":
        # The check that torch's own oneDNN convolutions make before they choose a bfloat16 kernel.
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return an autocast context: bfloat16 where it is fast, disabled elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16(device))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep a GPU's convolutions in float32 meanwhile: cuDNN else rounds their inputs to TF32.

    Comparisons with a tolerance of float32 need it; a CPU computes so anyway.
    """
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        yield


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a network's parameters (the CPU for a network without any)."""
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def channels_last(module: nn.Module) -> nn.Module:
    """Return the module with its convolutions' weights in channels-last order, which is faster."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
