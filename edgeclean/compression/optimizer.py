"""The optimiser of the recovery: Muon for matrices, Adam for all else.

A factored network is made of matrices, whose gradients are of few directions; Muon (Jordan et al.,
2024) gives every direction of a momentum the same length, and learns more in as many steps
(``benchmarks/studies/ablations.py`` measures it). A kernel [o, i, k, l] counts as the matrix
[o, i k l]. Depthwise kernels mix no channels and are no matrices, and neither is what has one row
or one column. The step is as long as Adam's (Liu et al., 2025), so both take one learning rate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, Muon
from torch.optim.lr_scheduler import LambdaLR

ONE_KERNEL = 4  # dimensions of a convolution's weight


class MuonAndAdam:
    """Both optimisers over a module's parameters, along one schedule.

    Args:
        module: whose parameters learn; their gradients are read where ``backward`` leaves them.
        rate: the learning rate of either.
        schedule: the share of the rate by the number of steps that were taken.
        matrices: whether matrices are Muon's; else Adam has them all.
    """

    def __init__(
        self,
        module: nn.Module,
        rate: float,
        schedule: Callable[[int], float],
        *,
        matrices: bool = True,
    ) -> None:
        own = [weight for weight in _matrices(module) if matrices]
        known = {id(weight) for weight in own}
        others = [one for one in module.parameters() if id(one) not in known]
        self._views = [
            (weight, nn.Parameter(_as_matrix(weight.detach(), like=weight))) for weight in own
        ]
        self._optimizers: list[torch.optim.Optimizer] = []
        if others:
            self._optimizers.append(Adam(others, lr=rate, fused=True))
        if own:
            views = [view for _, view in self._views]
            self._optimizers.append(
                Muon(views, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            )
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
