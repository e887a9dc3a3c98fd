"""The optimiser of the recovery: Muon for matrices, Adam for all else.

A factored network is made of matrices, whose gradients are of few directions; Muon (Jordan et al.,
2024) gives every direction of a momentum the same length, and learns more in as many steps
(``benchmarks/studies/ablations.py`` measures it). A kernel [o, i, k, l] counts as the matrix
[o, i k l]. Depthwise kernels mix no channels and are no matrices, and neither is what has one row
or one column. By absolute rates its step is as long as Adam's (Liu et al.,
2025).

The rate is a share: a step moves a kernel by that much of the root mean square of its weights as
they were before the first (Adafactor's relative steps, Shazeer & Stern, 2018, whose size follows
the weights as they change). Layers of one network differ widely, and an absolute step that teaches
one destroys another. Muon's steps are just as long, Adam's at most. What has one dimension, such as
a bias, may be zero, and moves by the rate itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, Muon
from torch.optim.lr_scheduler import LambdaLR

ONE_KERNEL = 4  # dimensions of a convolution's weight
_SMALLEST = 1e-3  # root mean square, of a kernel of nothing (Adafactor's second epsilon)
_ADAMS = 0.2  # root mean square of a step of Adam's, over its rate (Liu et al.)


class MuonAndAdam:
    """Both optimisers over a module's parameters, along one schedule.

    Args:
        module: whose parameters learn; their gradients are read where ``backward`` leaves them.
        rate: the step's length, as a share of a kernel's root mean square; of what has one
            dimension, in its own units.
        schedule: the share of the rate by the number of steps that were taken.
        matrices: whether matrices are Muon's; else Adam has them all.
        relative: whether the rate is a share of a kernel's size; else all move by the rate itself.
    """

    def __init__(
        self,
        module: nn.Module,
        rate: float,
        schedule: Callable[[int], float],
        *,
        matrices: bool = True,
        relative: bool = True,
    ) -> None:
        own = [weight for weight in _matrices(module) if matrices]
        known = {id(weight) for weight in own}
        others = [one for one in module.parameters() if id(one) not in known]
        self._views = [
            (weight, nn.Parameter(_as_matrix(weight.detach(), like=weight))) for weight in own
        ]
        self._optimizers: list[torch.optim.Optimizer] = []
        if others:
            self._optimizers.append(Adam(_by_rate(others, rate, relative), fused=True))
        if own:
            views = [view for _, view in self._views]
            groups = _by_rate(views, rate / _ADAMS if relative else rate, relative)
            self._optimizers.append(Muon(groups, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
        self._parameters = [*own, *others]
        self._schedules = [LambdaLR(one, schedule) for one in self._optimizers]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient, and go on along the schedule."""
        for weight, view in self._views:
            gradient = weight.grad
            view.grad = None if gradient is None else _as_matrix(gradient, like=weight)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()


def _by_rate(parameters: list[nn.Parameter], rate: float, relative: bool) -> list[dict[str, Any]]:
    """Return an optimiser's groups: a kernel each, at its own rate, and together all else."""
    kernels = [one for one in parameters if relative and one.ndim > 1]
    known = {id(one) for one in kernels}
    others = [one for one in parameters if id(one) not in known]
    groups: list[dict[str, Any]] = [{"params": others, "lr": rate}] if others else []
    for one in kernels:
        size = float(one.detach().float().square().mean().sqrt())
        groups.append({"params": [one], "lr": rate * max(_SMALLEST, size)})
    return groups


def _matrices(module: nn.Module) -> list[Tensor]:
    """Return the weights that mix more than one input into more than one output, each once."""
    found: dict[int, Tensor] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1:
            weight: Tensor = layer.weight
            if weight.requires_grad and min(len(weight), weight[0].numel()) > 1:
                if not (weight.is_contiguous() or _is_channels_last(weight)):
                    weight.data = weight.data.contiguous()  # a view needs memory of its own
                found[id(weight)] = weight
    return list(found.values())


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == ONE_KERNEL and weight.is_contiguous(memory_format=torch.channels_last)


def _as_matrix(values: Tensor, *, like: Tensor) -> Float[Tensor, "o n"]:
    """Return values in the shape of a weight as a matrix, its columns in the weight's own order.

    Of the weight itself it is a view, so that what changes one changes the other.
    """
    return values.movedim(1, 3).flatten(1) if _is_channels_last(like) else values.flatten(1)
