"""Small seeded networks with every layer that decomposition and the choice of ranks meet."""

import torch
from torch import nn

from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages


class Stem(nn.Module):
    """Every kind of layer that decompose meets."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 24, 1, stride=2)
        self.mirror = nn.Conv2d(24, 8, 3, padding=1, padding_mode="reflect")
        self.unused = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        features = torch.relu(self.norm(self.stem(images)))
        features = torch.relu(self.grouped(self.depthwise(features)))
        features = torch.relu(self.mirror(self.point(features)))
        return self.head(features.mean(dim=(2, 3)))


class Plain(nn.Module):
    """A small network with every convolution shape that ranks are chosen for."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.down = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.point = nn.Conv2d(48, 64, 1)
        self.late = nn.Conv2d(64, 48, (3, 1), padding=(1, 0))
        self.norm = nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 5)

    def forward(self, images):
        features = torch.relu(self.down(torch.relu(self.stem(images))))
        features = torch.relu(self.norm(self.late(torch.relu(self.point(features)))))
        return self.head(features.mean(dim=(2, 3)))


def network_of(module, shape=(3, 16, 16), classes=5):
    spec = ModelSpec(
        architecture="test", input_shape=shape, classes=classes, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def plain():
    return network_of(seeded(Plain))


def some_images(count=12, seed=3):
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 5
    return SyntheticImages(pixels=pixels, labels=labels, origin="noise")
