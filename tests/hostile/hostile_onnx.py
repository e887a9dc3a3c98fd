"""ONNX files: graphs that hide code, cost or other files, and files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hostile_case import Case, compressing, hole
from hostile_external import EXTERNAL
from hostile_graphs import GRAPHS
from onnx_network import OPTIONS, Change, compressed, network


def _hole_model(folder: Path) -> list[str]:
    hole(folder / "a.onnx", 3 * 2**30)
    return compressing(folder, "a.onnx", None, *OPTIONS)


def _changed(change: Change) -> Callable[[Path], list[str]]:
    def build(folder: Path) -> list[str]:
        model = network()
        change(model)
        return compressed(folder, model)

    return build


ONNX = [
    *(
        Case(kind="onnx", name=name, story=story, build=_changed(change), message=message)
        for name, story, change, message in GRAPHS
    ),
    *(
        Case(kind="external data", name=name, story=story, build=build, message=message)
        for name, story, build, message in EXTERNAL
    ),
    Case(
        kind="onnx",
        name="no ONNX",
        story="bytes that are no protocol buffer",
        build=lambda folder: compressing(folder, "a.onnx", b"\xff" * 64, *OPTIONS),
        message="not an ONNX file",
    ),
    Case(
        kind="onnx",
        name="cut short",
        story="the download broke off",
        build=lambda folder: compressing(
            folder, "a.onnx", network().SerializeToString()[:-30], *OPTIONS
        ),
        message="not an ONNX file",
    ),
    Case(
        kind="onnx",
        name="deep protocol buffer",
        story="a message in a message in a message: parsers that recurse overflow their stack",
        build=lambda folder: compressing(folder, "a.onnx", _deep(), *OPTIONS),
        message="not an ONNX file",
    ),
    Case(
        kind="onnx",
        name="3 GiB of nothing",
        story="a sparse file",
        build=_hole_model,
        message="larger than 1073741824 bytes",
    ),
]


def _deep() -> bytes:
    """Graphs in attributes of nodes of graphs, as deep as a megabyte takes."""
    content = b""
    for _ in range(300):
        for field in (6, 5, 1):  # attribute.g, node.attribute, graph.node
            content = bytes([field << 3 | 2]) + _varint(len(content)) + content
    return bytes([7 << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
