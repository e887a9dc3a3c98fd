"""Learn what agreement with the original is worth: ``python -m benchmarks.studies.forecast``.

`benchmarks.studies.forecast_students` makes the students: states of networks after purification or
compression whose loss of accuracy on real test images is known. Here each student's agreement with
its original is measured on the held-out images of `edgeclean.measure.agreement`, and the relation
of the two is fitted. Every figure is of networks that were left out of the fit, all states of a
network at once: the errors, and the share of losses that lay in their 90 % interval, whose width
comes from a second round of leaving out within the rest (so no loss ever sets its own interval).

``results/forecast.json`` holds the students and the fit, ``results/forecast.md`` the tables, and
``edgeclean/measure/forecast.json`` what the package forecasts with. Networks of two and three
classes are measured too, and only show why the forecast refuses them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.data.crops import cropped, draw_crops
from benchmarks.environment import environment
from benchmarks.studies.forecast_students import (
    BENCH,
    SEED,
    STUDENTS,
    Measured,
    make_students,
    networks,
)
from benchmarks.studies.published import RESULTS
from edgeclean.measure.agreement import (
    KINDS,
    HeldOutSettings,
    agreements,
    answers_of,
    answers_of_file,
    held_out,
    procedural_distance,
)
from edgeclean.measure.forecast import FORMAT, Calibration, Seen
from edgeclean.networks.state import ModelSpec, SyntheticImages

SHIPPED = Path(__file__).parents[2] / "edgeclean" / "measure" / "forecast.json"
CROPS = 512  # of photographs; measured here alone
LEVEL = 0.9
FLOOR, SHARE = 1.0, 0.3  # of an interval's width: points, and of the expected loss
POWERS = (1.0, 1.25, 1.5)
PARTS = 10  # weights are tenths
SLACK = 1.25  # by which a network's distance may pass the largest that was seen
FEWEST_CLASSES = 5
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A relation of disagreement and loss.

    Attributes:
        weights: of each kind of images; they add up to 1.
        power: of the weighted share.
        slope: percentage points for a share of 1.
    """

    weights: tuple[float, ...]
    power: float
    slope: float

    def expected(self, shares: np.ndarray) -> np.ndarray:
        """Return the expected losses of shares [n, kinds]."""
        return np.minimum(100.0, self.slope * (shares @ np.array(self.weights)) ** self.power)


def main() -> None:
    """Measure what is not measured yet, fit, and write the results."""
    parser = argparse.ArgumentParser(description="Learn what agreement is worth.")
    parser.add_argument("--network", action="append", help="make only its students; or more")
    parser.add_argument("--made", action="store_true", help="make none, and fit to those there are")
    parser.add_argument("--measure", action="store_true", help="fit nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = networks()
    for name in options.network or known:
        if not options.made:
            make_students(name, known[name])
        measure_students(name, known[name])
    if not options.measure:
        write_results([json.loads(path.read_text()) for path in sorted(STUDENTS.glob("*.json"))])


def measure_students(name: str, measured: Measured) -> None:
    """Put into the facts of a network's students their agreement with the original."""
    settings = HeldOutSettings()
    asked = asdict(settings)
    paths = [path for path in sorted(STUDENTS.glob("*.json")) if _is_of(path, name, asked)]
    if paths:
        original = _original(name, measured, settings)
        for path in paths:
            facts = json.loads(path.read_text())
            model = path.with_suffix(".onnx").read_bytes()
            answers = answers_of_file(model, original.spec, original.images)
            found = agreements(original.answers, answers, facts["unlearned"])
            facts["agreements"] = [asdict(one) for one in found]
            facts["divergence"] = {
                kind: _divergence(original.answers[kind], answers[kind]) for kind in answers
            }
            facts |= {"measured_with": asked, "procedural_distance": original.distance}
            facts |= {"classes": original.spec.classes, "input": original.spec.input_shape}
            path.write_text(json.dumps(facts, indent=1) + "\n")
            print(path.stem, facts["lost"], [round(one.agreed, 3) for one in found], flush=True)


@dataclass(frozen=True, slots=True)
class _Original:
    spec: ModelSpec
    images: dict[str, SyntheticImages]
    answers: dict[str, Tensor]
    distance: float | None


def _original(name: str, measured: Measured, settings: HeldOutSettings) -> _Original:
    """Return the held-out images of a network, with its answers to them."""
    network = measured.load()
    path = BENCH / "held-out" / f"{name}.safetensors"
    if path.exists():
        read = safetensors.torch.load_file(path)
        images = {
            kind: SyntheticImages(pixels=read[kind], labels=_none(read[kind]), origin=kind)
            for kind in read
        }
    else:
        images = held_out(network, settings, seed=SEED)
        if network.spec.input_shape[0] == 3:
            generator = torch.Generator().manual_seed(SEED)
            crops = draw_crops(CROPS, network.spec.input_shape, generator)
            pixels = cropped(crops, network.spec.input_shape)
            images["crops"] = SyntheticImages(pixels=pixels, labels=_none(pixels), origin="crops")
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file({kind: one.pixels for kind, one in images.items()}, path)
    answers = dict(answers_of(network, images))
    return _Original(network.spec, images, answers, procedural_distance(network, images))


def _none(pixels: Tensor) -> Tensor:
    return torch.zeros(len(pixels), dtype=torch.int64)


def _is_of(path: Path, name: str, asked: dict[str, Any]) -> bool:
    facts = json.loads(path.read_text())
    return bool(facts["network"] == name and facts.get("measured_with") != asked)


def _divergence(first: Tensor, second: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of the answers, in nats."""
    odds, others = first.log_softmax(1), second.log_softmax(1)
    return float((odds.exp() * (odds - others)).sum(1).mean())


def fitted(shares: np.ndarray, lost: np.ndarray) -> Fit:
    """Return the relation of least mean absolute error: a grid, and a slope by weighted median."""
    best, least = None, math.inf
    for weights in _mixtures(shares.shape[1]):
        weighed = shares @ np.array(weights)
        for power in POWERS:
            fit = Fit(weights=weights, power=power, slope=_slope(weighed**power, lost))
            error = float(np.abs(fit.expected(shares) - lost).mean())
            if error < least - 1e-9:
                best, least = fit, error
    assert best is not None
    return best


def _mixtures(kinds: int) -> list[tuple[float, ...]]:
    if kinds == 1:
        return [(1.0,)]
    first = range(PARTS + 1)
    if kinds == 2:
        return [(a / PARTS, 1 - a / PARTS) for a in first]
    return [
        (a / PARTS, b / PARTS, (PARTS - a - b) / PARTS)
        for a in first
        for b in first[: PARTS - a + 1]
    ]


def _slope(x: np.ndarray, lost: np.ndarray) -> float:
    """Return the slope through the origin of least absolute error, at least 0."""
    use = x > 0
    ratios, weights = lost[use] / x[use], x[use]
    order = np.argsort(ratios)
    passed = np.cumsum(weights[order])
    middle = int(np.searchsorted(passed, passed[-1] / 2))
    return max(0.0, float(ratios[order][middle]))


def left_out(
    shares: np.ndarray, lost: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected loss of each state by a fit without its network, and its half width."""
    names_of = np.array(names)
    expected, half = np.zeros(len(lost)), np.zeros(len(lost))
    for name in dict.fromkeys(names):
        out = names_of == name
        rest = ~out
        expected[out] = fitted(shares[rest], lost[rest]).expected(shares[out])
        inner = _expected_left_out(shares[rest], lost[rest], names_of[rest])
        half[out] = quantile(inner, lost[rest]) * (FLOOR + SHARE * expected[out])
    return expected, half


def _expected_left_out(shares: np.ndarray, lost: np.ndarray, names: np.ndarray) -> np.ndarray:
    expected = np.zeros(len(lost))
    for name in dict.fromkeys(names):
        out = names == name
        expected[out] = fitted(shares[~out], lost[~out]).expected(shares[out])
    return expected


def quantile(expected: np.ndarray, lost: np.ndarray) -> float:
    """Return the conformal quantile of the errors, in units of FLOOR + SHARE x expected."""
    scores = np.sort(np.abs(lost - expected) / (FLOOR + SHARE * expected))
    place = min(len(scores), math.ceil(LEVEL * (len(scores) + 1))) - 1
    return float(scores[place])


def shares_of(rows: Sequence[Row], kinds: Sequence[str]) -> np.ndarray:
    """Return the shares [n, kinds] of images that students answer unlike their originals."""
    found = [{one["kind"]: 1 - one["agreed"] for one in row["agreements"]} for row in rows]
    return np.array([[one[kind] for kind in kinds] for one in found])


def _divergences(rows: Sequence[Row], kinds: Sequence[str]) -> np.ndarray:
    return np.array([[row["divergence"][kind] for kind in kinds] for row in rows])


Features = Callable[[Sequence[Row], Sequence[str]], np.ndarray]
TRIED: dict[str, tuple[Features, tuple[str, ...]]] = {
    "synthetic": (shares_of, ("synthetic",)),
    "procedural": (shares_of, ("procedural",)),
    "crops of photographs": (shares_of, ("crops",)),
    "synthetic and procedural (ships)": (shares_of, tuple(KINDS)),
    "synthetic, procedural and crops": (shares_of, (*KINDS, "crops")),
    "divergence instead of shares": (_divergences, tuple(KINDS)),
}


def write_results(rows: Sequence[Row]) -> None:
    """Fit, and write the results, the tables and what ships."""
    from benchmarks.rendering.forecast_table import write_tables

    rows = [row for row in rows if "agreements" in row]
    learnt = [row for row in rows if row["classes"] >= FEWEST_CLASSES]
    outside = [row for row in rows if row["classes"] < FEWEST_CLASSES]
    lost = np.array([row["lost"] for row in learnt])
    names = [row["network"] for row in learnt]
    tried = {}
    for title, (features, kinds) in TRIED.items():
        expected, half = left_out(features(learnt, kinds), lost, names)
        tried[title] = _errors(expected, half, lost)
    kinds = tuple(KINDS)
    shares = shares_of(learnt, kinds)
    fit = fitted(shares, lost)
    expected, half = left_out(shares, lost, names)
    for row, one, width in zip(learnt, expected, half, strict=True):
        row |= {"expected_left_out": round(float(one), 2), "half_width": round(float(width), 2)}
    for row, one in zip(outside, fit.expected(shares_of(outside, kinds)), strict=True):
        row["expected"] = round(float(one), 2)
    learnt_fit = _calibration(fit, learnt, expected, half, lost)
    document = {
        "command": "python -m benchmarks.studies.forecast",
        "seed": SEED,
        "environment": environment(),
        "calibration": {"format": FORMAT, **asdict(learnt_fit)},
        "tried": tried,
        "students": [_told(row) for row in learnt],
        "outside": [_told(row) for row in outside],
    }
    text = json.dumps(document, indent=1) + "\n"
    (RESULTS / "forecast.json").write_text(text)
    shipped = json.loads(text)["calibration"]
    SHIPPED.write_text(json.dumps(shipped, indent=1) + "\n")
    write_tables()
    print(json.dumps({"fit": asdict(fit), "tried": tried}, indent=1))


def _errors(expected: np.ndarray, half: np.ndarray, lost: np.ndarray) -> dict[str, float]:
    errors, small = np.abs(expected - lost), lost <= 10
    return {
        "mean_error": round(float(errors.mean()), 2),
        "mean_error_to_10_points": round(float(errors[small].mean()), 2),
        "coverage": round(float((errors <= half).mean()), 3),
        "coverage_to_10_points": round(float((errors[small] <= half[small]).mean()), 3),
        "mean_half_width": round(float(half.mean()), 2),
        "states": len(lost),
        "states_to_10_points": int(small.sum()),
    }


def _calibration(
    fit: Fit, rows: Sequence[Row], expected: np.ndarray, half: np.ndarray, lost: np.ndarray
) -> Calibration:
    """Return what ships: the fit to all networks, with the errors on networks left out."""
    errors = np.abs(expected - lost)
    distances = [row["procedural_distance"] or 0.0 for row in rows]
    sides = [side for row in rows for side in row["input"][1:]]
    classes = [row["classes"] for row in rows]
    return Calibration(
        weights=dict(zip(KINDS, fit.weights, strict=True)),
        slope=round(fit.slope, 3),
        power=fit.power,
        floor=FLOOR,
        share=SHARE,
        quantile=round(quantile(expected, lost), 3),
        level=LEVEL,
        coverage=round(float((errors <= half).mean()), 3),
        mean_error_points=round(float(errors.mean()), 2),
        networks=len({row["network"] for row in rows}),
        points=len(rows),
        seen=Seen(
            channels=tuple(sorted({row["input"][0] for row in rows})),
            sides=(min(sides), max(sides)),
            classes=(min(classes), max(classes)),
            most_distance=round(SLACK * max(distances), 3),
            most_points=round(float(lost.max()), 1),
        ),
        held_out=asdict(HeldOutSettings()),
    )


def _told(row: Row) -> Row:
    """Return a student without what is the same for all."""
    return {key: one for key, one in row.items() if key not in ("measured_with", "seed")}


if __name__ == "__main__":
    main()
