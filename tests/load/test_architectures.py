"""The table's networks are the published ones: their parameter counts, keys and shapes."""

from __future__ import annotations

import copy
import dataclasses
import io
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeclean.errors import UsageError
from edgeclean.load.architectures import build_architecture, list_architectures
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.state import ModelSpec

CIFAR = ModelSpec(
    architecture="x", input_shape=(3, 32, 32), classes=10, mean=(0.0,) * 3, std=(1.0,) * 3
)
IMAGENET = dataclasses.replace(CIFAR, input_shape=(3, 224, 224), classes=1000)

# Of the ImageNet networks: `num_params` in torchvision's documentation of their weights, exactly.
# Of the others nobody publishes a number to the last digit: theirs are this table's own, counted
# once, so that a change is seen. PUBLISHED_MILLIONS below has those that a paper rounds.
PARAMS = {
    ("resnet20", CIFAR): 269_722,
    ("resnet32", CIFAR): 464_154,
    ("resnet44", CIFAR): 658_586,
    ("resnet56", CIFAR): 853_018,
    ("resnet110", CIFAR): 1_727_962,
    ("cifar-resnet18", CIFAR): 11_173_962,
    ("cifar-resnet34", CIFAR): 21_282_122,
    ("cifar-resnet50", CIFAR): 23_520_842,
    ("preact-resnet18", CIFAR): 11_171_146,
    ("wide-resnet-28-10", CIFAR): 36_479_194,
    ("wide-resnet-16-1", CIFAR): 175_066,
    ("cifar-vgg16-bn", CIFAR): 14_728_266,
    ("cifar-mobilenet-v2", CIFAR): 2_236_682,
    ("resnet18", IMAGENET): 11_689_512,
    ("resnet34", IMAGENET): 21_797_672,
    ("resnet50", IMAGENET): 25_557_032,
    ("vgg11-bn", IMAGENET): 132_868_840,
    ("vgg13-bn", IMAGENET): 133_053_736,
    ("vgg16-bn", IMAGENET): 138_365_992,
    ("vgg19-bn", IMAGENET): 143_678_248,
    ("mobilenet-v2", IMAGENET): 3_504_872,
}
# He et al. 2016 (arXiv 1512.03385), table 6; Zagoruyko and Komodakis 2016 (arXiv 1605.07146).
PUBLISHED_MILLIONS = {
    "resnet20": "0.27",
    "resnet32": "0.46",
    "resnet44": "0.66",
    "resnet56": "0.85",
    "resnet110": "1.7",
    "wide-resnet-28-10": "36.5",
}
# ImageNet: torchvision's documentation gives 1.81, 4.09 and 0.30 GFLOPS; CIFAR: counted once.
MACS = {
    ("resnet20", CIFAR): 40_551_040,
    ("cifar-resnet18", CIFAR): 555_422_720,
    ("resnet18", IMAGENET): 1_814_073_344,
    ("resnet50", IMAGENET): 4_089_184_256,
    ("mobilenet-v2", IMAGENET): 300_774_272,
}


def on_meta(name: str, spec: ModelSpec = CIFAR, keys: tuple[str, ...] = ()) -> nn.Module:
    with torch.device("meta"):
        return build_architecture(name, spec, keys)


def small(name: str, keys: tuple[str, ...] = ()) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build_architecture(name, CIFAR, keys).eval()


@pytest.mark.parametrize(("name", "spec"), PARAMS)
def test_parameter_count_is_the_known_one(name: str, spec: ModelSpec) -> None:
    assert count_params(on_meta(name, spec)) == PARAMS[name, spec]


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_parameter_count_rounds_to_the_papers(name: str) -> None:
    millions = PUBLISHED_MILLIONS[name]
    digits = len(millions.partition(".")[2])
    assert f"{PARAMS[name, CIFAR] / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize(("name", "spec"), MACS)
def test_multiply_accumulates_are_the_known_ones(name: str, spec: ModelSpec) -> None:
    # On the meta device nothing is computed, but every shape is.
    module = on_meta(name, spec)
    assert count_macs(module, spec.input_shape) == MACS[name, spec]


@pytest.mark.parametrize("name", list_architectures())
def test_takes_its_images_and_gives_its_classes(name: str) -> None:
    spec = dataclasses.replace(CIFAR, classes=7)
    with torch.no_grad():
        logits = on_meta(name, spec).eval()(torch.zeros(2, 3, 32, 32, device="meta"))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", list_architectures())
def test_norms_follow_their_convolutions_in_registration_and_in_running(name: str) -> None:
    """Stages that pair a convolution with its BatchNorm rely on both orders."""
    module = on_meta(name).eval()
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    registered = [layer for layer in module.modules() if isinstance(layer, kinds)]
    ran: list[nn.Module] = []
    for layer in registered:
        layer.register_forward_hook(lambda one, _inputs, _output: ran.append(one))
    module(torch.zeros(1, 3, 32, 32, device="meta"))
    if not re.match("preact|wide", name):
        assert [id(layer) for layer in ran] == [id(layer) for layer in registered]
        pairs = zip(ran[::2], ran[1::2], strict=True)
        for convolution, norm in pairs:
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.num_features == convolution.out_channels
    assert {id(layer) for layer in ran} == {id(layer) for layer in registered}


VARIANTS = {
    "resnet20": [
        ("fc.weight", "fc.bias"),
        ("linear.weight", "linear.bias"),
        ("layer2.0.shortcut.0.weight", "layer3.0.shortcut.1.running_mean", "linear.weight"),
        ("layer2.0.downsample.0.weight", "layer3.0.downsample.1.bias", "fc.weight"),
    ],
    "cifar-resnet18": [
        ("layer2.0.shortcut.0.weight", "layer4.0.shortcut.1.weight", "linear.weight"),
        ("layer2.0.downsample.0.weight", "layer4.0.downsample.1.weight", "fc.weight"),
    ],
    "resnet50": [("layer1.0.downsample.0.weight", "layer2.0.downsample.0.weight", "fc.bias")],
    "preact-resnet18": [
        ("layer2.0.shortcut.0.weight", "linear.weight"),
        ("layer2.0.shortcut.0.weight", "bn.weight", "bn.running_var", "linear.weight"),
        ("layer2.0.downsample.0.weight", "fc.weight"),
    ],
    "wide-resnet-16-1": [
        ("block2.layer.0.convShortcut.weight", "block1.layer.1.bn2.bias", "bn1.weight", "fc.weight")
    ],
    "vgg16-bn": [("features.0.weight", "features.41.running_mean", "classifier.6.weight")],
    "cifar-vgg16-bn": [
        ("features.41.bias", "classifier.weight"),
        ("classifier.1.weight", "classifier.4.weight", "classifier.6.weight"),
        ("classifier.0.weight", "classifier.3.weight", "classifier.6.weight"),
    ],
    "mobilenet-v2": [
        (
            "features.0.0.weight",
            "features.1.conv.0.1.weight",
            "features.1.conv.1.weight",
            "features.17.conv.1.0.weight",
            "features.17.conv.3.running_var",
            "features.18.1.bias",
            "classifier.1.weight",
        )
    ],
}


@pytest.mark.parametrize(
    ("name", "keys"), [(name, keys) for name, all_keys in VARIANTS.items() for keys in all_keys]
)
def test_keys_choose_the_published_names(name: str, keys: tuple[str, ...]) -> None:
    own = set(on_meta(name, keys=keys).state_dict())
    assert set(keys) <= own
    # A network's own keys choose that network again.
    assert set(on_meta(name, keys=tuple(own)).state_dict()) == own


def test_option_b_has_the_projections_that_option_a_has_not() -> None:
    option_b = on_meta("resnet20", keys=("layer2.0.shortcut.0.weight",))
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count_params(option_b) == PARAMS["resnet20", CIFAR] + projections


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_evenly() -> None:
    module = small("resnet20")
    shortcut = module.get_submodule("layer2.0.shortcut")
    images = torch.rand(2, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    wide = shortcut(images)
    assert wide.shape == (2, 32, 3, 3)
    assert torch.equal(wide[:, 8:24], images[:, :, ::2, ::2])
    assert not wide[:, :8].any()
    assert not wide[:, 24:].any()


def test_vgg_pooling_on_small_images_is_the_adaptive_one_and_can_be_exported() -> None:
    spec = dataclasses.replace(CIFAR, classes=2)
    pooling = on_meta("vgg11-bn", spec).get_submodule("avgpool")
    plane = torch.rand(2, 512, 1, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pooling(plane), nn.AdaptiveAvgPool2d(7)(plane))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter for opset 13 is old
        torch.onnx.export(pooling, (plane,), io.BytesIO(), dynamo=False, opset_version=13)


def test_copies_are_independent() -> None:
    module = small("preact-resnet18")
    twin = copy.deepcopy(module)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = module(images)
        assert torch.equal(twin(images), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(module(images), before)


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'resnet21' is not in the table \(nearest: .*resnet20"):
        build_architecture("resnet21", CIFAR, ())


# Code that the user names.

CODE = """
from torch import nn
def plain(): return nn.Linear(2, 2)
def counted(classes): return nn.Linear(2, classes)
def shaped(input_shape, *, classes): return nn.Linear(input_shape[2], classes)
def anything(**settings): return nn.Linear(2, settings["classes"])
def wrong(): return 3
def failing(): raise ValueError("no")
def demanding(depth): return nn.Linear(2, 2)
number = 3
"""


@pytest.fixture
def code_folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shape"),
    [("plain", (2, 2)), ("counted", (10, 2)), ("shaped", (10, 32)), ("anything", (10, 2))],
)
def test_callable_gets_the_settings_that_it_takes(
    name: str, shape: tuple[int, int], code_folder: Path
) -> None:
    module = build_architecture(f"net.py:{name}", CIFAR, (), code_folder=code_folder)
    assert isinstance(module, nn.Linear)
    assert module.weight.shape == shape


def test_file_is_found_by_absolute_path_and_module_by_name(
    code_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_architecture(f"{code_folder / 'net.py'}:plain", CIFAR, ())
    monkeypatch.chdir(code_folder)
    build_architecture("net.py:plain", CIFAR, ())
    monkeypatch.syspath_prepend(code_folder)
    (code_folder / "a_package_of_mine.py").write_text(CODE, encoding="utf-8")
    build_architecture("a_package_of_mine:plain", CIFAR, ())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.py:", "must be package.module:callable or file.py:callable"),
        (":plain", "must be package.module:callable or file.py:callable"),
        ("none.py:plain", "there is no file none.py"),
        ("net.py:nothing", "there is no callable 'nothing'"),
        ("net.py:number", "there is no callable 'number'"),
        ("net.py:wrong", "returned int; it must return a torch.nn.Module"),
        ("net.py:failing", "raised ValueError: no"),
        ("net.py:demanding", "raised TypeError"),
        ("broken.py:plain", "importing broken.py raised ZeroDivisionError"),
        ("no_such_package.at_all:plain", "importing no_such_package.at_all raised ModuleNotFound"),
    ],
)
def test_failing_code_is_a_usage_error(name: str, message: str, code_folder: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        build_architecture(name, CIFAR, (), code_folder=code_folder)
