"""Pieces that families share: convolution with BatchNorm, shortcuts, squeeze and excitation."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def conv_bn(  # noqa: PLR0913 - a convolution has as many
    inside: int,
    outside: int,
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    activation: Activation | None = nn.ReLU,
) -> nn.Sequential:
    """Return a convolution that keeps the size (but for its stride), BatchNorm, an activation."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = tuple(dilation * (side - 1) // 2 for side in sides)
    layers: list[nn.Module] = [
        nn.Conv2d(
            inside,
            outside,
            sides,
            stride,
            padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(outside),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def pooled_head(width: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Return global average pooling and a linear layer."""
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Residual(nn.Module):
    """A branch added to its input, or to a projection of it; then, where asked, an activation."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, *, after: bool = True
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.after = nn.ReLU(inplace=True) if after else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return the sum."""
        return self.after(self.branch(images) + self.shortcut(images))


class SqueezeExcite(nn.Module):
    """Channels weighted by what a small network says of their means (Hu et al., 2018)."""

    def __init__(
        self,
        width: int,
        inner: int,
        activation: Activation = nn.ReLU,
        gate: Activation = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(width, inner, 1)
        self.activation = activation()
        self.expand = nn.Conv2d(inner, width, 1)
        self.gate = gate()

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted channels."""
        weights = self.gate(self.expand(self.activation(self.reduce(self.pool(images)))))
        return images * weights
