"""Read the data sets from the archives that their makers publish, and from plain image folders.

No archive is unpacked to disk, no pickle is read (the CIFAR sets in their *binary* version), and
nothing is downloaded: the error for a missing file says in words what to get.
"""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from benchmarks.data.images import LabelledImages, decode_image
from edgeclean.errors import InputRejectedError

MAX_MEMBER_BYTES = 256 << 20
MAX_IMAGES = 2_000_000
PICTURES = {".png", ".ppm", ".jpg", ".jpeg", ".webp", ".bmp"}
GTSRB_CLASSES = tuple(f"{label:02d}" for label in range(43))


def read_cifar10(archive: Path, *, train: bool) -> LabelledImages:
    """Read CIFAR-10 from ``cifar-10-binary.tar.gz``: 50,000 or 10,000 images, [n, 3, 32, 32].

    Raises:
        InputRejectedError: the file is missing or is not that archive.
    """
    parts = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    members = _tar_members(archive, [*parts, "batches.meta.txt"], "CIFAR-10 binary version")
    names = members["batches.meta.txt"].decode("ascii", "replace").split()
    return _cifar(archive, [members[part] for part in parts], names, label_bytes=1)


def read_cifar100(archive: Path, *, train: bool) -> LabelledImages:
    """Read CIFAR-100 with its 100 fine labels from ``cifar-100-binary.tar.gz``.

    Raises:
        InputRejectedError: the file is missing or is not that archive.
    """
    part = "train.bin" if train else "test.bin"
    members = _tar_members(archive, [part, "fine_label_names.txt"], "CIFAR-100 binary version")
    names = members["fine_label_names.txt"].decode("ascii", "replace").split()
    return _cifar(archive, [members[part]], names, label_bytes=2)


def read_gtsrb(pictures: Path, labels: Path | None = None, *, side: int = 32) -> LabelledImages:
    """Read the traffic signs, each cut to its sign's box and resized to side x side.

    Args:
        pictures: ``GTSRB_Final_Training_Images.zip``, or ``GTSRB_Final_Test_Images.zip``.
        labels: for the test set, ``GTSRB_Final_Test_GT.zip``; the training archive has its own.
        side: height and width of the returned images.

    Raises:
        InputRejectedError: a file is missing, or is not that archive.
    """
    with _open_zip(pictures, "GTSRB pictures") as archive:
        tables = [name for name in archive.namelist() if name.endswith(".csv")]
        rows: list[tuple[str, dict[str, str]]] = []
        for table in sorted(tables) if labels is None else []:
            folder = str(PurePosixPath(table).parent)
            rows += [(folder, row) for row in _table(_zip_member(archive, table))]
        if labels is not None:
            folder = _picture_folder(archive, pictures)
            with _open_zip(labels, "GTSRB test labels") as truth:
                table = next((n for n in truth.namelist() if n.endswith(".csv")), "")
                rows = [(folder, row) for row in _table(_zip_member(truth, table))]
        if not rows or "ClassId" not in rows[0][1]:
            raise InputRejectedError(
                f"{pictures} has no table with a ClassId column; the test set's labels are in a "
                f"zip of their own (GTSRB_Final_Test_GT): give it as labels"
            )
        pixels = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for index, (folder, row) in enumerate(rows):
            name = f"{folder}/{row['Filename']}"
            picture = decode_image(_zip_member(archive, name), name)
            box = tuple(int(row[f"Roi.{corner}"]) for corner in ("X1", "Y1", "X2", "Y2"))
            pixels[index] = _resized(picture, side, box)
    found = torch.tensor([int(row["ClassId"]) for _, row in rows])
    return LabelledImages(pixels=_channels_first(pixels), labels=found, classes=GTSRB_CLASSES)


def read_image_folder(folder: Path, *, side: int = 32) -> LabelledImages:
    """Read pictures from one sub-folder a class, resized to side x side; classes in sorted order.

    Raises:
        InputRejectedError: the folder is missing, or no sub-folder holds a picture.
    """
    if not folder.is_dir():
        raise InputRejectedError(
            f"no image folder at {folder}; it must hold one sub-folder of pictures for each class"
        )
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    paths = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in PICTURES
    ]
    if not 0 < len(paths) <= MAX_IMAGES:
        raise InputRejectedError(
            f"{folder} holds {len(paths)} pictures in {len(classes)} sub-folders; it must hold "
            f"1..{MAX_IMAGES}, in one sub-folder for each class ({', '.join(sorted(PICTURES))})"
        )
    pixels = np.stack(
        [_resized(decode_image(path.read_bytes(), str(path)), side) for path, _ in paths]
    )
    labels = torch.tensor([label for _, label in paths])
    return LabelledImages(pixels=_channels_first(pixels), labels=labels, classes=tuple(classes))


def _cifar(
    archive: Path, parts: list[bytes], names: list[str], *, label_bytes: int
) -> LabelledImages:
    length = label_bytes + 3 * 32 * 32
    records = []
    for part in parts:
        if not part or len(part) % length:
            raise InputRejectedError(
                f"{archive}: a part of {len(part)} bytes is no whole number of {length}-byte "
                f"records; get the archive again"
            )
        records.append(np.frombuffer(part, dtype=np.uint8).reshape(-1, length))
    table = np.concatenate(records)
    return LabelledImages(
        pixels=torch.from_numpy(table[:, label_bytes:].reshape(-1, 3, 32, 32).copy()),
        labels=torch.from_numpy(table[:, label_bytes - 1].astype(np.int64)),
        classes=tuple(names),
    )


def _tar_members(archive: Path, names: list[str], what: str) -> dict[str, bytes]:
    _check_there(archive, f"the {what} (a .tar.gz of .bin files)")
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in names and member.isfile():
                    if member.size > MAX_MEMBER_BYTES:
                        raise InputRejectedError(f"{archive}: {name} is larger than any such set's")
                    content = tar.extractfile(member)
                    found[name] = b"" if content is None else content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputRejectedError(
            f"{archive} cannot be read as an archive ({error}); get it again"
        ) from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputRejectedError(
            f"{archive} holds no {', '.join(missing)}; it must be the {what}, "
            f"not the Python or Matlab one"
        )
    return found


def _open_zip(path: Path, what: str) -> zipfile.ZipFile:
    _check_there(path, f"the zip with the {what}")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputRejectedError(f"{path} is no zip ({error}); get it again") from error


def _zip_member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        if archive.getinfo(name).file_size > MAX_MEMBER_BYTES:
            raise InputRejectedError(f"{archive.filename}: {name} is larger than any such set's")
        return archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputRejectedError(
            f"{archive.filename}: {name!r} cannot be read ({error})"
        ) from error


def _table(content: bytes) -> Iterator[dict[str, str]]:
    return iter(csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter=";"))


def _picture_folder(archive: zipfile.ZipFile, path: Path) -> str:
    for name in archive.namelist():
        if PurePosixPath(name).suffix.lower() in PICTURES:
            return str(PurePosixPath(name).parent)
    raise InputRejectedError(f"{path} holds no picture; give the zip of the test pictures")


def _check_there(path: Path, what: str) -> None:
    if not path.is_file():
        raise InputRejectedError(
            f"no file at {path}; get {what} from the data set's own home page and give its path "
            f"(nothing is downloaded)"
        )


def _resized(picture: np.ndarray, side: int, box: tuple[int, ...] | None = None) -> np.ndarray:
    image = Image.fromarray(picture)
    if box is not None:
        image = image.crop(
            (box[0], box[1], box[2] + 1, box[3] + 1)
        )  # the box's corners belong to it
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _channels_first(pixels: np.ndarray) -> UInt8[Tensor, "n c h w"]:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
