"""Where the work is done: on the processor, or on a CUDA GPU where one was asked for."""

from __future__ import annotations

from typing import Literal

import torch

from edgeclean.errors import ToolchainError
from edgeclean.networks.state import LoadedNetwork

Compute = Literal["cpu", "cuda"]


def require_compute(compute: Compute) -> None:
    """Refuse before anything is loaded what this machine does not have.

    Raises:
        ToolchainError: PyTorch sees no CUDA device.
    """
    if compute == "cuda" and not torch.cuda.is_available():
        raise ToolchainError(
            "a GPU was asked for, and PyTorch sees no CUDA device here; install a CUDA build of "
            'PyTorch, or leave --gpu (compute = "cuda") away'
        )


def placed(network: LoadedNetwork, compute: Compute) -> LoadedNetwork:
    """The same network, its module moved there; every stage works where its network lies."""
    network.module.to(compute)
    return network


def gpu_name(compute: Compute) -> str | None:
    """What the GPU that the work is done on calls itself; None on the processor."""
    return torch.cuda.get_device_name() if compute == "cuda" else None
