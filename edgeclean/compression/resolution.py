"""Choose the plan of a network: ranks and channels alone, or fewer of them on smaller images.

Multiply-accumulates fall with the pixels that a network sees, and no weight changes. Whether that
keeps more answers than fewer ranks is measured, for some sizes, each with the ranks that still are
to go: by how much the outputs change on procedural images, to which nothing was fitted. (Inverted
images do not tell: they are made at the network's own size, and smaller ones lose what inversion
put into their finest detail.) The two best sizes are then tried against ranks alone, each after a
short recovery: what ranks lose comes back, what pixels lost does not. A network of layers that
cannot be made smaller, such as one of grouped or linear ones, has no such plan to be compared with:
for it the best size that meets the goal is taken.

Source: the resolution multiplier of MobileNets (Howard et al. 2017), section 3.4. Deviation: the
network is not trained anew at the smaller size, so the size is one that its strides divide.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import torch

from edgeclean.compression.factorisation import merged_module
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.compression.goals import FileSize
from edgeclean.compression.judge import Judge
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.plan import RankPlan, choose_ranks
from edgeclean.compression.reach import check_layers_reach
from edgeclean.compression.settings import RankSettings
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.errors import RatioError
from edgeclean.networks.cost import count_macs
from edgeclean.networks.layers import Layer, evaluated, evaluating, trace_layers
from edgeclean.networks.resized import Resize, Resized, Size
from edgeclean.networks.state import (
    DecomposedNetwork,
    FinetunedNetwork,
    JsonValue,
    ModelSpec,
    Network,
    SyntheticImages,
    TruncatedNetwork,
    settings_as_json,
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
    """Choose ranks as `choose_ranks` does, and smaller images where they clearly harm less.

    So they are where ranks and channels do not reach the goal at all. Images shrink only for a
    ratio of multiply-accumulates, without a latency table, which has no times of other sizes, and
    only where there are synthetic images to judge and to recover on.

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
    alone = replace(settings, forms=settings.of_layers)
    trial = None
    if settings.may_resize and table is None and images is not None and recovery is not None:
        trial = _Trial(network, alone, images, recovery, seed, progress)
    try:
        plan = choose_ranks(
            network, alone, images=images, table=table, file=file, progress=progress
        )
    except RatioError:
        smaller = None if trial is None else trial.best(None)
        if smaller is None:
            raise
        return smaller
    if trial is None:
        return plan
    return trial.best(plan) or replace(plan, settings=_noted(alone))


@dataclass(frozen=True, slots=True)
class _Trial:
    """What smaller images are tried on; the settings are of layers alone, at the network's size."""

    network: DecomposedNetwork
    settings: RankSettings
    images: SyntheticImages
    recovery: FinetuneSettings
    seed: int
    progress: Progress

    def best(self, plan: RankPlan | None) -> RankPlan | None:
        """Return the best plan of a smaller size, if it harms clearly less than ``plan`` does.

        With None, which is a goal out of the reach of ranks and channels, any that meets it does.
        """
        return_freed_memory()  # of large images, gigabytes of what was kept between their layers
        whole = replace(self.network, module=evaluated(merged_module(self.network.module)))
        ratio = self.settings.ratio_or_default
        sizes = list(smaller_sizes(whole, ratio, alone=plan is None))
        if not sizes:
            return None
        judge = Judge.of(whole)
        tried = self._likeliest(plan, whole, sizes, judge)

        def left(one: RankPlan) -> float:
            recovered = briefly_recovered(
                self.network, one, whole, self.images, self.recovery, self.seed, judge
            )
            return_freed_memory()
            return judge.change(recovered.module)

        best = None
        if plan is None and len(tried) == 1:
            best = tried[0]  # there is nothing to compare it with
        elif tried:
            most = math.inf if plan is None else CLEARLY * left(plan)
            least, smaller = min(((left(one), one) for one in tried), key=itemgetter(0))
            best = smaller if least < most else None
        self.progress(TRYING, len(sizes) + 1, len(sizes) + 1)
        return best

    def _likeliest(
        self, plan: RankPlan | None, whole: Network, sizes: Sequence[Size], judge: Judge
    ) -> list[RankPlan]:
        """Return the plans to recover: those that change outputs least, and less than ``plan``."""
        most = math.inf
        if plan is not None:
            most = CLEARLY * judge.change(_truncated(self.network, plan).module)
        less: list[tuple[float, RankPlan]] = []
        for done, size in enumerate(sizes):
            self.progress(TRYING, done, len(sizes) + 1)
            if judge.change(Resized(whole.module, size)) >= most:
                continue  # and ranks would add to it
            try:
                smaller = plan_at(size, self.network, self.settings, self.images)
            except RatioError:  # layers have too little to give there as well
                continue
            less.append((judge.change(_truncated(self.network, smaller).module), smaller))
        likeliest = [one for change, one in sorted(less, key=itemgetter(0)) if change < most]
        return likeliest[:MOST_TRIED]


def plan_at(
    size: Size, network: DecomposedNetwork, settings: RankSettings, images: SyntheticImages
) -> RankPlan:
    """Choose the ranks that are still to go once a network sees images of that size.

    Args:
        size: height and width.
        network: decomposed, in its original shape.
        settings: of the layers, with the goal at the network's own size.
        images: to measure on, at the network's own size.

    Raises:
        RatioError: they are too few.
    """
    whole = replace(network, module=evaluated(merged_module(network.module)))
    there = replace(network, spec=_spec_at(network, size))
    seen = replace(images, pixels=Resize(size)(images.pixels))
    plan = choose_ranks(there, _goal_at(whole, settings, size), images=seen)
    return_freed_memory()
    return replace(
        plan,
        settings=_noted(settings),
        ratio_asked=settings.ratio_or_default,
        macs_before=count_macs(whole.module, network.spec.input_shape),
        macs_resized=plan.macs_before,
        resolution=size,
    )


def check_reach(
    network: Network,
    settings: RankSettings,
    *,
    keep: Collection[str] = (),
    table: LatencyTable | None = None,
    file: FileSize | None = None,
) -> None:
    """Refuse what `choose_plan` would refuse, unless weights decide it; see `check_layers_reach`.

    Args:
        network: in its original shape.
        settings: of the choice of ranks.
        keep: the layers that are not decomposed.
        table: what each layer takes on the device.
        file: what a size budget needs.

    Raises:
        RatioError, UsageError: see `check_layers_reach`.
    """
    try:
        check_layers_reach(network, settings, keep=keep, table=table, file=file)
    except RatioError:
        resizes = settings.may_resize and table is None
        if not (resizes and smaller_images_reach(network, settings, keep=keep)):
            raise


def smaller_images_reach(
    network: Network, settings: RankSettings, *, keep: Collection[str] = ()
) -> bool:
    """Whether a network that sees smaller images can meet the ratio, by its layers' shapes alone.

    Args:
        network: in its original shape, with convolutions in place of blocks.
        settings: of the choice of ranks, for a ratio of multiply-accumulates.
        keep: the layers that are not decomposed.
    """
    sizes = list(smaller_sizes(network, settings.ratio_or_default, alone=True))
    if not sizes:
        return False
    there = replace(network, spec=_spec_at(network, sizes[-1]))
    try:
        check_layers_reach(there, _goal_at(network, settings, sizes[-1]), keep=keep)
    except RatioError:
        return False
    return True


def _spec_at(network: Network, size: Size) -> ModelSpec:
    return replace(network.spec, input_shape=(network.spec.input_shape[0], *size))


def _goal_at(whole: Network, settings: RankSettings, size: Size) -> RankSettings:
    """Return what ranks and channels have still to reach once images are of that size."""
    own = count_macs(whole.module, whole.spec.input_shape)
    left = settings.ratio_or_default * macs_at(whole, size) / own
    return replace(settings, forms=settings.of_layers, ratio=max(1.0, left), keep_accuracy=None)


def _noted(settings: RankSettings) -> dict[str, JsonValue]:
    """Return the settings of a choice that had smaller images to choose as well."""
    return {**settings_as_json(settings), "forms": [*settings.of_layers, "resolution"]}


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


def smaller_sizes(network: Network, ratio: float, *, alone: bool = False) -> Iterator[Size]:
    """Yield heights and widths that the network can see instead, the largest first.

    Each is a multiple of the network's stride, nearly of the images' shape, at least half of the
    side, and does not alone go beyond the ratio. A network that takes one size only has none.

    Args:
        network: in its original shape, with convolutions in place of blocks.
        ratio: of multiply-accumulates, before to after.
        alone: whether layers do not reach it; then the first size that does is one too, and last.
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
        fewer = macs / macs_at(network, (rows, columns))
        if fewer > ratio * (1 + _OVERSHOOT) and not alone:
            break
        found.append((rows, columns))
        if fewer >= ratio and alone:
            break
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
