"""An ``.npz`` pack costs what is unpacked of it, and no more than its images may have."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeclean.errors import InputRejectedError
from edgeclean.images import labelled, packs
from edgeclean.images.labelled import read_labelled_images
from edgeclean.images.packs import open_pack
from edgeclean.networks.state import ModelSpec

MIB = 2**20
SPEC = ModelSpec(
    architecture="resnet20", input_shape=(3, 8, 8), classes=5, mean=(0.5,) * 3, std=(0.2,) * 3
)
LABELS = np.array([0, 4])
IMAGES = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
MADE = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def packed(path: Path, *, squeezed: bool = False, **members: Any) -> Path:
    """An archive of arrays, or of bytes as they are."""
    kind = zipfile.ZIP_DEFLATED if squeezed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, member in members.items():
            stream = io.BytesIO()
            if not isinstance(member, bytes):
                np.lib.format.write_array(stream, member, allow_pickle=True)
            content = member if isinstance(member, bytes) else stream.getvalue()
            archive.writestr(f"{name}.npy", content)
    return path


def head(shape: str, descr: str = "|u1", *, columns: bool = False, length: int = 118) -> bytes:
    """The header of an array, with a shape of its own."""
    text = f"{{'descr': '{descr}', 'fortran_order': {columns}, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(117).encode() + b"\n"


def refused(path: Path, words: str) -> None:
    """In one line with the file's name, and without the memory that was asked."""
    tracemalloc.start()
    try:
        with pytest.raises(InputRejectedError, match=words) as said:
            read_labelled_images(path, SPEC)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    assert str(said.value).startswith(f"{path}: ")
    assert len(str(said.value)) < 500


@MADE
@given(
    arrays.arrays(
        st.sampled_from(["u1", "<i2", ">i4", "<u8", "i8"]),
        arrays.array_shapes(min_dims=0, max_dims=4, max_side=5),
    ),
    st.booleans(),
    st.booleans(),
)
def test_whole_numbers_come_back_as_they_were(
    tmp_path: Path, numbers: Any, squeezed: bool, columns: bool
) -> None:
    stored = np.asarray(numbers, order="F" if columns else "C")
    path = packed(tmp_path / "p.npz", squeezed=squeezed, a=stored)
    with open_pack(path, MIB) as pack:
        assert pack.names == {"a"}
        found = pack.read("a", stored.nbytes)
        assert found.dtype == stored.dtype
        assert found.shape == stored.shape
        assert np.array_equal(found, stored)
        if stored.nbytes:
            with pytest.raises(InputRejectedError, match=f"the most is {stored.nbytes - 1}"):
                pack.read("a", stored.nbytes - 1)


@MADE
@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from(["labels", "images"]))
def test_a_header_that_does_not_fit_what_follows_is_refused(
    tmp_path: Path, said: int, there: int, name: str
) -> None:
    path = packed(tmp_path / "p.npz", **{"labels": LABELS, name: head(f"({said},)") + bytes(there)})
    refused(
        path,
        "needs labels|shape|images are|holds 0 images"
        if said == there
        else f"claims {said} bytes and holds {there}",
    )


BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": head(f"({2**31},)")}, "labels claims"),
    "negative sides": ({"labels": head("(-1, -8)", "<u1")}, "labels claims|not an .npz pack"),
    "one negative side": ({"labels": head("(-8,)")}, "labels claims -8|not an .npz pack"),
    "many sides": ({"labels": head(f"({'1,' * 33})") + b"\0"}, "not an .npz pack|the shape"),
    "no sides": (
        {"labels": LABELS, "data": np.uint8(3), "offsets": np.zeros(3, int)},
        "do not cut",
    ),
    "offsets without sides": (
        {"labels": LABELS, "data": IMAGES.ravel(), "offsets": np.int64(3)},
        "do not cut",
    ),
    "labels without sides": ({"labels": np.int64(3), "images": IMAGES}, "have the shape"),
    "objects": ({"labels": np.array([{}, {}]), "images": IMAGES}, "whole numbers"),
    "records": ({"labels": np.zeros(2, "u1,u1"), "images": IMAGES}, "whole numbers"),
    "offsets that fall": (
        {"labels": LABELS, "data": IMAGES.ravel(), "offsets": np.array([0, 500, 384])},
        "do not cut",
    ),
    "offsets below zero": (
        {"labels": LABELS, "data": IMAGES.ravel(), "offsets": np.array([0, -5, 384])},
        "do not cut",
    ),
    "offsets that wrap": (
        {
            "labels": LABELS,
            "data": IMAGES.ravel(),
            "offsets": np.array([0, 2**64 - 1, 384], np.uint64),
        },
        "do not cut",
    ),
    "a header of 4 GiB": (
        {"labels": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + bytes(64 * MIB)},
        "not an .npz pack",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("squeezed", [False, True])
def test_bombs_are_refused_in_their_own_size(name: str, squeezed: bool, tmp_path: Path) -> None:
    members, words = BOMBS[name]
    refused(packed(tmp_path / "p.npz", squeezed=squeezed, **members), words)


def test_what_unpacks_to_many_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a smaller free amount than the true one, so that no gigabyte is made here."""
    monkeypatch.setattr(packs, "FREE_BYTES", 100)
    monkeypatch.setattr(packs, "MAX_RATIO", 2)
    plain = {"labels": LABELS, "images": np.zeros_like(IMAGES)}
    refused(packed(tmp_path / "p.npz", squeezed=True, **plain), "images unpacks to 384 bytes from")
    found = read_labelled_images(packed(tmp_path / "q.npz", **plain), SPEC)
    assert not found.pixels.any()
    noise = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    varied = packed(tmp_path / "r.npz", squeezed=True, labels=LABELS, images=noise)
    assert np.array_equal(read_labelled_images(varied, SPEC).pixels, noise)


def test_labels_bound_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.zeros(1000, np.uint8)
    members = {"labels": LABELS, "data": data, "offsets": np.array([0, 5, 1000])}
    monkeypatch.setattr(labelled, "MAX_PIXEL_BYTES", 1000 + 2 * 3 * 8 * 8 - 1)
    refused(packed(tmp_path / "p.npz", **members), "data claims 1000 bytes.*the most is 999")
    monkeypatch.setattr(labelled, "MAX_PIXEL_BYTES", 1000 + 2 * 3 * 8 * 8)
    refused(packed(tmp_path / "p.npz", **members), "image 0: not a picture")


def test_more_pixels_than_are_read_are_refused_by_the_labels_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "p.npz", labels=LABELS, images=b"not an array")
    monkeypatch.setattr(labelled, "MAX_PIXEL_BYTES", 2 * 3 * 8 * 8 - 1)
    refused(path, "holds 2 images, 384 bytes of pixels; 1 to 200000 images and 383 bytes are read")
    monkeypatch.setattr(labelled, "MAX_PIXEL_BYTES", 2 * 3 * 8 * 8)
    refused(path, "not an .npz pack")


def test_arrays_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    broken = b"not an array"
    path = packed(
        tmp_path / "p.npz", labels=LABELS, images=IMAGES, data=broken, offsets=broken, more=broken
    )
    assert np.array_equal(read_labelled_images(path, SPEC).pixels, IMAGES)


def test_a_directory_of_a_million_names_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(12_000):
            archive.writestr(f"{index:060}.npy", b"")
    refused(path, "its directory is larger than 1048576 bytes")


def test_a_hole_is_not_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "p.npz", labels=LABELS, images=IMAGES)
    content = path.read_bytes()
    with path.open("wb") as stream:
        stream.truncate(512 * MIB)
        stream.seek(512 * MIB)
        stream.write(content)
    refused(path, "nearly all of the file is a hole")


def test_a_pack_that_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "does not exist")
