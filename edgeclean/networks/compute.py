"""The device of the work: the processor, or a CUDA GPU where one was asked for."""

from __future__ import annotations

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
