"""The user's own images: read as they are, bombs refused."""

from __future__ import annotations

import io
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format
import pytest
from PIL import Image

from edgeclean.errors import (
    InputRejectedError,
)
from edgeclean.images import labelled as reader
from edgeclean.images.labelled import read_labelled_images
from edgeclean.networks.state import ModelSpec

SPEC = ModelSpec(
    architecture="resnet20", input_shape=(3, 8, 8), classes=5, mean=(0.5,) * 3, std=(0.2,) * 3
)


def picture(
    value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG"
) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(stream, kind)
    return stream.getvalue()


def noise() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path, names: list[str]) -> Path:
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / "b.png").write_bytes(picture(index))
        (folder / name / "a.PNG").write_bytes(picture(100 + index))
        (folder / name / ".DS_Store").write_bytes(b"x")
    return folder


def test_a_folder_by_names_is_sorted_and_by_numbers_is_numbered(tmp_path: Path) -> None:
    found = read_labelled_images(write_images(tmp_path / "n", ["e", "a", "c", "d", "b"]), SPEC)
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found.pixels[:, 0, 0, 0].tolist() == [101, 1, 104, 4, 102, 2, 103, 3, 100, 0]
    numbered = read_labelled_images(write_images(tmp_path / "i", ["4", "0", "2"]), SPEC)
    assert numbered.labels.tolist() == [0, 0, 2, 2, 4, 4]
    assert numbered.pixels[:, 1, 3, 3].tolist() == [101, 1, 102, 2, 100, 0]
    assert set(numbered.files) == {
        tmp_path / "i",
        *(path for path in (tmp_path / "i").rglob("*") if path.name[0] != "."),
    }


def test_channels_and_rows_stay_where_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    (tmp_path / "0").mkdir()
    Image.fromarray(pixels).save(tmp_path / "0" / "x.png")
    found = read_labelled_images(tmp_path, SPEC)
    assert np.array_equal(found.pixels[0], pixels.transpose(2, 0, 1))
    grey = read_labelled_images(
        tmp_path, replace(SPEC, input_shape=(1, 8, 8), mean=(0.5,), std=(1.0,))
    )
    assert grey.pixels.shape == (1, 1, 8, 8)


def test_packs_hold_the_same_as_a_folder(tmp_path: Path) -> None:
    folder = read_labelled_images(write_images(tmp_path / "i", ["0", "1"]), SPEC)
    np.savez(tmp_path / "plain.npz", images=folder.pixels, labels=folder.labels)
    encoded = [picture(int(one[0, 0, 0])) for one in folder.pixels]
    np.savez_compressed(
        tmp_path / "encoded.npz",
        data=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
        labels=folder.labels.astype(np.uint8),
        classes=np.array(["a", "b"]),
    )
    for name in ("plain.npz", "encoded.npz"):
        pack = read_labelled_images(tmp_path / name, SPEC)
        assert np.array_equal(pack.pixels, folder.pixels)
        assert pack.labels.tolist() == folder.labels.tolist()
        assert pack.files == (tmp_path / name,)


def refused(path: Path, words: str, spec: ModelSpec = SPEC) -> None:
    with pytest.raises(InputRejectedError, match=words):
        read_labelled_images(path, spec)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("0", encoding="utf-8")
    refused(tmp_path / "notes.txt", "not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no folders")
    (tmp_path / "empty" / "0").mkdir()
    refused(tmp_path / "empty", "holds 0 images")
    refused(write_images(tmp_path / "few", ["a", "b"]), "holds 2 class folders")
    refused(write_images(tmp_path / "big", ["0", "5"]), "numbered up to 5")
    refused(write_images(tmp_path / "twice", ["1", "01"]), "once")
    odd = write_images(tmp_path / "odd", ["0"])
    (odd / "0" / "labels.txt").write_text("x", encoding="utf-8")
    refused(odd, r"labels\.txt: not a picture; a class folder")
    for content, words in (
        (picture(1, (9, 8)), "has 9x8 pixels and the network takes 8x8"),
        (picture(1, kind="GIF"), "not a picture"),
        (b"\x89PNG\r\n", "not a picture"),
        (noise()[:150], "not a picture"),
        (b"", "the file is empty"),
    ):
        other = write_images(tmp_path / f"c{len(content)}", ["0"])
        (other / "0" / "b.png").write_bytes(content)
        refused(other, words)


@pytest.mark.parametrize("name", ["nothere", "nothere.npz"])
def test_a_path_that_leads_nowhere_is_named_as_such(tmp_path: Path, name: str) -> None:
    refused(tmp_path / name, f"{name}: does not exist, or is neither .* name a folder of class")


def test_a_picture_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = write_images(tmp_path / "i", ["0"]) / "0" / "b.png"
    bomb.write_bytes(picture(1, (3000, 3000)))
    decoded: list[object] = []
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: decoded.append(self.size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(bomb.parent.parent, "3000x3000 pixels|not a picture")
    assert (3000, 3000) not in decoded


def test_a_pack_is_looked_at_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.npz"
    images, labels = np.zeros((2, 3, 8, 8), dtype=np.uint8), np.array([0, 4])

    def pack(**arrays: Any) -> Path:
        np.savez(path, **arrays)
        return path

    refused(pack(images=images), "needs labels")
    refused(pack(labels=labels), "images or data with offsets")
    refused(pack(images=images, labels=np.array([0, 5])), "labels run from 0 to 5")
    refused(pack(images=images, labels=np.array([-1, 0])), "labels run from -1")
    refused(pack(images=images, labels=labels[None]), "the shape")
    refused(pack(images=images, labels=labels[:0]), "holds 0 images")
    refused(pack(images=images[:1], labels=labels), "need uint8")
    refused(pack(images=images.transpose(0, 2, 3, 1), labels=labels), "need uint8")
    refused(pack(images=images.astype(np.int32), labels=labels), "need uint8")
    refused(pack(images=images.astype(np.float32), labels=labels), "whole numbers")
    refused(pack(images=np.array([{"code": 1}]), labels=labels), "whole numbers")
    for offsets in ([0, 3], [0, 5, 3], [1, 2, 6], [0, 2, 7], [[0, 2, 6]]):
        six = np.zeros(6, dtype=np.uint8)
        refused(pack(data=six, offsets=np.array(offsets), labels=labels), "do not cut")
    path.write_bytes(b"PK\x03\x04" + b"\0" * 40)
    refused(path, "not an .npz pack")
    monkeypatch.setattr(reader, "MAX_IMAGES", 1)
    refused(pack(images=images, labels=labels), "holds 2 images")
    monkeypatch.setattr(reader, "MAX_PACK_BYTES", 100)
    refused(pack(images=images, labels=labels), "larger than 100")


@pytest.mark.parametrize("claimed", [10**12, 10**9, 1])
def test_a_header_that_claims_more_than_is_there_takes_no_memory(
    tmp_path: Path, claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy.lib.format, "read_array", lambda *_, **__: pytest.fail("was read"))
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({claimed},), }}".encode()
    header = header.ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("labels.npy", array)
    refused(tmp_path / "p.npz", f"claims {claimed} bytes and holds 0")


def stored(pixels: np.ndarray, kind: str, mode: str = "") -> bytes:  # type: ignore[type-arg]
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def one_picture(folder: Path, content: bytes, channels: int) -> np.ndarray:  # type: ignore[type-arg]
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "one.png").write_bytes(content)
    spec = replace(
        SPEC, input_shape=(channels, 8, 8), mean=(0.5,) * channels, std=(0.2,) * channels
    )
    return read_labelled_images(folder, spec).pixels[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path: Path, kind: str, channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    levels[0, :5] = 0, 128, 129, 65406, 65535
    found = one_picture(tmp_path, stored(levels, kind), channels)
    expected = np.round(levels / 257).astype(np.uint8)
    assert expected[0, :5].tolist() == [0, 0, 1, 254, 255]
    assert (found == expected).all()
    same = one_picture(tmp_path / "8", stored(expected, "PNG"), channels)
    assert (found == same).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_every_mode_of_a_png_shows_what_the_picture_shows(
    tmp_path: Path, mode: str, channels: int
) -> None:
    drawn = np.zeros((8, 8, 3), dtype=np.uint8)
    drawn[:4] = 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = one_picture(tmp_path, stored(drawn, "PNG", mode), channels)
    assert (found == drawn.transpose(2, 0, 1)[:channels]).all()


def test_a_palette_with_transparency_shows_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=bytes([255, 128]))
    found = one_picture(tmp_path, stream.getvalue(), 3)
    assert found[:, 3, 3].tolist() == [10, 200, 30]


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_a_picture_in_text_is_refused_undecoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    depth = "" if kind == "P1" else "255 "
    content = f"{kind} 8 8 {depth}".encode() + b"#\n" * 99 + b"1 " * 192
    opened: list[object] = []
    monkeypatch.setattr(Image, "open", lambda *_, **__: opened.append(1))
    with pytest.raises(InputRejectedError, match="pixels are written as text"):
        one_picture(tmp_path, content, 3)
    assert opened == []


@pytest.mark.parametrize(("kind", "mode"), [("P4", "1"), ("P5", "L"), ("P6", "RGB")])
def test_the_binary_kinds_of_ppm_are_read(tmp_path: Path, kind: str, mode: str) -> None:
    drawn = np.zeros((8, 8, 3), dtype=np.uint8)
    drawn[:4] = 255
    content = stored(drawn, "PPM", mode)
    assert content.startswith(kind.encode())
    assert (one_picture(tmp_path, content, 3) == drawn.transpose(2, 0, 1)).all()


def test_a_picture_has_as_many_bytes_as_its_pixels_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = reader.BYTES_PER_PIXEL * 64 + reader.METADATA_BYTES
    whole = noise() + bytes(most - len(noise()))  # behind its end, as metadata would stand in it
    assert one_picture(tmp_path / "whole", whole, 3).shape == (3, 8, 8)
    levels = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    assert len(stored(levels, "PNG")) < most - reader.METADATA_BYTES
    opened: list[object] = []
    monkeypatch.setattr(Image, "open", lambda *_, **__: opened.append(1))
    with pytest.raises(InputRejectedError, match=f"has {most + 1} bytes.*at most {most}; scale"):
        one_picture(tmp_path / "more", whole + b"0", 3)
    assert opened == []


def test_a_picture_of_floats_is_refused(tmp_path: Path) -> None:
    content = b"Pf\n8 8\n-1.0\n" + np.ones(64, dtype="<f4").tobytes()
    with pytest.raises(InputRejectedError, match="its mode is F; grey or colours of 8 or 16 bits"):
        one_picture(tmp_path, content, 1)
