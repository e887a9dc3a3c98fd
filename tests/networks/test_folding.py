"""BatchNorm computed with the convolution before it is the same function, or is left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgeclean.load.architectures import build_architecture
from edgeclean.networks import folding as frozen_module
from edgeclean.networks.folding import folding_norms, inference_copy, learning_folded
from edgeclean.networks.state import ModelSpec

SPEC = ModelSpec(
    architecture="resnet20", input_shape=(3, 32, 32), classes=10, mean=(0.0,) * 3, std=(1.0,) * 3
)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rounding to bfloat16, so that equalities can be tight."""
    monkeypatch.setattr(frozen_module, "has_fast_bfloat16", lambda _device: False)


def lively(module: nn.Module) -> nn.Module:
    """Its BatchNorms with statistics and affine maps that are nobody's defaults."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.running_mean, layer.bias):
                if tensor is not None:
                    tensor.data = torch.randn(tensor.shape, generator=generator).to(tensor) * 0.1
            for tensor in (layer.running_var, layer.weight):
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=generator).to(tensor) + 0.5
    return module.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


class Shared(nn.Module):
    """The convolution's output goes to the BatchNorm and around it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        made = self.conv(images)
        return self.norm(made) + made


class Twice(nn.Module):
    """One convolution runs twice, once into each BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.conv(self.first(self.conv(images))))


class Standardised(nn.Conv2d):
    """A convolution that makes its weight anew at every pass."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(images, weight, self.bias)


class Named(nn.Module):
    """Calls its layers by the names of their arguments, and never its auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(input=self.conv(input=images))


class Reading(nn.Module):
    """Code that looks into its layers besides running them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)) * self.conv.weight.abs().mean()


def own_weight() -> nn.Module:
    return nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4))


def without_affine() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("name", "left"),
    [("resnet20", 0), ("cifar-mobilenet-v2", 0), ("cifar-vgg11-bn", 0), ("preact-resnet18", 8)],
)
def test_a_frozen_network_is_the_same_function(name: str, left: int) -> None:
    images = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    module = lively(build_architecture(name, SPEC, ())).double()
    before = norms(module)
    copied = inference_copy(module, images[:2].double())
    with torch.no_grad():
        difference = copied(images.double()) - module(images.double())
    assert difference.abs().max() < 1e-9 * module(images.double()).abs().max()
    assert norms(copied) == left
    assert norms(module) == before
    assert not any(parameter.requires_grad for parameter in copied.parameters())


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("build", [Shared, Twice, Reading, own_weight])
def test_what_cannot_be_folded_stays(build: Callable[[], nn.Module]) -> None:
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    module = lively(build())
    copied = inference_copy(module, images)
    assert norms(copied) == norms(module)
    assert torch.allclose(copied(images), module(images), atol=1e-6)


@pytest.mark.usefixtures("exact")
def test_a_batchnorm_without_affine_is_folded() -> None:
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    module = lively(without_affine())
    copied = inference_copy(module, images)
    assert norms(copied) == 0
    assert torch.allclose(copied(images), module(images), atol=1e-6)


@pytest.mark.usefixtures("exact")
def test_layers_called_by_name_are_folded_and_those_that_never_run_stay() -> None:
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    module = lively(Named())
    copied = inference_copy(module, images)
    assert isinstance(copied.get_submodule("norm"), nn.Identity)
    assert isinstance(copied.get_submodule("head.1"), nn.BatchNorm2d)
    assert torch.allclose(copied(images), module(images), atol=1e-6)
    with folding_norms(module, images):
        assert isinstance(module.get_submodule("conv"), frozen_module.NormedConv)
        assert torch.allclose(copied(images), module(images), atol=1e-6)


def test_a_network_of_nan_stays_as_it_is() -> None:
    module = lively(without_affine())
    module.get_parameter("0.weight").data.fill_(torch.nan)
    assert norms(inference_copy(module, torch.rand(2, 3, 8, 8))) == 1


def test_weights_are_rounded_where_autocast_would() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    module = lively(build_architecture("resnet20", SPEC, ()))
    kinds = {
        layer.weight.dtype
        for layer in inference_copy(module, images).modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    fast = frozen_module.has_fast_bfloat16(torch.device("cpu"))
    assert kinds == {torch.bfloat16 if fast else torch.float32}


@pytest.mark.parametrize("name", ["resnet20", "cifar-mobilenet-v2"])
def test_learning_with_folded_norms_is_the_same_learning(name: str) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)).double()
    plain = lively(build_architecture(name, SPEC, ())).double()
    folded = copy.deepcopy(plain)
    layers = list(folded.modules())
    plain(images).square().sum().backward()
    with folding_norms(folded, images):
        assert norms(folded) == norms(plain)  # inside the convolutions, with their parameters
        assert any(isinstance(layer, frozen_module.NormedConv) for layer in folded.modules())
        folded(images).square().sum().backward()
    assert list(folded.modules()) == layers
    for mine, given in zip(folded.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert given.grad is not None
        largest = given.grad.abs().max() + 1e-12
        assert (mine.grad - given.grad).abs().max() < 1e-7 * largest


MULTIPLIED = {
    "one that died": ([100.0, -10.0, 5.0, 0.5, 10.0], [0.01, 1, 1, 1, 1]),
    "several": ([-100.0, 50.0, 5.0, 0.5, 10.0], [0.01, 0.04, 1, 1, 1]),
    "none above one": ([0.9, 0.5, 1e-3, 0.0, 1.0], [1, 1, 1, 1, 1]),
    "most of them nothing": ([0.0, 1e-6, 1e-6, 10.0, 1.0], [1, 1, 1, 0.01, 1]),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", MULTIPLIED)
def test_damped_kernels_step_no_further_than_the_median_of_their_layer(
    name: str, bias: bool
) -> None:
    """Ten times the others' multiple is a hundred times their step."""
    numbers, shares = MULTIPLIED[name]
    images = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(6)).double()
    plain = lively(nn.Sequential(nn.Conv2d(3, 5, 3, bias=bias), nn.BatchNorm2d(5))).double()
    plain[1].running_var.fill_(4 - plain[1].eps)
    plain[1].weight.data.copy_(2 * torch.tensor(numbers))
    damped = copy.deepcopy(plain)
    outputs = []
    for module, is_damped in ((plain, False), (damped, True)):
        with folding_norms(module, images, damped=is_damped):
            outputs.append(module(images))
            outputs[-1].square().sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    share = torch.tensor(shares).double()
    for parameter, given in plain.named_parameters():
        wanted = given.grad
        assert wanted is not None
        if parameter.startswith("0."):
            wanted = wanted * (share.view(-1, 1, 1, 1) if wanted.dim() == 4 else share)
        torch.testing.assert_close(damped.get_parameter(parameter).grad, wanted)


def test_layers_come_back_when_learning_fails() -> None:
    module = lively(without_affine())
    layers = list(module.modules())
    with pytest.raises(KeyError), folding_norms(module, torch.rand(2, 3, 8, 8)):
        raise KeyError
    assert list(module.modules()) == layers


def two_layers(norm: nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))


def moved(module: nn.Module) -> nn.Module:
    """Every parameter that it has now, elsewhere."""
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


@pytest.mark.parametrize("name", ["resnet20", "cifar-mobilenet-v2", "preact-resnet18"])
def test_what_was_learned_folded_is_computed_by_the_layers_of_before(name: str) -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)).double()
    module = lively(build_architecture(name, SPEC, ())).double()
    layers, tensors = list(module.modules()), list(module.parameters())
    before = module(images).detach()
    with learning_folded(module, images):
        assert norms(module) < sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)
        torch.testing.assert_close(module(images), before)
        learned = moved(module)(images).detach()
    assert (learned - before).abs().max() > 0.01 * before.abs().max()
    torch.testing.assert_close(module(images).detach(), learned)
    assert list(module.modules()) == layers
    assert all(one is other for one, other in zip(module.parameters(), tensors, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_statistics_stay_those_of_what_enters_the_norm(bias: bool) -> None:
    """Of the network as it was: what a stage after this one matches must still be there."""
    images = torch.rand(50, 3, 9, 9, generator=torch.Generator().manual_seed(6)).double()
    module = lively(nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4))).double()
    conv, norm = module[0], module[1]

    def fresh() -> tuple[Tensor, Tensor]:
        outputs = conv(images).detach()
        return outputs.mean((0, 2, 3)), outputs.var((0, 2, 3))

    norm.running_mean.copy_(fresh()[0])
    norm.running_var.copy_(fresh()[1])
    norm.weight.data[0] *= -1
    before = module(images)
    with learning_folded(module, images):
        pass
    torch.testing.assert_close(module(images), before)
    torch.testing.assert_close((norm.running_mean, norm.running_var), fresh())


def test_a_channel_that_a_norm_made_nothing_of_can_learn_again() -> None:
    module = lively(two_layers(nn.BatchNorm2d(4))).double()
    module[1].weight.data[1] = 0.0
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(6)).double()
    with learning_folded(module, images):
        learned = moved(module)(images)
    torch.testing.assert_close(module(images), learned)
    assert module[1].weight[1] != 0


def test_weights_with_another_use_and_norms_without_any_learn_as_they_are() -> None:
    """What two layers share stays one tensor, whichever of them is asked."""
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(6)).double()
    shared = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3))
    shared[2].weight = shared[0].weight
    for module in (lively(shared).double(), lively(without_affine()).double()):
        with learning_folded(module, images):
            assert isinstance(module[0], frozen_module.NormedConv)
            learned = moved(module)(images)
        torch.testing.assert_close(module(images), learned)


def test_layers_come_back_when_folded_learning_fails() -> None:
    module = lively(two_layers(nn.BatchNorm2d(4)))
    layers = list(module.modules())
    with pytest.raises(KeyError), learning_folded(module, torch.rand(2, 3, 8, 8)):
        raise KeyError
    assert list(module.modules()) == layers


def test_a_network_that_fails_is_left_without_hooks() -> None:
    network = lively(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(7, 2)))
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        folding_norms(network, torch.rand(2, 3, 8, 8)),
    ):
        pass
    assert not any(layer._forward_hooks for layer in network.modules())
