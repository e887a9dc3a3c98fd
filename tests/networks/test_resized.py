"""A network behind a resizing: the same function of smaller images, under the same names."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit_networks import through_onnx

from edgeclean.load.architectures import build_architecture
from edgeclean.networks.cost import count_macs
from edgeclean.networks.layers import trace_layers
from edgeclean.networks.pixels import Normalize, module_of, pixel_copy, pixel_network
from edgeclean.networks.resized import Resized, inside, like
from edgeclean.networks.state import LoadedNetwork, ModelSpec
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.session import OnnxSession

SPEC = ModelSpec(
    architecture="resnet20",
    input_shape=(3, 32, 32),
    classes=10,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return build_architecture("resnet20", SPEC, ()).eval()


def network_of(module: nn.Module) -> LoadedNetwork:
    return LoadedNetwork(module=module, spec=SPEC, source_sha256="0" * 64)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_it_is_the_network_of_images_of_that_size(module: nn.Module) -> None:
    smaller = functional.interpolate(images(), size=(20, 24), mode="bilinear")
    with torch.no_grad():
        assert torch.equal(Resized(module, (20, 24))(images()), module(smaller))


def test_its_layers_have_the_networks_names_and_the_smaller_images_costs(module: nn.Module) -> None:
    resized = trace_layers(Resized(module, (24, 24)), (3, 32, 32))
    own = trace_layers(module, (3, 24, 24))
    assert [(one.name, one.macs) for one in resized] == [(one.name, one.macs) for one in own]
    assert count_macs(Resized(module, (24, 24)), (3, 32, 32)) == count_macs(module, (3, 24, 24))


def test_as_a_function_of_pixels_its_modules_have_the_networks_names(module: nn.Module) -> None:
    network = network_of(module)
    smaller = dataclasses.replace(network, module=Resized(module, (24, 24)))
    names = [[name for name, _ in pixel_network(one).named_modules() if name.startswith("1")]
             for one in (network, smaller)]  # fmt: skip
    assert names[0] == names[1]
    scaling = Normalize(network.spec.mean, network.spec.std)
    with torch.no_grad():
        given = pixel_copy(smaller)(images())
        assert torch.allclose(given, smaller.module(scaling(images())), atol=1e-5)


def test_out_of_a_function_of_pixels_comes_the_same_network(module: nn.Module) -> None:
    network = network_of(module)
    for whole in (module, Resized(module, (24, 24))):
        given = dataclasses.replace(network, module=whole)
        back = module_of(pixel_copy(given), given)
        assert isinstance(back, Resized) == isinstance(whole, Resized)
        with torch.no_grad():
            assert torch.allclose(back(images()), whole(images()), atol=1e-5)
    assert inside(like(Resized(module, (9, 9)), module)) is module
    assert like(module, module) is module


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_the_exported_file_takes_the_images_of_before(module: nn.Module, opset: int) -> None:
    network = network_of(Resized(module, (24, 20)))
    exported = export_onnx(network, ExportSettings(opset=opset, batch=None))
    with torch.no_grad():
        expected = network.module(images())
    given = torch.from_numpy(OnnxSession(exported).predict(images().numpy()))
    assert torch.allclose(given, expected, atol=1e-4)


def test_the_exported_file_reads_back_as_the_same_function(module: nn.Module) -> None:
    network = network_of(Resized(module, (24, 20)))
    with torch.no_grad():
        read = through_onnx(network).module(images())
        assert torch.allclose(read, network.module(images()), atol=1e-4)
