"""NAD distils attention maps from a fine-tuned teacher into the backdoored network.

Source: Li et al. (2021), "Neural attention distillation". Taps are the last outputs at each of the
last spatial sizes greater than 1x1: the map of a 1x1 average pool is constant after its
normalisation and has no gradient (a known fault of a public implementation). Deviation: no cutout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.data.images import LabelledImages
from benchmarks.defences.base import batches, copied, cross_entropy, defended, need_images
from benchmarks.defences.finetune import FinetuneSettings, fit
from edgeclean.errors import UsageError
from edgeclean.networks.state import Network, PurifiedNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class NadSettings:
    """Settings of NAD; the defaults are the paper's.

    Attributes:
        betas: weights of the maps, from the earliest tap to the last.
        power: exponent of the absolute activations in a map.
        epochs: epochs over the clean images.
        high_epochs: epochs of these at ``high_rate``; the others run at ``low_rate``.
        high_rate: learning rate of the first epochs.
        low_rate: learning rate of the others.
        teacher: settings of the teacher's fine-tuning.
        taps: names of the tapped modules; empty to find them.
    """

    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0
    epochs: int = 20
    high_epochs: int = 2
    high_rate: float = 0.1
    low_rate: float = 0.01
    teacher: FinetuneSettings = field(default_factory=FinetuneSettings)
    taps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.taps and len(self.taps) != len(self.betas):
            raise UsageError(
                f"{len(self.taps)} taps but {len(self.betas)} betas; give each tap its weight"
            )


def nad(
    network: Network,
    clean: LabelledImages,
    seed: int = 0,
    settings: NadSettings | None = None,
) -> PurifiedNetwork:
    """Fine-tune a teacher, then train a copy with its attention maps beside the labels."""
    settings = settings or NadSettings()
    need_images(clean, "NAD")
    taps = settings.taps or find_taps(network, len(settings.betas))
    betas = settings.betas[-len(taps) :]
    teacher, student = copied(network), copied(network)
    fit(teacher, network, clean, seed, settings.teacher)
    teacher.requires_grad_(False)
    _distil(student, teacher, taps, betas, network, clean, seed, settings)
    notes = {"taps": list(taps), "images": len(clean)}
    return defended(network, student, "nad", settings, notes)


def attention(features: Float[Tensor, "n c h w"], power: float) -> Float[Tensor, "n hw"]:
    """Sum |features|^power over channels, and divide each image's map by its L2 norm."""
    maps = features.abs().pow(power).sum(1).flatten(1)
    normalised: Tensor = maps / (maps.norm(dim=1, keepdim=True) + 1e-6)
    return normalised


def attention_loss(
    students: Sequence[Tensor], teachers: Sequence[Tensor], betas: Sequence[float], power: float
) -> Tensor:
    """Sum over the taps beta times the mean squared difference of both networks' maps."""
    losses = [
        beta * (attention(student, power) - attention(teacher, power)).square().mean()
        for student, teacher, beta in zip(students, teachers, betas, strict=True)
    ]
    return torch.stack(losses).sum()


def learning_rate(epoch: int, settings: NadSettings) -> float:
    """Return the high rate for the first epochs, the low rate for the others."""
    return settings.high_rate if epoch < settings.high_epochs else settings.low_rate


def find_taps(network: Network, count: int) -> tuple[str, ...]:
    """Return the modules that finish last at each of the last ``count`` spatial sizes above 1x1."""
    last_at: dict[tuple[int, int], str] = {}

    def note(name: str) -> object:
        def hook(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                last_at[(output.shape[2], output.shape[3])] = name

        return hook

    probe = copied(network)  # hooks are never put on the caller's module
    for name, layer in probe.named_modules():
        if name:
            layer.register_forward_hook(note(name))
    with torch.no_grad():
        probe(torch.zeros(1, *network.spec.input_shape, device=next(probe.parameters()).device))
    if not last_at:
        raise UsageError("NAD needs feature maps larger than 1x1 and the network makes none")
    return tuple(last_at.values())[-count:]


def _distil(  # noqa: PLR0913 - one loop and what it needs
    student: nn.Module,
    teacher: nn.Module,
    taps: tuple[str, ...],
    betas: tuple[float, ...],
    network: Network,
    clean: LabelledImages,
    seed: int,
    settings: NadSettings,
) -> None:
    student_maps, teacher_maps = _Taps(student, taps), _Taps(teacher, taps)
    tuning = settings.teacher
    optimiser = torch.optim.SGD(
        student.parameters(),
        lr=settings.high_rate,
        momentum=tuning.momentum,
        weight_decay=tuning.weight_decay,
        nesterov=True,
    )
    generator = torch.Generator().manual_seed(seed + 1)
    student.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)  # dropout has no other source
        for epoch in range(settings.epochs):
            optimiser.param_groups[0]["lr"] = learning_rate(epoch, settings)
            for images, labels in batches(
                clean,
                network,
                size=tuning.batch,
                padding=tuning.padding,
                flip=tuning.flip,
                generator=generator,
            ):
                with torch.no_grad():
                    teacher(images)
                loss = cross_entropy(student(images), labels)
                loss = loss + attention_loss(
                    [student_maps.seen[tap] for tap in taps],
                    [teacher_maps.seen[tap] for tap in taps],
                    betas,
                    settings.power,
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    student_maps.close()
    teacher_maps.close()
    student.eval()


class _Taps:
    """The latest outputs of the named modules."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        self.seen: dict[str, Tensor] = {}
        self._handles = [
            module.get_submodule(name).register_forward_hook(self._keep(name)) for name in names
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        def hook(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.seen[name] = output

        return hook
