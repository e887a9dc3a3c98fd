"""Suffixes, archives and safetensors headers, before anything in them is read."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from onnx_graphs import graph
from tiny_checkpoint import (
    LIMITS,
    assert_equal_tensors,
    parsed,
    saved,
    tiny,
)

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.load.checkpoint import networks_told, parse_torch, read_networks
from edgeclean.load.kinds import kind_of
from edgeclean.load.limits import LoadLimits, check_zip, read_input

# Files.


@pytest.mark.parametrize("name", ["a.pt2", "a.pkl", "a", "a.zip", "a.engine", "ckpt.t7", "a.model"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_save_wrote_is_known_by_its_bytes(name: str, zipped: bool) -> None:
    contents = saved({}, _use_new_zipfile_serialization=zipped)
    assert kind_of(Path(name), contents) == ("torch-zip" if zipped else "torch-legacy")


@pytest.mark.parametrize(
    ("name", "contents", "kind"),
    [
        ("a.PT", b"PK\x03\x04", "torch-zip"),
        ("a.ckpt", b"\x80\x02", "torch-legacy"),
        ("a.onnx", b"x", "onnx"),
        ("a.safetensors", b"PK\x03\x04", "safetensors"),
    ],
)
def test_kind_by_suffix_and_first_bytes(name: str, contents: bytes, kind: str) -> None:
    assert kind_of(Path(name), contents) == kind


@pytest.mark.parametrize("name", ["a", "a.bin", "model.pth", "a.safetensors"])
def test_safetensors_are_known_by_their_bytes(name: str) -> None:
    for size in range(1, 200):  # also where the length begins as an archive or a pickle does
        contents = safetensors.torch.save({"w" * size: torch.ones(2)})
        assert kind_of(Path(name), contents) == "safetensors"
    assert kind_of(Path("a.safetensors"), saved({})) == "torch-zip"


@pytest.mark.parametrize("name", ["a", "a.pth", "model.bin", "a.onnx"])
def test_an_onnx_file_is_known_by_its_bytes(name: str) -> None:
    contents = graph([("Relu", [""], {})]).SerializeToString()
    assert kind_of(Path(name), contents) == "onnx"
    if name != "a.onnx":
        for cut in (1, 10, len(contents) - 1):
            with pytest.raises(InputRejectedError, match="nor is it safetensors or ONNX"):
                kind_of(Path(name), contents[:cut])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\x89HDF\r\n\x1a\n", "a Keras or HDF5 file; convert it to ONNX"),
        (b"\x1c\0\0\0TFL3", "a TensorFlow Lite file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        (b"\x1f\x8b\x08\0", "packed by gzip; unpack it first"),
        (b'{"metadata": {}, "weight_map": {}}', "an index of weights in several parts"),
    ],
)
def test_files_of_other_tools_are_refused_by_what_they_are(contents: bytes, message: str) -> None:
    with pytest.raises(InputRejectedError, match=message):
        kind_of(Path("model.pth"), contents)


def test_pickle_suffix_without_a_pickle_is_refused() -> None:
    with pytest.raises(InputRejectedError, match=r"so torch\.save did not write it"):
        kind_of(Path("a.pth"), b"<html>")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "big.pth").write_bytes(b"x" * 11)
    for name, message in (
        ("none.pth", "No such file"),
        ("", "not a regular file"),
        ("empty.pth", "the file is empty"),
        ("pipe.pth", "not a regular file"),
        ("big.pth", "larger than 10 bytes"),
        ("a\0b.pth", "cannot be read"),
    ):
        with pytest.raises(InputRejectedError, match=message):
            read_input(tmp_path / name, 10)
    (tmp_path / "big.pth").write_bytes(b"x" * 10)
    assert read_input(tmp_path / "big.pth", 10) == b"x" * 10


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(kept: float, zipped: bool) -> None:
    contents = saved(tiny().state_dict(), _use_new_zipfile_serialization=zipped)
    # Cut in the middle of a name, a pickle asks for a name that there is not.
    with pytest.raises(InputRejectedError, match=r"damaged|asks for code: torch\._utils"):
        parsed(contents[: int(kept * len(contents))])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_whole_module_is_read_as_its_state_dict(zipped: bool) -> None:
    module = tiny()
    contents = saved(module, _use_new_zipfile_serialization=zipped)
    assert_equal_tensors(parsed(contents), module.state_dict())


def archive(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as writer:
        for name, contents in members.items():
            writer.writestr(name, contents)
    return stream.getvalue()


def encrypted(contents: bytes) -> bytes:
    """With the encryption bit set in the directory's first entry."""
    place = contents.index(b"PK\x01\x02") + 8
    (flags,) = struct.unpack_from("<H", contents, place)
    return contents[:place] + struct.pack("<H", flags | 1) + contents[place + 2 :]


PACKED = zipfile.ZIP_DEFLATED
GOOD = {"a/data.pkl": b"\x80\x02}.", "a/data/0": b"1234", "a/version": b"3\n"}
BAD_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "no data.pkl": (archive({"a/x": b""}), "not one of torch.save"),
    "two folders": (archive({**GOOD, "b/x": b""}), "not one of torch.save"),
    "TorchScript": (archive({**GOOD, "a/constants.pkl": b""}), "a TorchScript archive"),
    "TorchScript code": (archive({**GOOD, "a/code/x.py": b""}), "a TorchScript archive"),
    "exported program": (archive({"a/archive_format": b"pt2"}), "an exported program"),
    "exported model": (archive({"a/models/m.json": b""}), "an exported program"),
    "folder above": (archive({**GOOD, "a/../b": b""}), "has a name that torch.save"),
    "absolute": (archive({**GOOD, "/a/b": b""}), "has a name that torch.save"),
    "backslash": (archive({**GOOD, "a\\b": b""}), "has a name that torch.save"),
    "drive": (archive({**GOOD, "c:b": b""}), "has a name that torch.save"),
    "escape": (archive({**GOOD, "a/\x1b[31m": b""}), "has a name that torch.save"),
    "NUL": (archive({**GOOD, "a/bXc": b""}).replace(b"bXc", b"b\0c"), "has a name that torch.save"),
    "same name in capitals": (archive({**GOOD, "a/DATA.PKL": b""}), "holds 'a/data.pkl' twice"),
    "encrypted": (encrypted(archive(GOOD)), "is encrypted"),
    "bomb": (archive({**GOOD, "a/data/1": bytes(64 * 2**20)}, method=PACKED), "zip_ratio is 20"),
    "many small bombs": (
        archive({**GOOD, **{f"a/data/{i}": bytes(2**20) for i in range(40)}}, method=PACKED),
        "times its size; the limit zip_ratio is 20",
    ),
    "other packing": (archive(GOOD, method=zipfile.ZIP_BZIP2), "packed by method 12"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_archive_is_refused_by_its_directory(case: str) -> None:
    contents, message = BAD_ARCHIVES[case]
    with pytest.raises(InputRejectedError) as caught:
        parse_torch(contents, LIMITS)
    assert message in str(caught.value)


def test_large_member_that_packs_too_well_is_refused_though_the_whole_does_not() -> None:
    noise = bytes(torch.randint(0, 256, (2**20,), dtype=torch.uint8).tolist())
    contents = archive({**GOOD, "a/data/1": bytes(2 * 2**20), "a/data/2": noise}, method=PACKED)
    with pytest.raises(InputRejectedError, match="'a/data/1' unpacks to"):
        check_zip(contents, LIMITS)


def test_limits_of_an_archive_are_exact() -> None:
    contents = archive(GOOD)
    size = sum(len(member) for member in GOOD.values())
    check_zip(contents, LoadLimits(entries=3, file_bytes=size))
    with pytest.raises(InputRejectedError, match="3 members; the limit entries is 2"):
        check_zip(contents, LoadLimits(entries=2))
    with pytest.raises(InputRejectedError, match="unpacks to"):
        check_zip(contents, LoadLimits(file_bytes=size - 1))


NUMBERS = [field.name for field in dataclasses.fields(LoadLimits) if field.name != "state_dict"]


@pytest.mark.parametrize("field", NUMBERS)
def test_limit_below_one_is_a_usage_error(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        LoadLimits(**{field: 0})


def headed(header: bytes, numbers: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + numbers


ENTRY = b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
BAD_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "short": (b"\x01\x02", "shorter than its 8-byte"),
    "header beyond the file": (struct.pack("<Q", 2**62) + b"{}", "header claims"),
    "no JSON": (headed(b"{nonsense"), "header is not valid"),
    "nested": (headed(b"[" * 100_000), "header is not valid"),
    "list": (headed(b"[]"), "must be an object"),
    "one name twice": (headed(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", b"1234"), "given twice"),
    "numbers cut off": (headed(b'{"a":' + ENTRY + b"}", b"12"), "not a valid safetensors file"),
    "no dtype": (headed(b'{"a":{"shape":[1],"data_offsets":[0,4]}}', b"1234"), "not a valid"),
    "empty": (headed(b"{}"), "not a filled state dict"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_damaged_safetensors_file_is_refused(case: str) -> None:
    contents, message = BAD_SAFETENSORS[case]
    with pytest.raises(InputRejectedError) as caught:
        read_networks(contents, "safetensors", LIMITS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        headed(b"{}"),
        headed(b"[" * 10**5),
        safetensors.torch.save({"9:w": torch.ones(2)}, {"networks": "[[]]"}),
        safetensors.torch.save({"0:w": torch.ones(2)}, {"networks": "[" * 10**5}),
        safetensors.torch.save({"0:w": torch.ones(2)}, {"networks": "[[]]", "layers": "[]"}),
    ],
)
def test_a_child_that_was_taken_over_may_answer_anything(answer: bytes) -> None:
    with pytest.raises(InputRejectedError, match="answered nonsense"):
        networks_told(answer, LIMITS)


def test_limits_of_a_safetensors_header() -> None:
    contents = headed(b'{"a":' + ENTRY + b"}", b"1234")
    read_networks(contents, "safetensors", LoadLimits(header_bytes=len(ENTRY) + 6))
    with pytest.raises(InputRejectedError, match="header_bytes"):
        read_networks(contents, "safetensors", LoadLimits(header_bytes=len(ENTRY) + 5))
    # The header's own limit, before there are tensors to count.
    many = headed(b'{"a":' + ENTRY + b',"b":' + ENTRY + b"}", b"1234")
    with pytest.raises(InputRejectedError, match="must be an object of at most 1 tensors"):
        read_networks(many, "safetensors", LoadLimits(entries=1))
