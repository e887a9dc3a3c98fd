"""A data set is found by its name, as packs or as its maker's archives."""

from __future__ import annotations

import pytest
import torch
from bench_images import noise_images, write_pack
from PIL import Image

from benchmarks.data import datasets
from benchmarks.data.datasets import read_dataset
from edgeclean.errors import InputRejectedError


def test_packs_are_read_up_to_their_limits(tmp_path):
    for part, count in (("train", 6), ("test", 5)):
        write_pack(tmp_path / f"cifar10-{part}.npz", noise_images(count))
    train, test = read_dataset("cifar10", tmp_path, train_images=4)
    assert (len(train), len(test)) == (4, 5)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar10", "CIFAR-10 binary version"),
        ("cifar100", "CIFAR-100 binary version"),
        ("gtsrb", "GTSRB pictures"),
        ("signs", "one sub-folder of pictures for each class"),
    ],
)
def test_a_missing_set_says_what_to_get(name, wanted, tmp_path):
    with pytest.raises(InputRejectedError, match=wanted):
        read_dataset(name, tmp_path)


def test_the_signs_are_split_without_loss_or_overlap(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SIGNS_TRAINED_ON", 4)
    whole = noise_images(6)
    write_pack(tmp_path / "gtsrb-roi-test.npz", whole)
    train, test = read_dataset("gtsrb-roi", tmp_path)
    assert (len(train), len(test)) == (4, 2)
    assert torch.equal(torch.cat([train.pixels, test.pixels]), whole.pixels)
    assert torch.equal(torch.cat([train.labels, test.labels]), whole.labels)


def test_packs_of_the_signs_serve_both_of_their_names(tmp_path):
    packs = {"train": noise_images(6), "test": noise_images(4, seed=1)}
    for part, images in packs.items():
        write_pack(tmp_path / f"gtsrb-roi-{part}.npz", images)
    for name in ("gtsrb", "gtsrb-roi"):
        for read, images in zip(read_dataset(name, tmp_path), packs.values(), strict=True):
            assert torch.equal(read.pixels, images.pixels)
    write_pack(tmp_path / "gtsrb-train.npz", noise_images(2))
    write_pack(tmp_path / "gtsrb-test.npz", noise_images(2))
    assert len(read_dataset("gtsrb", tmp_path)[0]) == 2  # its own come first


def test_a_folder_of_pictures_is_a_data_set(tmp_path):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (folder := tmp_path / "pets" / part / label).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "one.png")
    train, test = read_dataset("pets", tmp_path, test_images=1)
    assert (len(train), len(test)) == (2, 1)
    assert train.classes == ("cat", "dog")
