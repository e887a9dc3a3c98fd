"""Estimate the time of a run: the passes of each stage, times the time of a pass here.

Nearly all of a run is images that pass through the network: forwards, forwards with a gradient of
the image, and forwards with a gradient of the weights. One of each is measured in a second or so
(`pass_seconds`), and every stage is so many of each. The factors beside the counts are what a pass
costs in that stage beside the network itself (statistics, stamps, augmentation), as measured with
``benchmarks/studies/effort.py``; `progress.Remaining` corrects all of it while the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeclean.backdoor.bank import IN_FULL
from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.few_classes import FEW, SINGLES
from edgeclean.backdoor.gratings import KEPT, MOST_GRATINGS
from edgeclean.backdoor.pairs import pair_passes
from edgeclean.backdoor.purify import AGAIN
from edgeclean.backdoor.scan import CHOOSING, ScanSettings
from edgeclean.backdoor.searches import ALL_TO_ALL, BANK, FEWEST_RESTARTED, GRATINGS, ONE_SOURCE
from edgeclean.backdoor.selection import SINK_IMAGES, STARTS
from edgeclean.compression.finetune import times_of
from edgeclean.compression.resolution import MOST_TRIED, PROBE_SHARE, TRYING
from edgeclean.compression.settings import SEARCHED_RATIOS
from edgeclean.config import PipelineSettings
from edgeclean.measure.agreement import HOLDING_OUT
from edgeclean.measure.forecast import calibration, outside_by_form
from edgeclean.networks.autocast import channels_last, device_of, mixed_precision
from edgeclean.networks.batching import images_at_once
from edgeclean.networks.folding import inference_copy
from edgeclean.networks.pixels import pixel_copy
from edgeclean.networks.state import Network
from edgeclean.progress import Part, PlannedProgress, Progress

MOST_IMAGES = 64  # in a measured pass
LONG_ENOUGH, PLENTY = 0.1, 0.5  # seconds of a pass: more images, or more runs, add nothing
SEARCH_BATCH = 16  # images of a slot in a step of a gradient search
FINISH_SECONDS = 5.0  # files, checks, latency and the report of a small network

# The cost of an image in a stage, in measured passes; see the module's docstring.
STATISTICS = 1.9  # every BatchNorm's inputs are measured as well
SEARCH = 0.85  # stamps cost something, larger batches save more
RECOVERY = 1.0  # images are augmented and features compared, by a student of fewer operations
SMALLER = 0.6  # of a plan's time at the network's own size
MEASURED, FITTED = 8, 4  # forwards of an image for each layer that ranks are chosen for


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSeconds:
    """The time of one image on this machine, in seconds.

    Attributes:
        forward: a pass without a gradient.
        images: a pass with the gradient of the image.
        weights: a pass with the gradient of the weights.
        layers: the number of convolutions.
    """

    forward: float
    images: float
    weights: float
    layers: int = 0


def pass_seconds(network: Network) -> PassSeconds:
    """Measure passes over as many grey images as suffice; nothing is drawn at random."""
    plain = channels_last(pixel_copy(network)).requires_grad_(True)
    fitting = min(MOST_IMAGES, images_at_once(network.spec.input_shape, plain))
    grey = torch.full((fitting, *network.spec.input_shape), 0.5, device=device_of(plain))
    grey = grey.to(memory_format=torch.channels_last)
    solid = inference_copy(plain, grey)

    def forward(images: Tensor) -> None:
        with torch.no_grad():
            _run(solid, images)

    def of_images(images: Tensor) -> None:
        _run(solid, images.clone().requires_grad_()).square().sum().backward()

    def of_weights(images: Tensor) -> None:
        _run(plain, images).square().sum().backward()

    return PassSeconds(
        forward=_seconds_an_image(forward, grey),
        images=_seconds_an_image(of_images, grey),
        weights=_seconds_an_image(of_weights, grey),
        layers=sum(isinstance(layer, nn.Conv2d) for layer in plain.modules()),
    )


def announce(
    progress: Progress, network: Network, settings: PipelineSettings, *, only_scan: bool = False
) -> None:
    """Give ``progress`` the parts to come, if it takes them; only then is anything measured."""
    if isinstance(progress, PlannedProgress):
        each = pass_seconds(network)
        foreseeable = not outside_by_form(network.spec, calibration())
        classes = network.spec.classes
        parts = parts_of(settings, classes, each, only_scan=only_scan, foreseeable=foreseeable)
        progress.expect(parts)


def parts_of(
    settings: PipelineSettings,
    classes: int,
    each: PassSeconds,
    *,
    only_scan: bool = False,
    foreseeable: bool = False,
) -> tuple[Part, ...]:
    """Return the run's parts in order, under the titles that the stages report.

    Args:
        settings: the settings of the run.
        classes: the number of the network's classes.
        each: see `pass_seconds`.
        only_scan: whether the run ends with the scan.
        foreseeable: whether images are held out for a forecast of the loss.
    """
    drawn, held = settings.synthesize, settings.forecast
    parts = []
    if foreseeable and not only_scan:
        seconds = held.synthetic * held.steps * each.images * STATISTICS
        parts.append(Part(stage="forecast", title=HOLDING_OUT, seconds=seconds))
    parts.append(_synthesis(drawn.count * drawn.steps, each))
    parts += _scan(settings, classes, each)
    if only_scan:
        return tuple(parts)
    if settings.purify.mode == "guided":
        parts += _purification(settings, classes, each)
        parts.append(_synthesis(drawn.recovery_count * drawn.recovery_steps, each))
    if settings.ranks.keep_accuracy is not None:
        for _ in range(len(SEARCHED_RATIOS).bit_length()):  # a bisection
            parts += _ranks(settings, each)
            parts.append(_recovery(settings, each, share=held.probe_share))
    parts += _ranks(settings, each)
    if settings.purify.mode == "clean-compact":
        parts.append(_synthesis(drawn.count * drawn.steps, each))
    parts.append(_recovery(settings, each))
    parts.append(Part(stage="checks", title="Exporting", seconds=FINISH_SECONDS))
    return tuple(parts)


def _synthesis(passes: int, each: PassSeconds) -> Part:
    seconds = passes * each.images * STATISTICS
    return Part(stage="synthesize", title="Synthesising images", seconds=seconds)


def _scan(settings: PipelineSettings, classes: int, each: PassSeconds) -> Iterator[Part]:
    chosen, few = settings.scan, int(classes <= FEW)
    families = [name for name in chosen.searches if name in FAMILIES]
    many = classes > IN_FULL
    searched = min(classes, IN_FULL)  # of more, a selection; see `backdoor.selection`
    for name in chosen.searches:
        if many and name in families[:1]:
            yield _choice(chosen, len(families), each)
        passes, forwards = SEARCH_BATCH * chosen.steps, 0
        if name == BANK:
            passes, forwards = 0, _bank(chosen.bank_candidates, classes)
        elif name == GRATINGS:
            passes, forwards = 0, _halving(MOST_GRATINGS, KEPT, classes)
        elif name == ONE_SOURCE:
            passes = pair_passes(classes, chosen.images, chosen.steps)
        elif name == ALL_TO_ALL:
            passes *= 8 + few * 2 * classes  # two families, four starts each, and few classes' own
        else:  # later starts search ten classes
            slots = searched + (chosen.restarts - 1) * min(searched, FEWEST_RESTARTED)
            alone = few * SINGLES * classes  # of one image each
            passes, forwards = passes * slots + alone * chosen.steps, slots * chosen.images
        seconds = passes * each.images * SEARCH + forwards * each.forward * SEARCH
        yield Part(stage="scan", title=f"Scanning: {name}", seconds=seconds)


def _choice(chosen: ScanSettings, families: int, each: PassSeconds) -> Part:
    """Plan the stamps that send images together, a few of each family."""
    stamps = families * STARTS
    passes = stamps * SEARCH_BATCH * chosen.steps * each.images
    forwards = stamps * (chosen.images + min(chosen.images, SINK_IMAGES)) * each.forward
    return Part(stage="scan", title=CHOOSING, seconds=(passes + forwards) * SEARCH)


def _bank(candidates: int, classes: int) -> int:
    """Return the forward passes that score so many candidates of the patch bank."""
    return _halving(candidates, (max(64, candidates // (10 * classes)), 48), classes)


def _halving(candidates: int, going_on: tuple[int, int], classes: int) -> int:
    """Return the forward passes of a successive halving; see `backdoor.bank.score_bank`."""
    kept = min(classes, IN_FULL) + 1
    halved = min(candidates, going_on[0] * kept)
    return 4 * candidates + 12 * halved + 32 * min(halved, going_on[1] * kept)


def _purification(settings: PipelineSettings, classes: int, each: PassSeconds) -> Iterator[Part]:
    """Plan the usual case: one suspected class, unlearned in one round."""
    chosen, unlearning = settings.purify, settings.purify.unlearn
    slots = chosen.restarts + min(5, classes - 1)
    search = SEARCH_BATCH * chosen.search_steps * slots * each.images * SEARCH
    search += _bank(chosen.candidates, classes) * each.forward * SEARCH
    batch = unlearning.batch_size * (1 + unlearning.stamped_share)
    passes = (
        unlearning.steps * (batch * each.weights + unlearning.batch_size * each.forward) * RECOVERY
    )
    turns = unlearning.steps / unlearning.ascent_every * unlearning.ascent_steps
    triggers = 4 * (chosen.restarts + chosen.bank_triggers)  # each on four images
    ascent = turns * triggers * each.images * SEARCH
    for number in range(1, chosen.rounds + 1):
        yield Part(
            stage="purify",
            title=f"Searching, round {number}",
            seconds=search,
            expected=number <= 2,
        )
        yield Part(
            stage="purify",
            title=f"Unlearning, round {number}",
            seconds=passes + ascent,
            expected=number == 1,
        )
    again = SEARCH_BATCH * chosen.search_steps * min(classes, IN_FULL) * each.images * SEARCH
    yield Part(stage="purify", title=AGAIN, seconds=again, expected=False)
    yield Part(stage="purify", title="General defence", seconds=passes, expected=False)


def _ranks(settings: PipelineSettings, each: PassSeconds) -> Iterator[Part]:
    """Plan six forms of every layer, tried on the images, and a fit of each chosen one."""
    passes = settings.ranks.images * each.layers * each.forward
    yield Part(stage="ranks", title="Measuring layers", seconds=MEASURED * passes)
    if "hidden" in settings.ranks.of_layers:  # a unit for every two layers or so
        yield Part(stage="ranks", title="Measuring hidden channels", seconds=MEASURED / 2 * passes)
    yield Part(stage="ranks", title="Fitting layers", seconds=FITTED * passes)
    if settings.ranks.may_resize:  # more plans, where smaller images promise much
        planned = 2 * SMALLER * (MEASURED + FITTED) * passes
        tried = (1 + MOST_TRIED) * _recovery(settings, each, PROBE_SHARE).seconds
        yield Part(stage="ranks", title=TRYING, seconds=planned + tried, expected=False)


def _recovery(settings: PipelineSettings, each: PassSeconds, share: float = 1.0) -> Part:
    """Plan a student that takes as long as the network: it is smaller, but of more layers."""
    chosen, ratio = settings.finetune, settings.ranks.ratio
    if settings.ranks.measure == "macs" and ratio is not None:
        share *= times_of(ratio)
    image = each.weights + each.forward + chosen.adversarial_share * (each.weights + each.images)
    seconds = share * chosen.steps * chosen.batch_size * image * RECOVERY
    return Part(stage="finetune", title="Recovering accuracy", seconds=seconds)


def _run(module: nn.Module, images: Tensor) -> Tensor:
    with mixed_precision(device_of(module)):
        outputs: Tensor = module(images)
    return outputs.float()


def _seconds_an_image(run: Callable[[Tensor], None], images: Tensor) -> float:
    """Return the quickest of three runs, on twice as many images until one lasts long enough."""
    count = min(4, len(images))
    while True:
        batch = images[:count]
        quickest = _timed(run, batch)  # the first run of a shape also chooses its kernels
        if quickest < PLENTY:
            quickest = min(quickest, *(_timed(run, batch) for _ in range(2)))
        if quickest >= LONG_ENOUGH or count == len(images):
            return quickest / count
        count = min(2 * count, len(images))


def _timed(run: Callable[[Tensor], None], images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
