"""Other normalisations, paddings and reparametrised weights than BatchNorm's stock form."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from benchmarks.architectures.blocks import Residual, pooled_head
from benchmarks.architectures.mobile import SameConv2d


def _chain(classes: int, conv: type[nn.Module] | object, norm: object) -> nn.Module:
    """Return three strided convolutions of a kind, each with a norm of its width and ReLU."""
    layers: list[nn.Module] = []
    for inside, outside, stride in ((3, 32, 1), (32, 48, 2), (48, 64, 2)):
        layers += [conv(inside, outside, stride), norm(outside), nn.ReLU()]  # type: ignore[operator]
    return nn.Sequential(*layers, pooled_head(64, classes))


def _conv(inside: int, outside: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, 1, bias=False)


def groupnorm(classes: int) -> nn.Module:
    """Wu and He (2018), "Group normalization"."""

    def block(width: int) -> nn.Module:
        branch = nn.Sequential(
            _conv(width, width, 1),
            nn.GroupNorm(8, width),
            nn.ReLU(inplace=True),
            _conv(width, width, 1),
            nn.GroupNorm(8, width),
        )
        return Residual(branch)

    return nn.Sequential(
        _conv(3, 32, 1), block(32), _conv(32, 64, 2), block(64), pooled_head(64, classes)
    )


def instancenorm(classes: int) -> nn.Module:
    """Ulyanov et al. (2017), "Improved texture networks": statistics of each image alone."""
    return _chain(classes, _conv, lambda width: nn.InstanceNorm2d(width, affine=True))


class _Frozen(nn.Module):
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (bias - self.running_mean.reshape(1, -1, 1, 1) * scale)


def frozen_batchnorm(classes: int) -> nn.Module:
    """Detectors' habit: BatchNorm written as buffers that nothing updates."""
    return _chain(classes, _conv, _Frozen)


class _Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=[1, 2, 3], keepdim=True)
        deviation = self.weight.std(dim=[1, 2, 3], keepdim=True) + 1e-5
        return self._conv_forward(x, (self.weight - mean) / deviation, self.bias)


def weight_standardised(classes: int) -> nn.Module:
    """Qiao et al. (2019), "Weight standardization", with GroupNorm, as in Big Transfer."""
    return _chain(
        classes,
        lambda inside, outside, stride: _Standardised(inside, outside, 3, stride, 1, bias=False),
        lambda width: nn.GroupNorm(8, width),
    )


def weight_normed(classes: int) -> nn.Module:
    """Salimans and Kingma (2016), "Weight normalization", by PyTorch's parametrisation."""
    return _chain(
        classes, lambda *widths: weight_norm(_conv(*widths)), lambda width: nn.BatchNorm2d(width)
    )


def weight_normed_by_hooks(classes: int) -> nn.Module:
    """Weight normalization by the older hook, which leaves ``weight_g`` and ``weight_v``."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return _chain(
            classes, lambda *widths: nn.utils.weight_norm(_conv(*widths)), lambda _: nn.Identity()
        )


def spectral_normed(classes: int) -> nn.Module:
    """Miyato et al. (2018), "Spectral normalization", by PyTorch's parametrisation."""
    return _chain(classes, lambda *widths: spectral_norm(_conv(*widths)), nn.BatchNorm2d)


def reflect_padded(classes: int) -> nn.Module:
    """Convolutions whose padding mirrors the image, and one that goes round it."""

    def padded(inside: int, outside: int, stride: int) -> nn.Conv2d:
        mode = "circular" if stride == 1 else "reflect"
        return nn.Conv2d(inside, outside, 3, stride, 1, bias=False, padding_mode=mode)

    return _chain(classes, padded, nn.BatchNorm2d)


def replicate_padded(classes: int) -> nn.Module:
    """Padding as layers of their own: replicated, mirrored, and by zeros on one side."""
    return nn.Sequential(
        nn.ReplicationPad2d(1),
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ReflectionPad2d((1, 2, 1, 2)),
        nn.Conv2d(32, 48, 4, stride=2),
        nn.ELU(),
        nn.ZeroPad2d((0, 1, 0, 1)),
        nn.Conv2d(48, 64, 3, stride=2),
        nn.PReLU(64),
        pooled_head(64, classes),
    )


class _ResponseNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = (nn.Parameter(torch.ones(1, width, 1, 1)) for _ in "gb")
        self.tau = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        squared = torch.mean(x * x, dim=(2, 3), keepdim=True)
        x = x * torch.rsqrt(squared + 1e-6) * self.gamma + self.beta
        return torch.maximum(x, self.tau)


def filter_response(classes: int) -> nn.Module:
    """Singh and Krishnan (2020), "Filter response normalization", with its learned threshold."""
    return _chain(classes, _conv, _ResponseNorm)


class _Renamed(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )
        return functional.leaky_relu(y, 0.01)


def activated_batchnorm(classes: int) -> nn.Module:
    """Rota Bulo et al. (2018), "In-place activated BatchNorm": a subclass that also activates."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1, bias=False),
        _Renamed(32),
        nn.Conv2d(32, 64, 3, 2, 1, bias=False),
        _Renamed(64),
        nn.Conv2d(64, 64, 3, 2, 1, bias=False),
        _Renamed(64),
        pooled_head(64, classes),
    )


def plain_batchnorm(classes: int) -> nn.Module:
    """BatchNorm without weights of its own, and a momentum of None (cumulative means)."""
    return _chain(classes, _conv, lambda width: nn.BatchNorm2d(width, affine=False, momentum=None))


def batch_statistics(classes: int) -> nn.Module:
    """BatchNorm that keeps no statistics, so that images of a batch change each other's answer."""
    return _chain(classes, _conv, lambda width: nn.BatchNorm2d(width, track_running_stats=False))


def same_padded(classes: int) -> nn.Module:
    """TensorFlow's "same" padding at strides, where one side gets a pixel more."""
    return _chain(
        classes,
        lambda inside, outside, stride: SameConv2d(inside, outside, 5, stride),
        nn.BatchNorm2d,
    )
