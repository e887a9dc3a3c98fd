import copy
import itertools
import math

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decompose import Stem, network_of, seeded
from torch import nn
from zoo import needs_zoo, zoo_network

from edgeclean.cost import count_macs, count_params
from edgeclean.errors import InputRejectedError, RatioError, UsageError
from edgeclean.factors.activations import corrected_kernel, input_moments
from edgeclean.factors.blocks import factorize
from edgeclean.factors.decompose import DecomposeSettings, decompose
from edgeclean.factors.fits import ActivationFit, WeightFit, lower_triangle
from edgeclean.factors.sites import find_sites
from edgeclean.ranks import subject as rank_subject
from edgeclean.ranks.candidates import FormLimits, allowed_ranks, list_candidates, whole
from edgeclean.ranks.choose import RankSettings, choose_ranks
from edgeclean.ranks.knapsack import Item, choose
from edgeclean.ranks.rank_file import read_rank_file
from edgeclean.ranks.sensitivity import OutputEffect
from edgeclean.ranks.truncate import TruncateSettings, truncate
from edgeclean.states import SyntheticImages


class Plain(nn.Module):
    """A small network with every convolution shape that ranks are chosen for."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.down = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.point = nn.Conv2d(48, 64, 1)
        self.late = nn.Conv2d(64, 48, (3, 1), padding=(1, 0))
        self.norm = nn.BatchNorm2d(48)
        self.head = nn.Linear(48, 5)

    def forward(self, images):
        features = torch.relu(self.down(torch.relu(self.stem(images))))
        features = torch.relu(self.norm(self.late(torch.relu(self.point(features)))))
        return self.head(features.mean(dim=(2, 3)))


def plain():
    return network_of(seeded(Plain))


def some_images(count=12, seed=3):
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 5
    return SyntheticImages(pixels=pixels, labels=labels, origin="noise")


# the knapsack


def brute_force(groups, budget, floor):
    """The least effect within the budget, above the floor if that can be."""
    choices = [
        (sum(item.cost for item in choice), sum(item.effect for item in choice))
        for choice in itertools.product(*groups)
    ]
    within = [(cost, effect) for cost, effect in choices if cost <= budget]
    above = [(cost, effect) for cost, effect in within if cost >= floor]
    return min((effect for _, effect in above or within), default=None)


@settings(max_examples=80, deadline=None)
@given(
    groups=st.lists(
        st.lists(
            st.builds(Item, st.integers(0, 60), st.floats(0, 10, width=16)), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=4,
    ),
    budget=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.5, 0.98]),
)
def test_the_choice_is_the_best_within_the_budget(groups, budget, share):
    floor = math.ceil(share * budget)
    chosen, best = choose(groups, budget, floor), brute_force(groups, budget, floor)
    if best is None:
        assert chosen is None
        return
    items = [group[index] for group, index in zip(groups, chosen, strict=True)]
    assert sum(item.cost for item in items) <= budget
    assert sum(item.effect for item in items) == pytest.approx(best)


def test_room_that_is_left_is_spent():
    groups = [[Item(10, 0.0), Item(40, 0.0)], [Item(10, 1.0), Item(50, 0.5)]]
    assert choose(groups, 90) == (1, 1)
    assert choose(groups, 61) == (0, 1)
    assert choose(groups, 19) is None


def test_rounding_to_bins_never_breaks_a_large_budget():
    groups = [[Item(1_000_003 * k, 1.0 / k) for k in range(1, 9)] for _ in range(20)]
    budget = 90_000_000
    chosen = choose(groups, budget, 88_200_000)
    spent = sum(group[index].cost for group, index in zip(groups, chosen, strict=True))
    assert 88_200_000 <= spent <= budget


# fits and candidates


def reconstruction_loss(conv, fit, ranks):
    kernel = conv.weight.detach()
    return float((kernel - fit.factors(ranks).kernel()).square().sum() / kernel.square().sum())


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (24, 3, 3, 3), (6, 9, 1, 1), (5, 12, 1, 3)])
def test_the_loss_of_a_weight_fit_is_its_error(shape):
    conv = seeded(lambda: nn.Conv2d(shape[1], shape[0], shape[2:])).double()
    fit = WeightFit(factorize(conv.weight), shape[:2])
    pairs = itertools.product((1, 2, shape[0] - 1, shape[0]), (1, 2, shape[1] - 1, shape[1]))
    for ranks in pairs:
        if shape[2:] == (1, 1) and ranks[0] != ranks[1]:
            continue
        assert fit.loss(ranks) == pytest.approx(reconstruction_loss(conv, fit, ranks), abs=1e-10)


def correlated_patches(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    mix = mix * torch.logspace(0, -2, size, dtype=torch.float64)
    patches = mix @ torch.randn(size, 4000, generator=generator, dtype=torch.float64)
    return patches @ patches.T / 4000


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (24, 3, 3, 3), (6, 9, 1, 1), (9, 6, 1, 1)])
def test_the_loss_of_an_activation_fit_is_the_outputs_error(shape):
    conv = seeded(lambda: nn.Conv2d(shape[1], shape[0], shape[2:])).double()
    matrix = conv.weight.detach().flatten(1)
    moment = correlated_patches(matrix.shape[1])
    fit = ActivationFit(conv.weight, moment, 1e-9)
    by_weights = WeightFit(factorize(conv.weight), shape[:2])
    total = float(((matrix @ moment) * matrix).sum())

    def outputs_lost(some_fit, ranks):
        gap = matrix - some_fit.factors(ranks).kernel().flatten(1)
        return float(((gap @ moment) * gap).sum()) / total

    pairs = itertools.product((1, 3, shape[0] - 1, shape[0]), (1, 2, shape[1] - 1, shape[1]))
    for ranks in pairs:
        if shape[2:] == (1, 1) and (ranks[0] != ranks[1] or ranks[0] > min(shape[:2])):
            continue
        assert fit.loss(ranks) == pytest.approx(outputs_lost(fit, ranks), abs=1e-7)
        if ranks[1] == shape[1] or shape[2:] == (1, 1):  # then the fit is the optimum
            assert fit.loss(ranks) <= outputs_lost(by_weights, ranks) + 1e-7


def test_the_input_basis_is_the_optimum_for_uncorrelated_pixels():
    """With C = Cx (x) I the loss is that of the singular values of W_(2) Cx^1/2 left out."""
    conv = seeded(lambda: nn.Conv2d(6, 8, (1, 3))).double()
    channels = correlated_patches(6)
    fit = ActivationFit(conv.weight, torch.kron(channels, torch.eye(3).double()), 1e-9)
    unfolded = conv.weight.detach().transpose(0, 1).flatten(1)
    energies = torch.linalg.eigvals(channels @ unfolded @ unfolded.T).real.sort().values
    for rank in range(1, 6):
        left_out = float(energies[: 6 - rank].sum() / energies.sum())
        assert fit.loss((8, rank)) == pytest.approx(left_out, rel=1e-4, abs=1e-8)


def test_an_activation_fit_at_full_rank_is_the_kernel():
    conv = seeded(lambda: nn.Conv2d(6, 8, 3)).double()
    fit = ActivationFit(conv.weight, correlated_patches(54), 0.01)
    torch.testing.assert_close(
        fit.factors((8, 6)).kernel(), conv.weight.detach(), rtol=0, atol=1e-10
    )
    cut = fit.factors((7, 5))
    for factor in (cut.factor_out, cut.factor_in):
        torch.testing.assert_close(
            factor.T @ factor, torch.eye(factor.shape[1], dtype=factor.dtype), rtol=0, atol=1e-10
        )


def test_a_huge_ridge_makes_an_activation_fit_a_weight_fit():
    conv = seeded(lambda: nn.Conv2d(6, 8, 3)).double()
    leaning = ActivationFit(conv.weight, correlated_patches(54), 1e9)
    weights = WeightFit(factorize(conv.weight), (8, 6))
    # a regression given the input basis: never worse than the truncated decomposition
    assert leaning.loss((4, 6)) == pytest.approx(weights.loss((4, 6)), abs=1e-6)
    assert leaning.loss((4, 3)) <= weights.loss((4, 3)) + 1e-6


def test_inputs_that_are_always_zero_still_give_factors():
    conv = seeded(lambda: nn.Conv2d(4, 4, 3)).double()
    fit = ActivationFit(conv.weight, torch.zeros(36, 36, dtype=torch.float64), 0.01)
    assert bool(torch.isfinite(fit.factors((2, 2)).kernel()).all())


def test_a_moment_that_rounding_made_indefinite_is_still_factored():
    vector = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = vector @ vector.T
    moment.diagonal().sub_(1e-9)
    triangle = lower_triangle(moment)
    torch.testing.assert_close(triangle @ triangle.T, moment, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="not positive definite"):
        lower_triangle(-moment)


@pytest.mark.parametrize(
    "geometry",
    [{"padding": 1, "stride": 2}, {"padding": "same", "dilation": 2}, {"padding": "valid"}],
    ids=str,
)
def test_moments_give_the_outputs_energy(geometry):
    conv = seeded(lambda: nn.Conv2d(3, 4, 3, bias=False, **geometry))
    module = nn.Sequential(nn.ReLU(), conv)
    images = torch.randn(21, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    moment = input_moments(module, "1", images).own
    matrix = conv.weight.detach().double().flatten(1)
    with torch.no_grad():
        energy = module(images).double().square().sum(dim=1).mean()
    assert float(((matrix @ moment) * matrix).sum()) == pytest.approx(float(energy), rel=1e-5)


def test_a_corrected_kernel_undoes_a_change_before_it():
    reference = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1))).eval()
    changed = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1))).eval()
    with torch.no_grad():
        for layer in (reference[0], changed[0]):
            layer.bias.zero_()
        changed[0].weight.mul_(torch.linspace(0.3, 2, 6)[:, None, None, None])
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moments = input_moments(changed, "1", images, reference)
    kernel = corrected_kernel(reference[1].weight, moments, 1e-4)
    before = (changed(images) - reference(images)).detach().norm()
    with torch.no_grad():
        changed[1].weight.copy_(kernel)
    assert float((changed(images) - reference(images)).detach().norm()) < 0.05 * float(before)


@pytest.mark.parametrize("name", ["stem", "down", "point", "late"])
def test_candidates_cost_what_their_blocks_cost(name):
    network = plain()
    site = next(site for site in find_sites(network) if site.name == name)
    conv = site.conv()
    fit = WeightFit(factorize(conv.weight), conv.weight.shape[:2])
    base = count_params(network.module), count_macs(network.module, (3, 16, 16))
    dense = whole(site, conv)
    decomposed = decompose(network, DecomposeSettings())
    for form in list_candidates(
        site, conv, fit, limits=FormLimits(cost="macs", rank_multiple=7, least_gain=0.0)
    ):
        if form.ranks is None:
            continue
        others = tuple(s.name for s in find_sites(network) if s.name != name and not s.reason)
        plan = choose_ranks(
            decomposed,
            RankSettings(ratio=1.0, overrides={name: form.ranks}, keep=others, least_gain=0.0),
        )
        module = truncate(decomposed, plan, TruncateSettings()).module
        assert count_params(module) == base[0] - dense.params + form.params
        assert count_macs(module, (3, 16, 16)) == base[1] - dense.macs + form.macs
        assert form.params <= dense.params
        assert form.macs <= dense.macs


def test_candidates_get_dearer_and_lose_less():
    network = plain()
    site = next(site for site in find_sites(network) if site.name == "late")
    fit = WeightFit(factorize(site.conv().weight), (48, 64))
    forms = list_candidates(
        site, site.conv(), fit, limits=FormLimits(cost="params", rank_multiple=1, least_gain=0.1)
    )
    assert len(forms) <= 49
    for cheap, dear in itertools.pairwise(forms):
        assert cheap.params < dear.params
        assert cheap.loss > dear.loss
    assert forms[-1].ranks is None
    assert all(form.params <= 0.9 * forms[-1].params for form in forms[:-1])
    assert any(form.ranks[0] != form.ranks[1] for form in forms[:-1])


@pytest.mark.parametrize(
    ("channels", "full", "multiple", "expected"),
    [
        (16, 16, 8, [8, 16]),
        (16, 16, 16, [8, 16]),
        (16, 16, 32, [8, 16]),
        (64, 27, 8, [8, 16, 24, 64]),
        (64, 64, 32, [32, 64]),
        (20, 20, 8, [8, 16, 20]),
        (3, 3, 8, [2, 3]),
        (1, 1, 8, [1]),
        (5, 5, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_allowed_ranks(channels, full, multiple, expected):
    assert allowed_ranks(channels, full, multiple) == expected


def test_wide_layers_have_few_allowed_ranks():
    ranks = allowed_ranks(2048, 2048, 8)
    assert len(ranks) <= 33
    assert all(rank % 8 == 0 for rank in ranks)
    assert {8, 2048} <= set(ranks)


# the network as a subject


def subject_of(network, images):
    return rank_subject.rank_subject(network, (), images, most_images=96, ridge=0.01)


def with_factors(module, factors):
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for name, one in factors.items():
            changed.get_parameter(f"{name}.weight").copy_(one.kernel())
    return changed


def test_fitting_in_order_does_not_let_errors_pile_up():
    subject = subject_of(plain(), some_images(64))
    ranks = {"stem": (8, 3), "down": (16, 8), "point": (12, 12), "late": (12, 12)}
    apart = {name: subject.fit(name).factors(pair) for name, pair in ranks.items()}
    before = copy.deepcopy(subject.module.state_dict())
    errors = []
    with torch.no_grad():
        outputs = subject.module(subject.batch)
        for factors in (apart, subject.fit_in_order(ranks)):
            gap = with_factors(subject.module, factors)(subject.batch) - outputs
            errors.append(float(gap.square().sum()))
    assert errors[1] < 0.9 * errors[0]
    for key, tensor in subject.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_the_effect_is_the_outputs_relative_change():
    subject = subject_of(plain(), some_images())
    effect, fit = OutputEffect(subject.module, subject.batch), subject.fit("late")
    conv, site = subject.convs["late"], subject.sites["late"]
    forms = list_candidates(
        site, conv, fit, limits=FormLimits(cost="macs", rank_multiple=16, least_gain=0.1)
    )
    effects = effect.effects("late", fit, forms)
    with torch.no_grad():
        outputs = subject.module(subject.batch)
        changed = with_factors(subject.module, {"late": fit.factors(forms[0].ranks)})
        gap = changed(subject.batch) - outputs
    expected = gap.var(dim=1).sum() / outputs.var(dim=1).sum()
    assert effects[0] == pytest.approx(float(expected), rel=1e-3)
    assert effects[-1] == 0.0
    assert all(dear <= cheap for cheap, dear in itertools.pairwise(effects))


# the plan


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("ratio", [1.3, 2.0, 4.0])
@pytest.mark.parametrize("factors", ["weights", "activations"])
def test_the_ratio_is_met_within_two_percent(measure, ratio, factors):
    network = plain()
    rank_settings = RankSettings(ratio=ratio, measure=measure, factors=factors)
    plan = choose_ranks(network, rank_settings, images=some_images())
    module = truncate(decompose(network, DecomposeSettings()), plan, TruncateSettings()).module
    count = {"macs": lambda m: count_macs(m, (3, 16, 16)), "params": count_params}[measure]
    assert ratio <= count(network.module) / count(module) <= 1.02 * ratio


@needs_zoo
@pytest.mark.parametrize(
    ("name", "ratio", "measure", "multiple"),
    [
        ("resnet20-clean", 2.0, "macs", 1),
        ("resnet20-clean", 4.0, "macs", 1),
        ("resnet20-clean", 2.0, "macs", 8),
        ("resnet20-clean", 4.0, "params", 8),
        ("smallvgg-badnets", 3.0, "macs", 8),
        ("lenet-badnets-nobn", 2.0, "macs", 1),
    ],
)
def test_published_networks_reach_their_ratio(name, ratio, measure, multiple):
    plan = choose_ranks(
        zoo_network(name), RankSettings(ratio=ratio, measure=measure, rank_multiple=multiple)
    )
    assert ratio <= plan.ratio <= 1.02 * ratio
    if multiple > 1:
        for layer in plan.layers:
            channels = (16, 32, 64, 128)
            assert layer.ranks is None or all(
                rank % multiple == 0 or rank in (*channels, 3, 2, 1) for rank in layer.ranks
            )


def test_an_impossible_ratio_names_the_nearest_which_is_possible():
    with pytest.raises(RatioError, match=r"--ratio 500 of macs cannot be met") as caught:
        choose_ranks(plain(), RankSettings(ratio=500.0))
    nearest = float(str(caught.value).split("--ratio ")[2].split(" ")[0])
    assert choose_ranks(plain(), RankSettings(ratio=nearest)).ratio >= nearest
    with pytest.raises(RatioError):
        choose_ranks(plain(), RankSettings(ratio=nearest + 0.05))


def test_ratio_one_keeps_every_layer():
    plan = choose_ranks(plain(), RankSettings(ratio=1.0), images=some_images())
    assert set(plan.ranks().values()) == {None}
    assert plan.ratio == 1.0


def test_layers_that_do_not_get_smaller_are_listed():
    tiny = network_of(
        nn.Sequential(
            seeded(lambda: nn.Conv2d(3, 2, 1)), seeded(lambda: nn.Conv2d(2, 64, 3)),
            seeded(lambda: nn.Conv2d(64, 64, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
    )  # fmt: skip
    plan = choose_ranks(tiny, RankSettings(ratio=2.0, least_gain=0.7))
    reasons = {layer.layer: layer.reason for layer in plan.layers}
    assert reasons["0"] == "would not get smaller"
    assert plan.ranks()["2"] is not None
    assert reasons["2"] == ""


def test_a_layer_that_matters_more_keeps_more():
    """With the outputs deaf to one of two equal layers, that one is cut first."""

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud = nn.Conv2d(3, 32, 3, padding=1)
            self.heard = nn.Conv2d(32, 32, 3, padding=1)
            self.ignored = nn.Conv2d(32, 32, 3, padding=1)
            self.head = nn.Linear(32, 5)

        def forward(self, images):
            features = torch.relu(self.loud(images))
            both = self.heard(features) + 0.001 * self.ignored(features)
            return self.head(torch.relu(both).mean(dim=(2, 3)))

    network = network_of(seeded(Fork))
    plan = {
        layer.layer: layer
        for layer in choose_ranks(
            network, RankSettings(ratio=1.8, keep=("loud",)), images=some_images()
        ).layers
    }
    assert plan["ignored"].macs_after < 0.5 * plan["heard"].macs_after
    assert plan["loud"].reason == "named by --keep"


def test_measuring_leaves_the_network_as_it_was_and_repeats_exactly():
    network = decompose(plain(), DecomposeSettings())
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    first = choose_ranks(network, RankSettings(ratio=2.0), images=some_images())
    second = choose_ranks(network, RankSettings(ratio=2.0), images=some_images())
    assert [layer.as_json() for layer in first.layers] == [
        layer.as_json() for layer in second.layers
    ]
    for key, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_without_images_the_weights_decide():
    plan = choose_ranks(plain(), RankSettings(ratio=2.0))
    assert plan.images == 0
    assert all(layer.factors is None for layer in plan.layers)
    by_energy = choose_ranks(
        plain(), RankSettings(ratio=2.0, sensitivity="energy", factors="weights"),
        images=some_images(),
    )  # fmt: skip
    assert by_energy.ranks() == plan.ranks()


def test_images_are_no_more_than_asked_and_affordable(monkeypatch):
    plan = choose_ranks(plain(), RankSettings(ratio=2.0, images=5), images=some_images(12))
    assert plan.images == 5
    monkeypatch.setattr(rank_subject, "_MOST_MACS", 9 * plan.macs_before)
    assert choose_ranks(plain(), RankSettings(ratio=2.0), images=some_images(12)).images == 9


def test_only_what_is_decomposed_is_planned():
    network = decompose(plain(), DecomposeSettings(keep=("late",)))
    plan = {p.layer: p for p in choose_ranks(network, RankSettings(ratio=1.5)).layers}
    assert plan["late"].ranks is None
    assert plan["late"].reason == "kept whole when the network was decomposed"


def test_overrides_are_obeyed():
    plan = choose_ranks(
        plain(), RankSettings(ratio=1.5, overrides={"late": (5, 7), "point": (9, 9)})
    )
    assert plan.ranks()["late"] == (5, 7)
    assert plan.ranks()["point"] == (9, 9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lat": (1, 1)}, "rank override 'lat' is no layer.*late"),
        ({"late": (49, 3)}, r"ranks \[49, 3\] of late must lie between \[1, 1\] and \[48, 64\]"),
        ({"point": (3, 4)}, r"point is a 1x1 convolution and has one rank; give \[r, r\]"),
        ({"late": (48, 64)}, "make late no smaller"),
        ({"head": (1, 1)}, "head cannot be given ranks: a linear layer"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        choose_ranks(plain(), RankSettings(ratio=1.5, overrides=overrides))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 0.5}, "--ratio 0.5"),
        ({"ratio": math.nan}, "--ratio nan"),
        ({"rank_multiple": 0}, "rank_multiple is 0"),
        ({"ridge": 0.0}, "ridge is 0.0"),
        ({"least_gain": 1.0}, "least_gain 1.0"),
        ({"keep": ("a",), "overrides": {"a": (1, 1)}}, "'a' is kept and has ranks"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        RankSettings(**wrong)


def test_unknown_words_are_refused_where_types_are_not_checked(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match="measure 'flops' is unknown; it is one of macs, params"):
        RankSettings(measure="flops")


def test_nan_weights_are_named():
    module = seeded(Stem)
    with torch.no_grad():
        module.point.weight[0, 0] = float("nan")
    with pytest.raises(InputRejectedError, match="layer point holds NaN"):
        choose_ranks(network_of(module), RankSettings(ratio=1.1))


# the override file


def test_rank_file(tmp_path):
    path = tmp_path / "ranks.toml"
    path.write_text('"layer1.0.conv1" = [8, 6]\n"layer1.0.conv2" = "keep"\nstem = [3, 3]\n')
    overrides = read_rank_file(path)
    assert overrides.ranks == {"layer1.0.conv1": (8, 6), "stem": (3, 3)}
    assert overrides.keep == ("layer1.0.conv2",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem = [8]", r"stem = \[8\]; give \[r_out, r_in\]"),
        ("stem = [8, 0]", r"stem = \[8, 0\]"),
        ("stem = [8, true]", r"stem = \[8, True\]"),
        ("stem = [8.0, 8]", r"stem = \[8.0, 8\]"),
        ('stem = "kept"', "stem = 'kept'"),
        ("layer1.conv = [1, 1]", "layer1.*in quotes"),
        ("stem = [1, 1", "not a TOML file"),
    ],
)
def test_rank_files_that_are_wrong_are_refused(tmp_path, text, message):
    path = tmp_path / "ranks.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_rank_file(path)


def test_rank_files_that_are_missing_or_huge_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_rank_file(tmp_path / "none.toml")
    huge = tmp_path / "huge.toml"
    huge.write_text("#" * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_rank_file(huge)
