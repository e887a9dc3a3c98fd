"""What is found at loading: the form that ONNX can express, or the operation that it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from factor_networks import network_of, seeded
from onnx_graphs import imported
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.networks.state import LoadedNetwork, record
from exporters.exportable import exportable
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.parity import ParitySettings


class Bessel(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return torch.special.i0e(values)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.read, self.head = kind(48, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        states, _ = self.read(images.permute(0, 2, 1, 3).flatten(2))
        logits: Tensor = self.head(states[:, -1])
        return logits


class Sampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(
            nn.Conv2d(3, 4, 4, 2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6)
        )
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        theta = self.locate(images).view(-1, 2, 3)
        grid = functional.affine_grid(theta, list(images.size()), align_corners=False)
        sampled = functional.grid_sample(images, grid, align_corners=False)
        logits: Tensor = self.head(sampled.mean((2, 3)))
        return logits


class Cast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits: Tensor = self.head(self.conv(images).mean((2, 3)))
        return logits.float()


def loaded(module: nn.Module) -> LoadedNetwork:
    network = network_of(module)
    history = (record("load", network.module, network.spec, LoadLimits(), {}),)
    return LoadedNetwork(
        module=network.module, spec=network.spec, source_sha256="0" * 64, history=history
    )


def test_the_operation_that_onnx_lacks_is_named_with_its_layer_in_one_line() -> None:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(Bessel()), *head))
    with pytest.raises(InputRejectedError) as refused:
        exportable(loaded(module), ExportSettings(), ParitySettings(), LoadLimits())
    message = str(refused.value)
    assert "special_i0e" in message
    assert "(called at 1.0)" in message
    assert "compute it by other operations" in message
    assert "\n" not in message


def test_autocast_within_forward_is_named_and_not_what_it_makes_the_exporter_say() -> None:
    with pytest.raises(InputRejectedError, match="layer conv computes under torch"):
        exportable(loaded(seeded(Cast)), ExportSettings(), ParitySettings(), LoadLimits())


def test_uneven_pooling_and_a_sampling_grid_are_written_out_exactly() -> None:
    given = loaded(seeded(Sampled))
    network, model = exportable(given, ExportSettings(), ParitySettings(), LoadLimits())
    assert b"GridSample" in model
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), given.module(images))


class By(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(14, 14, 14)

    def forward(self, values: Tensor) -> Tensor:
        return self.product(values, values)


WRITTEN: dict[str, Callable[[], nn.Module]] = {
    "shuffle": lambda: nn.ChannelShuffle(4),
    "threshold": lambda: nn.Threshold(0, 1),
    "softplus": lambda: nn.Softplus(2, 1),
    "nearest-exact": lambda: nn.Upsample(scale_factor=2, mode="nearest-exact"),
    "nearest-exact to a size": lambda: nn.Upsample((28, 42), mode="nearest-exact"),
    "bilinear": Twice,
    **{
        function.__name__: lambda function=function: By(function)
        for function in (
            *(torch.asinh, torch.cosh, torch.erfc, torch.exp2, torch.expm1, torch.fix, torch.frac),
            *(torch.sinc, torch.sinh, torch.trunc),
        )
    },
    "addcdiv": lambda: By(lambda values: values.addcdiv(values, values.exp(), value=0.5)),
    "diff": lambda: By(lambda values: values.diff(2, dim=2, append=values)),
    "hypot": lambda: By(lambda values: values.hypot(values + 1)),
    "logaddexp": lambda: By(lambda values: values.logaddexp(2 * values)),
    "xlogy": lambda: By(lambda values: values.relu().xlogy(values.exp())),
    **{
        f"turned by {k}": lambda k=k: By(lambda values: values.rot90(k, (2, 3)))
        for k in (-1, 0, 1, 2, 7)
    },
}


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_what_onnx_has_no_word_for_is_written_in_words_that_it_has(name: str) -> None:
    module = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), WRITTEN[name](), nn.Conv2d(8, 8, 3)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        )
    )
    given = loaded(module)
    network, _ = exportable(given, ExportSettings(), ParitySettings(), LoadLimits())
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = imported(export_onnx(network)).module
    with torch.no_grad():
        torch.testing.assert_close(network.module(images), given.module(images))
        torch.testing.assert_close(again(images), given.module(images), rtol=1e-4, atol=1e-5)


OWN_WORDS: dict[str, Callable[[Tensor], Tensor]] = {
    **{function.__name__: function for function in (torch.tan, torch.nan_to_num)},
    "arcs": lambda values: values.sin().asin() + values.cos().mul(0.9).acos() + values.atan(),
    "cumsum": lambda values: values.cumsum(1),
    "fmod": lambda values: values.fmod(0.3),
    "prod": lambda values: values * values.prod(2, keepdim=True),
    "tril": lambda values: values.tril(1) - values.triu(-2),
    "addmm": lambda values: (
        values
        * torch.addmm(*(values.mean((2, 3)), values.mean((2, 3)), torch.eye(8)), beta=0.5)[
            :, :, None, None
        ]
    ),
    "a matrix first": lambda values: (
        values * ((torch.eye(8) + 1) @ values.mean((2, 3)).t()).t()[:, :, None, None]
    ),
}


@pytest.mark.parametrize("name", sorted(OWN_WORDS))
def test_all_that_is_written_is_read_again(name: str) -> None:
    module = seeded(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 8, 3), By(OWN_WORDS[name]), nn.Conv2d(8, 8, 3)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
        )
    )
    given = loaded(module)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = imported(export_onnx(given)).module
    with torch.no_grad():
        torch.testing.assert_close(again(images), given.module(images), rtol=1e-4, atol=1e-5)


def test_uneven_factors_of_nearest_exact_are_refused_by_layer() -> None:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    uneven = nn.Upsample(scale_factor=1.5, mode="nearest-exact")
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), uneven, *head))
    with pytest.raises(InputRejectedError, match=r"nearest_exact2d' .*\(called at 1\)"):
        exportable(loaded(module), ExportSettings(), ParitySettings(), LoadLimits())


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_pytorch_says_nothing_of_recurrent_layers(
    kind: type[nn.RNNBase], batch: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A warning would be an error here."""
    export_onnx(loaded(seeded(lambda: Recurrent(kind))), ExportSettings(batch=batch))
    assert capfd.readouterr() == ("", "")


def test_pytorch_says_nothing_of_norms_by_the_statistics_of_an_image(
    capfd: pytest.CaptureFixture[str],
) -> None:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), *head))
    export_onnx(loaded(module))
    assert capfd.readouterr() == ("", "")
