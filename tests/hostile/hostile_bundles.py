"""Bundles: `edgeclean verify` is for files that came from elsewhere, so they are input like any."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from bundle_files import make_checksums_fit, make_hashes_fit, put_bundle
from hostile_case import Case, hole
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from edgeclean.bundles.manifest import canonical_json, read_json

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


def _moved_bias(proto: ModelProto) -> None:
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    bias = next(one for one in proto.graph.initializer if one.name == gemm.input[2])
    moved = numpy_helper.to_array(bias) + np.float32(0.1)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))


def _external(proto: ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def _loop(proto: ModelProto) -> None:
    body = helper.make_attribute("body", onnx.GraphProto(name="body"))
    proto.graph.node.append(helper.make_node("Loop", [""], ["looped"]))
    proto.graph.node[-1].attribute.append(body)


def _foreign(proto: ModelProto) -> None:
    proto.graph.node[0].domain = "com.evil"


def _terabytes(proto: ModelProto) -> None:
    """A valid graph of a few bytes more, for which the runtime wants 4 TB."""
    side = numpy_helper.from_array(np.array([2**20, 2**20]), "side")
    proto.graph.initializer.append(side)
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["side"], ["filled"]))
    proto.graph.node.append(helper.make_node("ReduceSum", ["filled"], ["one"], keepdims=0))
    last = proto.graph.output[0].name
    for node in proto.graph.node:
        for index, name in enumerate(node.output):
            if name == last:
                node.output[index] = "before"
    proto.graph.node.append(helper.make_node("Add", ["before", "one"], [last]))


def _endless(proto: ModelProto) -> None:
    """A valid graph that multiplies a large matrix by itself, again and again."""
    side = numpy_helper.from_array(np.array([5000, 5000]), "side")
    proto.graph.initializer.append(side)
    proto.graph.node.append(helper.make_node("ConstantOfShape", ["side"], ["m0"]))
    for index in range(500):
        proto.graph.node.append(
            helper.make_node("MatMul", [f"m{index}", f"m{index}"], [f"m{index + 1}"])
        )
    proto.graph.node.append(helper.make_node("ReduceSum", ["m500"], ["one"], keepdims=0))
    last = proto.graph.output[0].name
    for node in proto.graph.node:
        for index, name in enumerate(node.output):
            if name == last:
                node.output[index] = "before"
    proto.graph.node.append(helper.make_node("Add", ["before", "one"], [last]))


def _golden(**tensors: np.ndarray) -> Tamper:  # type: ignore[type-arg]
    def tamper(bundle: Path) -> None:
        golden = load((bundle / "golden.safetensors").read_bytes())
        (bundle / "golden.safetensors").write_bytes(save({**golden, **tensors}))

    return fitting(tamper)


def _linked(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)


def _linked_folder(bundle: Path) -> None:
    (bundle / "triggers").rename(bundle.parent / "triggers")
    (bundle / "triggers").symlink_to(bundle.parent / "triggers")


def _pipe(bundle: Path) -> None:
    (bundle / "golden.safetensors").unlink()
    os.mkfifo(bundle / "golden.safetensors")


def _many(bundle: Path) -> None:
    for index in range(1001):
        (bundle / f"f{index}").touch()


def _deep_folders(bundle: Path) -> None:
    (bundle / "a" / "b" / "c" / "d" / "e").mkdir(parents=True)


def _without(name: str) -> Tamper:
    return lambda bundle: (bundle / name).unlink()


def _no_bundle(bundle: Path) -> None:
    for path in bundle.rglob("*"):
        if path.is_file():
            path.unlink()


TAMPERED: list[tuple[str, str, Tamper, str]] = [
    ("bit in the network", "one bit of a weight", flip("model.onnx"), "model.onnx was changed"),
    ("bit in the report", "a better verdict", flip("report.json"), "report.json was changed"),
    (
        "bit in the page",
        "a better verdict, for people",
        flip("report.html"),
        "report.html was changed",
    ),
    ("bit in the list", "the list itself", flip("SHA256SUMS"), "SHA256SUMS|was changed"),
    (
        "no list",
        "without the list, nothing is bound",
        _without("SHA256SUMS"),
        "SHA256SUMS is missing",
    ),
    (
        "no network",
        "the list names what is not there",
        _without("model.onnx"),
        "model.onnx is missing",
    ),
    (
        "one file more",
        "a file that no list names",
        lambda b: (b / "more.so").touch(),
        "more.so is not listed",
    ),
    (
        "hidden file",
        "a name that tools do not show",
        lambda b: (b / ".hidden").touch(),
        "cannot be part of it",
    ),
    ("1,001 files", "one over the limit", _many, "more than 1000 files"),
    ("deep folders", "a tree to get lost in", _deep_folders, "cannot be part of it"),
    ("linked network", "a link to a file outside", _linked, "model.onnx cannot be read"),
    ("linked folder", "a link to a folder outside", _linked_folder, "triggers cannot be read"),
    ("pipe", "opening it would wait for ever", _pipe, "golden.safetensors is not a plain file"),
    (
        "3 GiB of nothing",
        "a sparse file",
        lambda b: hole(b / "model.onnx", 3 * 2**30),
        "model.onnx is larger than",
    ),
    (
        "96 MiB report",
        "a sparse file",
        lambda b: hole(b / "report.json", 96 * 2**20),
        "report.json is larger",
    ),
    (
        "list that climbs",
        "a list that names a file outside",
        lambda b: (b / "SHA256SUMS").write_bytes(b"0" * 64 + b"  ../outside\n"),
        "a line that is not",
    ),
    (
        "deep JSON",
        "brackets that overflow a parser that recurses",
        text("manifest.json", b"[" * 100_000),
        "manifest.json is not JSON",
    ),
    (
        "key twice",
        "two manifests in one",
        text("manifest.json", b'{"a": 1, "a": 2}\n'),
        "not in the form",
    ),
    (
        "NaN in JSON",
        "a number that JSON does not have",
        text("report.json", b'{"a": NaN}\n'),
        "report.json is not",
    ),
    (
        "number of 5,000 digits",
        "slow to read, by the square",
        text("report.json", b'{"a": ' + b"9" * 5000 + b"}\n"),
        "report.json is not",
    ),
    (
        "another report",
        "a good report of another run",
        text("report.json", canonical_json({"manifest_sha256": "0" * 64})),
        "names another manifest",
    ),
    (
        "another schema",
        "a manifest of the future",
        manifest(lambda m: m.update(schema_version=99)),
        "schema at schema_version",
    ),
    (
        "unknown field",
        "a field that a later reader might obey",
        manifest(lambda m: m.update(run="x")),
        "schema at the top level",
    ),
    (
        "loose tolerance",
        "parity that anything would meet",
        manifest(lambda m: m["golden"].update(tolerance=9.0)),
        "schema at golden/tolerance",
    ),
    (
        "another source",
        "the hash of a better-known network",
        manifest(lambda m: m["source"].update(sha256="cd" * 32)),
        "another checkpoint",
    ),
    (
        "a million golden images",
        "more than the file holds",
        manifest(lambda m: m["golden"].update(images=10**6)),
        r"float32 \(1000000, 3, 8, 8\) is said",
    ),
    (
        "moved bias",
        "another network; every hash is made to fit",
        model(_moved_bias),
        "differs from its stored logits",
    ),
    ("external data", "a network that reads another file", model(_external), "in another file"),
    ("loop", "a network that runs for ever", model(_loop), "holds a graph of its own"),
    ("custom domain", "an operator from a shared library", model(_foreign), "com.evil"),
    (
        "terabytes",
        "a few bytes for which the runtime wants 4 TB",
        model(_terabytes),
        "cannot run the network|memory_bytes|killed|not valid",
    ),
    (
        "endless",
        "a few bytes for which the runtime works a day",
        model(_endless),
        "used up its processor time",
    ),
    (
        "no ONNX",
        "bytes that are no network",
        fitting(lambda b: (b / "model.onnx").write_bytes(b"\xff no")),
        "not an ONNX file",
    ),
    (
        "NaN logits",
        "NaN differs from nothing by more than the tolerance",
        _golden(logits=np.full((4, 5), np.nan, np.float32)),
        "differs from its stored logits",
    ),
    (
        "doubles",
        "golden images of another type",
        _golden(input=np.zeros((4, 3, 8, 8))),
        "holds float64",
    ),
    (
        "no safetensors",
        "golden images that cannot be read",
        fitting(lambda b: (b / "golden.safetensors").write_bytes(b"no")),
        "cannot be read",
    ),
    ("nothing", "an empty folder", _no_bundle, "SHA256SUMS is missing"),
]


def _built(tamper: Tamper) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        tamper(put_bundle(folder / "b"))
        return ["verify", "b"]

    return build


BUNDLES = [
    Case(kind="bundle", name=name, story=story, build=_built(tamper), message=message)
    for name, story, tamper, message in TAMPERED
]
