"""List every attack by name, with a function that makes it for images of a given size."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.attacks.base import Attack, NoAttack
from benchmarks.attacks.blended import blended, ftrojan, low_frequency, sig
from benchmarks.attacks.input_aware import InputAware
from benchmarks.attacks.patch import badnets
from benchmarks.attacks.source_specific import SourceSpecificAttack
from benchmarks.attacks.trojan import TrojanAttack
from benchmarks.attacks.warped import WaNet

Make = Callable[[int, tuple[int, int]], Attack]

ATTACKS: dict[str, Make] = {
    "clean": lambda classes, size: NoAttack(classes=classes),
    "badnets": lambda classes, size: badnets(classes=classes, size=size),
    "badnets-a2a": lambda classes, size: badnets(classes=classes, size=size, target=None),
    "input-aware": lambda classes, size: InputAware(classes=classes),
    "input-aware-a2a": lambda classes, size: InputAware(classes=classes, target=None),
    "wanet": lambda classes, size: WaNet(classes=classes, size=size),
    "blended": lambda classes, size: blended(classes=classes, size=size),
    "sig": lambda classes, size: sig(classes=classes, size=size),
    "trojan": lambda classes, size: TrojanAttack(classes=classes, size=size),
    "ftrojan": lambda classes, size: ftrojan(classes=classes, size=size),
    "source-badnets": lambda classes, size: SourceSpecificAttack(
        badnets(classes=classes, size=size)
    ),
    "source-blended": lambda classes, size: SourceSpecificAttack(
        blended(classes=classes, size=size)
    ),
    "low-frequency": lambda classes, size: low_frequency(classes=classes, size=size),
}
