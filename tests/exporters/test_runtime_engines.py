"""Each runtime that is installed converts and runs real networks, and refuses damaged files."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from packaging.requirements import Requirement
from packaging.version import Version
from runtime_installed import every_runtime, installed_runtime
from tiny_networks import tiny_network, tiny_pixels
from torch import Tensor, nn

from edgeclean.errors import EdgecleanError, InputRejectedError, UsageError
from edgeclean.networks.pixels import normalize
from edgeclean.networks.resized import Resized
from edgeclean.networks.state import LoadedNetwork, ModelSpec
from exporters.confined_runtime import HeldSettings, input_sides
from exporters.onnx_check import open_onnx
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.parity import ParitySettings, compare_with_pytorch
from exporters.precision.int8 import stored_in_int8, to_int8
from exporters.precision.sensitivity import compare_logits
from exporters.protocol import confined_exporter
from exporters.session import OnnxSession
from exporters.strided_slices import pooled_slices

ROOT = Path(__file__).parents[2]


class Odd(nn.Module):
    """Depthwise and grouped convolutions, odd sizes, a gate, an option-A shortcut, a ceiling."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 13, 3, padding=1)
        self.depthwise = nn.Conv2d(13, 13, 5, stride=2, padding=2, groups=13)
        self.grouped = nn.Conv2d(13, 26, 3, padding=(1, 0), groups=13)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.head = nn.Linear(26, classes)

    def forward(self, images: Tensor) -> Tensor:
        stem = nn.functional.hardswish(self.stem(images))
        deep = self.depthwise(stem)
        gated = torch.sigmoid(deep) * deep + stem[:, :, ::2, ::2]
        pooled = self.pool(self.grouped(gated))
        return self.head(pooled.mean((2, 3)))


def odd_network(channels: int, height: int, width: int, classes: int) -> LoadedNetwork:
    """The odd network for images of these sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Odd(channels, classes).eval()
    spec = ModelSpec(
        architecture="odd",
        input_shape=(channels, height, width),
        classes=classes,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    return LoadedNetwork(module=module, spec=spec, source_sha256="ab" * 32)


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in open_onnx(model).graph.node]


@every_runtime
@pytest.mark.parametrize(
    "sizes",
    [
        (3, 23, 37, 10),
        pytest.param((1, 16, 9, 2), marks=pytest.mark.slow),
        pytest.param((3, 12, 12, 1000), marks=pytest.mark.slow),
    ],
)
def test_odd_networks_compute_what_pytorch_does(
    name: str, sizes: tuple[int, int, int, int]
) -> None:
    exporter, network = installed_runtime(name), odd_network(*sizes)
    made = exporter.convert(network, export_onnx(network))
    pixels = torch.rand(3, *sizes[:3], generator=torch.Generator().manual_seed(1))
    run = exporter.load(made).run
    record = compare_with_pytorch(network, pixels, run, ParitySettings(), names=(name, name))
    assert record.max_relative_difference < 1e-4
    logits = run(normalize(pixels, network.spec).numpy())
    assert np.ptp(logits) > 1e-2, "else this shows nothing"


@every_runtime
@pytest.mark.parametrize("sizes", [((32, 32), (24, 24)), ((23, 37), (17, 29))])
def test_networks_that_see_their_images_smaller_compute_what_pytorch_does(
    name: str, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """The Resize in front is one of a runtime's own, and each has several kinds of it."""
    size, smaller = sizes
    plain = odd_network(3, *size, 10)
    network = replace(plain, module=Resized(plain.module, smaller).eval())
    exporter = installed_runtime(name)
    run = exporter.load(exporter.convert(network, export_onnx(network))).run
    pixels = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    record = compare_with_pytorch(network, pixels, run, ParitySettings(), names=(name, name))
    assert record.max_relative_difference < 1e-4
    images = normalize(pixels, plain.spec)
    unlike = run(images.numpy()) - plain.module(images).detach().numpy()
    assert np.abs(unlike).max() > 1e-2, "else the size decides nothing"


@pytest.mark.slow
@every_runtime
def test_converting_twice_gives_the_same_bytes_where_that_is_said(name: str) -> None:
    exporter, network = installed_runtime(name), tiny_network()
    model = export_onnx(network)
    first, second = exporter.converted(model), exporter.converted(model)
    assert exporter.reproducible
    assert first.files == second.files
    other = exporter.converted(export_onnx(tiny_network(seed=1)))
    assert other.files != first.files
    assert set(exporter.made_by()) == set(exporter.packages)


@every_runtime
def test_half_the_bytes_of_a_float_agree_but_do_not_equal(name: str) -> None:
    if "fp16" not in confined_exporter(name).precisions:
        pytest.skip(f"{name} is not given fp16 here")
    network = tiny_network(channels=16)
    model, images = export_onnx(network), normalize(tiny_pixels(8), network.spec).numpy()
    exporter = installed_runtime(name, precision="fp16")
    made = exporter.converted(model).files
    assert max(map(len, made.values())) > 1000
    whole = installed_runtime(name).converted(model).files
    weights = max(whole, key=lambda file: len(whole[file]) - len(made[file]))
    assert len(made[weights]) < 0.85 * len(whole[weights])
    agreement = compare_logits(OnnxSession(model).predict(images), exporter.load(made).run(images))
    assert agreement.top1_agreement == 1
    assert 35 < agreement.signal_to_noise_db < 100


def test_int8_in_openvino_is_that_of_the_files_own_pairs() -> None:
    network = tiny_network(channels=16)
    model, images = export_onnx(network), normalize(tiny_pixels(32), network.spec).numpy()
    quantised = to_int8(model, images[:16])
    exporter = installed_runtime("openvino", precision="int8")
    made = exporter.converted(quantised).files
    whole = installed_runtime("openvino").converted(model).files
    assert len(made["model.bin"]) < 0.5 * len(whole["model.bin"])
    expected = OnnxSession(quantised).predict(images[16:])
    found = compare_logits(expected, exporter.load(made).run(images[16:]))
    assert found.top1_agreement >= 0.9
    assert found.signal_to_noise_db > 20


def test_int8_in_mnn_is_of_the_weights_alone() -> None:
    network = tiny_network(channels=16)
    model, images = export_onnx(network), normalize(tiny_pixels(8), network.spec).numpy()
    exporter = installed_runtime("mnn", precision="int8")
    made = exporter.converted(model, images).files
    assert made == exporter.converted(model).files
    whole = installed_runtime("mnn").converted(model).files
    assert len(made["model.mnn"]) < 0.7 * len(whole["model.mnn"])
    expected = OnnxSession(model).predict(images)
    found = compare_logits(expected, exporter.load(made).run(images))
    assert found.top1_agreement == 1
    assert 25 < found.signal_to_noise_db < 60


@every_runtime
def test_a_precision_that_a_runtime_lacks_is_refused_before_any_work(name: str) -> None:
    for precision in ("fp32", "fp16", "bf16", "int8"):
        exporter = confined_exporter(name, HeldSettings(precision=precision))
        if precision not in exporter.precisions:
            with pytest.raises(UsageError, match=f"{precision} was asked of {name}, which is"):
                exporter.require()


@pytest.mark.slow
@every_runtime
def test_damaged_files_are_one_line_and_never_a_crash_of_ours(name: str) -> None:
    exporter, network = installed_runtime(name), tiny_network()
    made = exporter.converted(export_onnx(network)).files
    images = np.zeros((1, 3, 8, 8), np.float32)
    generator = np.random.default_rng(0)
    for file, content in made.items():
        noise = generator.bytes(len(content))
        for damaged in (content[: len(content) // 2], noise, b""):
            if file == "model.bin" and damaged is noise:
                continue  # weights are numbers, whatever they are
            with pytest.raises(EdgecleanError) as refusal:
                exporter.load({**made, file: damaged}).run(images)
            assert "\n" not in str(refusal.value)
            assert refusal.value.exit_code in (3, 7)
    with pytest.raises(InputRejectedError, match="which is not there"):
        exporter.load({})


@every_runtime
def test_images_of_another_size_are_refused(name: str) -> None:
    exporter = installed_runtime(name)
    made = exporter.converted(export_onnx(tiny_network())).files
    with pytest.raises(InputRejectedError, match=r"takes images \(3, 8, 8\), and was given"):
        exporter.load(made).run(np.zeros((1, 3, 9, 8), np.float32))


@pytest.mark.slow
@every_runtime
def test_a_batch_is_taken_or_refused_with_what_to_do(name: str) -> None:
    exporter, network = installed_runtime(name), tiny_network()
    images = normalize(tiny_pixels(5), network.spec).numpy()
    with torch.no_grad():
        expected = network.module(torch.from_numpy(images)).numpy()
    for batch in (2, None):
        model = export_onnx(network, ExportSettings(batch=batch))
        if (batch is None and name != "openvino") or name == "ncnn":
            with pytest.raises(InputRejectedError, match="export it with a batch of 1"):
                exporter.converted(model)
            continue
        made = exporter.converted(model).files
        np.testing.assert_allclose(exporter.load(made).run(images), expected, atol=1e-4)


def test_strided_slices_are_pools_of_the_same_numbers() -> None:
    model = export_onnx(odd_network(3, 23, 37, 4))
    assert "Slice" in operators(model)
    changed = pooled_slices(model)
    assert "Slice" not in operators(changed)
    images = np.random.default_rng(0).standard_normal((2, 3, 23, 37)).astype(np.float32)
    expected = OnnxSession(model).predict(images)
    np.testing.assert_array_equal(OnnxSession(changed).predict(images), expected)
    plain = export_onnx(tiny_network())
    assert pooled_slices(plain) is plain


def test_a_slice_of_no_axis_is_a_pool_of_every_pixel() -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 5])
    same = helper.make_tensor_value_info("same", TensorProto.FLOAT, [1, 3, 4, 5])
    none = numpy_helper.from_array(np.zeros(0, np.int64), "none")
    taken = helper.make_node("Slice", ["image", *["none"] * 4], ["same"])
    changed = pooled_slices(serialized([taken], [image], [same], [none]))
    assert operators(changed) == ["MaxPool"]
    pixels = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(OnnxSession(changed).run(pixels), pixels)


@pytest.mark.parametrize("axis", [2, -1])
def test_every_second_of_a_line_is_a_pool_of_one_axis(axis: int) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 5])
    half = helper.make_tensor_value_info("half", TensorProto.FLOAT, [1, 3, 10])
    given = {"line": [1, 3, 20], "zero": [0], "far": [2**31 - 1], "axis": [axis], "two": [2]}
    constants = [numpy_helper.from_array(np.array(one), name) for name, one in given.items()]
    nodes = [
        helper.make_node("Reshape", ["image", "line"], ["flat"]),
        helper.make_node("Slice", ["flat", "zero", "far", "axis", "two"], ["half"]),
    ]
    changed = pooled_slices(serialized(nodes, [image], [half], constants))
    assert operators(changed) == ["Reshape", "MaxPool"]
    pixels = np.random.default_rng(0).standard_normal((1, 3, 4, 5)).astype(np.float32)
    np.testing.assert_array_equal(
        OnnxSession(changed).run(pixels), pixels.reshape(1, 3, 20)[..., ::2]
    )


def test_what_has_no_image_as_its_input_is_refused() -> None:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])
    zeros = numpy_helper.from_array(np.zeros((1, 2), np.float32))
    constant = helper.make_node("Constant", [], ["logits"], value=zeros)
    with pytest.raises(InputRejectedError, match="the graph has 0 inputs"):
        input_sides(serialized([constant], [], [logits], []))


def serialized(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    weights: list[TensorProto],
) -> bytes:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_weights_stored_in_int8_compute_the_same() -> None:
    network = tiny_network(channels=16)
    images = normalize(tiny_pixels(16), network.spec).numpy()
    model = to_int8(export_onnx(network), images)
    stored = stored_in_int8(model)
    assert len(stored) < 0.7 * len(model)
    expected = OnnxSession(model).predict(images)
    np.testing.assert_array_equal(OnnxSession(stored).predict(images), expected)


@every_runtime
def test_the_versions_that_are_taken_are_those_of_the_extra(name: str) -> None:
    exporter = confined_exporter(name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"][exporter.needs.partition("[")[2].rstrip("]")]

    taken = {}
    for one in map(Requirement, extra):
        bounds = {asked.operator: Version(asked.version).release for asked in one.specifier}
        assert sorted(bounds) == ["<", ">="]
        taken[one.name] = bounds[">="], bounds["<"]  # of a version that is not out, its release
    assert taken == dict(exporter.packages)
