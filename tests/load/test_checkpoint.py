"""Trust boundary 1: what is published is loaded exactly, what is hostile refused unexecuted."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exhaustive import exhaustive
from tiny_checkpoint import (
    CODE,
    LIMITS,
    SPEC,
    assert_equal_tensors,
    saved,
    through_file,
    tiny,
)
from torch import nn
from zoo import ZOO_NAMES, accuracy, cifar10_test_images, needs_images, needs_zoo, zoo_network

from edgeclean.child.inside import answered
from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.load.checkpoint import load_checkpoint, torch_task
from edgeclean.load.isolation import parse_isolated
from edgeclean.load.limits import MIB, LoadLimits
from edgeclean.load.model_file import MAX_CLASSES

# The published checkpoints. ACC of shared/zoo/README.md, in percent of 2,000 images.
PUBLISHED = {
    "lenet-badnets-nobn": 51.10,
    "resnet20-badnets-rgb5x5": 93.35,
    "resnet20-clean": 92.05,
    "smallvgg-badnets": 84.65,
    "smallvgg-l0-invisible": 85.90,
    "smallvgg-trojan-square": 84.55,
}


EACH_ARCHITECTURE = ("lenet-badnets-nobn", "resnet20-clean", "smallvgg-badnets")


@needs_zoo
@needs_images
@pytest.mark.parametrize("name", exhaustive(ZOO_NAMES, EACH_ARCHITECTURE))
def test_zoo_network_has_its_published_accuracy(name: str) -> None:
    network = zoo_network(name)
    pixels, labels = cifar10_test_images(500)
    assert 100 * accuracy(network, pixels, labels) == pytest.approx(PUBLISHED[name], abs=3)
    assert not any(module.training for module in network.module.modules())
    assert {parameter.dtype for parameter in network.module.parameters()} == {torch.float32}
    (record,) = network.history
    assert (record.stage, record.params) == (
        "load",
        sum(parameter.numel() for parameter in network.module.parameters()),
    )


# The whole way, with a parsing process: seconds each, so one test for each kind of file.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["a.pth", "a.tar", "a.safetensors"])
def test_each_kind_of_file_gives_the_network_back(name: str, folder: Path) -> None:
    module = tiny()
    weights = module.state_dict()
    contents = {
        "a.pth": saved(weights),
        "a.tar": saved(weights, _use_new_zipfile_serialization=False),
        "a.safetensors": safetensors.torch.save(weights),
    }[name]
    random_state = torch.get_rng_state()
    loaded = through_file(name, contents, folder)
    assert_equal_tensors(loaded.state_dict(), weights)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), module(images))
    assert torch.equal(torch.get_rng_state(), random_state), "the caller's random numbers moved"


class Touch:
    """Pickled, it is a command to create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickle_with_code_is_refused_unexecuted(zipped: bool, folder: Path) -> None:
    canary = folder / "canary"
    contents = saved(
        {"state_dict": tiny().state_dict(), "x": Touch(canary)},
        _use_new_zipfile_serialization=zipped,
    )
    # The control: without it a bait that never fires would pass the test. It runs our own `touch`
    # on our own canary, and only torch.load itself shows that this very archive carries it.
    torch.load(io.BytesIO(contents), weights_only=False)
    assert canary.exists()
    canary.unlink()
    with pytest.raises(InputRejectedError, match=r"asks for code: (posix|os)\.system; nothing was"):
        through_file("a.pth", contents, folder)
    assert not canary.exists()
    assert sorted(path.name for path in folder.iterdir()) == ["a.pth", "net.py"]


def raw_pickle(payload: bytes) -> bytes:
    """A torch.save archive around a pickle of one's own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", payload)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    return stream.getvalue()


def hash_bomb() -> bytes:
    """A dict key of tuples in tuples: 300 bytes, 2**60 steps to hash."""
    doubled = b")" + b"q\x00h\x00\x86" * 60
    return b"\x80\x02}" + doubled + b"K\x01s."


def memory_bomb() -> bytes:
    """A list of lists: each takes one byte of the file, and sixty times that in memory."""
    return b"\x80\x02(" + b"]" * 4_000_000 + b"l."


@pytest.mark.parametrize(
    ("payload", "limits", "message"),
    [
        (hash_bomb(), LoadLimits(cpu_seconds=1), "processor time"),
        (memory_bomb(), LoadLimits(memory_bytes=MIB), f"limit memory_bytes {MIB}"),
    ],
    ids=["time", "memory"],
)
def test_parsing_process_dies_alone(payload: bytes, limits: LoadLimits, message: str) -> None:
    with pytest.raises(InputRejectedError, match=message):
        parse_isolated(torch_task, Parcel(files={"file": raw_pickle(payload)}), limits)


def test_parsing_process_that_cannot_start_is_no_fault_of_the_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = types.ModuleType("no_such_file")
    exec("def parse(given): return given", elsewhere.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "no_such_file", elsewhere)
    with pytest.raises(ToolchainError, match=r"did not start: .*No module named 'no_such_file'"):
        parse_isolated(elsewhere.parse, Parcel(), LIMITS)


def test_answer_of_the_parsing_process() -> None:
    def refuse(given: Parcel) -> Parcel:
        raise InputRejectedError(f"{len(given.files)} files")

    def exhaust(given: Parcel) -> Parcel:
        raise MemoryError

    given = Parcel(files={"file": b"abc"})
    assert answered(lambda given: given, given) == given
    assert answered(refuse, given).facts == {"kind": "InputRejectedError", "refused": "1 files"}
    assert answered(exhaust, given).facts == {"kind": "MemoryError", "refused": ""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 3}, "shapes do not match the architecture: 2"),
        ({"input_shape": (3, 5, 4)}, "does not take an image of 3x5x4"),
        ({"architecture": "onnx"}, "must be 'onnx' for an ONNX file"),
        ({"architecture": "net.py:empty"}, "no parameters"),
        ({"architecture": "net.py:wide"}, "the network gives (1, 2); with 3 classes"),
        ({"architecture": "net.py:pair"}, "the network gives tuple; with"),
    ],
)
def test_spec_that_does_not_fit_is_named(
    changes: dict[str, Any], message: str, folder: Path
) -> None:
    (folder / "net.py").write_text(
        CODE
        + "class Pair(nn.Linear):\n"
        + "    def forward(self, images): return (images, images)\n"
        + "def empty(): return nn.Flatten()\n"
        + "def wide(): return tiny(2)\n"
        + "def pair(): return Pair(2, 2)\n",
        encoding="utf-8",
    )
    weights = {
        "net.py:empty": {"x": torch.ones(1)},
        "net.py:pair": nn.Linear(2, 2).state_dict(),
    }.get(changes.get("architecture", ""), tiny().state_dict())
    if changes.get("architecture") == "net.py:wide":
        changes = {**changes, "classes": 3}
    if changes.get("architecture") == "net.py:empty":
        message = "the names do not match"  # a network without weights takes none
    with pytest.raises(InputRejectedError) as caught:
        through_file("a.safetensors", safetensors.torch.save(weights), folder, **changes)
    assert message in str(caught.value)
    assert "a.safetensors" in str(caught.value)


def test_unknown_architecture_is_a_usage_error(folder: Path) -> None:
    contents = safetensors.torch.save(tiny().state_dict())
    with pytest.raises(UsageError, match="not in the table"):
        through_file("a.safetensors", contents, folder, architecture="resnet21")


@pytest.mark.parametrize("name", ["a\x1b[31m.safetensors", "a\u202e.pth", "a\x1b.exe"])
def test_stranger_cannot_steer_the_terminal(name: str, folder: Path) -> None:
    weights = {**tiny().state_dict(), "x": torch.ones(1)}
    with pytest.raises(InputRejectedError) as caught:
        through_file(name, safetensors.torch.save(weights), folder)
    assert str(caught.value).isprintable()


def test_more_classes_than_any_network_needs_are_refused_for_every_kind_of_file(
    folder: Path,
) -> None:
    """An ONNX file says its classes itself, and 289 bytes may say a million."""
    spec = dataclasses.replace(SPEC, classes=MAX_CLASSES + 1)
    for name, architecture in (("a.pth", "net.py:tiny"), ("a.onnx", "onnx")):
        with pytest.raises(InputRejectedError, match=f"65537 classes; at most {MAX_CLASSES} are"):
            load_checkpoint(folder / name, dataclasses.replace(spec, architecture=architecture))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "std",
            (0.5, 0.0, 0.5),
            r"ModelSpec\.std is \[0\.5, 0\.0, 0\.5\]; it must be .*above zero",
        ),
        ("std", (0.5, -1.0, 0.5), r"ModelSpec\.std is .*above zero"),
        ("std", (0.5, float("inf"), 0.5), r"ModelSpec\.std is .*finite"),
        ("mean", (float("nan"), 0.5, 0.5), r"ModelSpec\.mean is .*finite"),
        ("mean", (0.5,), r"ModelSpec\.mean has 1 number for 3 channels; give one per channel"),
        ("std", (), r"ModelSpec\.std has 0 numbers for 3 channels"),
        ("classes", 0, r"ModelSpec\.classes is 0; it must be a whole number in 2\.\."),
        ("input_shape", (3, 0, 8), r"ModelSpec\.input_shape is \[3, 0, 8\]"),
    ],
)
def test_a_spec_made_in_python_is_held_to_what_a_model_file_is(
    field: str, value: Any, message: str, folder: Path
) -> None:
    path = folder / "a.safetensors"
    safetensors.torch.save_file(tiny().state_dict(), path)
    with pytest.raises(UsageError, match=message) as caught:
        load_checkpoint(path, dataclasses.replace(SPEC, **{field: value}))
    assert "\n" not in str(caught.value)
