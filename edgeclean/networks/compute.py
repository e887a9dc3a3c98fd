"""The device of the work, and PyTorch as the stages expect it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch

from edgeclean.errors import ToolchainError
from edgeclean.networks.state import LoadedNetwork

Compute = Literal["cpu", "cuda"]


def require_compute(compute: Compute) -> None:
    """Refuse a device that this machine does not have, before anything is loaded.

    Raises:
        ToolchainError: PyTorch sees no CUDA device.
    """
    if compute == "cuda" and not torch.cuda.is_available():
        raise ToolchainError(
            "a GPU was asked for, and PyTorch sees no CUDA device here; install a CUDA build of "
            'PyTorch, or leave --gpu (compute = "cuda") away'
        )


def placed(network: LoadedNetwork, compute: Compute) -> LoadedNetwork:
    """Move the network's module to the device; every stage works where its network lies."""
    network.module.to(compute)
    return network


def gpu_name(compute: Compute) -> str | None:
    """Return the name of the GPU that the work is done on; None on the processor."""
    return torch.cuda.get_device_name() if compute == "cuda" else None


@contextmanager
def as_torch_comes() -> Iterator[None]:
    """Let PyTorch be as it is when a program begins, meanwhile; for what a caller may have changed.

    Gradients are on; numbers are float32 and on the processor, without autocast. Python's own
    random numbers, which libraries draw while they are imported, go on as if nothing had been.
    """
    kept, drawn = torch.get_default_dtype(), random.getstate()
    with ExitStack() as changed:
        changed.enter_context(torch.inference_mode(mode=False))
        changed.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # costs every call a little
            changed.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                changed.enter_context(torch.autocast(kind, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(kept)
            random.setstate(drawn)
