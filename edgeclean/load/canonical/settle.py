"""Layers that inference computes as stock ones do become those, in place and under their names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from edgeclean.networks.features import hooked

_STATISTICS = ("running_mean", "running_var")
_EPSILONS = (1e-5, 1e-3, 1e-6, 0.0)  # of codes whose BatchNorm has no attribute ``eps``
_TOLERANCE = 1e-5
_SCALES = (1.0, 1e-3, 30.0, 1e3, 1e5)  # of what such a layer is tried on: it may clamp


@torch.no_grad()
def settle_(module: nn.Module, images: Tensor) -> list[str]:
    """Compute what evaluation computes anew at every pass from weights alone, once and for all.

    Parametrised weights (weight and spectral norm, orthogonal, the user's own), the older norms
    and prunings that are hooks, and BatchNorms of a class of their own, as detection code has, or
    of torch's for several devices.

    Args:
        module: a network in evaluation mode that has run once.
        images: of its shape.

    Returns:
        The names of the layers that were settled.
    """
    settled = [name for name, layer in list(module.named_modules()) if _settle_weights_(layer)]
    for name, layer in list(module.named_modules()):
        norm = _stock_norm(layer)
        if name and norm is not None:
            module.set_submodule(name, norm)
            settled.append(name)
    return settled + _settle_synchronised_(module, images)


def _settle_synchronised_(module: nn.Module, images: Tensor) -> list[str]:
    """Replace a SyncBatchNorm of planes by the BatchNorm2d that it is in evaluation.

    No stage knows the other class, and it takes values of any axes, so that a run has to tell.
    """
    found = [
        (name, layer)
        for name, layer in module.named_modules(remove_duplicate=False)
        if name and type(layer) is nn.SyncBatchNorm and not layer._forward_hooks
    ]
    axes: dict[nn.SyncBatchNorm, set[int]] = {layer: set() for _, layer in found}
    handles = [
        layer.register_forward_hook(lambda one, _given, made: axes[one].add(made.dim()))
        for layer in axes
    ]
    try:
        with hooked(handles):
            if found:
                module(images.clone())
    except Exception:  # noqa: BLE001 - code of any kind: what it raises is told once it is tried
        return []
    norms = {layer: _plain_norm(layer) for layer, seen in axes.items() if seen == {4}}
    settled = [(name, norms[layer]) for name, layer in found if layer in norms]
    for name, norm in settled:
        module.set_submodule(name, norm)
    return [name for name, _ in settled]


def _plain_norm(layer: nn.SyncBatchNorm) -> nn.BatchNorm2d:
    """Return a BatchNorm2d of the very tensors, momentum and mode of the other."""
    norm = nn.BatchNorm2d(
        layer.num_features, layer.eps, layer.momentum, layer.affine, device="meta"
    )
    norm._parameters, norm._buffers = dict(layer._parameters), dict(layer._buffers)
    norm.track_running_stats = layer.track_running_stats
    return norm.train(layer.training)


def _settle_weights_(layer: nn.Module) -> bool:
    before = len(layer._forward_pre_hooks)
    for key, hook in list(layer._forward_pre_hooks.items()):
        if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod):
            hook.remove(layer)
            del layer._forward_pre_hooks[key]
    parametrised = parametrize.is_parametrized(layer)
    if parametrised:
        for name in list(layer.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
            made = getattr(layer, name)
            if not isinstance(made, nn.Parameter):  # one that is made of several others
                delattr(layer, name)
                layer.register_parameter(name, nn.Parameter(made.detach().clone()))
    return parametrised or len(layer._forward_pre_hooks) < before


def _stock_norm(layer: nn.Module) -> nn.BatchNorm2d | None:
    """Return the BatchNorm of torch that computes what this layer does, if there is one.

    What a layer computes is seen by running it: its names promise nothing.
    """
    mean, variance = (getattr(layer, name, None) for name in _STATISTICS)
    if isinstance(layer, _BatchNorm) or not (
        isinstance(mean, Tensor) and isinstance(variance, Tensor)
    ):
        return None
    if mean.dim() != 1 or mean.shape != variance.shape or any(layer.children()):
        return None
    drawn = torch.randn(2, len(mean), 5, 4, generator=torch.Generator().manual_seed(0))
    images = [drawn * scale for scale in _SCALES]
    try:
        expected = [layer(one.clone()) for one in images]
    except Exception:  # noqa: BLE001 - code of any kind: then it is not one of these
        return None
    own = getattr(layer, "eps", None)
    for eps in (own,) if isinstance(own, float) else _EPSILONS:
        norm = _norm_of(layer, len(mean), eps)
        if norm is not None and all(map(_is_close, map(norm, images), expected)):
            return norm
    return None


def _norm_of(layer: nn.Module, channels: int, eps: float) -> nn.BatchNorm2d | None:
    norm = nn.BatchNorm2d(channels, eps=eps).eval()
    for name in ("weight", "bias", *_STATISTICS):
        given = getattr(layer, name, None)
        if given is None:
            continue
        if not isinstance(given, Tensor) or given.shape != (channels,):
            return None
        getattr(norm, name).copy_(given)
    return norm


def _is_close(got: Tensor, expected: object) -> bool:
    return (
        isinstance(expected, Tensor)
        and got.shape == expected.shape
        and bool((got - expected).abs().max() <= _TOLERANCE * (1 + expected.abs().max()))
    )
