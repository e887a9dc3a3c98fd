"""ResNets with attention behind each block: CBAM, ECA, coordinates, non-local, pooling."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Residual, conv_bn, pooled_head


def _with(module: Callable[[int], nn.Module], classes: int) -> nn.Module:
    """Return a small ResNet whose branches end in an attention module for their width."""

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, outside, 3, stride),
            conv_bn(outside, outside, activation=None),
            module(outside),
        )
        return Residual(branch, conv_bn(inside, outside, 1, stride, activation=None))

    return nn.Sequential(
        conv_bn(3, 24), block(24, 32, 2), block(32, 64, 2), pooled_head(64, classes)
    )


class _Cbam(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Flatten(), nn.Linear(width, width // 8), nn.ReLU(), nn.Linear(width // 8, width)
        )
        self.spatial = conv_bn(2, 1, 7, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.size(2), x.size(3))
        mean = self.mlp(functional.avg_pool2d(x, size, stride=size))
        most = self.mlp(functional.max_pool2d(x, size, stride=size))
        x = x * torch.sigmoid(mean + most).unsqueeze(2).unsqueeze(3).expand_as(x)
        both = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(both))


def cbam(classes: int) -> nn.Module:
    """Woo et al. (2018), "CBAM": attention over channels, then over places, by mean and maximum."""
    return _with(_Cbam, classes)


class _Eca(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=3, padding=1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


def eca(classes: int) -> nn.Module:
    """Wang et al. (2020), "ECA-Net": a convolution in one dimension along the channels."""
    return _with(_Eca, classes)


class _Coordinate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv1, self.bn1 = nn.Conv2d(width, 16, 1), nn.BatchNorm2d(16)
        self.conv_h, self.conv_w = nn.Conv2d(16, width, 1), nn.Conv2d(16, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows, columns = self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)
        y = functional.hardswish(self.bn1(self.conv1(torch.cat([rows, columns], dim=2))))
        rows, columns = torch.split(y, [height, width], dim=2)
        columns = columns.permute(0, 1, 3, 2)
        return x * self.conv_w(columns).sigmoid() * self.conv_h(rows).sigmoid()


def coordinate_attention(classes: int) -> nn.Module:
    """Hou et al. (2021), "Coordinate attention": means along rows and along columns."""
    return _with(_Coordinate, classes)


class _NonLocal(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.theta, self.phi = nn.Conv2d(width, half, 1), nn.Conv2d(width, half, 1)
        self.g, self.out = nn.Conv2d(width, half, 1), nn.Conv2d(half, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        theta = self.theta(x).flatten(2).permute(0, 2, 1)
        phi = functional.max_pool2d(self.phi(x), 2).flatten(2)
        g = functional.max_pool2d(self.g(x), 2).flatten(2).permute(0, 2, 1)
        weights = functional.softmax(torch.matmul(theta, phi), dim=-1)
        y = torch.matmul(weights, g).permute(0, 2, 1).contiguous()
        return self.out(y.view(batch, -1, height, width)) + x


def non_local(classes: int) -> nn.Module:
    """Wang et al. (2018), "Non-local neural networks": every place with every other, subsampled."""
    return _with(_NonLocal, classes)


class _GlobalContext(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(width, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(width, 16, 1), nn.LayerNorm([16, 1, 1]), nn.ReLU(), nn.Conv2d(16, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.mask(x).flatten(2).softmax(-1)
        context = torch.einsum("ncp,nop->nc", x.flatten(2), weights)
        return x + self.transform(context[:, :, None, None])


def global_context(classes: int) -> nn.Module:
    """Cao et al. (2019), "GCNet": one context for all places, by an einsum."""
    return _with(_GlobalContext, classes)


class _SelectiveKernel(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            conv_bn(width, width, 3, groups=8, dilation=dilation) for dilation in (1, 2)
        )
        self.fc, self.fcs = nn.Linear(width, 16), nn.ModuleList(nn.Linear(16, width) for _ in "ab")

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([conv(x) for conv in self.convs], dim=1)
        z = functional.relu(self.fc(maps.sum(dim=1).mean(-1).mean(-1)))
        weights = torch.stack([fc(z) for fc in self.fcs], dim=1).softmax(dim=1)
        return (maps * weights[..., None, None]).sum(dim=1)


def sknet(classes: int) -> nn.Module:
    """Li et al. (2019), "Selective kernel networks": a softmax chooses between dilations."""
    return _with(_SelectiveKernel, classes)


class _SimAm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.e_lambda = 1e-4

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[2] * x.shape[3] - 1
        squared = (x - x.mean(dim=[2, 3], keepdim=True)).pow(2)
        spread = squared.sum(dim=[2, 3], keepdim=True) / count
        return x * torch.sigmoid(squared / (4 * (spread + self.e_lambda)) + 0.5)


def simam(classes: int) -> nn.Module:
    """Yang et al. (2021), "SimAM": attention without a parameter."""
    return _with(_SimAm, classes)


class _AttentionPool(nn.Module):
    def __init__(self, width: int, classes: int, places: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(places + 1, width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, 4)
        self.c_proj = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
        x = x + self.positional_embedding[:, None, :]
        x, _ = self.attention(query=x[:1], key=x, value=x, need_weights=False)
        return self.c_proj(x.squeeze(0))


def attention_pool(classes: int) -> nn.Module:
    """Radford et al. (2021), "CLIP": a ResNet pooled by one query of multi-head attention."""
    return nn.Sequential(
        conv_bn(3, 24, 3, 2),
        conv_bn(24, 48, 3, 2),
        conv_bn(48, 64),
        _AttentionPool(64, classes, 64),
    )


class _GeneralisedMean(nn.Module):
    def __init__(self, power: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor(power)), eps

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x.clamp(min=self.eps).pow(self.p), 1)
        return pooled.pow(1.0 / self.p)


class _CosineHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width))
        self.scale = 16.0

    def forward(self, x: Tensor) -> Tensor:
        x = functional.normalize(x, p=2, dim=1)
        return functional.linear(x, functional.normalize(self.weight)) * self.scale


def gem_cosine(classes: int) -> nn.Module:
    """Radenovic et al. (2019), generalised-mean pooling; Wang et al. (2018), "CosFace"'s logits."""
    return nn.Sequential(
        conv_bn(3, 24, 3, 2),
        conv_bn(24, 48, 3, 2),
        conv_bn(48, 64),
        _GeneralisedMean(),
        nn.Flatten(),
        nn.Linear(64, 64, bias=False),
        nn.BatchNorm1d(64),
        _CosineHead(64, classes),
    )


class _Spatial(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.locate = nn.Sequential(
            nn.Conv2d(3, 16, 7, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 6),
        )
        nn.init.normal_(self.locate[-1].weight, std=1e-3)
        self.locate[-1].bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
        self.features = nn.Sequential(conv_bn(3, 32, 3, 2), conv_bn(32, 64, 3, 2))
        self.head = pooled_head(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        grid = functional.affine_grid(self.locate(x).view(-1, 2, 3), x.size(), align_corners=False)
        return self.head(self.features(functional.grid_sample(x, grid, align_corners=False)))


def spatial_transformer(classes: int) -> nn.Module:
    """Jaderberg et al. (2015), "Spatial transformer networks": the image sampled on a grid."""
    return _Spatial(classes)
