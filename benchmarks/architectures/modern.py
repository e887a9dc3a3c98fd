"""Convolutions after the transformers' manner: ConvNeXt, EdgeNeXt, PoolFormer, MobileViT, ViT."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import conv_bn, pooled_head


class _LayerNorm2d(nn.Module):
    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class _ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1, self.act = nn.Linear(width, 4 * width), nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class _ConvNext(nn.Module):
    def __init__(self, classes: int, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, 4), _LayerNorm2d(32))
        self.stage1, self.stage2 = block(32), block(64)
        self.down = nn.Sequential(_LayerNorm2d(32), nn.Conv2d(32, 64, 2, 2))
        self.norm, self.head = nn.LayerNorm(64, eps=1e-6), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return self.head(self.norm(x.mean([-2, -1])))


def convnext(classes: int) -> nn.Module:
    """Liu et al. (2022), "A ConvNet for the 2020s": linear layers over permuted maps."""
    return _ConvNext(classes, _ConvNextBlock)


class _ConvNextV2Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = _LayerNorm2d(width)
        self.pwconv1, self.pwconv2 = nn.Conv2d(width, 128, 1), nn.Conv2d(128, width, 1)
        self.gamma = nn.Parameter(torch.zeros(1, 128, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, 128, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.pwconv1(self.norm(self.dwconv(x))))
        spread = torch.norm(y, p=2, dim=(2, 3), keepdim=True)
        share = spread / (spread.mean(dim=1, keepdim=True) + 1e-6)
        return x + self.pwconv2(self.gamma * (y * share) + self.beta + y)


def convnext_v2(classes: int) -> nn.Module:
    """Woo et al. (2023), "ConvNeXt V2": global response normalisation, as 1x1 convolutions."""
    return _ConvNext(classes, _ConvNextV2Block)


class _CrossCovariance(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
        weights = ((query @ key.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        return self.proj((weights @ value).permute(0, 3, 1, 2).reshape(batch, tokens, width))


class _SplitDepthwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        part = width // 2
        self.convs = nn.ModuleList([nn.Conv2d(part, part, 3, padding=1, groups=part)])
        self.norm, self.norm_xca = nn.LayerNorm(width), nn.LayerNorm(width)
        self.xca = _CrossCovariance(width, 4)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        parts = torch.chunk(x, 2, dim=1)
        y = torch.cat((self.convs[0](parts[0]), parts[1]), 1)
        y = y.reshape(batch, width, height * columns).permute(0, 2, 1)
        y = y + self.xca(self.norm_xca(y))
        y = y.reshape(batch, height, columns, width)
        y = self.pwconv2(functional.gelu(self.pwconv1(self.norm(y)))).permute(0, 3, 1, 2)
        return x + y


class _EdgeNext(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, 4), _LayerNorm2d(32))
        self.local, self.mixed = _ConvNextBlock(32), _SplitDepthwise(64)
        self.down = nn.Sequential(_LayerNorm2d(32), nn.Conv2d(32, 64, 2, 2))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.to(self.stem[0].weight.dtype))
        x = self.mixed(self.down(self.local(x)))
        return self.head(self.norm(x.mean([-2, -1])))


def edgenext(classes: int) -> nn.Module:
    """Maaz et al. (2022), "EdgeNeXt": attention across channels; reads its first weight's dtype."""
    return _EdgeNext(classes)


class _PoolMixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.fc1, self.fc2 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)
        self.layer_scale = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.layer_scale.unsqueeze(-1).unsqueeze(-1)
        y = self.norm1(x)
        x = x + scale * (self.pool(y) - y)
        return x + scale * self.fc2(functional.gelu(self.fc1(self.norm2(x))))


def poolformer(classes: int) -> nn.Module:
    """Yu et al. (2022), "MetaFormer is actually what you need": pooling in place of attention."""
    return nn.Sequential(
        nn.Conv2d(3, 48, 7, 4, 2),
        _PoolMixer(48),
        nn.Conv2d(48, 96, 3, 2, 1),
        _PoolMixer(96),
        nn.GroupNorm(1, 96),
        pooled_head(96, classes),
    )


class _MobileVit(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.local = nn.Sequential(conv_bn(width, width), nn.Conv2d(width, width, 1, bias=False))
        self.transformer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.fuse = conv_bn(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        side, rows, across = self.patch, height // self.patch, columns // self.patch
        y = self.local(x).reshape(batch, width, rows, side, across, side)
        y = y.permute(0, 3, 5, 2, 4, 1).reshape(batch * side * side, rows * across, width)
        y = self.transformer(y).reshape(batch, side, side, rows, across, width)
        y = y.permute(0, 5, 3, 1, 4, 2).reshape(batch, width, height, columns)
        return self.fuse(torch.cat((x, y), 1))


def mobilevit(classes: int) -> nn.Module:
    """Mehta and Rastegari (2022), "MobileViT": patches unfolded for a stock encoder layer."""
    return nn.Sequential(
        conv_bn(3, 24, 3, 2), conv_bn(24, 48, 3, 2), _MobileVit(48, 2), pooled_head(48, classes)
    )


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class _Encoder(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Vit(nn.Module):
    def __init__(self, classes: int, stem: nn.Module, tokens: int) -> None:
        super().__init__()
        self.stem = stem
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 64))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens + 1, 64))
        self.blocks = nn.Sequential(_Encoder(64, 4), _Encoder(64, 4))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(classes: int) -> nn.Module:
    """Dosovitskiy et al. (2021), "An image is worth 16x16 words": one convolution, of patches."""
    return _Vit(classes, nn.Conv2d(3, 64, 4, 4), 64)


def hybrid_vit(classes: int) -> nn.Module:
    """Xiao et al. (2021), "Early convolutions help transformers": a stem of four layers."""
    stem = nn.Sequential(
        conv_bn(3, 24, 3, 2), conv_bn(24, 48, 3, 2), conv_bn(48, 64), nn.Conv2d(64, 64, 1)
    )
    return _Vit(classes, stem, 64)


class _Mixer(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64))
        self.channels = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(dim=1))


def mlp_mixer(classes: int) -> nn.Module:
    """Tolstikhin et al. (2021), "MLP-Mixer": linear layers over tokens, then over channels."""
    return _Mixer(classes)


class _WindowAttention(nn.Module):
    def __init__(self, width: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm, self.attn = nn.LayerNorm(width), _Attention(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, columns, width = x.shape
        side = self.window
        y = torch.roll(self.norm(x), shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = y.view(batch, height // side, side, columns // side, side, width)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, width)
        y = self.attn(y).view(batch, height // side, columns // side, side, side, width)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(batch, height, columns, width)
        return x + torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))


class _Swin(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 32, 3, 2), nn.Conv2d(32, 64, 2, 2))
        self.blocks = nn.Sequential(_WindowAttention(64, 4, 0), _WindowAttention(64, 4, 2))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).flatten(1, 2).mean(1))


def swin(classes: int) -> nn.Module:
    """Liu et al. (2021), "Swin transformer": windows rolled by half of their side."""
    return _Swin(classes)
