"""Small networks with hidden channels of every kind, drawn at random or built as asked."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.importer import import_onnx
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages
from exporters.onnx_exporter import export_onnx

KINDS = ("inverted", "squeeze", "basic", "bottleneck", "chain")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": lambda: nn.ReLU6(inplace=True),
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "prelu": lambda: nn.PReLU(),
}


@dataclass(frozen=True)
class Drawn:
    """What a network is drawn with."""

    kind: str = "inverted"
    hidden: int = 24
    image: tuple[int, int, int] = (3, 8, 8)
    norm: bool = True
    activation: str = "relu"
    seed: int = 0


class Squeeze(nn.Module):
    """Squeeze-excite: a factor for every channel from all of them."""

    def __init__(self, channels: int, *, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        few = max(2, channels // 4)
        make = (lambda i, o: nn.Linear(i, o)) if linear else (lambda i, o: nn.Conv2d(i, o, 1))
        self.reduce, self.expand = make(channels, few), make(few, channels)

    def forward(self, planes: Tensor) -> Tensor:
        pooled = planes.mean((2, 3), keepdim=not self.linear)
        gates = torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))
        return planes * (gates[:, :, None, None] if self.linear else gates)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, planes: Tensor) -> Tensor:
        return planes + self.inner(planes)


def block(drawn: Drawn, channels: int) -> nn.Module:
    """A block that keeps its input's shape, with `drawn.hidden` channels inside."""

    def conv(into: int, out: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(into, out, kernel, 1, kernel // 2, groups=groups, bias=not drawn.norm)
        return [layer, nn.BatchNorm2d(out)] if drawn.norm else [layer]

    act, hidden = ACTIVATIONS[drawn.activation], drawn.hidden
    if drawn.kind in ("inverted", "squeeze"):
        between = [Squeeze(hidden, linear=drawn.seed % 2 == 0)] if drawn.kind == "squeeze" else []
        layers = [
            *(*conv(channels, hidden, 1), act(), *conv(hidden, hidden, 3, hidden), act()),
            *(*between, *conv(hidden, channels, 1)),
        ]
    elif drawn.kind == "basic":
        layers = [*conv(channels, hidden, 3), act(), *conv(hidden, channels, 3)]
    else:
        layers = [
            *(*conv(channels, hidden, 1), act(), *conv(hidden, hidden, 3), act()),
            *conv(hidden, channels, 1),
        ]
    return Residual(nn.Sequential(*layers))


def drawn_module(drawn: Drawn) -> nn.Module:
    channels, (grey, height, width) = 16, drawn.image
    act = ACTIVATIONS[drawn.activation]
    layers: list[nn.Module]
    if drawn.kind == "chain":
        norm = (lambda: [nn.BatchNorm2d(drawn.hidden)]) if drawn.norm else list
        layers = [
            *(nn.Conv2d(grey, drawn.hidden, 3, padding=1), *norm(), act(), nn.MaxPool2d(2)),
            *(nn.Conv2d(drawn.hidden, drawn.hidden, 3, padding=1), *norm(), act(), nn.Dropout()),
            *(nn.Flatten(), nn.Linear(drawn.hidden * (height // 2) * (width // 2), 5)),
        ]
    else:
        layers = [
            *(nn.Conv2d(grey, channels, 3, padding=1), act()),
            *(block(drawn, channels), nn.ReLU(), block(drawn, channels)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)),
        ]
    return nn.Sequential(OrderedDict((f"l{i}", layer) for i, layer in enumerate(layers)))


def drawn_network(drawn: Drawn) -> LoadedNetwork:
    """A network with weights, statistics and biases at random."""
    with torch.random.fork_rng():
        torch.manual_seed(drawn.seed)
        module = drawn_module(drawn)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.data.uniform_(0.5, 1.5)
                part.bias.data.normal_(0, 0.3)
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
    return as_network(module, drawn.image)


def as_network(module: nn.Module, image: tuple[int, int, int]) -> LoadedNetwork:
    channels = image[0]
    spec = ModelSpec(
        architecture="test",
        input_shape=image,
        classes=5,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    return LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)


def through_onnx(network: LoadedNetwork) -> LoadedNetwork:
    """The same network as ONNX gives it back: steps over modules, BatchNorms folded."""
    imported = import_onnx(export_onnx(network), LoadLimits(), folder=Path())
    return as_network(imported.module, network.spec.input_shape)


def images_of(network: LoadedNetwork, count: int = 12) -> SyntheticImages:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(count, *network.spec.input_shape, generator=generator)
    return SyntheticImages(pixels=pixels, labels=torch.arange(count) % 5, origin="noise")
