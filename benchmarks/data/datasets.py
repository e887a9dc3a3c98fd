"""Read a data set by its name: from packs where there are some, else from the official archives."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.data.archives import read_cifar10, read_cifar100, read_gtsrb, read_image_folder
from benchmarks.data.images import LabelledImages, read_pack

SIGNS_TRAINED_ON = 10_000  # they lie in no order of classes, and each class is in both parts
PACKED_AS = {"gtsrb": ("gtsrb-roi",)}  # the same images under another name
GTSRB_ZIPS = ("Training_Images", "Test_Images", "Test_GT")


def read_dataset(
    name: str, folder: Path, *, train_images: int | None = None, test_images: int | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Read the training set and the test set, or prefixes of them.

    Args:
        name: ``cifar10``, ``cifar100``, ``gtsrb`` (each sign cut to its box); ``gtsrb-roi``, its
            packs, of which that of the test set will do: its first 10,000 images are then trained
            on; or a folder of pictures in ``folder`` with ``train`` and ``test`` in it.
        folder: holds ``NAME-train.npz`` and ``NAME-test.npz`` (of ``gtsrb``, packs of either of
            its names), or the archives under the names that their makers give them.
        train_images: number of training images to read, from the first on; None for all.
        test_images: number of test images to read, from the first on; None for all.

    Raises:
        InputRejectedError: a file is missing (the message says what to get) or is broken.
    """
    limits = (train_images, test_images)
    for known in (name, *PACKED_AS.get(name, ())):
        packs = [folder / f"{known}-{part}.npz" for part in ("train", "test")]
        if all(pack.is_file() for pack in packs):
            both = zip(packs, limits, strict=True)
            train, test = (read_pack(pack, limit) for pack, limit in both)
            return train, test
    whole = _halves_of_signs(folder) if name == "gtsrb-roi" else _from_archives(name, folder)
    train, test = (
        part if limit is None else part.first(limit)
        for part, limit in zip(whole, limits, strict=True)
    )
    return train, test


def _halves_of_signs(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    whole = read_pack(folder / "gtsrb-roi-test.npz")
    return whole.first(SIGNS_TRAINED_ON), whole.select(torch.arange(SIGNS_TRAINED_ON, len(whole)))


def _from_archives(name: str, folder: Path) -> tuple[LabelledImages, LabelledImages]:
    if name == "cifar10":
        archive = folder / "cifar-10-binary.tar.gz"
        return read_cifar10(archive, train=True), read_cifar10(archive, train=False)
    if name == "cifar100":
        archive = folder / "cifar-100-binary.tar.gz"
        return read_cifar100(archive, train=True), read_cifar100(archive, train=False)
    if name == "gtsrb":
        training, test, truth = (folder / f"GTSRB_Final_{part}.zip" for part in GTSRB_ZIPS)
        return read_gtsrb(training), read_gtsrb(test, truth)
    parts = (folder / name / part for part in ("train", "test"))
    train, test = (read_image_folder(part) for part in parts)
    return train, test
