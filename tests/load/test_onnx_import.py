"""Whole networks come back from ONNX files: what they compute, to 1e-4, and layers by name."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
from onnx_graphs import LIMITS, TOLERANCE, by_runtime, converted, images, relu_graph
from torch import nn

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from edgeclean.load.architectures import build_architecture
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.reference import answers_of
from edgeclean.networks.state import LoadedNetwork, ModelSpec

SPEC = ModelSpec(
    architecture="onnx", input_shape=(3, 32, 32), classes=10, mean=(0.0,) * 3, std=(1.0,) * 3
)


def exported(module: nn.Module, *, keep_norm: bool = False, free_batch: bool = True) -> bytes:
    """The module as the TorchScript exporter writes it, which most published files are from."""
    stream = io.BytesIO()
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        # The exporter is deprecated, and is what the files in the wild were made with.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, 3, 32, 32),),
            stream,
            dynamo=False,
            opset_version=13,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}} if free_batch else None,
            training=mode.PRESERVE if keep_norm else mode.EVAL,
            do_constant_folding=not keep_norm,
        )
    return stream.getvalue()


def trained_like(name: str, seed: int = 0) -> nn.Module:
    """A table network whose BatchNorms have statistics and weights of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_architecture(name, SPEC, ())
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 1.5),
                (layer.weight.data, 0.6, 1.2),
                (layer.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return module.eval()


def loaded(contents: bytes, folder: Path, limits: LoadLimits = LIMITS) -> LoadedNetwork:
    """The whole way, with a parsing process (which takes seconds: few tests need it)."""
    path = folder / "network.onnx"
    path.write_bytes(contents)
    return load_checkpoint(path, SPEC, limits=limits)


def assert_same(network: nn.Module, contents: bytes, shape: tuple[int, ...] = (3, 32, 32)) -> None:
    pixels = images(3, shape)
    expected = by_runtime(contents, pixels)
    with torch.no_grad():
        got = network(pixels)
    assert expected.abs().max() > 100 * TOLERANCE, "the reference says too little to compare with"
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


TABLE_NETS = [
    "resnet20",
    "cifar-vgg11-bn",
    "cifar-mobilenet-v2",
    "preact-resnet18",
    "wide-resnet-16-1",
]


@pytest.mark.parametrize("keep_norm", [False, True], ids=["norm-folded", "norm-kept"])
@pytest.mark.parametrize("name", TABLE_NETS)
def test_table_networks_come_back_as_they_were(name: str, keep_norm: bool) -> None:
    module = trained_like(name)
    contents = exported(module, keep_norm=keep_norm)
    network = converted(contents)
    assert_same(network, contents)
    if keep_norm:
        assert layer_kinds(network) == layer_kinds(module)


def layer_kinds(module: nn.Module) -> list[type[nn.Module]]:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    return [type(layer) for layer in module.modules() if isinstance(layer, kinds)]


def test_whole_way_through_the_parsing_process(tmp_path: Path) -> None:
    module = trained_like("resnet20")
    contents = exported(module, keep_norm=True, free_batch=False)
    network = loaded(contents, tmp_path)
    assert_same(network.module, contents)
    (record,) = network.history
    assert record.stage == "load"
    assert record.macs == 40_551_040  # He et al.: 41M, as for the network that was exported
    assert "layer1_0_conv1" in dict(network.module.named_modules())
    twin = copy.deepcopy(network.module)
    with torch.no_grad():
        torch.testing.assert_close(twin(images(2)), network.module(images(2)))


def test_names_of_the_graph_become_plain_module_names() -> None:
    model = relu_graph()
    model.graph.node[0].name = "/a/a.0/__import__('os').system('x')/Conv"
    model.graph.node[1].name = "forward"
    names = [name for name, _ in converted(model.SerializeToString()).named_children()]
    assert names == ["a_0_import_os_system_x", "forward_1"]


@pytest.mark.parametrize(
    "name", ["input_name", "output_name", "steps", "training", "parameters", "_modules", "class"]
)
def test_a_scope_may_have_any_name(name: str) -> None:
    """Also one that the network has for something else, or that Python has."""
    model = relu_graph()
    model.graph.node[0].name = f"/{name}/Conv"
    network = converted(model.SerializeToString())
    assert any(name.strip("_") in child for child, _ in network.named_children())
    assert network(torch.rand(2, 3, 8, 8)).shape[0] == 2


@pytest.mark.parametrize(
    "answer",
    [
        Parcel(),
        Parcel(facts={"rounded": "", "shapes": 7}),
        Parcel(facts={"rounded": "", "shapes": {"file": [1, 2]}}),
        Parcel(facts={"rounded": "", "shapes": {"file": [1, 2]}}, files={"file": bytes(4)}),
        Parcel(facts={"rounded": "", "shapes": {"file": "2"}}, files={"file": bytes(8)}),
    ],
)
def test_answers_that_are_none_are_refused(answer: Parcel) -> None:
    with pytest.raises(InputRejectedError, match="the network's answers are damaged"):
        answers_of(answer)
