"""Which layers stay in float32: those whose lowering changes the logits most, and no more of them.

Judged on synthetic images alone, against the float32 file: no label and no test image is read. The
damage of a layer is the noise that it adds to the logits when it alone is lowered; layers are taken
back in that order until the whole network keeps its answers (the way of per-layer sensitivity in
AIMET and in HAWQ, Dong et al. 2019, with the measured noise in place of a curvature).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclean.progress import Progress, silent
from exporters.session import OnnxSession

SILENCE_DB = 200.0  # no noise at all: an infinite ratio is not a JSON number

Lowering = Callable[[frozenset[str]], bytes]  # layers kept in float32 -> the ONNX file


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How close a lowered network's logits are to the float32 ones.

    Attributes:
        images: how many were compared.
        max_abs_difference: between two logits.
        max_relative_difference: the same over max(1, largest absolute logit of the image).
        top1_agreement: fraction of the images for which both name the same class.
        signal_to_noise_db: energy of the logits (about each class's mean) over that of the
            difference, in decibels; 200 where there is no difference.
    """

    images: int
    max_abs_difference: float
    max_relative_difference: float
    top1_agreement: float
    signal_to_noise_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What a lowered network must keep.

    Attributes:
        agreement: least fraction of images with the same class.
        signal_to_noise_db: least ratio.
    """

    agreement: float
    signal_to_noise_db: float

    def holds(self, found: Agreement) -> bool:
        """Whether the network is close enough (never, where a logit is not finite)."""
        return (
            found.top1_agreement >= self.agreement
            and found.signal_to_noise_db >= self.signal_to_noise_db
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A lowered file with what was kept.

    Attributes:
        model: the ONNX file.
        kept: layers in float32, the most sensitive first.
        sensitivity_db: signal-to-noise ratio with this layer alone lowered, by layer; empty where
            all layers together were close enough, so that nothing had to be measured.
        agreement: of the file.
    """

    model: bytes
    kept: tuple[str, ...]
    sensitivity_db: dict[str, float]
    agreement: Agreement


class Judge:
    """Compares lowered files with one float32 file on the same images."""

    def __init__(self, reference: bytes, images: NDArray[np.float32], *, threads: int = 1) -> None:
        """Run ``reference`` on ``images`` [n, c, h, w], normalised."""
        self._images, self._threads = images, threads
        self._expected = OnnxSession(reference, threads=threads).predict(images)

    def __call__(self, model: bytes) -> Agreement:
        """How close ``model`` comes."""
        got = OnnxSession(model, threads=self._threads).predict(self._images)
        return compare_logits(self._expected, got)


def compare_logits(expected: NDArray[np.float32], got: NDArray[np.float32]) -> Agreement:
    """Compare logits [n, classes] of one network in two precisions."""
    difference = got.astype(np.float64) - expected
    largest = np.maximum(1.0, np.abs(expected).max(axis=1, keepdims=True))
    signal = float(np.square(expected - expected.mean(axis=0)).sum())
    noise = float(np.square(difference).sum())
    finite = bool(np.isfinite(noise))
    ratio = 10 * np.log10(signal / noise) if finite and noise > 0 and signal > 0 else SILENCE_DB
    worst = float(np.finfo(np.float32).max)  # in place of infinity, which JSON does not have
    return Agreement(
        images=len(expected),
        max_abs_difference=float(np.abs(difference).max()) if finite else worst,
        max_relative_difference=float((np.abs(difference) / largest).max()) if finite else worst,
        top1_agreement=float((expected.argmax(axis=1) == got.argmax(axis=1)).mean()),
        signal_to_noise_db=float(np.clip(ratio, -SILENCE_DB, SILENCE_DB))
        if finite
        else -SILENCE_DB,
    )


def choose_kept(
    lowering: Lowering,
    layers: Sequence[str],
    judge: Judge,
    threshold: Threshold,
    *,
    always_kept: Sequence[str] = (),
    progress: Progress = silent,
) -> Choice:
    """Lower as many layers as the threshold lets, the harmless ones first.

    Args:
        lowering: writes the file in which the named layers stay in float32.
        layers: names that ``lowering`` knows.
        judge: compares a file with the float32 one.
        threshold: what the file must keep.
        always_kept: stay in float32 whatever is measured.
        progress: told after each layer.

    Returns:
        The file with the fewest kept layers, in order of their damage, that holds the threshold.
        Where none does, the one that keeps them all: what stands between layers is lowered in it
        too, so the caller looks at its agreement.
    """
    always = tuple(always_kept)
    whole = lowering(frozenset(always))
    found = judge(whole)
    if threshold.holds(found):
        return Choice(model=whole, kept=always, sensitivity_db={}, agreement=found)
    free = [name for name in layers if name not in always]
    if not free:
        return Choice(model=whole, kept=always, sensitivity_db={}, agreement=found)
    sensitivity = {}
    for number, name in enumerate(free):
        progress("Measuring the sensitivity of layers", number, len(free))
        alone = lowering(frozenset(layers) - {name} | frozenset(always))
        sensitivity[name] = judge(alone).signal_to_noise_db
    progress("Measuring the sensitivity of layers", len(free), len(free))
    order = sorted(free, key=lambda name: (sensitivity[name], name))
    low, high = 1, len(order)  # the fewest that may do, and the most there are
    best = None
    while low <= high:
        middle = (low + high) // 2
        kept = (*always, *order[:middle])
        model = lowering(frozenset(kept))
        found = judge(model)
        if threshold.holds(found) or middle == len(order):
            best = Choice(model=model, kept=kept, sensitivity_db=sensitivity, agreement=found)
            high = middle - 1
        else:
            low = middle + 1
    assert best is not None  # noqa: S101 - the last step keeps every layer
    return best
