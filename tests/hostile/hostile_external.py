"""ONNX files whose weights lie in other files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hostile_case import hole
from onnx import TensorProto, helper
from onnx_network import compressed, network


def external(folder: Path, location: str, **places: str) -> list[str]:
    """The network with its weights "w" said to lie in another file."""
    model = network()
    tensor = model.graph.initializer[0]
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": location, "offset": "0", "length": "432", **places}.items():
        tensor.external_data.add(key=key, value=entry)
    if not os.path.lexists(folder / "w.bin"):
        (folder / "w.bin").write_bytes(content)
    return compressed(folder, model)


def _symbolic(folder: Path) -> list[str]:
    (folder / "w.bin").symlink_to("/etc/passwd")
    return external(folder, "w.bin")


def _hard(folder: Path) -> list[str]:
    secret = folder / "secret"
    secret.write_bytes(bytes(432))
    (folder / "w.bin").hardlink_to(secret)
    return external(folder, "w.bin")


def _pipe(folder: Path) -> list[str]:
    os.mkfifo(folder / "w.bin")
    return external(folder, "w.bin")


def _subfolder(folder: Path) -> list[str]:
    (folder / "w.bin").mkdir()
    return external(folder, "w.bin")


def _hole(folder: Path) -> list[str]:
    hole(folder / "w.bin", 3 * 2**30)
    return external(folder, "w.bin")


def _no_text(folder: Path) -> list[str]:
    """Where a name is no UTF-8, what reads the file hands out bytes."""
    words = external(folder, "w.bin")
    path = folder / "a.onnx"
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"\xff.bin"))
    return words


def _in_an_attribute(folder: Path) -> list[str]:
    """The reference hides in a constant's value, not among the weights."""
    model = network()
    value = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[4])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="../../../etc/passwd")
    constant = helper.make_node("Constant", [], ["b2"], "constant")
    constant.attribute.append(helper.make_attribute("value", value))
    model.graph.node.insert(0, constant)
    return compressed(folder, model)


def _shared(folder: Path) -> list[str]:
    """A thousand tensors in one megabyte of a file: a gigabyte once each has its own."""
    model = network()
    (folder / "w.bin").write_bytes(bytes(2**20))
    for index in range(1000):
        tensor = TensorProto(name=f"t{index}", data_type=TensorProto.FLOAT, dims=[2**18])
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in {"location": "w.bin", "offset": "0", "length": str(2**20)}.items():
            tensor.external_data.add(key=key, value=entry)
        model.graph.initializer.append(tensor)
    return compressed(folder, model)


def _hollow(folder: Path) -> list[str]:
    hole(folder / "w.bin", 900 * 2**20)
    return external(folder, "w.bin")


PLAIN = "only a plain name of a file beside the model"
EXTERNAL: list[tuple[str, str, Callable[[Path], list[str]], str]] = [
    ("folder above", "reads what lies outside", lambda f: external(f, "../w.bin"), PLAIN),
    ("absolute", "reads /etc/passwd into a weight", lambda f: external(f, "/etc/passwd"), PLAIN),
    ("folder below", "a path, not a name", lambda f: external(f, "sub/w.bin"), PLAIN),
    ("backslash", "climbs on Windows", lambda f: external(f, "..\\w.bin"), PLAIN),
    ("dot dot", "the folder above itself", lambda f: external(f, ".."), PLAIN),
    ("no name", "an empty place means the folder itself", lambda f: external(f, ""), PLAIN),
    ("no text", "a name that is no UTF-8", _no_text, "bytes of a value are no text"),
    ("in an attribute", "hidden in a constant", _in_an_attribute, PLAIN),
    (
        "symbolic link",
        "an archive may bring one (CVE-2026-27489)",
        _symbolic,
        "'w.bin' cannot be read",
    ),
    ("hard link", "an archive may bring one (CVE-2026-34446)", _hard, "several hard links"),
    ("pipe", "opening it would wait for ever", _pipe, "not a regular file"),
    ("folder", "a folder of that name", _subfolder, "'w.bin'"),
    ("3 GiB of nothing", "a sparse file", _hole, "larger than the limit"),
    (
        "900 MiB of nothing",
        "a sparse file within the limit",
        _hollow,
        "larger than the limit file_bytes leaves, or nearly all hole",
    ),
    (
        "shared bytes",
        "tensors that share a megabyte, until each is read",
        _shared,
        "take 1048576000 bytes of 'w.bin', which has 1048576",
    ),
    ("missing", "no such file", lambda f: external(f, "none.bin"), "'none.bin' cannot be read"),
    (
        "offset beyond",
        "numbers from behind the end",
        lambda f: external(f, "w.bin", offset="9999"),
        "which has 432",
    ),
    (
        "offset below",
        "numbers from before the start",
        lambda f: external(f, "w.bin", offset="-1"),
        "malformed",
    ),
    (
        "offset in words",
        "int() takes more than digits",
        lambda f: external(f, "w.bin", offset="1_0"),
        "malformed",
    ),
    (
        "length 2^63",
        "a length that overflows",
        lambda f: external(f, "w.bin", length=str(2**63)),
        "its shape needs 432",
    ),
    (
        "unknown key",
        "an attribute that some loaders set (CVE-2026-34445)",
        lambda f: external(f, "w.bin", __class__="x"),
        "malformed",
    ),
]
