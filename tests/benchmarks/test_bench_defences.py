"""Each defence does what its paper's formula says, on cases small enough to work out."""

from __future__ import annotations

import copy

import pytest
import torch
from bench_images import noise_images, shade_images, tiny_network
from torch import nn

from benchmarks.data.images import LabelledImages
from benchmarks.defences.anp import AnpSettings, anp, learn_masks, mask_loss, worst_noise
from benchmarks.defences.clp import ClpSettings, channel_lipschitz, clp, conv_norm_pairs, outliers
from benchmarks.defences.compress import PlainSettings, plain_svd, plain_tucker, svd_factors
from benchmarks.defences.finetune import FinetuneSettings, finetune_clean
from benchmarks.defences.ibau import IbauSettings, ibau
from benchmarks.defences.nad import NadSettings, nad
from edgeclean.errors import RatioError, UsageError
from edgeclean.networks.cost import count_macs
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import Network

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


def test_clp_outliers_are_by_the_unbiased_deviation():
    bounds = torch.tensor([1.0, 1.0, 1.0, 5.0])  # mean 2, deviation 2 (biased: 1.73)
    assert not outliers(bounds, 1.6).any()
    assert outliers(bounds, 1.4).tolist() == [False, False, False, True]


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


@pytest.mark.parametrize("steps", [1, 2])
def test_the_first_mask_steps_are_the_closed_form(steps):
    """Without noise, dL/dmask_k = scale_k dL/dscale_k; SGD with momentum, then the clamp."""
    network, rate = tiny_network(), 3.0
    with torch.no_grad():
        network.module[5].weight.copy_(torch.linspace(0.5, 2, 12))
    settings = AnpSettings(
        steps=steps, batch=40, budget=0.0, learning_rate=rate, padding=0, flip=False
    )
    masks = learn_masks(network, CLEAN, 0, settings)
    images = normalize(CLEAN.floats(), network.spec)
    wanted = {"1": torch.ones(8), "5": torch.ones(12)}
    speed = {name: torch.zeros_like(mask) for name, mask in wanted.items()}
    for _ in range(steps):
        module = copy.deepcopy(network.module).train()
        scales = {name: module.get_submodule(name).weight for name in wanted}
        with torch.no_grad():
            for name, scale in scales.items():
                scale *= wanted[name]
        nn.functional.cross_entropy(module(images), CLEAN.labels).backward()
        for name, scale in scales.items():
            original = network.module.get_submodule(name).weight.detach()
            speed[name] = 0.9 * speed[name] + original * scale.grad
            wanted[name] = (wanted[name] - rate * speed[name]).clamp(0, 1)
    for name in masks:
        assert torch.allclose(masks[name], wanted[name], atol=1e-4)
    assert float(masks["5"].min()) < 0.999


def test_the_mask_loss_weighs_both_losses_and_their_gradients():
    """d loss / d mask = scale (a dCE/dscale + (1 - a) dCE'/dscale), CE' with the noise."""
    network = tiny_network()
    with torch.no_grad():
        network.module[1].bias.fill_(0.3)
        network.module[5].bias.fill_(-0.2)
    images = normalize(CLEAN.floats(), network.spec)
    settings = AnpSettings(alpha=0.3, budget=0.4)
    module = copy.deepcopy(network.module).train().requires_grad_(False)
    masks = {"1": torch.full((8,), 0.7), "5": torch.linspace(0.2, 1, 12)}
    masks = {name: mask.requires_grad_(True) for name, mask in masks.items()}
    given = (module, masks, images, CLEAN.labels, settings)
    found = mask_loss(*given, torch.Generator().manual_seed(1))
    found.backward()
    noise = worst_noise(*given, torch.Generator().manual_seed(1))
    losses, slopes = [], []
    for scale, shift in (({}, {}), noise):
        by_hand = copy.deepcopy(network.module).train()
        with torch.no_grad():
            for name, mask in masks.items():
                layer = by_hand.get_submodule(name)
                layer.weight *= mask + scale.get(name, 0)
                layer.bias *= 1 + shift.get(name, 0)
        loss = nn.functional.cross_entropy(by_hand(images), CLEAN.labels)
        loss.backward()
        losses.append(float(loss.detach()))
        slopes.append({name: by_hand.get_submodule(name).weight.grad for name in masks})
    assert losses[1] > losses[0] + 1e-3
    assert float(found.detach()) == pytest.approx(0.3 * losses[0] + 0.7 * losses[1], abs=1e-6)
    for name, mask in masks.items():
        wanted = module.get_submodule(name).weight * (0.3 * slopes[0][name] + 0.7 * slopes[1][name])
        assert torch.allclose(mask.grad, wanted, atol=1e-6)


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


def test_anp_noise_starts_anywhere_in_its_budget():
    """One step of the budget's length from a uniform start: half of the ends are cut to it."""
    network = tiny_network()
    images = normalize(CLEAN.floats(), network.spec)
    masks = {"1": torch.ones(8), "5": torch.ones(12)}
    module, settings = network.module.requires_grad_(False), AnpSettings(budget=0.3)
    generator = torch.Generator().manual_seed(0)
    scale, _ = worst_noise(module, masks, images, CLEAN.labels, settings, generator)
    sizes = torch.cat(list(scale.values())).abs()
    assert sizes.max() == pytest.approx(0.3)
    assert 3 < int((sizes < 0.299).sum()) < 17


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
