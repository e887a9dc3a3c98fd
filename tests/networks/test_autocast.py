"""Mixed precision computes what float32 does to the rounding of bfloat16, gradients too."""

import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeclean.networks import autocast
from edgeclean.networks.autocast import has_fast_bfloat16, mixed_precision

CPU = torch.device("cpu")
DEPTHWISE = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "5x5, strided": {"kernel_size": 5, "padding": 2, "stride": 2},
    "one axis alone": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (2, 1)},
    "dilated, biased": {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": True},
    "same": {"kernel_size": 3, "padding": "same"},
}
CPUINFO = Path("/proc/cpuinfo")


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixed precision on any processor: where bfloat16 is not fast, oneDNN emulates it."""
    monkeypatch.setattr(autocast, "has_fast_bfloat16", lambda _device: True)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not CPUINFO.exists(),
    reason="only Linux on x86 lists the processor's instructions so",
)
def test_bfloat16_is_fast_where_the_kernel_lists_its_instructions():
    flags = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    listed = {"avx512_bf16", "amx_bf16"} & set(flags.split())
    assert has_fast_bfloat16(CPU) == bool(listed)


def seeded(**settings: object) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, **{"groups": 8, "bias": False, **settings})


def gradients(layer: nn.Conv2d, images: Tensor, context: object) -> list[Tensor]:
    """Of a sum that weighs every output otherwise, by images, weight and bias."""
    images = images.clone().requires_grad_()
    with context:
        outputs = layer(images)
    weights = torch.linspace(-1, 1, outputs.numel()).view(outputs.shape)
    return list(
        torch.autograd.grad((outputs.float() * weights).sum(), [images, *layer.parameters()])
    )


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("settings", DEPTHWISE.values(), ids=DEPTHWISE)
def test_gradients_of_depthwise_layers_are_those_of_float32_to_the_rounding(settings):
    layer, images = seeded(**settings), torch.rand(3, 8, 11, 10)
    exact = gradients(layer, images, torch.autocast("cpu", enabled=False))
    mixed = gradients(layer, images, mixed_precision(CPU))
    for one, other in zip(exact, mixed, strict=True):
        assert other.dtype == one.dtype
        assert float((one - other).norm() / one.norm()) < 2**-7


@pytest.mark.usefixtures("bfloat16")
def test_a_depthwise_gradient_is_made_in_float32():
    layer, images = seeded(kernel_size=3), torch.rand(3, 8, 11, 10, requires_grad=True)
    dtypes: list[torch.dtype] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                dtypes.extend(one.dtype for one in args[:3])
            return function(*args, **(kwargs or {}))

    with mixed_precision(CPU):
        outputs = layer(images)
    assert outputs.dtype == torch.bfloat16
    with Watch():
        outputs.sum().backward()
    assert dtypes == [torch.float32] * 3


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("groups", [1, 2])
def test_any_other_convolution_is_that_of_autocast(groups):
    layer, images = seeded(kernel_size=3, groups=groups), torch.rand(3, 8, 11, 10)
    plain = gradients(layer, images, torch.autocast("cpu", torch.bfloat16))
    mixed = gradients(layer, images, mixed_precision(CPU))
    assert all(torch.equal(one, other) for one, other in zip(plain, mixed, strict=True))


@pytest.mark.usefixtures("bfloat16")
def test_float64_stays_what_it_is():
    layer = seeded(kernel_size=3).double()
    with mixed_precision(CPU):
        assert layer(torch.rand(3, 8, 11, 10).double()).dtype == torch.float64


@pytest.mark.usefixtures("bfloat16")
def test_what_needs_no_gradient_is_that_of_autocast():
    layer, images = seeded(kernel_size=3).requires_grad_(False), torch.rand(3, 8, 11, 10)
    with torch.autocast("cpu", torch.bfloat16):
        plain = layer(images)
    with mixed_precision(CPU):
        assert torch.equal(layer(images), plain)
        assert layer(images.requires_grad_()).grad_fn.name() == "_DepthwiseConvBackward"


def test_without_fast_bfloat16_nothing_changes(monkeypatch):
    monkeypatch.setattr(autocast, "has_fast_bfloat16", lambda _device: False)
    layer, images = seeded(kernel_size=3), torch.rand(3, 8, 11, 10)
    exact = gradients(layer, images, torch.autocast("cpu", enabled=False))
    mixed = gradients(layer, images, mixed_precision(CPU))
    assert all(torch.equal(one, other) for one, other in zip(exact, mixed, strict=True))
