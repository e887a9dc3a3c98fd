"""NaN and infinity end in an error where they begin: at loading, in a loss, between two stages."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import tiny_network
from torch import Tensor, nn

from edgeclean.backdoor.families import FAMILIES, WarpFamily
from edgeclean.backdoor.findings import ScanReport, SearchRecord, Suspect
from edgeclean.backdoor.gradient import Evidence, GradientSettings, Slot, cheapest_triggers
from edgeclean.backdoor.purify import PurifySettings, purify
from edgeclean.backdoor.triggers import MaskedTrigger, WarpTrigger
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.compression.plan import LayerPlan
from edgeclean.errors import InputRejectedError, NotFiniteError
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.load.finite import check_answers
from edgeclean.networks.finite import require_finite
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages
from edgeclean.runner import Runner

NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])
SPEC = ModelSpec(
    architecture="made here", input_shape=(3, 8, 8), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3
)


class Answers(nn.Module):
    """A network of two layers; ``between`` is what happens to the first one's output."""

    def __init__(self, between: Any = lambda features: features) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(5, 4)
        self._between = between

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self._between(self.inner(images).flatten(1)))
        return logits


def huge(module: Answers, name: str) -> Answers:
    with torch.no_grad():
        module.get_parameter(name).fill_(3e38)
    return module


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (huge(Answers(), "inner.0.weight"), "its layer inner.0 is the first"),
        (huge(Answers(lambda features: features + 100), "head.weight"), "its layer head is the"),
        (Answers(lambda features: features / 0), "what is between its layers is the first"),
    ],
)
def test_a_network_without_finite_answers_is_refused_where_they_end(
    module: Answers, where: str
) -> None:
    with pytest.raises(InputRejectedError, match=where):
        check_answers(module.eval(), SPEC)


class Scaled(nn.Module):
    """What is common as a first step: each image by its own mean and standard deviation."""

    def __init__(self, least: float, axes: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.answers, self.least, self.axes = Answers(), least, axes

    def forward(self, images: Tensor) -> Tensor:
        centred = images - images.mean(self.axes, keepdim=True)
        scaled = centred / (images.std(self.axes, keepdim=True) + self.least)
        logits: Tensor = self.answers(scaled)
        return logits


def test_a_division_by_an_images_own_deviation_is_not_called_large_weights() -> None:
    with pytest.raises(InputRejectedError, match="an image of one colour, and no other, with NaN"):
        check_answers(Scaled(0.0).eval(), SPEC)
    check_answers(Scaled(1e-5).eval(), SPEC)


def test_several_images_are_tried_as_well() -> None:
    def lonely(features: Tensor) -> Tensor:
        return features / (1 if len(features) == 1 else 0)

    with pytest.raises(InputRejectedError, match="NaN or infinity"):
        check_answers(Answers(lonely).eval(), SPEC)
    with pytest.raises(InputRejectedError, match="does not take 2 images at once"):
        check_answers(Answers(lambda features: features.view(1, 5)).eval(), SPEC)
    with pytest.raises(InputRejectedError, match=r"2 images the network gives \(1, 4\)"):
        check_answers(Answers(lambda features: features[:1]).eval(), SPEC)


def test_looking_changes_nothing() -> None:
    module = Answers().eval()
    before, state = torch.random.get_rng_state(), dict(vars(module))
    check_answers(module, SPEC)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert dict(vars(module)) == state
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())


def test_an_overflow_that_a_white_image_alone_meets_is_found() -> None:
    module = Answers().eval()
    with torch.no_grad():
        module.inner[0].weight.fill_(1e34)
        module.inner[0].bias.zero_()
        module.head.weight.fill_(1e3)
    assert bool(torch.isfinite(module(torch.full((1, 3, 8, 8), -2.0))).all())
    with pytest.raises(InputRejectedError, match="its layer head"):
        check_answers(module, SPEC)


def loaded() -> LoadedNetwork:
    tiny = tiny_network()
    return LoadedNetwork(module=tiny.module, spec=tiny.spec, source_sha256=tiny.source_sha256)


def images(pixels: Tensor | None = None) -> SyntheticImages:
    plain = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 4
    return SyntheticImages(pixels=plain if pixels is None else pixels, labels=labels, origin="x")


def report(trigger: Any, cost: float = 3.0, costs: tuple[float, ...] = (3.0, math.inf)) -> Any:
    suspect = Suspect(target=1, search="x", score=2.0, cost=cost, success=1.0, trigger=trigger)
    record = SearchRecord(
        name="x",
        sees="",
        blind_to="",
        cost_unit="",
        costs=costs,
        successes=(1.0, 0.0),
        scores=(2.0, 0.0),
        threshold=1.0,
    )
    return ScanReport(verdict="suspected", suspects=(suspect,), searches=(record,), images=16)


def masked(mask: float = 0.0, pattern: float = 0.0) -> MaskedTrigger:
    return MaskedTrigger(torch.full((1, 8, 8), mask), torch.full((3, 8, 8), pattern))


def warped(flow: float = 0.0) -> WarpTrigger:
    return WarpTrigger(torch.full((8, 8, 2), flow), torch.zeros(2, 5, 5))


def layer_plan(**changes: Any) -> LayerPlan:
    return LayerPlan(layer="conv", ranks=None, reason="", **changes)


def test_what_stages_hand_on_today_passes() -> None:
    for state in (tiny_network(), images(), report(masked()), report(warped()), layer_plan()):
        require_finite(state, "stage")


@settings(deadline=None)
@given(bad=NOT_FINITE)
def test_every_part_of_a_state_is_looked_at(bad: float) -> None:
    pixels = images().pixels.clone()
    pixels[3, 1, 2, 5] = bad
    states: dict[str, Any] = {
        "pixels": images(pixels),
        "suspects.0.trigger.mask": report(masked(mask=bad)),
        "suspects.0.trigger.pattern": report(masked(pattern=bad)),
        "suspects.0.trigger.flow": report(warped(bad)),
        "suspects.0.cost": report(masked(), cost=bad),
        "effect": layer_plan(effect=bad),
        "loss": layer_plan(loss=bad),
        "a.1": {"a": [0.0, bad]},
    }
    for name, state in states.items():
        with pytest.raises(NotFiniteError, match=rf"^stage: .*\b{name} came out"):
            require_finite(state, "stage")


@settings(deadline=None)
@given(bad=NOT_FINITE, which=st.integers(0, 10_000), place=st.integers(0, 10_000))
def test_one_number_of_any_weight_or_statistic_is_enough(
    bad: float, which: int, place: int
) -> None:
    network = tiny_network()
    tensors = [*network.module.named_parameters(), *network.module.named_buffers()]
    floats = [(name, one) for name, one in tensors if one.is_floating_point()]
    name, tensor = floats[which % len(floats)]
    with torch.no_grad():
        tensor.view(-1)[place % tensor.numel()] = bad
    with pytest.raises(NotFiniteError, match=f"1 of the {tensor.numel()} numbers of {name} "):
        require_finite(network, "stage")


def stage(value: float) -> float:
    """What it is given."""
    return value


def test_the_runner_hands_on_what_is_finite_and_names_the_stage_of_what_is_not() -> None:
    assert Runner()("truncate", stage, 1.5) == 1.5
    with pytest.raises(NotFiniteError, match=r"^truncate: "):
        Runner()("truncate", stage, math.nan)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_native_code_never_samples_at_a_flow_that_is_no_number(bad: float) -> None:
    flow = torch.zeros(8, 8, 2)
    flow[4, 4, 1] = bad
    with pytest.raises(NotFiniteError, match="warp"):
        WarpTrigger(flow, torch.zeros(2, 5, 5)).stamp(images().pixels)
    family = WarpFamily.around([warped()])
    family._control = torch.full_like(family._control, bad)
    with pytest.raises(NotFiniteError, match="warp"):
        family.stamp(images().pixels[None])


class Overflowing(nn.Module):
    """Classes of clean images, and NaN in every gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixels: Tensor) -> Tensor:
        logits = pixels.flatten(1)[:, :4] * self.scale
        return logits * torch.inf if torch.is_grad_enabled() else logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_search_on_answers_that_are_no_numbers_ends_in_an_error(family: str) -> None:
    module, pixels = Overflowing(), images().pixels
    evidence = Evidence(pixels, module(pixels).argmax(1))
    with pytest.raises(NotFiniteError, match=f"{family} search: the loss"):
        cheapest_triggers(
            module,
            evidence,
            [Slot(0), Slot(1)],
            FAMILIES[family],
            GradientSettings(steps=4),
            torch.Generator().manual_seed(0),
        )


def forced(settings: Any, **changes: Any) -> Any:
    """Settings as no reader takes them: what a stage does with them is asked."""
    changed = replace(settings)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def test_every_loop_ends_at_the_first_loss_that_is_no_number() -> None:
    network = loaded()
    few = SynthesizeSettings(count=4, steps=50, batch_size=4)
    told: list[int] = []
    with pytest.raises(NotFiniteError, match="synthesize: the loss"):
        synthesize(
            network,
            forced(few, class_weight=math.inf),
            seed=0,
            progress=lambda _name, done, _total: told.append(done),
        )
    assert max(told) <= 1
    settings = PurifySettings(rounds=1, restarts=1, search_steps=3, candidates=40, procedural=8)
    fast = forced(replace(settings.unlearn, steps=50), learning_rate=1e30)
    settings = forced(settings, unlearn=fast)
    drawn = synthesize(network, few, seed=0)
    stamp = MaskedTrigger(torch.zeros_like(drawn.pixels[0, :1]), drawn.pixels[0])
    suspect = Suspect(
        target=0, search="masked patch", score=9.0, cost=1.0, success=1.0, trigger=stamp
    )
    found = ScanReport(verdict="suspected", suspects=(suspect,), searches=(), images=4)
    with pytest.raises(NotFiniteError, match="purify: the loss"):
        purify(network, drawn, found, settings, seed=0)
    tuned = FinetuneSettings(steps=50, batch_size=4)
    with pytest.raises(NotFiniteError, match="finetune: the loss"):
        finetune(network, network, drawn, forced(tuned, learning_rate=math.inf), seed=0)


def test_what_only_the_last_step_broke_does_not_reach_the_next_stage() -> None:
    network = loaded()
    last = forced(FinetuneSettings(steps=1, batch_size=4), learning_rate=math.inf)
    with pytest.raises(NotFiniteError, match=r"^finetune: .* numbers of \S+ came out"):
        Runner()("finetune", finetune, network, network, images(), last, seed=0)
