from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_networks import Block, PreActivation, tiny_network, tiny_pixels
from torch import nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.networks.pixels import normalize
from exporters import onnx_exporter
from exporters.onnx_check import open_onnx
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.session import OnnxSession


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
@pytest.mark.parametrize("batch", [1, 4, None])
def test_the_file_is_at_exactly_the_asked_opset_and_computes_the_same(
    opset: int, batch: int | None
) -> None:
    network, pixels = tiny_network(), tiny_pixels()
    model = export_onnx(network, ExportSettings(opset=opset, batch=batch))
    proto = onnx.load_model_from_string(model)
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", opset)]
    assert [one.name for one in proto.graph.input] == ["input"]
    assert [one.name for one in proto.graph.output] == ["logits"]
    session = OnnxSession(model)
    assert (session.batch, session.input_shape) == (batch, (3, 8, 8))
    images = normalize(pixels, network.spec)
    with torch.no_grad():
        expected = network.module(images).numpy()
    np.testing.assert_allclose(session.predict(images.numpy()), expected, atol=1e-5)


def test_batchnorm_is_folded_and_pooling_stays_what_a_dla_takes() -> None:
    operators = _operators(export_onnx(tiny_network()))
    assert "BatchNormalization" not in operators
    assert "ReduceMean" not in operators
    assert operators.count("GlobalAveragePool") == 1
    assert operators.count("Conv") == 5


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")  # said by the reference
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), ((1, 5), (1, 2)), (2, 2), (2, 1)])
def test_same_padding_computes_the_same_whatever_the_dilation(
    kernel: int | tuple[int, int], dilation: int | tuple[int, int], opset: int
) -> None:
    layer = nn.Conv2d(8, 8, kernel, dilation=dilation, padding="same")
    network, pixels = tiny_network(layer), tiny_pixels()
    session = OnnxSession(export_onnx(network, ExportSettings(opset=opset)))
    images = normalize(pixels[:1], network.spec)
    with torch.no_grad():
        expected = network.module(images).numpy()
    np.testing.assert_allclose(session.predict(images.numpy()), expected, atol=1e-5)
    assert layer.padding == "same"


def test_a_batchnorm_after_a_sum_stays() -> None:
    network = tiny_network(Block(8), PreActivation(8))
    assert _operators(export_onnx(network)).count("BatchNormalization") == 1


def test_a_foldable_batchnorm_that_was_left_is_refused() -> None:
    model = _conv_then_batchnorm()
    with pytest.raises(InputRejectedError, match="'norm' was not folded"):
        onnx_exporter._check(model, 17)


def test_another_opset_than_asked_is_refused() -> None:
    model = export_onnx(tiny_network(), ExportSettings(opset=17))
    with pytest.raises(InputRejectedError, match="opset 13 was asked and 17 came out"):
        onnx_exporter._check(model, 13)


def test_equal_networks_give_equal_bytes_and_another_weight_gives_others() -> None:
    network = tiny_network()
    assert export_onnx(network) == export_onnx(tiny_network())
    changed = copy.deepcopy(network.module)
    with torch.no_grad():
        changed[0].weight[0, 0, 0, 0] += 1e-3
    assert export_onnx(replace(network, module=changed)) != export_onnx(network)


def test_the_file_holds_the_facts_and_nothing_of_this_machine() -> None:
    model = export_onnx(tiny_network())
    proto = onnx.load_model_from_string(model)
    facts = {fact.key: fact.value for fact in proto.metadata_props}
    assert facts["edgeclean.source_sha256"] == "ab" * 32
    assert facts["edgeclean.mean"] == "[0.5, 0.4, 0.3]"
    assert facts["edgeclean.std"] == "[0.25, 0.25, 0.2]"
    assert all(key.startswith("edgeclean.") for key in facts)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    for trace in (Path(__file__).parent, Path.cwd(), Path.home()):
        assert str(trace).encode() not in model
    assert b"stack_trace" not in model
    assert b".py" not in model


def test_free_text_is_stripped_everywhere() -> None:
    proto = onnx.load_model_from_string(_conv_then_batchnorm())
    trace = "SECRET at nets.py"
    for element in (proto, proto.graph, proto.graph.node[0], proto.graph.input[0]):
        element.doc_string = trace
        element.metadata_props.add(key="trace", value=trace)
    proto.graph.initializer[0].doc_string = trace
    onnx_exporter._strip(proto)
    assert b"SECRET" not in proto.SerializeToString()


def test_exporting_is_silent_and_changes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    network = tiny_network()
    network.module.train()
    before = copy.deepcopy(network.module.state_dict())
    torch_state, numpy_state = torch.get_rng_state(), str(np.random.get_state())
    export_onnx(network)
    assert network.module.training
    after = network.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert numpy_state == str(np.random.get_state())
    assert capfd.readouterr() == ("", "")


def test_a_network_in_training_mode_is_exported_in_evaluation_mode() -> None:
    network = tiny_network()
    expected = export_onnx(network)
    network.module.train()
    assert export_onnx(network) == expected


class OptionAShortcut(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))[:, :8]


class Fourier(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft2(images).real


def test_strided_slices_export_without_a_warning() -> None:
    model = export_onnx(tiny_network(OptionAShortcut()))
    assert OnnxSession(model).run(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 5)


def test_what_onnx_cannot_express_is_refused_in_one_line() -> None:
    with pytest.raises(InputRejectedError, match="cannot be written as ONNX at opset 17") as caught:
        export_onnx(tiny_network(Fourier()))
    assert "\n" not in str(caught.value)


def test_more_weights_than_one_file_holds_are_refused_before_they_are_copied() -> None:
    network = tiny_network()
    huge = nn.Linear(20_000, 20_000, device="meta")
    with pytest.raises(InputRejectedError, match=r"1\.6 GB of weights; at most 1\.5 GB"):
        export_onnx(replace(network, module=huge))


@pytest.mark.parametrize("opset", [10, 21])
def test_an_opset_out_of_reach_is_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=r"opset is \d+; .* from 11 to 20$"):
        ExportSettings(opset=opset)


def test_an_impossible_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="batch is 0; it must be a whole number from 1 "):
        ExportSettings(batch=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda proto: proto.functions.add(name="f", domain="x"), "defines functions"),
        (lambda proto: proto.opset_import.add(domain="evil", version=1), "only standard ones"),
        (lambda proto: setattr(proto.graph.node[0], "domain", "evil"), "only standard ones"),
        (
            lambda proto: proto.graph.node[0].attribute.append(
                helper.make_attribute("body", helper.make_graph([], "g", [], []))
            ),
            "control flow",
        ),
        (
            lambda proto: setattr(
                proto.graph.initializer[0], "data_location", TensorProto.EXTERNAL
            ),
            "in another file",
        ),
        (
            lambda proto: proto.graph.initializer[0].external_data.add(
                key="location", value="/etc/passwd"
            ),
            "in another file",
        ),
        (lambda proto: proto.graph.sparse_initializer.add(), "sparse weights"),
        (lambda proto: setattr(proto.graph.node[0], "op_type", "NoSuch"), "is not valid"),
        (
            lambda proto: setattr(
                proto.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 99
            ),
            "is not valid",
        ),
        (
            lambda proto: proto.graph.node.extend([proto.graph.node[0]] * 20_001),
            "at most 20000",
        ),
    ],
)
def test_an_onnx_file_that_is_not_plain_is_refused(spoil: object, message: str) -> None:
    proto = onnx.load_model_from_string(export_onnx(tiny_network()))
    spoil(proto)  # type: ignore[operator]
    with pytest.raises(InputRejectedError, match=message):
        open_onnx(proto.SerializeToString())


def test_bytes_that_are_not_onnx_are_refused() -> None:
    with pytest.raises(InputRejectedError, match="not an ONNX file"):
        open_onnx(b"\xff\xff\xff not onnx")


def _operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


def _conv_then_batchnorm() -> bytes:
    weights = [
        helper.make_tensor("w", TensorProto.FLOAT, [2, 3, 1, 1], [1.0] * 6),
        *(helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 1.0]) for name in "sbmv"),
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["inner"], name="conv"),
            helper.make_node("BatchNormalization", ["inner", *"sbmv"], ["logits"], name="norm"),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, 4, 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Sized(nn.Module):
    """Pools over a plane whose size it asks the image for: not known to the exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made = self.conv(nn.functional.pad(images, (0, 1, 0, 1)))
        return self.fc(nn.functional.avg_pool2d(made, made.size()[2:]).flatten(1))


def test_what_the_exporter_prints_is_not_heard(capfd: pytest.CaptureFixture[str]) -> None:
    """Nor lost: what stood in a buffer before is still written."""
    network = replace(tiny_network(), module=Sized().eval())
    print("before")  # noqa: T201
    with pytest.raises(InputRejectedError, match="cannot be written as ONNX") as caught:
        export_onnx(network)
    print("after")  # noqa: T201
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("before\nafter\n", "")
