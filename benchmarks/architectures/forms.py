"""How people write a network down: outputs, calls, shared and read weights, lazy layers."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import conv_bn, pooled_head

Shape = tuple[int, int, int]


def _features() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 32), conv_bn(32, 48, 3, 2), conv_bn(48, 64, 3, 2))


class _Answering(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features, self.fc = _features(), nn.Linear(64, classes)

    def embedded(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3))


class _TupleOutput(_Answering):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.embedded(x)
        return self.fc(embedding), embedding


def tuple_output(classes: int) -> nn.Module:
    """Logits and the embedding, as networks trained with a loss on features return them."""
    return _TupleOutput(classes)


class _DictOutput(_Answering):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        embedding = self.embedded(x)
        return {"embedding": embedding, "logits": self.fc(embedding)}


def dict_output(classes: int) -> nn.Module:
    """A dictionary with the logits among others."""
    return _DictOutput(classes)


class _LogShares(_Answering):
    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(self.fc(self.embedded(x)), dim=1)


def log_softmax(classes: int) -> nn.Module:
    """The MNIST example's ending: log-shares, for the negative log-likelihood."""
    return _LogShares(classes)


def softmax(classes: int) -> nn.Module:
    """Shares in place of logits."""
    return nn.Sequential(_features(), pooled_head(64, classes), nn.Softmax(dim=1))


def single_logit(classes: int) -> nn.Module:
    """A detector of defects with one logit, for the binary cross-entropy."""
    del classes
    return nn.Sequential(_features(), pooled_head(64, 1))


class _Keywords(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.second, self.fc = nn.Conv2d(32, 64, 3, 2, 1), nn.Linear(64, classes)

    def forward(self, images: Tensor, *, scale: float = 1.0) -> Tensor:
        x = functional.relu(input=self.bn(input=self.first(input=images * scale)))
        x = functional.relu(self.second(input=x))
        return self.fc(input=torch.flatten(functional.adaptive_avg_pool2d(x, output_size=1), 1))


def keyword_calls(classes: int) -> nn.Module:
    """Layers called by keyword."""
    return _Keywords(classes)


class _Lazy(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.LazyConv2d(32, 3, padding=1), nn.LazyBatchNorm2d()
        self.conv2 = nn.LazyConv2d(48, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.LazyLinear(48), nn.LazyLinear(classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.reshape(len(x), -1))))


def lazy_layers(classes: int) -> nn.Module:
    """Layers that learn their width from the first image."""
    return _Lazy(classes)


class _ReadsWeights(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.relu(functional.conv2d(x, self.conv2.weight, self.conv2.bias, 2, 1))
        return self.fc(x.mean((-1, -2)))


def weight_reads(classes: int) -> nn.Module:
    """Weights read in ``forward``: for their type, and for a functional call of the layer."""
    return _ReadsWeights(classes)


class _Functional(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.kernel1 = nn.Parameter(0.2 * torch.randn(32, 3, 3, 3))
        self.kernel2 = nn.Parameter(0.06 * torch.randn(64, 32, 3, 3))
        self.matrix, self.bias = (
            nn.Parameter(torch.randn(classes, 64) / 8),
            nn.Parameter(torch.zeros(classes)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.conv2d(x, self.kernel1, stride=2, padding=1))
        x = functional.relu(functional.conv2d(x, self.kernel2, stride=2, padding=1))
        return functional.linear(x.mean((2, 3)), self.matrix, self.bias)


def functional_only(classes: int) -> nn.Module:
    """No layer at all: parameters and functional calls."""
    return _Functional(classes)


class _Shared(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.again = conv_bn(3, 48, 3, 2), conv_bn(48, 48)
        self.fc = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = x + self.again(x)
        return self.fc(x.mean((2, 3)))


def shared_layers(classes: int) -> nn.Module:
    """Liang and Hu (2015), "Recurrent CNN": the same convolution three times over."""
    return _Shared(classes)


class _Tied(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32, 3, 2)
        self.left, self.right = (
            nn.Conv2d(32, 32, 3, padding=1),
            nn.Conv2d(32, 32, 3, padding=2, dilation=2),
        )
        self.right.weight = self.left.weight
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(functional.relu(self.left(x) + self.right(x)).mean((2, 3)))


def tied_weights(classes: int) -> nn.Module:
    """Li et al. (2019), the trident's idea: two dilations of one kernel."""
    return _Tied(classes)


class _Normalising(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.9, 1.0, 1.1]).view(1, 3, 1, 1))
        self.body = nn.Sequential(_features(), pooled_head(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.body((x - self.mean) / self.std)


def inner_normalisation(classes: int) -> nn.Module:
    """A network that normalises its images itself, by buffers."""
    return _Normalising(classes)


class _Ensemble(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.models = nn.ModuleDict(
            {name: nn.Sequential(_features(), pooled_head(64, classes)) for name in ("a", "b")}
        )

    def forward(self, x: Tensor) -> Tensor:
        return sum(model(x) for model in self.models.values()) / len(self.models)


def ensemble(classes: int) -> nn.Module:
    """The mean of two networks' logits."""
    return _Ensemble(classes)


class _Flipped(_Answering):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embedded(x)) + self.fc(self.embedded(torch.flip(x, dims=[3])))


def mirrored(classes: int) -> nn.Module:
    """Test-time augmentation inside: the image and its mirror image, each layer run twice."""
    return _Flipped(classes)


class _NoisyTraining(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.fc = _features(), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 0.01 * torch.randn_like(x)
        if x.shape[-1] < 8:
            raise ValueError("images must be at least 8 pixels wide")
        x = functional.dropout2d(self.body(x), 0.1, self.training)
        x = functional.adaptive_avg_pool2d(x, 1).squeeze()
        return self.fc(x if x.ndim == 2 else x[None])


def squeezing(classes: int) -> nn.Module:
    """Branches on the mode and on shapes, and a squeeze that also drops a batch of one."""
    return _NoisyTraining(classes)


def unshuffled(classes: int) -> nn.Module:
    """Ridnik et al. (2021), "TResNet"'s space-to-depth stem, and a shuffle back."""
    return nn.Sequential(
        nn.PixelUnshuffle(4),
        conv_bn(48, 64),
        nn.PixelShuffle(2),
        conv_bn(16, 48, 3, 2),
        conv_bn(48, 64),
        pooled_head(64, classes),
    )


def transposed(classes: int) -> nn.Module:
    """An hourglass: strided layers, and a transposed convolution back up."""
    return nn.Sequential(
        conv_bn(3, 32, 3, 2),
        conv_bn(32, 64, 3, 2),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Upsample(scale_factor=2, mode="nearest"),
        conv_bn(32, 48, 3, 2),
        pooled_head(48, classes),
    )


def activations(classes: int) -> nn.Module:
    """A layer for each activation that is rarer than ReLU."""
    kinds = (
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.Softplus,
        nn.Mish,
        nn.LogSigmoid,
        nn.Softsign,
        nn.Tanhshrink,
    )
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1)]
    for kind in (*kinds, nn.Hardtanh, nn.Softshrink, nn.Hardshrink):
        layers += [nn.BatchNorm2d(32), kind(), nn.Conv2d(32, 32, 3, padding=1)]
    return nn.Sequential(*layers, nn.RReLU(), pooled_head(32, classes))


def glu(classes: int) -> nn.Module:
    """Dauphin et al. (2017), "Gated convolutional networks": half of the channels gate the rest."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2, 1),
        nn.GLU(dim=1),
        nn.Conv2d(32, 96, 3, 2, 1),
        nn.BatchNorm2d(96),
        nn.GLU(dim=1),
        pooled_head(48, classes),
    )


def named_sequential(classes: int) -> nn.Module:
    """An ordered dictionary whose keys are no Python names, and a layer that is never run."""
    network = nn.Sequential(
        OrderedDict(
            [
                ("0-stem", conv_bn(3, 32)),
                ("block 1", conv_bn(32, 48, 3, 2)),
                ("features/2", nn.Conv2d(48, 64, 3, 2, 1)),
                ("head", pooled_head(64, classes)),
            ]
        )
    )
    network.get_submodule("block 1").register_module("unused", nn.Identity())
    return network


class _Bands(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_features(), pooled_head(64, classes))

    def forward(self, x: Tensor) -> Tensor:
        blue_first = x[:, [2, 1, 0]]
        cropped = blue_first[..., 2:-2, 2:-2]
        return self.body(functional.interpolate(cropped, size=(24, 24), mode="nearest"))


def cropped(classes: int) -> nn.Module:
    """Channels reordered by an index, a centre crop, and a resize before the first layer."""
    return _Bands(classes)


class _FixedBatch(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features, self.fc = _features(), nn.Linear(64 * 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        return self.fc(self.features(x).view(batch, 64 * 8 * 8))


def view_flatten(classes: int) -> nn.Module:
    """``view`` with every size written out."""
    return _FixedBatch(classes)
