"""The forecast in a run: the gate and the goal that need one, and the search for a ratio.

``--keep-accuracy P`` asks for the largest ratio whose forecast stays within P percentage points.
Scan and purification are done once. Ratios of a fixed list are then tried by bisection: each is
truncated and recovered with a share of the steps (`HeldOutSettings.probe_share`), and the one that
is chosen is recovered in full. What is tried, and the result, depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from edgeclean.backdoor.purify import unlearned_classes
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.settings import OF_LAYERS, SEARCHED_RATIOS
from edgeclean.config import PipelineSettings
from edgeclean.errors import AccuracyGateError, RatioError
from edgeclean.gates import NOTHING_WRITTEN, Policy
from edgeclean.measure.agreement import answers_of_file, held_out
from edgeclean.measure.forecast import Forecast, Yardstick, calibration, outside_by_form, yardstick
from edgeclean.networks.state import (
    JsonValue,
    LoadedNetwork,
    ModelSpec,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
)
from edgeclean.runner import Runner
from edgeclean.shrinking import recovered_network, truncated_network


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One ratio that was tried.

    Attributes:
        ratio: what was asked of the ranks.
        expected_points: the forecast after a short recovery, in percentage points; None where the
            ratio is out of reach, or more was lost than the forecast has seen.
    """

    ratio: float
    expected_points: float | None

    def __str__(self) -> str:
        """Return the ratio and what was forecast of it."""
        lost = "-" if self.expected_points is None else f"{self.expected_points:.1f} points"
        return f"{self.ratio:g}x {lost}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecasts:
    """What was probably lost, step by step.

    Attributes:
        purified: by the network after purification, at full size.
        compressed: by ``model.onnx``, in its final precision.
        probes: the ratios that were tried, rising; () where a ratio was asked for.
    """

    purified: Forecast
    compressed: Forecast
    probes: tuple[Probe, ...] = ()

    def summary(self) -> dict[str, JsonValue]:
        """Return it as the report holds it."""
        learnt = calibration()
        return {
            "purified": self.purified.summary(),
            "compressed": self.compressed.summary(),
            "probes": [asdict(one) for one in self.probes],
            "learnt_from": {"networks": learnt.networks, "points": learnt.points},
            "mean_error_points": learnt.mean_error_points,
        }


def refuse_unforeseeable(spec: ModelSpec, settings: PipelineSettings, policy: Policy) -> None:
    """Refuse a gate or a goal that needs a forecast, where the form of the images allows none.

    Raises:
        AccuracyGateError: the forecast does not apply.
    """
    _refuse_outside(settings, policy, outside_by_form(spec, calibration()))


def yardstick_of(
    original: LoadedNetwork, settings: PipelineSettings, policy: Policy, run: Runner
) -> Yardstick:
    """Hold out images and ask the original about them; none where no forecast would apply.

    Raises:
        AccuracyGateError: the policy or the goal needs a forecast, and it does not apply.
    """
    images: dict[str, SyntheticImages] = {}
    if not outside_by_form(original.spec, calibration()):
        images = run.once(
            "held-out images", held_out, original, settings.forecast, seed=settings.seed
        )
    found = run("forecast", yardstick, original, images)
    _refuse_outside(settings, policy, found.outside)
    return found


def with_ratio(
    settings: PipelineSettings,
    stick: Yardstick,
    networks: tuple[LoadedNetwork, PurifiedNetwork, ScaledNetwork],
    images: SyntheticImages,
    table: LatencyTable | None,
    run: Runner,
) -> tuple[PipelineSettings, tuple[Probe, ...]]:
    """Put the largest ratio that keeps the accuracy in the place of that goal.

    Args:
        settings: returned as they are where they ask for another goal.
        stick: what forecasts are made by.
        networks: the original, the purified and the scaled one.
        images: that ranks are chosen on, and recoveries tuned.
        table: what forms of layers take on the device; None plans without.
        run: times the stages and keeps their results.

    Raises:
        RatioError: not even the smallest ratio keeps it.
    """
    points = settings.ranks.keep_accuracy
    if points is None:
        return settings, ()
    original, purified, scaled = networks
    steps = round(settings.forecast.probe_share * settings.finetune.steps)
    short = replace(settings.finetune, steps=steps)
    unlearned = unlearned_classes(purified)

    def probe(ratio: float) -> float | None:
        asked = replace(at_ratio(settings, ratio), finetune=short)
        try:
            truncated = truncated_network(scaled, images, asked, table, None, run)
        except RatioError:
            return None
        made = original, purified, truncated, images, asked
        network, _ = recovered_network(*made, run)
        return run("forecast", stick.of_network, network, unlearned).expected_points

    ratio, probes = largest_ratio(points, probe)
    return at_ratio(settings, ratio), probes


def at_ratio(settings: PipelineSettings, ratio: float) -> PipelineSettings:
    """Return settings that ask for a ratio in the place of an accuracy."""
    forms = settings.ranks.forms or OF_LAYERS  # which a forecast was learnt from
    ranks = replace(settings.ranks, keep_accuracy=None, ratio=ratio, forms=forms)
    return replace(settings, ranks=ranks)


def largest_ratio(
    points: float, probe: Callable[[float], float | None]
) -> tuple[float, tuple[Probe, ...]]:
    """Return the largest ratio whose forecast is within ``points``, and all that were tried.

    The next larger one was tried as well, and is not within, unless there is none.

    Args:
        points: percentage points that may be lost.
        probe: the forecast of a ratio; None is not within.

    Raises:
        RatioError: the smallest is not within.
    """
    tried: list[Probe] = []
    within, beyond = -1, len(SEARCHED_RATIOS)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        expected = probe(SEARCHED_RATIOS[middle])
        tried.append(Probe(ratio=SEARCHED_RATIOS[middle], expected_points=expected))
        if expected is not None and expected <= points:
            within = middle
        else:
            beyond = middle
    if within < 0:
        least = tried[-1].expected_points
        lost = "more than it can tell" if least is None else f"{least:.2f} points"
        raise RatioError(
            f"--keep-accuracy {points:g} cannot be met: at ratio {SEARCHED_RATIOS[0]:g}, the "
            f"smallest that is tried, the forecast is a loss of {lost}; allow more, or ask for "
            "--ratio"
        )
    return SEARCHED_RATIOS[within], tuple(sorted(tried, key=lambda one: one.ratio))


def forecasts_of(
    stick: Yardstick, purified: PurifiedNetwork, model: bytes, probes: tuple[Probe, ...]
) -> Forecasts:
    """Forecast what purification and the whole run lost.

    Args:
        stick: what forecasts are made by.
        purified: the purified network.
        model: the ONNX file that ships.
        probes: what the search for a ratio tried.
    """
    unlearned = unlearned_classes(purified)
    answers = answers_of_file(model, stick.spec, stick.images)
    return Forecasts(
        purified=stick.of_network(purified, unlearned),
        compressed=stick.of_answers(answers, unlearned),
        probes=probes,
    )


def refuse_not_kept(points: float | None, found: Forecast) -> None:
    """Refuse a network of the searched ratio that lost more after all.

    Raises:
        AccuracyGateError: its forecast is above ``points``, or there is none.
    """
    if points is None:
        return
    if found.expected_points is None or found.expected_points > points:
        raise AccuracyGateError(
            f"--keep-accuracy {points:g} is not met by the finished network: forecast "
            f"{found.in_words()}; {NOTHING_WRITTEN}; allow more, or ask for --ratio"
        )


def _refuse_outside(settings: PipelineSettings, policy: Policy, reasons: tuple[str, ...]) -> None:
    asked = "--keep-accuracy" if settings.ranks.keep_accuracy is not None else ""
    if policy.max_expected_drop is not None:
        asked = "--max-expected-drop"
    if asked and reasons:
        raise AccuracyGateError(
            f"{asked} needs a forecast of the accuracy lost, which does not apply to this network: "
            f"{reasons[0]}; measure on labelled images of your own (--evaluate, "
            "--max-accuracy-drop)"
        )
