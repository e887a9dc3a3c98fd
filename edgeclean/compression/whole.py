"""Which layers stay whole and why, in the words of a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgeclean.compression.settings import Cost
from edgeclean.files.text import listed
from edgeclean.networks.layers import Layer

SHOWN = 6  # layers, or reasons, in a message
_NEEDED = (
    "what is factored are plain Conv2d of one group that pad by zeros and have weights of their own"
)


def why_none(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return why nothing is decomposed: which convolutions there are, and why each stays.

    Args:
        layers: of every layer its name, kind and reason, as `decompose` records them.
    """
    others = [one for one in layers if one["kind"] != "linear"]
    if others:
        stays = [f"{one['name'] or 'the network'} ({one['reason']})" for one in others]
        number = (
            "1 convolution stays as it is" if len(others) == 1 else
            f"{len(others)} convolutions stay as they are"
        )  # fmt: skip
        why = f"{number}, so there is nothing to scale: {listed(stays, SHOWN)}"
    else:
        why = "it has no convolutions, so there is nothing to scale"
    return (
        f"no layer of the network is decomposed: {why}; {_NEEDED}, so that this network can only "
        "be scanned and exported as it is"
    )


def why_whole(layers: Iterable[Layer], cost: Cost) -> str:
    """Return what share of a network's layers stays whole and why; empty where none does.

    Args:
        layers: all of them.
        cost: that the goal is in. The share is of multiply-accumulates where that is time.
    """
    every = list(layers)
    weights = {one.name: _weight(one, cost) for one in every}
    whole = sum(weights[one.name] for one in every if one.reason)
    if whole == 0:
        return ""
    reasons: dict[str, list[Layer]] = {}
    for one in sorted(every, key=lambda one: -weights[one.name]):
        if one.reason and weights[one.name]:
            reasons.setdefault(one.reason, []).append(one)
    said = [
        f"{alike[0].name or 'the network'}"
        f"{f' and {len(alike) - 1} more' if len(alike) > 1 else ''} ({reason})"
        for reason, alike in reasons.items()
    ]
    more = f", and {len(said) - SHOWN} other reasons" if len(said) > SHOWN else ""
    measure = "params" if cost == "params" else "macs"
    return (
        f"{100 * whole / sum(weights.values()):.0f} % of its layers' {measure} stay whole: "
        f"{', '.join(said[:SHOWN])}{more}; {_NEEDED}"
    )


def _weight(layer: Layer, cost: Cost) -> int:
    if cost != "params":
        return layer.macs
    return sum(weight.numel() for weight in layer.module.parameters())
