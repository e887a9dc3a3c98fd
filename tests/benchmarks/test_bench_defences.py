"""Each defence does what its paper's formula says, on cases small enough to work out."""

from __future__ import annotations

import copy

import pytest
import torch
from bench_images import noise_images, shade_images, tiny_network
from torch import nn

from benchmarks.defences.anp import AnpSettings, anp, learn_masks, worst_noise
from benchmarks.defences.clp import ClpSettings, channel_lipschitz, clp, conv_norm_pairs
from benchmarks.defences.compress import PlainSettings, plain_svd, plain_tucker, svd_factors
from benchmarks.defences.finetune import FinetuneSettings, finetune_clean
from benchmarks.defences.ibau import IbauSettings, hypergradient, ibau, perturbed_rows
from benchmarks.defences.nad import NadSettings, attention, find_taps, nad
from benchmarks.images import LabelledImages
from edgeclean.cost import count_macs
from edgeclean.errors import RatioError, UsageError
from edgeclean.pixels import normalize
from edgeclean.states import Network

CLEAN = shade_images(40)
NO_IMAGES = CLEAN.first(0)
QUICK = FinetuneSettings(epochs=1, batch=20, padding=1)
PRUNING = AnpSettings(steps=6, learning_rate=20.0, threshold=0.9, padding=0, flip=False)


def as_network(module: nn.Module) -> Network:
    like = tiny_network()
    return Network(module=module.eval(), spec=like.spec, source_sha256=like.source_sha256)


def state(network: Network) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.module.state_dict())


@pytest.mark.parametrize(
    "defend",
    [
        lambda network: clp(network, settings=ClpSettings(u=0.5)),
        lambda network: anp(network, CLEAN, settings=PRUNING),
        lambda network: nad(network, CLEAN, settings=NadSettings(epochs=1, teacher=QUICK)),
        lambda network: ibau(network, CLEAN, settings=IbauSettings(rounds=1, batch=20)),
        lambda network: finetune_clean(network, CLEAN, settings=QUICK),
        lambda network: plain_tucker(network, settings=PlainSettings(ratio=1.5)),
        lambda network: plain_svd(network, settings=PlainSettings(ratio=1.5)),
    ],
    ids=["clp", "anp", "nad", "i-bau", "fine-tuning", "plain-tucker", "plain-svd"],
)
def test_a_defence_gives_a_new_network_and_leaves_the_old_one(defend):
    network = tiny_network()
    before, was_training = state(network), network.module.training
    defences = [defend(network) for _ in range(2)]
    assert all(torch.equal(before[name], now) for name, now in network.module.state_dict().items())
    assert network.module.training == was_training
    assert not any(layer._forward_hooks for layer in network.module.modules())
    assert not any(layer.training for layer in defences[0].module.modules())
    first, second = (defence.module.state_dict() for defence in defences)
    assert all(torch.equal(first[name], second[name]) for name in first)  # one seed, one network
    assert len(defences[0].history) == 1
    inputs = normalize(noise_images(4).floats(), network.spec)
    assert not torch.equal(network.module(inputs), defences[0].module(inputs))


@pytest.mark.parametrize("defend", [anp, nad, ibau, finetune_clean])
def test_a_defence_that_needs_images_says_so(defend):
    with pytest.raises(UsageError, match="needs clean labelled images and got none"):
        defend(tiny_network(), NO_IMAGES)


# CLP


def test_channel_lipschitz_is_the_spectral_norm_times_the_scale():
    conv, norm = nn.Conv2d(2, 3, (1, 2), bias=True), nn.BatchNorm2d(3, eps=0.5)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, :, 0] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # singular values 4, 3
        conv.weight[1, :, 0] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # 2, 0
        norm.weight.copy_(torch.tensor([-2.0, 3.0, 1.0]))
        norm.running_var.copy_(torch.tensor([3.5, 8.5, 1.0]))
    bounds = channel_lipschitz(conv, norm)
    assert torch.allclose(bounds, torch.tensor([4 * 2 / 2, 2 * 3 / 3, 0.0]))


def test_clp_zeroes_scale_and_shift_of_the_outliers_alone():
    network = tiny_network()
    conv, norm = network.module[4], network.module[5]
    with torch.no_grad():
        norm.bias.fill_(0.25)
        conv.weight[7] *= 40
    defended = clp(network, settings=ClpSettings(u=3.0))
    assert defended.history[-1].notes["pruned"] == {"1": [], "5": [7]}
    kept = torch.arange(12) != 7
    pruned = defended.module[5]
    assert pruned.weight[7] == 0
    assert pruned.bias[7] == 0
    assert torch.equal(pruned.weight[kept], norm.weight[kept])
    assert torch.equal(pruned.bias[kept], norm.bias[kept])


class PreActivation(nn.Module):
    """Defined in an order other than it runs in; `norm1` takes a sum, `norm2` conv1's output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.norm2 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.shortcut(x)
        out = self.conv1(self.norm1(x).relu())
        out = self.conv2(self.norm2(out).relu()) + x
        return self.head(out.mean((2, 3)))


def test_clp_pairs_by_data_flow_not_by_definition():
    module = PreActivation().eval()
    assert conv_norm_pairs(module, (3, 8, 8)) == {"norm2": module.conv1}
    notes = clp(as_network(module)).history[-1].notes
    assert notes["not_scored"] == ["norm1"]


# ANP


def test_first_mask_step_is_the_closed_form():
    """Without noise, dL/dmask_k = scale_k dL/dscale_k; one SGD step, then the clamp."""
    network = tiny_network()
    with torch.no_grad():
        network.module[5].weight.copy_(torch.linspace(0.5, 2, 12))
    settings = AnpSettings(steps=1, batch=40, budget=0.0, learning_rate=3.0, padding=0, flip=False)
    masks = learn_masks(network, CLEAN, 0, settings)
    module = copy.deepcopy(network.module).train()
    logits = module(normalize(CLEAN.floats(), network.spec))
    nn.functional.cross_entropy(logits, CLEAN.labels).backward()
    for name in ("1", "5"):
        scale = module.get_submodule(name).weight
        wanted = (1 - 3.0 * scale.detach() * scale.grad).clamp(0, 1)
        assert torch.allclose(masks[name], wanted, atol=1e-4)
    assert float(masks["5"].min()) < 0.999


def test_anp_noise_stays_in_its_budget_and_raises_the_loss():
    network = tiny_network()
    module = network.module.requires_grad_(False)
    images = normalize(CLEAN.floats(), network.spec)
    masks = {"1": torch.ones(8), "5": torch.ones(12)}
    settings = AnpSettings(budget=0.3, noise_steps=4)
    scale, shift = worst_noise(
        module, masks, images, CLEAN.labels, settings, torch.Generator().manual_seed(0)
    )
    assert (
        max(float(noise.abs().max()) for noise in (*scale.values(), *shift.values())) < 0.3 + 1e-6
    )
    before = nn.functional.cross_entropy(module(images), CLEAN.labels)
    with torch.no_grad():
        for name in masks:
            layer = module.get_submodule(name)
            layer.weight *= 1 + scale[name]
            layer.bias *= 1 + shift[name]
    assert nn.functional.cross_entropy(module(images), CLEAN.labels) > before


def test_anp_prunes_the_scales_below_its_threshold():
    network = tiny_network()
    with torch.no_grad():
        network.module[5].bias.fill_(0.5)
    masks = learn_masks(network, CLEAN, 0, PRUNING)
    defended = anp(network, CLEAN, 0, PRUNING)
    low = masks["5"] < 0.9
    assert low.any()
    assert not low.all()
    assert torch.equal(defended.module[5].weight == 0, low)
    assert torch.equal(defended.module[5].bias, network.module[5].bias)


def test_anp_without_batch_norm_is_refused():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UsageError, match="ANP works on BatchNorm scales"):
        anp(as_network(module), CLEAN)


# NAD


def test_attention_map_by_hand():
    features = torch.tensor([[[[1.0, -2.0]], [[2.0, 0.0]]]])  # two channels, 1x2 pixels
    # sums of squares 5 and 4, norm sqrt(41)
    assert torch.allclose(attention(features, 2.0), torch.tensor([[5.0, 4.0]]) / 41**0.5)


def test_attention_ignores_the_scale_of_the_features():
    features = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attention(features, 2.0), attention(7 * features, 2.0), atol=1e-5)


def test_taps_are_the_last_of_each_size_and_never_1x1():
    assert find_taps(tiny_network(), 3) == ("2", "6")
    assert find_taps(tiny_network(), 1) == ("6",)


def test_nad_pulls_the_attention_to_the_teachers():
    network = tiny_network()
    images = normalize(CLEAN.floats(), network.spec)
    tuned = FinetuneSettings(epochs=8, batch=20, learning_rate=0.05, padding=0, flip=False)
    teacher = finetune_clean(network, CLEAN, 0, tuned).module

    def distance(betas):
        settings = NadSettings(
            betas=betas, epochs=8, high_epochs=0, low_rate=0.01, teacher=tuned, taps=("6",)
        )
        student = nad(network, CLEAN, 0, settings).module
        maps = [attention(module[:7](images), 2.0) for module in (student, teacher)]
        return float((maps[0] - maps[1]).square().mean().detach())

    assert distance((1000.0,)) < distance((0.0,))


def test_nad_wants_a_weight_for_each_tap():
    with pytest.raises(UsageError, match="2 taps but 3 betas"):
        NadSettings(taps=("a", "b"))


# I-BAU


def quadratic(terms):
    """Inner g = 1/2 d'Ad - d'Bw, map d - step (Ad - Bw); outer = 1/2 |d - c|^2 + p'w."""
    torch.manual_seed(0)
    square = torch.randn(4, 4, dtype=torch.float64)
    a = square @ square.T / 4 + torch.eye(4, dtype=torch.float64)
    b = torch.randn(4, 3, dtype=torch.float64)
    c, p = torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    d = torch.linalg.solve(a, b @ w).detach().requires_grad_(True)
    step = 0.2
    mapped = d - step * (a @ d - b @ w)
    outer = 0.5 * (d - c).square().sum() + p @ w
    (found,) = hypergradient(outer, mapped, d, [w], terms)
    return a, b, c, p, d.detach(), step, found


def test_hypergradient_of_many_terms_is_the_implicit_gradient():
    """dw of outer(d*(w), w) with d* = A^-1 B w: p + B' A^-1 (d - c)."""
    a, b, c, p, d, _, found = quadratic(terms=400)
    assert torch.allclose(found, p + b.T @ torch.linalg.solve(a, d - c), atol=1e-9)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_hypergradient_of_few_terms_is_their_sum(terms):
    a, b, c, p, d, step, found = quadratic(terms)
    pull = torch.eye(4, dtype=torch.float64) - step * a
    series = sum(torch.linalg.matrix_power(pull, k) @ (d - c) for k in range(terms))
    assert torch.allclose(found, p + step * b.T @ series, atol=1e-12)


def test_some_image_is_perturbed_in_the_smallest_batch():
    generator = torch.Generator().manual_seed(0)
    assert len(perturbed_rows(20, 0.01, generator)) == 1
    assert len(perturbed_rows(500, 0.01, generator)) == 5


# Plain compressors


@pytest.mark.parametrize("compress", [plain_tucker, plain_svd])
@pytest.mark.parametrize("ratio", [1.2, 1.6])
def test_plain_compressors_meet_the_ratio(compress, ratio):
    network = tiny_network()
    before = count_macs(network.module, network.spec.input_shape)
    compressed = compress(network, settings=PlainSettings(ratio=ratio))
    after = count_macs(compressed.module, network.spec.input_shape)
    assert after == compressed.history[-1].macs
    assert before / after >= ratio


@pytest.mark.parametrize("compress", [plain_tucker, plain_svd])
def test_an_impossible_ratio_is_refused(compress):
    with pytest.raises(RatioError, match="out of reach"):
        compress(tiny_network(), settings=PlainSettings(ratio=1000))


def test_svd_truncation_loses_the_energy_of_the_values_left_out():
    kernel = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(kernel.flatten(1))
    factors = svd_factors(kernel)
    assert torch.allclose(factors.kernel(), kernel, atol=1e-5)
    error = (factors.truncated(4, 3).kernel() - kernel).square().sum()
    assert torch.allclose(error, values[4:].square().sum(), rtol=1e-4)


def test_fine_tuning_learns_the_clean_images():
    network = tiny_network()
    settings = FinetuneSettings(epochs=15, batch=20, learning_rate=0.1, padding=0, flip=False)
    tuned = finetune_clean(network, CLEAN, 0, settings)
    test: LabelledImages = shade_images(80, seed=7)
    inputs = normalize(test.floats(), network.spec)
    with torch.no_grad():
        losses = [
            float(nn.functional.cross_entropy(module(inputs), test.labels))
            for module in (network.module, tuned.module)
        ]
    assert losses[1] < 0.5 * losses[0]
