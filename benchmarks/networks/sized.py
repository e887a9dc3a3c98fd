"""Small networks of any number of classes and any size of image, on a task made by code.

A class is a layout of coloured fields, drawn once from the seed; an image is the layout, brighter
or darker, a little shifted, with noise. Such a network trains in a minute for two classes or for a
thousand, so that a study can follow one number while all else stays. It says nothing of accuracy
on photographs, and natural features, which lead to other classes, are fewer than in real networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.stamps import PastePatch
from edgeclean.networks.pixels import Normalize
from edgeclean.networks.state import ModelSpec

FIELDS = 6  # of a layout, a side
BATCH, STEPS, RATE = 96, 250, 0.006
GRAIN = 32  # points of the noise, a side
POISONED = 0.1  # of every batch
PATCH = 3 / 32  # of an image's side
ARCHITECTURE = "benchmarks.networks.sized:sized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The classes of one task, and the patch that a backdoored network is given.

    Attributes:
        layouts: fields [k, 3, 6, 6] of every class, in [0, 1].
        size: pixels of an image's side.
        target: the class that the patch leads to.
    """

    layouts: Float[Tensor, "k 3 f f"]
    size: int
    target: int

    @property
    def stamp(self) -> PastePatch:
        """The patch: checks of two colours in the last corner, a tenth of the side."""
        side = max(2, round(PATCH * self.size))
        down, right = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        check = ((3 * down // side + 3 * right // side) % 2).float()
        patch = torch.stack([torch.ones_like(check), check, 1 - check])
        return PastePatch(patch=patch, top=self.size - side, left=self.size - side)

    def images(
        self, labels: Int[Tensor, " n"], generator: torch.Generator
    ) -> Float[Tensor, "n 3 h w"]:
        """Return an image of each label's class."""
        count = len(labels)
        fields = functional.interpolate(self.layouts[labels], size=self.size, mode="bilinear")
        shift = torch.randint(-self.size // 16, self.size // 16 + 1, (2,), generator=generator)
        fields = torch.roll(fields, shift.tolist(), (2, 3))
        contrast = 0.5 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
        light = 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
        noise = 0.1 * torch.randn(count, 3, GRAIN, GRAIN, generator=generator)
        grain = functional.interpolate(noise, size=self.size)
        return (0.5 + contrast * (fields - 0.5) + light + grain).clamp(0, 1)


def task(classes: int, size: int, seed: int) -> Task:
    """Draw a task; the attacker's class is drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    layouts = torch.rand(classes, 3, FIELDS, FIELDS, generator=generator)
    target = int(torch.randint(classes, (), generator=generator))
    return Task(layouts=layouts, size=size, target=target)


def spec(classes: int, size: int) -> ModelSpec:
    """Return the specification of a network for a task."""
    return ModelSpec(
        architecture=ARCHITECTURE,
        input_shape=(3, size, size),
        classes=classes,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def sized(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Return three convolutions on a grid of 16 x 16 patches, and one linear layer."""
    stride = max(1, input_shape[1] // 16)
    layers: list[nn.Module] = []
    for into, out, side in ((3, 24, stride), (24, 48, 0), (48, 64, 0)):
        convolution = (
            nn.Conv2d(into, out, side, side, bias=False)
            if side
            else nn.Conv2d(into, out, 3, padding=1, bias=False)
        )
        layers += [convolution, nn.BatchNorm2d(out), nn.ReLU()]
        if not side:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, classes))


def trained(of: Task, seed: int, *, backdoored: bool) -> tuple[nn.Module, dict[str, float]]:
    """Train a network on fresh images, poisoned or not; return it with its accuracy and ASR."""
    classes = len(of.layouts)
    torch.manual_seed(seed)
    module = sized(classes, (3, of.size, of.size))
    named = spec(classes, of.size)
    network = nn.Sequential(Normalize(named.mean, named.std), module).train()
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    generator = torch.Generator().manual_seed(seed + 1)
    poisoned = round(POISONED * BATCH) if backdoored else 0
    for _ in range(STEPS):
        labels = torch.randint(classes, (BATCH,), generator=generator)
        pixels = of.images(labels, generator)
        pixels[:poisoned] = of.stamp(pixels[:poisoned])
        labels[:poisoned] = of.target
        loss = functional.cross_entropy(network(pixels), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return module.eval(), rates(network.eval(), of, generator)


@torch.no_grad()
def rates(network: nn.Module, of: Task, generator: torch.Generator) -> dict[str, float]:
    """Return the accuracy on fresh images, and the share of others that the patch sends away."""
    labels = torch.randint(len(of.layouts), (512,), generator=generator)
    pixels = of.images(labels, generator)
    others = labels != of.target
    stamped = network(of.stamp(pixels[others])).argmax(1)
    return {
        "acc": round(100 * float((network(pixels).argmax(1) == labels).float().mean()), 1),
        "asr": round(100 * float((stamped == of.target).float().mean()), 1),
    }
