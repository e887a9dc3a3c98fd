"""Weights in other files: only in plain files beside the model, and within its limits."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from onnx_graphs import LIMITS, SIDE, converted, images, relu_graph

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx import files
from edgeclean.load.onnx.files import embed_files
from edgeclean.load.onnx.guard import external_location, parse_onnx
from edgeclean.load.onnx.importer import import_onnx


def external_model(folder: Path) -> bytes:
    """relu_graph with all its weights in ``weights.bin``."""
    model = relu_graph()
    blob = b""
    for tensor in model.graph.initializer:
        numbers = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (
            ("location", "weights.bin"),
            ("offset", str(len(blob))),
            ("length", str(len(numbers))),
        ):
            tensor.external_data.add(key=key, value=entry)
        blob += numbers
    (folder / "weights.bin").write_bytes(blob)
    return model.SerializeToString()


def relocated(contents: bytes, key: str, entry: str) -> bytes:
    model = onnx.load_model_from_string(contents)
    for tensor in model.graph.initializer:
        for place in tensor.external_data:
            if place.key == key:
                place.value = entry
    return model.SerializeToString()


def test_external_weights_are_read_from_a_plain_file(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    assert parse_onnx(contents, LIMITS) is None
    imported = import_onnx(contents, LIMITS, folder=tmp_path)
    assert set(imported.external_sha256) == {"weights.bin"}
    pixels = images(2, (3, SIDE, SIDE))
    with torch.no_grad():
        expected = converted(relu_graph().SerializeToString())(pixels)
        torch.testing.assert_close(imported.module(pixels), expected)


@pytest.mark.parametrize(
    "location",
    ["../weights.bin", "/etc/passwd", "a/b", "..", "", "C:x", "a\\b", "x" * 300, "a\x1b"],
)
def test_external_weights_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = external_model(tmp_path)  # weights.bin lies one folder up
    with pytest.raises(InputRejectedError, match="only a plain name"):
        parse_onnx(relocated(contents, "location", location), LIMITS)


def test_external_weights_behind_links_are_refused(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    embed_files(contents, tmp_path, LIMITS)
    secret = tmp_path / "secret"
    (tmp_path / "weights.bin").rename(secret)
    os.link(secret, tmp_path / "hard.bin")
    lone = tmp_path / "lone"  # with one link only: it is the symbolic one that is refused
    lone.write_bytes(secret.read_bytes())
    embed_files(relocated(contents, "location", "lone"), tmp_path, LIMITS)
    (tmp_path / "soft.bin").symlink_to(lone)
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "folder.bin").mkdir()
    for name in ("hard.bin", "soft.bin", "pipe.bin", "folder.bin", "missing.bin"):
        with pytest.raises(InputRejectedError, match=name):
            embed_files(relocated(contents, "location", name), tmp_path, LIMITS)


@pytest.mark.parametrize(
    ("key", "entry"), [("offset", "9999999"), ("offset", "-1"), ("length", "1"), ("length", "x")]
)
def test_external_sections_must_lie_in_the_file(key: str, entry: str, tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    with pytest.raises(InputRejectedError, match=r"tensor '(w|b)'"):
        embed_files(relocated(contents, key, entry), tmp_path, LIMITS)


def test_a_file_that_was_not_fetched_is_called_so(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 9\n")
    with pytest.raises(InputRejectedError, match=r"tensor 'w': .*; run git lfs pull to"):
        embed_files(contents, tmp_path, LIMITS)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(InputRejectedError, match=r"of 'weights.bin', which has 0; its shape needs"):
        embed_files(contents, tmp_path, LIMITS)


def test_a_tensor_has_one_place_in_its_file(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(external_model(tmp_path))
    for key in ("offset", "length", "checksum"):
        twice = onnx.ModelProto()
        twice.CopyFrom(model)
        for entry in ("4", "4"):
            twice.graph.initializer[0].external_data.add(key=key, value=entry)
        with pytest.raises(InputRejectedError, match=r"its place in 'weights.bin' is malformed"):
            embed_files(twice.SerializeToString(), tmp_path, LIMITS)


def in_many_files(folder: Path, number: int) -> bytes:
    """A model whose every tensor lies in a file of its own; none is of use to its graph."""
    model = relu_graph()
    del model.graph.initializer[:]
    for index in range(number):
        tensor = model.graph.initializer.add(name=f"t{index}", data_type=TensorProto.FLOAT)
        tensor.dims.append(1)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"w{index}.bin")
        (folder / f"w{index}.bin").write_bytes(bytes(4))
    return model.SerializeToString()


def test_many_external_files_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, digests = embed_files(in_many_files(tmp_path, files.MOST_FILES), tmp_path, LIMITS)
    assert len(digests) == files.MOST_FILES
    contents = in_many_files(tmp_path, files.MOST_FILES + 1)
    monkeypatch.setattr(files, "_read_plain", lambda *_: pytest.fail("a file was read"))
    with pytest.raises(InputRejectedError, match=r"in 4097 files beside it and at most 4096"):
        embed_files(contents, tmp_path, LIMITS)


def test_each_tensor_is_looked_at_as_often_however_many_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def counted(tensor: TensorProto) -> str:
        asked.append(tensor)
        return external_location(tensor)

    monkeypatch.setattr(files, "external_location", counted)
    times = []
    for number in (4, 60):
        asked.clear()
        embed_files(in_many_files(tmp_path, number), tmp_path, LIMITS)
        times.append(len(asked) / number)
    assert times[0] == times[1]


def test_external_files_count_towards_the_limit(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    size = (tmp_path / "weights.bin").stat().st_size
    embed_files(contents, tmp_path, LoadLimits(file_bytes=len(contents) + size))
    with pytest.raises(InputRejectedError, match="larger than the limit"):
        embed_files(contents, tmp_path, LoadLimits(file_bytes=len(contents) + size - 1))
