"""Choose the plan of a network: ranks and channels alone, or fewer of them on smaller images.

Multiply-accumulates fall with the pixels that a network sees, and no weight changes. Whether that
keeps more answers than fewer ranks is measured, for some sizes, each with the ranks that still are
to go: by how much the outputs change on procedural images, to which nothing was fitted. (Inverted
images do not tell: they are made at the network's own size, and smaller ones lose what inversion
put into their finest detail.) The two best sizes are then tried against ranks alone, each after a
short recovery: what ranks lose comes back, what pixels lost does not.

Source: the resolution multiplier of MobileNets (Howard et al. 2017), section 3.4. Deviation: the
network is not trained anew at the smaller size, so the size is one that its strides divide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter

import torch

from edgeclean.compression.factorisation import merged_module
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.compression.goals import FileSize
from edgeclean.compression.judge import Judge
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.plan import RankPlan, choose_ranks
from edgeclean.compression.settings import RankSettings
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.networks.cost import count_macs
from edgeclean.networks.layers import Layer, evaluating, trace_layers
from edgeclean.networks.resized import Resize, Resized, Size
from edgeclean.networks.state import (
    DecomposedNetwork,
    FinetunedNetwork,
    Network,
    SyntheticImages,
    TruncatedNetwork,
)
from edgeclean.processes import return_freed_memory
from edgeclean.progress import Progress, silent

TRYING = "Trying smaller images"  # the title that it is reported under
CLEARLY = 0.9  # of the change that ranks and channels make: images shrink only where it is below
_OVERSHOOT = 0.05  # by which a size alone may exceed the ratio, for sizes come in coarse steps
_MOST_SIZES, MOST_TRIED = 4, 2  # that are planned, and that are recovered for a short while
# Of the side: below that bilinear samples skip pixels, and what nobody sees at the images' own size
# can hide in those that are left (image-scaling attacks; Quiring et al., USENIX Security 2020).
_SMALLEST = 0.5
PROBE_SHARE, LEAST_STEPS = 0.15, 10  # of the recovery's steps, before two plans are compared


def choose_plan(  # noqa: PLR0913 - a plan is of a network, for a goal, on images
    network: DecomposedNetwork,
    settings: RankSettings,
    *,
    images: SyntheticImages | None = None,
    recovery: FinetuneSettings | None = None,
    table: LatencyTable | None = None,
    file: FileSize | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> RankPlan:
    """Choose ranks as `choose_ranks` does, and where it clearly harms less, smaller images.

    Images shrink only for a ratio of multiply-accumulates, without a latency table, which has no
    times of other sizes, and only where there are synthetic images to judge and to recover on.

    Args:
        network: decomposed, in its original shape; it also teaches what is tried.
        settings: see `RankSettings`.
        images: to measure on, and to recover on.
        recovery: what the truncated network will be recovered by; None leaves images as they are.
        table: what each layer takes on the device.
        file: what a size budget needs.
        seed: of the short recoveries.
        progress: told after every layer, and before every size.

    Raises:
        RatioError, UsageError, InputRejectedError: see `choose_ranks`.
        NotFiniteError: a short recovery's loss is not finite.
    """
    layered = replace(settings, forms=settings.of_layers)
    plan = choose_ranks(network, layered, images=images, table=table, file=file, progress=progress)
    return_freed_memory()  # of large images, gigabytes of what was kept between their layers
    asked = settings.may_resize and table is None  # which has no times of other sizes
    if not asked or images is None or recovery is None:
        return plan
    plan = replace(plan, settings={**plan.settings, "forms": [*settings.of_layers, "resolution"]})
    whole = replace(network, module=merged_module(network.module).eval())
    sizes = list(smaller_sizes(whole, plan.ratio_asked))
    if not sizes:
        return plan
    judge = Judge.of(whole)
    most = CLEARLY * judge.change(_truncated(network, plan).module)
    less: list[tuple[float, RankPlan]] = []
    for done, size in enumerate(sizes):
        progress(TRYING, done, len(sizes) + 1)
        if judge.change(Resized(whole.module, size)) >= most:
            continue  # and ranks would add to it
        smaller = plan_at(size, network, plan, layered, images)
        less.append((judge.change(_truncated(network, smaller).module), smaller))
    tried = [one for change, one in sorted(less, key=itemgetter(0)) if change < most][:MOST_TRIED]

    def left(one: RankPlan) -> float:
        recovered = briefly_recovered(network, one, whole, images, recovery, seed, judge)
        return_freed_memory()
        return judge.change(recovered.module)

    best = plan
    if tried:
        most = CLEARLY * left(plan)
        least, smaller = min(((left(one), one) for one in tried), key=itemgetter(0))
        best = smaller if least < most else plan
    progress(TRYING, len(sizes) + 1, len(sizes) + 1)
    return best


def plan_at(
    size: Size,
    network: DecomposedNetwork,
    asked: RankPlan,
    settings: RankSettings,
    images: SyntheticImages,
) -> RankPlan:
    """Choose the ranks that are still to go once a network sees images of that size.

    Args:
        size: height and width.
        network: decomposed, in its original shape.
        asked: the plan for its own size, whose goal holds.
        settings: of the layers; the goal's ratio is of the whole network at its own size.
        images: to measure on, at the network's own size.
    """
    channels = network.spec.input_shape[0]
    there = replace(network, spec=replace(network.spec, input_shape=(channels, *size)))
    whole = merged_module(network.module).eval()
    left = asked.ratio_asked * count_macs(whole, (channels, *size)) / asked.macs_before
    goal = replace(settings, ratio=max(1.0, left), keep_accuracy=None)
    seen = replace(images, pixels=Resize(size)(images.pixels))
    plan = choose_ranks(there, goal, images=seen)
    return_freed_memory()
    return replace(
        plan,
        settings=asked.settings,
        ratio_asked=asked.ratio_asked,
        macs_before=asked.macs_before,
        macs_resized=plan.macs_before,
        resolution=size,
    )


def briefly_recovered(  # noqa: PLR0913 - `finetune`, of a plan
    network: DecomposedNetwork,
    plan: RankPlan,
    teacher: Network,
    images: SyntheticImages,
    recovery: FinetuneSettings,
    seed: int,
    judge: Judge | None = None,
) -> FinetunedNetwork:
    """Return the network of a plan, recovered for `PROBE_SHARE` of the steps.

    Args:
        network: decomposed, in its original shape.
        plan: of it.
        teacher: the same function.
        images: to recover on.
        recovery: the whole recovery.
        seed: of every draw.
        judge: of the teacher, by which recovery is kept; None draws one.
    """
    steps = min(recovery.steps, max(LEAST_STEPS, round(PROBE_SHARE * recovery.steps)))
    brief = replace(recovery, steps=steps)
    return finetune(_truncated(network, plan), teacher, images, brief, seed=seed, judge=judge)


def macs_at(network: Network, size: Size) -> int:
    """Return the multiply-accumulates of one image of that height and width."""
    return count_macs(network.module, (network.spec.input_shape[0], *size))


def smaller_sizes(network: Network, ratio: float) -> Iterator[Size]:
    """Yield heights and widths that the network can see instead, the largest first.

    Each is a multiple of the network's stride, nearly of the images' shape, at least half of the
    side, and does not alone go beyond the ratio. A network that takes one size only has none.

    Args:
        network: in its original shape, with convolutions in place of blocks.
        ratio: of multiply-accumulates, before to after.
    """
    _, height, width = network.spec.input_shape
    layers = trace_layers(network.module, network.spec.input_shape)
    strides = (_stride(layers, 0, height), _stride(layers, 1, width))
    longer = 0 if height >= width else 1
    steps = -(-(height, width)[longer] // strides[longer])
    macs = sum(layer.macs for layer in layers)
    found: list[Size] = []
    for left in range(steps - 1, math.ceil(_SMALLEST * steps) - 1, -1):
        rows, columns = (
            min(
                side,
                stride
                * max(math.ceil(_SMALLEST * side / stride), round(side * left / steps / stride)),
            )
            for side, stride in zip((height, width), strides, strict=True)
        )
        if not _takes(network, (rows, columns)):
            return
        if macs > ratio * (1 + _OVERSHOOT) * macs_at(network, (rows, columns)):
            break
        found.append((rows, columns))
    apart = -(-len(found) // _MOST_SIZES) or 1
    yield from found[::-1][::apart][::-1]


def _stride(layers: tuple[Layer, ...], axis: int, side: int) -> int:
    """How many pixels of a side lie between two of the network's smallest map on that side."""
    maps = [
        image[axis]
        for layer in layers
        for before, image in zip(layer.images_in, layer.images_out, strict=True)
        if len(image) > axis and max(before) > 1  # beyond global pooling there is no map
    ]
    return max(1, round(side / max(1, min(maps, default=side))))


def _takes(network: Network, size: Size) -> bool:
    """Whether the network answers images of another size; many flatten maps of one size."""
    weight, channels = next(network.module.parameters()), network.spec.input_shape[0]
    image = torch.zeros(1, channels, *size, device=weight.device, dtype=weight.dtype)
    try:
        with evaluating(network.module), torch.no_grad():
            answer = network.module(image)
    except Exception:  # noqa: BLE001 - a stranger's code may refuse a size in any way
        return False
    return tuple(answer.shape) == (1, network.spec.classes) and bool(answer.isfinite().all())


def _truncated(network: DecomposedNetwork, plan: RankPlan) -> TruncatedNetwork:
    return truncate(network, plan, TruncateSettings(shortfall=0.5))
