"""What a stranger may do to a bundle: one bit of a file, another network, a link, a pipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from bundle_files import make_checksums_fit, make_hashes_fit
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from edgeclean.bundle.manifest import canonical_json, read_json

Tamper = Callable[[Path], object]


def flip(name: str) -> Tamper:
    """One bit of a file."""

    def tamper(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(bytes(content))

    return tamper


def fitting(change: Tamper) -> Tamper:
    """The change, after which every listed hash is made to fit."""

    def tamper(bundle: Path) -> None:
        change(bundle)
        make_hashes_fit(bundle)

    return tamper


def model(change: Callable[[ModelProto], object]) -> Tamper:
    """Another network, whose hashes fit."""

    def tamper(bundle: Path) -> None:
        proto = onnx.load_model_from_string((bundle / "model.onnx").read_bytes())
        change(proto)
        (bundle / "model.onnx").write_bytes(proto.SerializeToString())

    return fitting(tamper)


def manifest(change: Callable[[dict], object]) -> Tamper:  # type: ignore[type-arg]
    """Another manifest, whose hashes fit."""

    def tamper(bundle: Path) -> None:
        entries = read_json((bundle / "manifest.json").read_bytes(), "manifest.json")
        change(entries)
        (bundle / "manifest.json").write_bytes(canonical_json(entries))

    return fitting(tamper)


def text(name: str, content: bytes) -> Tamper:
    """Another text, and a list of checksums that fits."""

    def tamper(bundle: Path) -> None:
        (bundle / name).write_bytes(content)
        make_checksums_fit(bundle)

    return tamper


def moved_bias(proto: ModelProto) -> None:
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    bias = next(one for one in proto.graph.initializer if one.name == gemm.input[2])
    moved = numpy_helper.to_array(bias) + np.float32(0.1)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))


def external(proto: ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def loop(proto: ModelProto) -> None:
    body = helper.make_attribute("body", onnx.GraphProto(name="body"))
    proto.graph.node.append(helper.make_node("Loop", [""], ["looped"]))
    proto.graph.node[-1].attribute.append(body)


def foreign(proto: ModelProto) -> None:
    proto.graph.node[0].domain = "com.evil"


def add_sum_to_logits(proto: ModelProto, name: str) -> None:
    """So that the runtime has to compute what ``name`` holds."""
    proto.graph.node.append(helper.make_node("ReduceSum", [name], ["one"], keepdims=0))
    last = proto.graph.output[0].name
    for node in proto.graph.node:
        for index, name in enumerate(node.output):
            if name == last:
                node.output[index] = "before"
    proto.graph.node.append(helper.make_node("Add", ["before", "one"], [last]))


def terabytes(proto: ModelProto) -> None:
    """A valid graph of a few bytes more, for which the runtime wants 4 TB."""
    side = numpy_helper.from_array(np.array([2**20, 2**20]), "side")
    proto.graph.initializer.append(side)
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["side"], ["filled"]))
    add_sum_to_logits(proto, "filled")


def endless(proto: ModelProto) -> None:
    """A valid graph that multiplies a large matrix by itself, again and again."""
    side = numpy_helper.from_array(np.array([5000, 5000]), "side")
    proto.graph.initializer.append(side)
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["side"], ["m0"]))
    for index in range(500):
        proto.graph.node.append(
            helper.make_node("MatMul", [f"m{index}", f"m{index}"], [f"m{index + 1}"])
        )
    add_sum_to_logits(proto, "m500")


def graph_of(operator: str, *, side: int = 1, steps: int = 1) -> bytes:
    """A network for the bundle's images of hundreds of bytes; how much it takes is its own."""
    numbers = {"square": [side, side], "line": [-1], "axes": [0, 1]}
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["one"], keepdims=0),
        helper.make_node("Expand", ["one", "square"], ["m0"], "big"),
    ]
    if operator == "RandomUniformLike":
        high = {"low": -1e9, "high": 1e9}
        nodes = [
            helper.make_node("RandomUniformLike", ["x"], ["drawn"], **high),
            helper.make_node("Relu", ["drawn"], ["half"]),
            helper.make_node("ReduceMax", ["half"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["count", "line"], ["sides"]),
            helper.make_node("ConstantOfShape", ["sides"], ["m0"]),
        ]
    for step in range(steps if operator in ("MatMul", "Einsum") else 0):
        more = {"equation": "ab,bc->ac"} if operator == "Einsum" else {}
        names = [f"m{step}", f"m{step}"]
        nodes.append(helper.make_node(operator, names, [f"m{step + 1}"], f"n{step}", **more))
    end = nodes[-1].output[0]
    nodes.append(helper.make_node("ReduceSum", [end], ["y"], keepdims=0))
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "g", [image], [logits], weights)
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def golden(**tensors: np.ndarray) -> Tamper:  # type: ignore[type-arg]
    def tamper(bundle: Path) -> None:
        golden = load((bundle / "golden.safetensors").read_bytes())
        (bundle / "golden.safetensors").write_bytes(save({**golden, **tensors}))

    return fitting(tamper)


def linked(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)


def linked_folder(bundle: Path) -> None:
    (bundle / "triggers").rename(bundle.parent / "triggers")
    (bundle / "triggers").symlink_to(bundle.parent / "triggers")


def pipe(bundle: Path) -> None:
    (bundle / "golden.safetensors").unlink()
    os.mkfifo(bundle / "golden.safetensors")


def crowd(bundle: Path) -> None:
    for index in range(1001):
        (bundle / f"f{index}").touch()


def deep_folders(bundle: Path) -> None:
    (bundle / "a" / "b" / "c" / "d" / "e").mkdir(parents=True)


def without(name: str) -> Tamper:
    return lambda bundle: (bundle / name).unlink()


def empty(bundle: Path) -> None:
    for path in bundle.rglob("*"):
        if path.is_file():
            path.unlink()


def tensors_of_no_size(count: int) -> bytes:
    """A safetensors file of nothing but names."""
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(index): entry for index in range(count)}).encode()
    return len(header).to_bytes(8, "little") + header
