"""Learn what agreement with the original is worth: ``python -m benchmarks.studies.forecast``.

`benchmarks.studies.forecast_students` makes the students: states of networks after purification or
compression whose loss of accuracy on real test images is known. Here each student's agreement with
its original is measured on the held-out images of `edgeclean.measure.agreement`, and the relation
of the two is fitted. Every figure is of networks that were left out of the fit, all states of a
network at once: the errors, and the share of losses that lay in their 90 % interval, whose width
comes from a second round of leaving out within the rest (so no loss ever sets its own interval).

``results/forecast.json`` holds the students and the fit, ``results/forecast.md`` the tables, and
``edgeclean/measure/forecast.json`` what the package forecasts with. States that lost more
than 25 points, and networks of two and three classes, are measured too, and not learnt from.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

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
from edgeclean.images.crops import cropped, draw_crops
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
from edgeclean.networks.state import SyntheticImages

SHIPPED = Path(__file__).parents[2] / "edgeclean" / "measure" / "forecast.json"
DISTANCE = "procedural distance"  # beside the answers of an original
CROPS = 512  # of photographs; measured here alone
LEVEL = 0.9
FLOOR, SHARE = 1.0, 0.3  # of an interval's width: points, and of the expected loss
# Losses grow faster than disagreement; 1 and 1.5 erred more on those that went through whole runs.
POWERS = (2.0,)
WEIGHTS = tuple(tenth / 10 for tenth in range(11))
ALL, SURE = "agreed", "agreed_where_sure"
SLACK = 1.25  # by which a network's distance may pass the largest that was seen
FEWEST_CLASSES = 5
MOST_LOST = 25.0  # points: nobody ships a network that lost more, and no forecast tells how much
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A relation of disagreement and loss.

    Attributes:
        weight: of the first feature, the share that disagrees; the rest of 1 is of the distance.
        power: of the weighted sum.
        slope: percentage points for a sum of 1.
    """

    weight: float
    power: float
    slope: float

    def expected(self, features: np.ndarray) -> np.ndarray:
        """Return the expected losses of features [n, 2]."""
        return np.minimum(100.0, self.slope * _weighed(features, self.weight) ** self.power)


def _weighed(features: np.ndarray, weight: float) -> np.ndarray:
    mixed: np.ndarray = weight * features[:, 0] + (1 - weight) * features[:, 1]
    return mixed


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
    """Put into the facts of a network's students their agreement with the original.

    Answers are kept, so that another measure of agreement costs no pass of a network.
    """
    asked = asdict(HeldOutSettings())
    for path in sorted(STUDENTS.glob("*.json")):
        facts = json.loads(path.read_text())
        if facts["network"] != name:
            continue
        original = _original_answers(name, measured)
        given = _answers(path.stem)
        if given is None:
            network = measured.load()
            images = _images(name, measured)
            model = path.with_suffix(".onnx").read_bytes()
            given = _kept(path.stem, dict(answers_of_file(model, network.spec, images)))
        unlearned = facts["unlearned"]
        kinds = [kind for kind in original if kind != DISTANCE]
        found = agreements({kind: original[kind] for kind in kinds}, given, unlearned)
        facts["agreements"] = [asdict(one) for one in found]
        distance = float(original[DISTANCE])
        facts |= {"measured_with": asked, "procedural_distance": distance}
        facts["classes"] = original[kinds[0]].shape[1]
        facts["input"] = list(_images(name, measured)["procedural"].pixels.shape[1:])
        path.write_text(json.dumps(facts, indent=1) + "\n")


def _original_answers(name: str, measured: Measured) -> dict[str, Tensor]:
    """Return a network's answers to its held-out images, with their distance."""
    kept = _answers(f"original-{name}")
    if kept is not None:
        return kept
    network, images = measured.load(), _images(name, measured)
    distance = procedural_distance(network, images)
    answers = dict(answers_of(network, images))
    answers[DISTANCE] = torch.tensor(0.0 if distance is None else distance)
    return _kept(f"original-{name}", answers)


def _answers(stem: str) -> dict[str, Tensor] | None:
    path = BENCH / "answers" / f"{stem}.safetensors"
    return safetensors.torch.load_file(path) if path.exists() else None


def _kept(stem: str, answers: dict[str, Tensor]) -> dict[str, Tensor]:
    path = BENCH / "answers" / f"{stem}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({key: one.contiguous() for key, one in answers.items()}, path)
    return answers


def _images(name: str, measured: Measured) -> dict[str, SyntheticImages]:
    """Return the held-out images of a network, made once."""
    path = BENCH / "held-out" / f"{name}.safetensors"
    if not path.exists():
        network = measured.load()
        images = held_out(network, HeldOutSettings(), seed=SEED)
        pixels = {kind: one.pixels for kind, one in images.items()}
        if network.spec.input_shape[0] == 3:
            generator = torch.Generator().manual_seed(SEED)
            crops = draw_crops(CROPS, network.spec.input_shape, generator)
            pixels["crops"] = cropped(crops, network.spec.input_shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(pixels, path)
    return {
        kind: SyntheticImages(pixels=pixels, labels=_none(pixels), origin=kind)
        for kind, pixels in safetensors.torch.load_file(path).items()
    }


def _none(pixels: Tensor) -> Tensor:
    return torch.zeros(len(pixels), dtype=torch.int64)


def fitted(features: np.ndarray, lost: np.ndarray, weights: Sequence[float] = WEIGHTS) -> Fit:
    """Return the relation of least mean absolute error: a grid, and a slope by weighted median."""
    best, least = None, math.inf
    for weight in weights:
        for power in POWERS:
            slope = _slope(_weighed(features, weight) ** power, lost)
            fit = Fit(weight=weight, power=power, slope=slope)
            error = float(np.abs(fit.expected(features) - lost).mean())
            if error < least - 1e-9:
                best, least = fit, error
    assert best is not None
    return best


def _slope(x: np.ndarray, lost: np.ndarray) -> float:
    """Return the slope through the origin of least absolute error, at least 0."""
    use = x > 0
    ratios, weights = lost[use] / x[use], x[use]
    order = np.argsort(ratios)
    passed = np.cumsum(weights[order])
    middle = int(np.searchsorted(passed, passed[-1] / 2))
    return max(0.0, float(ratios[order][middle]))


def left_out(
    features: np.ndarray,
    lost: np.ndarray,
    names: Sequence[str],
    weights: Sequence[float] = WEIGHTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected loss of each state by a fit without its network, and its half width."""
    of = np.array(names)
    expected, half = np.zeros(len(lost)), np.zeros(len(lost))
    for name in dict.fromkeys(names):
        out = of == name
        rest = ~out
        expected[out] = fitted(features[rest], lost[rest], weights).expected(features[out])
        inner = _expected_left_out(features[rest], lost[rest], of[rest], weights)
        half[out] = quantile(inner, lost[rest]) * (FLOOR + SHARE * expected[out])
    return expected, half


def _expected_left_out(
    features: np.ndarray, lost: np.ndarray, of: np.ndarray, weights: Sequence[float]
) -> np.ndarray:
    expected = np.zeros(len(lost))
    for name in dict.fromkeys(of):
        out = of == name
        expected[out] = fitted(features[~out], lost[~out], weights).expected(features[out])
    return expected


def quantile(expected: np.ndarray, lost: np.ndarray) -> float:
    """Return the conformal quantile of the errors, in units of FLOOR + SHARE x expected."""
    scores = np.sort(np.abs(lost - expected) / (FLOOR + SHARE * expected))
    place = min(len(scores), math.ceil(LEVEL * (len(scores) + 1))) - 1
    return float(scores[place])


def features_of(rows: Sequence[Row], kinds: Sequence[str], share: str = ALL) -> np.ndarray:
    """Return [n, 2]: the share that disagrees, and the distance; each a mean over the kinds."""
    found = [[one for one in row["agreements"] if one["kind"] in kinds] for row in rows]
    means = [
        (np.mean([1 - one[share] for one in ones]), np.mean([one["distance"] for one in ones]))
        for ones in found
    ]
    return np.array(means)


BOTH = tuple(KINDS)
SHIPS = "synthetic and procedural: share and distance (ships)"
TRIED: dict[str, dict[str, Any]] = {
    SHIPS: {"kinds": BOTH},
    "the same, share alone": {"kinds": BOTH, "weights": (1.0,)},
    "the same, distance alone": {"kinds": BOTH, "weights": (0.0,)},
    "the same, share where the original is sure, and distance": {"kinds": BOTH, "share": SURE},
    "synthetic alone": {"kinds": ("synthetic",)},
    "procedural alone": {"kinds": ("procedural",)},
    "crops of photographs alone": {"kinds": ("crops",)},
    "all three": {"kinds": (*BOTH, "crops")},
    "all three, share alone": {"kinds": (*BOTH, "crops"), "weights": (1.0,)},
}


def write_results(rows: Sequence[Row]) -> None:
    """Fit, and write the results, the tables and what ships."""
    from benchmarks.rendering.forecast_table import write_tables

    rows = [row for row in rows if "agreements" in row]
    learnt = [row for row in rows if _is_learnt_from(row)]
    outside = [row for row in rows if not _is_learnt_from(row)]
    lost = np.array([row["lost"] for row in learnt])
    names = [row["network"] for row in learnt]
    whole = np.array([row["state"].startswith("purified") for row in learnt])
    tried = {}
    for title, one in TRIED.items():
        features = features_of(learnt, one["kinds"], one.get("share", ALL))
        found = left_out(features, lost, names, one.get("weights", WEIGHTS))
        tried[title] = _errors(*found, lost, whole)
    features = features_of(learnt, BOTH)
    fit = fitted(features, lost)
    expected, half = left_out(features, lost, names)
    for row, one, width in zip(learnt, expected, half, strict=True):
        row |= {"expected_left_out": round(float(one), 4), "half_width": round(float(width), 4)}
    for row in outside:
        row["expected"] = round(float(fit.expected(features_of([row], BOTH))[0]), 2)
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


def _is_learnt_from(row: Row) -> bool:
    return bool(row["classes"] >= FEWEST_CLASSES and row["lost"] <= MOST_LOST)


def _errors(
    expected: np.ndarray, half: np.ndarray, lost: np.ndarray, whole: np.ndarray
) -> dict[str, float]:
    errors, small = np.abs(expected - lost), lost <= 10
    return {
        "mean_error": round(float(errors.mean()), 2),
        "mean_error_to_10_points": round(float(errors[small].mean()), 2),
        "mean_error_of_whole_runs": round(float(errors[whole].mean()), 2),
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
        kinds=BOTH,
        weight=fit.weight,
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
            most_points=MOST_LOST,
        ),
        held_out=asdict(HeldOutSettings()),
    )


def _told(row: Row) -> Row:
    """Return a student without what is the same for all."""
    return {key: one for key, one in row.items() if key not in ("measured_with", "seed")}


if __name__ == "__main__":
    main()
