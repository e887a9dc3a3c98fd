"""Forecast the accuracy that was probably lost, from the agreement with the original network.

Without labels nobody can measure accuracy. What can be measured is how often the compressed
network answers as the original does on held-out images (`agreement`). How much accuracy such a
disagreement went with was learnt, once, from networks whose loss is known on real test images
(``benchmarks/studies/forecast.py``); the file beside this module, ``forecast.json``, holds what
was learnt: one weight between the share of answers that differ and the distance of the logits, a
slope and a power, none below zero. So less agreement never forecasts less loss.

The interval is split-conformal (Lei et al., JASA 2018) over whole networks: its width is a quantile
of the errors on networks that were left out of the fit, in units that grow with the loss.

A forecast is no measurement. Where the network lies outside of what it was learnt from, there is
none, and the reasons say why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from edgeclean.measure.agreement import (
    Agreement,
    Answers,
    agreements,
    answers_of,
    procedural_distance,
)
from edgeclean.networks.state import JsonValue, ModelSpec, Network, SyntheticImages

FORMAT = "edgeclean-forecast-1"
FEWEST_IMAGES = 100  # of a kind, that are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the networks had in common that the forecast was learnt from.

    Attributes:
        channels: of their images.
        sides: the smallest and the largest side of their images, in pixels.
        classes: the fewest and the most classes.
        most_distance: the largest `procedural_distance`.
        most_points: the largest loss, in percentage points.
    """

    channels: tuple[int, ...]
    sides: tuple[int, int]
    classes: tuple[int, int]
    most_distance: float
    most_points: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was learnt of disagreement and loss.

    Attributes:
        kinds: of the images that are looked at, all alike.
        weight: of the share that is answered otherwise; the rest of 1 is that of the distance of
            the logits.
        slope: percentage points for a weighted sum of 1.
        power: of the weighted sum, above 0.
        floor: percentage points that widen every interval.
        share: of the expected loss that widens it further.
        quantile: the interval's half width is this times (floor + share x expected).
        level: the share of cases that the interval is to hold.
        coverage: the share that it did hold, over networks that were left out.
        mean_error_points: mean distance of expected and real loss, over networks left out.
        networks: how many it was learnt from.
        points: how many states of them.
        seen: where it applies.
        held_out: the settings that it was learnt with.
    """

    kinds: tuple[str, ...]
    weight: float
    slope: float
    power: float
    floor: float
    share: float
    quantile: float
    level: float
    coverage: float
    mean_error_points: float
    networks: int
    points: int
    seen: Seen
    held_out: Mapping[str, JsonValue]

    def expected_points(self, found: Sequence[Agreement]) -> float:
        """Return the expected loss in percentage points, at least 0."""
        of_kinds = [one for one in found if one.kind in self.kinds]
        weighed = sum(
            self.weight * (1 - one.agreed) + (1 - self.weight) * one.distance for one in of_kinds
        )
        mean = weighed / max(1, len(of_kinds))
        return float(min(100.0, self.slope * mean**self.power))

    def half_width(self, expected: float) -> float:
        """Return half of the interval's width around an expected loss, in percentage points."""
        return self.quantile * (self.floor + self.share * expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a network probably lost of its accuracy, or why nobody can say.

    Attributes:
        agreements: with the original on each kind of held-out images; () where none were made.
        expected_points: expected loss in percentage points; None where the forecast does not
            apply.
        low_points: lower end of the interval; below 0 for a gain.
        high_points: upper end.
        level: the share of cases that the interval is to hold.
        coverage: the share that it did hold, over networks left out.
        outside: why the forecast does not apply, in words; () where it does.
    """

    agreements: tuple[Agreement, ...]
    expected_points: float | None
    low_points: float | None
    high_points: float | None
    level: float
    coverage: float
    outside: tuple[str, ...] = ()

    @property
    def applies(self) -> bool:
        """Whether there is an expected loss."""
        return self.expected_points is not None

    def in_words(self) -> str:
        """Return the forecast, or why there is none, for a line of a table."""
        if self.expected_points is None:
            return f"none: {', and '.join(self.outside)}"
        return (
            f"{self.expected_points:.1f} points lost, {self.low_points:.1f} to "
            f"{self.high_points:.1f} in {self.level:.0%} of cases"
        )

    def summary(self) -> dict[str, JsonValue]:
        """Return it as the report holds it."""
        return {**asdict(self), "agreements": [asdict(one) for one in self.agreements]}


@cache
def calibration() -> Calibration:
    """Return what ships with the package."""
    text = resources.files("edgeclean").joinpath("measure/forecast.json").read_text("utf-8")
    return read_calibration(json.loads(text))


def read_calibration(document: Mapping[str, Any]) -> Calibration:
    """Return the calibration in a document of ``benchmarks/studies/forecast.py``."""
    fields, seen = _plain(document), _plain(document["seen"])
    del fields["format"], fields["seen"]
    return Calibration(**fields, seen=Seen(**seen))


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(one) if isinstance(one, list) else one for key, one in part.items()}


def outside_by_form(spec: ModelSpec, learnt: Calibration) -> tuple[str, ...]:
    """Say why images and classes of this form are outside of the calibration; () if they are not.

    It is known before anything is computed.
    """
    (channels, *sides), seen = spec.input_shape, learnt.seen
    reasons = []
    if channels not in seen.channels:
        allowed = " or ".join(str(one) for one in seen.channels)
        reasons.append(f"images have {channels} channels where it was learnt on {allowed}")
    if min(sides) < seen.sides[0] or max(sides) > seen.sides[1]:
        size = "x".join(str(side) for side in sides)
        reasons.append(
            f"images are {size} pixels where it was learnt on sides of {_range(seen.sides)}"
        )
    if not seen.classes[0] <= spec.classes <= seen.classes[1]:
        reasons.append(
            f"there are {spec.classes} classes where it was learnt on {_range(seen.classes)}"
        )
    return tuple(reasons)


def outside_of(spec: ModelSpec, distance: float | None, learnt: Calibration) -> tuple[str, ...]:
    """Say why an original is outside of the calibration; () if it is not.

    Args:
        spec: of the original.
        distance: its `procedural_distance`; None where it was not measured.
        learnt: the calibration.
    """
    reasons = outside_by_form(spec, learnt)
    if distance is None or distance <= learnt.seen.most_distance:
        return reasons
    return (
        *reasons,
        f"the network's statistics are {distance:.2g} from those of procedural images where it "
        f"was learnt up to {learnt.seen.most_distance:.2g}: its images may be far from photographs",
    )


def forecast(
    learnt: Calibration,
    found: Sequence[Agreement],
    spec: ModelSpec,
    distance: float | None,
) -> Forecast:
    """Forecast the loss of a network.

    Args:
        learnt: the calibration.
        found: its agreement with the original, of each kind that the calibration weighs.
        spec: of the original.
        distance: the original's `procedural_distance`.
    """
    reasons = [*outside_of(spec, distance, learnt)]
    few = [one for one in found if one.images < FEWEST_IMAGES and one.kind in learnt.kinds]
    if few:
        reasons.append(f"only {few[0].images} {few[0].kind} images could be counted")
    expected = learnt.expected_points(found)
    if not reasons and expected > learnt.seen.most_points:
        reasons.append(
            f"more than {learnt.seen.most_points:.0f} points are expected to be lost, the most "
            "that it tells of"
        )
    if reasons:
        return without_number(learnt, reasons, found)
    half = learnt.half_width(expected)
    return Forecast(
        agreements=tuple(found),
        expected_points=round(expected, 3),
        low_points=round(expected - half, 3),
        high_points=round(min(100.0, expected + half), 3),
        level=learnt.level,
        coverage=learnt.coverage,
    )


def without_number(
    learnt: Calibration, reasons: Sequence[str], found: Sequence[Agreement] = ()
) -> Forecast:
    """Return a forecast that says why there is none."""
    return Forecast(
        agreements=tuple(found),
        expected_points=None,
        low_points=None,
        high_points=None,
        level=learnt.level,
        coverage=learnt.coverage,
        outside=tuple(reasons),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """The original's answers to the held-out images, which other networks are compared with.

    Attributes:
        images: by kind; none where the forecast cannot apply.
        answers: the original's.
        spec: of the original.
        distance: its `procedural_distance`.
    """

    images: Mapping[str, SyntheticImages]
    answers: Answers
    spec: ModelSpec
    distance: float | None

    @property
    def outside(self) -> tuple[str, ...]:
        """Why the original is outside of the calibration; () if it is not."""
        return outside_of(self.spec, self.distance, calibration())

    def of_network(self, network: Network, unlearned: Sequence[int]) -> Forecast:
        """Forecast what a network lost to the original."""
        return self.of_answers(answers_of(network, self.images), unlearned)

    def of_answers(self, answers: Answers, unlearned: Sequence[int]) -> Forecast:
        """Forecast what whoever gives these answers lost to the original."""
        found = agreements(self.answers, answers, unlearned)
        return forecast(calibration(), found, self.spec, self.distance)


def yardstick(original: Network, images: Mapping[str, SyntheticImages]) -> Yardstick:
    """Ask the original about the held-out images."""
    return Yardstick(
        images=images,
        answers=answers_of(original, images),
        spec=original.spec,
        distance=procedural_distance(original, images) if images else None,
    )


def _range(ends: tuple[int, int]) -> str:
    return str(ends[0]) if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
