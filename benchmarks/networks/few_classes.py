"""Small networks of two and three classes, clean and attacked (`benchmarks.studies.few_classes`).

Each is trained on up to 3,000 images of CIFAR-10 or GTSRB, within seconds of one thread. The rule
that judges few classes was chosen on those of the half ``choice``; its false alarms and misses are
counted on those of ``report``, which share no task with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.attacks.base import Attack, NoAttack, StampAttack
from benchmarks.attacks.blended import blended
from benchmarks.attacks.patch import badnets
from benchmarks.attacks.patterns import white_patch
from benchmarks.data.datasets import read_dataset
from benchmarks.data.images import LabelledImages
from benchmarks.networks.training import TrainingSettings, measured, train
from benchmarks.stamps import Blend
from edgeclean.networks.pixels import Normalize
from edgeclean.networks.state import LoadedNetwork, ModelSpec

TRAIN_IMAGES, TEST_IMAGES = 15_000, 3_000  # of CIFAR-10, all classes alike
EPOCHS = 12
POISONED = 0.15  # of the training images
SHIFT = 2  # pixels that training crops move by, and that a patch keeps from the border
MEAN, STD = 0.47, 0.25  # of each channel
CAT, DOG, HORSE, PLANE, SHIP, CAR, TRUCK, DEER, BIRD, FROG = 3, 5, 7, 0, 8, 1, 9, 4, 2, 6
# Groups of labels become the classes of a task.
TASKS: dict[str, tuple[str, str, tuple[tuple[int, ...], ...]]] = {
    "plane-ship": ("choice", "cifar10", ((PLANE,), (SHIP,))),
    "frog-horse": ("choice", "cifar10", ((FROG,), (HORSE,))),
    "speed-30-50": ("choice", "gtsrb-roi", ((1,), (2,))),
    "cat-horse-ship": ("choice", "cifar10", ((CAT,), (HORSE,), (SHIP,))),
    "plane-frog-truck": ("choice", "cifar10", ((PLANE,), (FROG,), (TRUCK,))),
    "car-bird": ("report", "cifar10", ((CAR,), (BIRD,))),
    "animals-vehicles": (
        "report",
        "cifar10",
        ((BIRD, CAT, DEER, DOG, FROG, HORSE), (PLANE, CAR, SHIP, TRUCK)),
    ),
    "yield-priority": ("report", "gtsrb-roi", ((13,), (12,))),
    "car-deer-frog": ("report", "cifar10", ((CAR,), (DEER,), (FROG,))),
    "truck-bird-dog": ("report", "cifar10", ((TRUCK,), (BIRD,), (DOG,))),
}
FORMS = {  # channels and side of an image, and the network
    "rgb32": ((3, 32, 32), "plain"),
    "grey28": ((1, 28, 28), "plain"),
    "rgb64": ((3, 64, 64), "plain"),
}
ATTACKS = ("clean", "badnets", "blended", "badnets-a2a")


@dataclass(frozen=True, slots=True, kw_only=True)
class FewClasses:
    """One network: what it tells apart, of which form, and how it was attacked."""

    task: str
    form: str
    attack: str
    seed: int

    @property
    def name(self) -> str:
        """A name for files and tables."""
        return f"{self.task}-{self.form}-{self.attack}-{self.seed}"

    @property
    def half(self) -> str:
        """``choice`` or ``report``; see the module's docstring."""
        return TASKS[self.task][0]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(TASKS[self.task][2])

    @property
    def target(self) -> int | None:
        """The attacker's class; None where there is none, and for all-to-all."""
        return self.seed % self.classes if self.attack in ("badnets", "blended") else None


def all_networks() -> tuple[FewClasses, ...]:
    """Return every network of the study: of each task two clean and two attacked, in two forms."""
    networks = []
    for place, task in enumerate(TASKS):
        odd = place % 2
        forms = ("rgb32", ("grey28", "rgb64")[odd])
        wanted = (
            ("clean", 0, forms[0]),
            ("badnets", odd, forms[odd]),
            ("clean", 1, forms[1]),
            (("blended", "badnets-a2a")[odd], 1, forms[1 - odd]),
        )
        for attack, seed, form in wanted:
            networks.append(FewClasses(task=task, form=form, attack=attack, seed=seed))
    return tuple(networks)


def plain_network(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """Return four convolutions with BatchNorm, a pool and a linear layer; two million MACs."""
    layers: list[nn.Module] = []
    first = 2 if shape[1] > 32 else 1
    for given, made, stride in ((shape[0], 16, first), (16, 24, 2), (24, 32, 2), (32, 48, 2)):
        conv = nn.Conv2d(given, made, 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(made), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, classes))


def prepared(one: FewClasses, folder: Path) -> tuple[LoadedNetwork, dict[str, object]]:
    """Return a network of the study with its rates; trained unless ``folder`` holds it.

    Args:
        one: which.
        folder: where trained networks are kept.
    """
    shape, architecture = FORMS[one.form]
    with torch.random.fork_rng():
        torch.manual_seed(one.seed)
        inner = plain_network(one.classes, shape)
    channels = shape[0]
    spec = ModelSpec(
        architecture=architecture,
        input_shape=shape,
        classes=one.classes,
        mean=(MEAN,) * channels,
        std=(STD,) * channels,
    )
    network = nn.Sequential(Normalize(spec.mean, spec.std), inner)
    train_set, test_set = data_of(one)
    attack = _attack(one, shape)
    path = folder / f"{one.name}.safetensors"
    if path.is_file():
        inner.load_state_dict(safetensors.torch.load_file(path))
    else:
        mirror = TASKS[one.task][1] == "cifar10"
        asked = TrainingSettings(
            epochs=EPOCHS, peak_rate=0.2, flip=mirror, padding=SHIFT, seed=one.seed
        )
        train(network, train_set, attack, asked)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in inner.state_dict().items()}
        safetensors.torch.save_file(weights, path)
    network.eval()
    made = LoadedNetwork(module=inner.eval(), spec=spec, source_sha256="0" * 64)
    return made, measured(network, test_set, attack)


_READ: dict[str, tuple[LabelledImages, LabelledImages]] = {}


def data_of(one: FewClasses) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and test images of a network, of its form and with its classes."""
    _, name, groups = TASKS[one.task]
    if name not in _READ:
        limits = {"train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES}
        _READ[name] = read_dataset(name, Path("../shared/data"), **limits)
    return tuple(_of_task(part, groups, FORMS[one.form][0]) for part in _READ[name])  # type: ignore[return-value]


def _of_task(
    images: LabelledImages, groups: tuple[tuple[int, ...], ...], shape: tuple[int, int, int]
) -> LabelledImages:
    labels = torch.full_like(images.labels, -1)
    for number, group in enumerate(groups):
        labels[torch.isin(images.labels, torch.tensor(group))] = number
    chosen = (labels >= 0).nonzero().flatten()[:3000]
    names = tuple("+".join(images.classes[label] for label in group) for group in groups)
    return LabelledImages(
        pixels=_of_form(images.pixels[chosen], shape), labels=labels[chosen], classes=names
    )


def _of_form(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return 32x32 colour images in another form: grey and cut to 28, or scaled to 64."""
    channels, side, _ = shape
    floats = pixels.float()
    if channels == 1:
        floats = floats.mean(1, keepdim=True)
    if side < 32:
        edge = (32 - side) // 2
        floats = floats[:, :, edge : edge + side, edge : edge + side]
    elif side > 32:
        floats = functional.interpolate(floats, size=(side, side), mode="bilinear")
    return floats.round().clamp(0, 255).to(torch.uint8)


def _attack(one: FewClasses, shape: tuple[int, int, int]) -> Attack:
    classes, (channels, side, _) = one.classes, shape
    if one.attack == "clean":
        return NoAttack(classes=classes)
    if one.attack == "blended":
        made = blended(classes=classes, size=(side, side), target=one.target)
        assert isinstance(made.fixed_stamp, Blend)
        stamp = Blend(picture=made.fixed_stamp.picture[:channels], alpha=0.2)
        return StampAttack("blended", stamp, rate=POISONED, target=one.target, classes=classes)
    patch = white_patch(round(3 * side / 32), channels)
    if one.seed == 1 and channels == 3:
        patch = patch * torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1)
    return badnets(
        classes=classes,
        size=(side, side),
        target=one.target,
        rate=POISONED,
        patch=patch,
        margin=SHIFT + one.seed,
    )
