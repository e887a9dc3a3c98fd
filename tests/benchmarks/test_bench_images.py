"""Readers give back exactly what was stored, and refuse what is no such set."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_images import encode, noise_images, write_pack

from benchmarks.data.archives import read_cifar10, read_cifar100, read_gtsrb, read_image_folder
from benchmarks.data.images import LabelledImages, read_pack
from edgeclean.errors import InputRejectedError

SHARED = Path(__file__).parents[2].parent / "shared"


def test_pack_gives_back_the_very_pixels(tmp_path):
    images = noise_images(7)
    write_pack(tmp_path / "pack.npz", images)
    found = read_pack(tmp_path / "pack.npz")
    assert torch.equal(found.pixels, images.pixels)
    assert torch.equal(found.labels, images.labels)
    assert found.classes == images.classes


def test_pack_limit_is_a_prefix(tmp_path):
    images = noise_images(7)
    write_pack(tmp_path / "pack.npz", images)
    found = read_pack(tmp_path / "pack.npz", limit=3)
    assert torch.equal(found.pixels, images.pixels[:3])
    assert torch.equal(found.labels, images.labels[:3])


def test_floats_are_pixels_over_255():
    images = noise_images(2)
    assert torch.allclose(images.floats() * 255, images.pixels.float())
    assert 0 <= images.floats().min() <= images.floats().max() <= 1


def test_sample_is_seeded_and_without_repetition():
    images = noise_images(40)
    one, again, other = (images.sample(20, seed) for seed in (1, 1, 2))
    assert torch.equal(one.pixels, again.pixels)
    assert not torch.equal(one.pixels, other.pixels)
    assert len({picture.numpy().tobytes() for picture in one.pixels}) == 20


def test_missing_pack_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(InputRejectedError, match=r"no image pack at .* give the path"):
        read_pack(tmp_path / "none.npz")


def test_pack_with_a_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", data=np.array([{"code": 1}], dtype=object))
    with pytest.raises(InputRejectedError, match="is no image pack"):
        read_pack(tmp_path / "evil.npz")


def test_pack_with_offsets_past_its_bytes_is_refused(tmp_path):
    write_pack(tmp_path / "pack.npz", noise_images(3))
    with np.load(tmp_path / "pack.npz") as pack:
        parts = dict(pack)
    parts["offsets"] = parts["offsets"] + 5
    np.savez(tmp_path / "pack.npz", **parts)
    with pytest.raises(InputRejectedError, match="do not fit"):
        read_pack(tmp_path / "pack.npz")


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(InputRejectedError, match="labels run from 0 to 2 but there are 2 classes"):
        LabelledImages(
            pixels=torch.zeros(3, 3, 4, 4, dtype=torch.uint8),
            labels=torch.tensor([0, 1, 2]),
            classes=("a", "b"),
        )


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the packs (shared/data) are not here")
def test_real_pack_prefix_is_class_balanced():
    images = read_pack(SHARED / "data" / "cifar10-test.npz", limit=200)
    assert images.pixels.shape == (200, 3, 32, 32)
    assert torch.bincount(images.labels).tolist() == [20] * 10
    assert images.classes[8] == "ship"


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _records(images: LabelledImages, *, coarse: bool) -> bytes:
    before = b"\x07" if coarse else b""
    return b"".join(
        before + bytes([int(label)]) + picture.numpy().tobytes()
        for picture, label in zip(images.pixels, images.labels, strict=True)
    )


def test_cifar10_binary_archive(tmp_path):
    parts = [noise_images(3, classes=10, side=32, seed=seed) for seed in range(6)]
    folder = "cifar-10-batches-bin/"
    members = {
        f"{folder}data_batch_{i + 1}.bin": _records(parts[i], coarse=False) for i in range(5)
    }
    members[f"{folder}test_batch.bin"] = _records(parts[5], coarse=False)
    members[f"{folder}batches.meta.txt"] = "\n".join(f"name{i}" for i in range(10)).encode()
    _tar(tmp_path / "cifar.tar.gz", members)
    train = read_cifar10(tmp_path / "cifar.tar.gz", train=True)
    test = read_cifar10(tmp_path / "cifar.tar.gz", train=False)
    assert torch.equal(train.pixels, torch.cat([part.pixels for part in parts[:5]]))
    assert torch.equal(train.labels, torch.cat([part.labels for part in parts[:5]]))
    assert torch.equal(test.pixels, parts[5].pixels)
    assert test.classes[9] == "name9"


def test_cifar100_takes_the_fine_label(tmp_path):
    images = noise_images(4, classes=100, side=32)
    names = "\n".join(f"fine{i}" for i in range(100)).encode()
    members = {
        "cifar-100-binary/test.bin": _records(images, coarse=True),
        "cifar-100-binary/fine_label_names.txt": names,
    }
    _tar(tmp_path / "cifar.tar.gz", members)
    found = read_cifar100(tmp_path / "cifar.tar.gz", train=False)
    assert torch.equal(found.pixels, images.pixels)
    assert torch.equal(found.labels, images.labels)
    with pytest.raises(InputRejectedError, match=r"holds no train\.bin"):
        read_cifar100(tmp_path / "cifar.tar.gz", train=True)


def test_cut_off_cifar_part_is_refused(tmp_path):
    members = {
        "x/test_batch.bin": _records(noise_images(2, side=32), coarse=False)[:-1],
        "x/batches.meta.txt": b"a b",
    }
    _tar(tmp_path / "cifar.tar.gz", members)
    with pytest.raises(InputRejectedError, match="no whole number of 3073-byte records"):
        read_cifar10(tmp_path / "cifar.tar.gz", train=False)


def test_missing_archive_says_where_to_get_it(tmp_path):
    with pytest.raises(InputRejectedError, match="own home page"):
        read_cifar10(tmp_path / "none.tar.gz", train=True)


HEADER = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"


def _sign(value: int) -> bytes:
    picture = np.zeros((12, 10, 3), dtype=np.uint8)
    picture[2:10, 1:9] = value  # the sign fills its box, black around it
    return encode(picture, "PPM")


def test_gtsrb_training_zip_is_cut_to_the_box(tmp_path):
    root = "GTSRB/Final_Training/Images"
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for label, value in ((0, 90), (42, 180)):
            folder = f"{root}/{label:05d}"
            archive.writestr(f"{folder}/00000.ppm", _sign(value))
            row = f"00000.ppm;10;12;1;2;8;9;{label}\n"
            archive.writestr(f"{folder}/GT-{label:05d}.csv", HEADER + row)
    images = read_gtsrb(tmp_path / "train.zip", side=8)
    assert images.labels.tolist() == [0, 42]
    assert torch.equal(images.pixels[0], torch.full((3, 8, 8), 90, dtype=torch.uint8))
    assert torch.equal(images.pixels[1], torch.full((3, 8, 8), 180, dtype=torch.uint8))


def test_gtsrb_test_zip_takes_its_labels_from_the_other_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        archive.writestr("GTSRB/Final_Test/Images/00000.ppm", _sign(50))
        archive.writestr("GTSRB/Final_Test/Images/GT-final_test.test.csv", HEADER[:-9] + "\n")
    with zipfile.ZipFile(tmp_path / "labels.zip", "w") as archive:
        archive.writestr("GT-final_test.csv", HEADER + "00000.ppm;10;12;1;2;8;9;17\n")
    images = read_gtsrb(tmp_path / "test.zip", tmp_path / "labels.zip", side=8)
    assert images.labels.tolist() == [17]
    with pytest.raises(InputRejectedError, match="GTSRB_Final_Test_GT"):
        read_gtsrb(tmp_path / "test.zip", side=8)


def test_image_folder_takes_sorted_classes(tmp_path):
    for name, value in (("zebra", 200), ("ant", 100)):
        (tmp_path / name).mkdir()
        picture = np.full((5, 7, 3), value, dtype=np.uint8)
        (tmp_path / name / "one.png").write_bytes(encode(picture, "PNG"))
    (tmp_path / "ant" / "note.txt").write_text("no picture")
    images = read_image_folder(tmp_path, side=4)
    assert images.classes == ("ant", "zebra")
    assert images.labels.tolist() == [0, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [100, 200]
    with pytest.raises(InputRejectedError, match="0 pictures"):
        read_image_folder(tmp_path / "ant")
