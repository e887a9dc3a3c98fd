"""The classifiers that the ``onnx`` package ships: published graphs, their weights made uniform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_line import Terminal
from onnx import ModelProto, helper, numpy_helper
from onnx_graphs import TOLERANCE, by_runtime, images, imported

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SMALL = ("densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet")
LARGE = ("bvlc_alexnet", "vgg19", "zfnet512")  # hundreds of megabytes of weights
CLASSES = 1000


def light(name: str) -> bytes:
    return (LIGHT / f"light_{name}.onnx").read_bytes()


def test_all_of_them_are_tried() -> None:
    assert sorted((*SMALL, *LARGE)) == sorted(
        path.stem.removeprefix("light_") for path in LIGHT.glob("*.onnx")
    )


def with_weights(contents: bytes) -> bytes:
    """The same graph with weights of its own, so that its answers say something.

    All are drawn, as large as their layer's inputs allow; scales and variances lie around one.
    """
    model = ModelProto.FromString(contents)
    graph = model.graph
    generator = np.random.default_rng(0)
    shapes = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    places = {
        name: (node.op_type, place) for node in graph.node for place, name in enumerate(node.input)
    }
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        name = node.output[0]
        shape = tuple(int(side) for side in shapes[node.input[0]])
        kind, place = places[name]
        numbers = generator.normal(size=shape).astype(np.float32)
        if kind == "BatchNormalization" and place in (1, 4):
            numbers = 1 + numbers.clip(-2, 2) / 4
        elif len(shape) > 1:
            numbers *= np.sqrt(2 / np.prod(shape[1:]))
        else:
            numbers /= 10
        graph.initializer.append(numpy_helper.from_array(numbers.astype(np.float32), name))
        value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        graph.input.append(value)  # as IR version 3 has it
    del graph.node[:]
    graph.node.extend(kept)
    return bytes(model.SerializeToString())


def assert_same(contents: bytes) -> None:
    module, shape, _, compared = imported(contents)
    assert shape == (3, 224, 224)
    assert compared["compared"] <= TOLERANCE
    pixels = images(1, shape) * 4 - 2
    expected = by_runtime(contents, pixels).flatten(1)
    with torch.no_grad():
        got = module(pixels)
    assert got.shape == (1, CLASSES)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_a_published_classifier_answers_as_the_runtime_does(name: str) -> None:
    assert_same(light(name))


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_its_graph_with_weights_of_its_own(name: str) -> None:
    assert_same(with_weights(light(name)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SMALL} - {"shufflenet", "squeezenet"}))
def test_larger_graphs_with_weights_of_their_own(name: str) -> None:
    assert_same(with_weights(light(name)))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ratio"),
    # Of shufflenet 93 % is in convolutions of four groups or depthwise, which stay as they are.
    [("squeezenet", "1.5"), ("shufflenet", "1.01"), ("inception_v1", "1.5")],
)
def test_only_the_scaling_is_asked_for(
    name: str, ratio: str, terminal: Terminal, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(with_weights(light(name)))
    said = terminal("inspect", path, "--ratio", ratio, "--json")
    assert said.code == 2
    assert "give --mean, --std" in said.err
    said = terminal(
        "inspect", path, "--ratio", ratio, "--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25", "--json"
    )
    assert said.code == 0, said.err
