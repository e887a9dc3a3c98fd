"""Networks whose code no stage was written for: each ingredient is one that published code has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from edgeclean.networks.state import LoadedNetwork, ModelSpec


class SameConv(nn.Conv2d):
    """TensorFlow's ``same`` padding, as every ported EfficientNet has it."""

    def forward(self, images: Tensor) -> Tensor:
        widths: list[int] = []
        for axis in (1, 0):
            side, stride = images.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            total = max((math.ceil(side / stride) - 1) * stride + reach - side, 0)
            widths += [total // 2, total - total // 2]
        padded = functional.pad(images, widths)
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class StandardisedConv(nn.Conv2d):
    """Weight standardisation: the weights are made anew from others at every pass."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(images, weight, self.bias)


class FrozenNorm(nn.Module):
    """The FrozenBatchNorm2d of detection code: four buffers and arithmetic."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, number in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
            self.register_buffer(name, torch.full((channels,), number))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class By(nn.Module):
    """A module whose forward pass is a function of it and the images."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Any:
        return self.function(self, images)


def _shuffled(module: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    first, second = module.conv(x).chunk(2, dim=1)
    joined = torch.cat([second, first], 1).view(n, 2, c // 2, h, w)
    return joined.transpose(1, 2).contiguous().view(n, -1, h, w)


def _attended(module: Any, x: Tensor) -> Tensor:
    small = functional.adaptive_avg_pool2d(x, (3, 2))
    tokens = small.flatten(2).transpose(1, 2)
    token = module.token.expand(len(x), -1, -1)
    tokens = torch.cat([token, tokens], 1)
    tokens = tokens + module.attention(tokens, tokens, tokens)[0]
    return module.conv(x) * tokens[:, 0].sigmoid()[:, :, None, None]


def _written_into(module: Any, x: Tensor) -> Tensor:
    y = module.conv(x).clone()
    y[:, :2] = x[:, 2:4] * 0.5
    y[:, 3] += 1
    return y


def _conv(channels: int, **named: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, **named)


MIDDLES: dict[str, Callable[[int], nn.Module]] = {
    "plain": _conv,
    "depthwise": lambda c: _conv(c, groups=c),
    "grouped": lambda c: _conv(c, groups=2),
    "same": lambda c: SameConv(c, c, 3, stride=2),
    "same-dilated": lambda c: SameConv(c, c, (3, 2), dilation=2),
    "standardised": lambda c: StandardisedConv(c, c, 3, padding=1),
    "weight-normed": lambda c: weight_norm(_conv(c)),
    "reflected": lambda c: _conv(c, padding_mode="reflect"),
    "subclass": lambda c: type("Own", (nn.Conv2d,), {})(c, c, 1),
    "by-keyword": lambda c: By(lambda m, x: m.conv(input=x), conv=_conv(c)),
    "functional": lambda c: By(
        lambda m, x: functional.conv2d(x, m.kernel, m.shift, padding="same"),
        kernel=nn.Parameter(torch.randn(c, c, 3, 3) / (3 * c**0.5)),
        shift=nn.Parameter(torch.randn(c)),
    ),
    "twice": lambda c: By(lambda m, x: m.conv(functional.relu(m.conv(x))), conv=_conv(c)),
    "weight-read": lambda c: By(lambda m, x: m.conv(x.to(m.conv.weight.dtype)), conv=_conv(c)),
    "shuffled": lambda c: By(_shuffled, conv=_conv(c)),
    "written-into": lambda c: By(_written_into, conv=_conv(c)),
    "pooled": lambda c: By(
        lambda m, x: m.conv(functional.adaptive_max_pool2d(x, (7, 5))), conv=_conv(c)
    ),
    "divided": lambda c: By(
        lambda m, x: m.conv(functional.avg_pool2d(x, 2, padding=1, divisor_override=5)),
        conv=_conv(c),
    ),
    "einsum": lambda c: By(
        lambda m, x: torch.einsum("nchw,oc->nohw", x, m.mix),
        mix=nn.Parameter(torch.randn(c, c) / c**0.5),
    ),
    "attention": lambda c: By(
        _attended,
        attention=nn.MultiheadAttention(c, 2, batch_first=True),
        token=nn.Parameter(torch.randn(1, 1, c)),
        conv=_conv(c),
    ),
    "in-place": lambda c: By(lambda m, x: m.conv(x).mul_(0.5).add_(0.1), conv=_conv(c)),
    "no-grad": lambda c: By(lambda m, x: m.conv(x.detach()), conv=_conv(c)),
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda c: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "frozen": FrozenNorm,
    "group": lambda c: nn.GroupNorm(2, c),
    "rms": lambda c: By(
        lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.RMSNorm(c)
    ),
    "batch by keyword": lambda c: By(lambda m, x: m.norm(input=x), norm=nn.BatchNorm2d(c)),
    "functional": lambda c: By(
        lambda m, x: functional.batch_norm(x, m.stats.running_mean, m.stats.running_var),
        stats=nn.BatchNorm2d(c, affine=False),
    ),
}


def _pooled(x: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(x, 1)


HEADS: dict[str, Callable[[Any, Tensor], Any]] = {
    "plain": lambda m, x: m.fc(_pooled(x).flatten(1)),
    "view": lambda m, x: m.fc(functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)),
    "view-of-planes": lambda m, x: m.fc(
        (x[:, :, :2, :2] * 1).view(x.size(0), -1)[:, : m.fc.in_features]
    ),
    "len": lambda m, x: m.fc(_pooled(x).reshape(len(x), -1)),
    "squeeze": lambda m, x: m.fc(_pooled(x).squeeze()),
    "sized-pool": lambda m, x: m.fc(functional.avg_pool2d(x, x.size()[2:]).flatten(1)),
    "planes": lambda m, x: functional.conv2d(_pooled(x), m.fc.weight[:, :, None, None], m.fc.bias),
    "tuple": lambda m, x: (m.fc(_pooled(x).flatten(1)), x),
    "dictionary": lambda m, x: {"features": x, "logits": m.fc(x.mean((2, 3)))},
    "probabilities-too": lambda m, x: (m.fc(x.mean((2, 3))).softmax(1), m.fc(x.mean((2, 3)))),
    "by-keyword": lambda m, x: m.fc(input=x.mean((2, 3))),
    "matmul": lambda m, x: x.mean((2, 3)) @ m.fc.weight.t() + m.fc.bias,
}


@dataclass(frozen=True)
class Recipe:
    """What a network is made of; ``middles`` and ``norms`` of one length."""

    middles: tuple[str, ...] = ("plain",)
    norms: tuple[str, ...] = ("none",)
    head: str = "plain"
    input_shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    width: int = 8
    seed: int = 0

    def build(self) -> nn.Module:
        """A network in evaluation mode, with weights and statistics of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            body: list[nn.Module] = [nn.Conv2d(self.input_shape[0], self.width, 3, 2, 1)]
            for middle, norm in zip(self.middles, self.norms, strict=True):
                body += [MIDDLES[middle](self.width), NORMS[norm](self.width), nn.ReLU()]
            head = HEADS[self.head]
            parts = {"body": nn.Sequential(*body), "fc": nn.Linear(self.width, self.classes)}
            network = By(lambda m, x: head(m, m.body(x)), **parts)
            for layer in network.modules():
                if isinstance(getattr(layer, "running_var", None), Tensor):
                    layer.running_mean.uniform_(-0.3, 0.3)
                    layer.running_var.uniform_(0.5, 2)
        return network.eval()

    @property
    def spec(self) -> ModelSpec:
        """The spec of such a network."""
        channels = self.input_shape[0]
        return spec_of(self.input_shape, self.classes, channels)


def spec_of(
    input_shape: tuple[int, int, int] = (3, 32, 32), classes: int = 5, channels: int = 3
) -> ModelSpec:
    return ModelSpec(
        architecture="net.py:net",
        input_shape=input_shape,
        classes=classes,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )


def logits_of(answer: Any) -> Tensor:
    """The logits in what a network of these heads returns."""
    if isinstance(answer, dict):
        return answer["logits"]
    if isinstance(answer, tuple):
        return answer[-1] if answer[1].dim() == 2 else answer[0]
    return answer.flatten(1)


def loaded(module: nn.Module, spec: ModelSpec) -> LoadedNetwork:
    return LoadedNetwork(module=module, spec=spec, source_sha256="ab" * 32)
