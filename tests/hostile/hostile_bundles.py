"""Bundles: `edgeclean verify` is for files that came from elsewhere, so they are input like any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from bundle_files import put_bundle
from hostile_case import Case, hole
from tampering import (
    Tamper,
    crowd,
    deep_folders,
    empty,
    endless,
    external,
    fitting,
    flip,
    foreign,
    golden,
    graph_of,
    linked,
    linked_folder,
    loop,
    manifest,
    model,
    moved_bias,
    pipe,
    tensors_of_no_size,
    terabytes,
    text,
    without,
)

from edgeclean.bundle.manifest import canonical_json

TAMPERED: list[tuple[str, str, Tamper, str]] = [
    ("bit in the network", "one bit of a weight", flip("model.onnx"), "model.onnx was changed"),
    ("bit in the report", "a better verdict", flip("report.json"), "report.json was changed"),
    (
        "bit in the page",
        "a better verdict, for people",
        flip("report.html"),
        "report.html was changed",
    ),
    (
        "bit in the list",
        "the list itself",
        flip("SHA256SUMS"),
        "was changed: its SHA-256 is not the one in SHA256SUMS",
    ),
    (
        "no list",
        "without the list, nothing is bound",
        without("SHA256SUMS"),
        "SHA256SUMS is missing",
    ),
    (
        "no network",
        "the list names what is not there",
        without("model.onnx"),
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
    ("1,001 files", "one over the limit", crowd, "more than 1000 files"),
    ("deep folders", "a tree to get lost in", deep_folders, "cannot be part of it"),
    ("linked network", "a link to a file outside", linked, "model.onnx cannot be read"),
    ("linked folder", "a link to a folder outside", linked_folder, "triggers cannot be read"),
    (
        "pipe",
        "opening it would wait for ever",
        pipe,
        "golden.safetensors cannot be read: not a regular file",
    ),
    (
        "3 GiB of nothing",
        "a sparse file",
        lambda b: hole(b / "model.onnx", 3 * 2**30),
        "model.onnx is larger than",
    ),
    (
        "900 MiB of nothing",
        "a sparse file within the limit",
        lambda b: hole(b / "model.onnx", 900 * 2**20),
        "model.onnx is nearly all hole",
    ),
    (
        "list of nothing",
        "a list that is a sparse file of 3 GiB",
        lambda b: hole(b / "SHA256SUMS", 3 * 2**30),
        "SHA256SUMS is larger than 1048576",
    ),
    (
        "list of one line",
        "a line of 20 MB, in the hope that it is printed",
        lambda b: (b / "SHA256SUMS").write_bytes(b"A" * 20_000_000),
        "SHA256SUMS is larger than 1048576",
    ),
    (
        "list of one short line",
        "the same, within the limit",
        lambda b: (b / "SHA256SUMS").write_bytes(b"A" * 2**20),
        "a line that is not 'sha256  name': 'AAA",
    ),
    (
        "million values",
        "a megabyte of lists in the manifest, each some hundred bytes to Python",
        text("manifest.json", b'{"a": [' + b"[]," * 2**20 + b"[]]}\n"),
        "manifest.json is not JSON: more than 250000 values",
    ),
    (
        "deep keys",
        "objects within objects, not too deep for the parser",
        text("manifest.json", b'{"a":' * 500 + b"1" + b"}" * 500),
        "manifest.json is not JSON: nested deeper than 64",
    ),
    (
        "million golden tensors",
        "a header that names a million tensors of no size",
        fitting(lambda b: (b / "golden.safetensors").write_bytes(tensors_of_no_size(100_000))),
        "golden.safetensors cannot be read: the safetensors header",
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
        "a key is given twice",
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
        "more than any bundle has",
        manifest(lambda m: m["golden"].update(images=10**6)),
        "golden/images: 1000000 is greater than the maximum of 4096",
    ),
    (
        "4096 golden images",
        "more than the file holds",
        manifest(lambda m: m["golden"].update(images=4096)),
        r"float32 \(4096, 3, 8, 8\) is said",
    ),
    (
        "moved bias",
        "another network; every hash is made to fit",
        model(moved_bias),
        "differs from its stored logits",
    ),
    ("external data", "a network that reads another file", model(external), "in another file"),
    ("loop", "a network that runs for ever", model(loop), "holds a graph of its own"),
    ("custom domain", "an operator from a shared library", model(foreign), "com.evil"),
    (
        "terabytes",
        "a few bytes for which the runtime wants 4 TB",
        model(terabytes),
        "error: ONNX Runtime cannot run the network: [^:]*ONNXRuntimeError.* ConstantOfShape node",
    ),
    (
        "endless",
        "a few bytes for which the runtime works a day",
        model(endless),
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
        golden(logits=np.full((4, 5), np.nan, np.float32)),
        "differs from its stored logits",
    ),
    (
        "doubles",
        "golden images of another type",
        golden(input=np.zeros((4, 3, 8, 8))),
        "holds float64",
    ),
    (
        "no safetensors",
        "golden images that cannot be read",
        fitting(lambda b: (b / "golden.safetensors").write_bytes(b"no")),
        "cannot be read",
    ),
    ("nothing", "an empty folder", empty, "SHA256SUMS is missing"),
]


def _built(tamper: Tamper) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        tamper(put_bundle(folder / "b"))
        return ["verify", "b"]

    return build


def _against(content: Callable[[], bytes], *words: str) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        put_bundle(folder / "b")
        (folder / "o.onnx").write_bytes(content())
        return [*(words or ("bench", "b", "--runs", "3")), "--against", "o.onnx"]

    return build


def _engine(folder: Path) -> list[str]:
    manifest(lambda entries: entries["configuration"].update(precision="fp16"))(
        put_bundle(folder / "b")
    )
    return ["build-engine", "b", "-o", "engines"]


MEASURED: list[tuple[str, str, Callable[[Path], list[str]], str]] = [
    (
        "original of gigabytes",
        "a few hundred bytes that expand to 3.2 GB in the process that measures",
        _against(lambda: graph_of("Expand", side=28_284)),
        "o.onnx: Expand node 'big'.*the limits are activations",
    ),
    (
        "endless original",
        "a kilobyte with two hundred products of large matrices",
        _against(lambda: graph_of("MatMul", side=3000, steps=200)),
        "o.onnx: MatMul node .*the limits are activations",
    ),
    (
        "uncounted original",
        "products that no rule of cost knows",
        _against(lambda: graph_of("Einsum", side=3500, steps=2)),
        "o.onnx: .*Einsum, whose cost is not counted",
    ),
    (
        "original by chance",
        "how much it takes is drawn at each run: nothing when it is tried, all when it is measured",
        _against(lambda: graph_of("RandomUniformLike")),
        r"o\.onnx: ConstantOfShape node .*the shape of its output is not fixed",
    ),
    ("text as precision", "a wrong type where a table stands", _engine, "configuration/precision"),
]
BUNDLES = [
    Case(kind="bundle", name=name, story=story, build=_built(tamper), message=message)
    for name, story, tamper, message in TAMPERED
]
BUNDLES += [
    Case(kind="bundle", name=name, story=story, build=build, message=message)
    for name, story, build, message in MEASURED
]
