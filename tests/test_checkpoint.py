"""Trust boundary 1: what is published is loaded exactly, what is hostile refused unexecuted."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from zoo import ZOO_NAMES, accuracy, cifar10_test_images, needs_images, needs_zoo, zoo_network

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.loading import parse_child
from edgeclean.loading.checkpoint import load_checkpoint, parse_torch, read_tensors
from edgeclean.loading.input_guard import LoadLimits, check_zip, kind_of, read_input
from edgeclean.loading.isolation import ACCEPTED, REFUSED, parse_isolated
from edgeclean.loading.state_dict import check_layout, find_state_dict, fit_weights, strip_prefix
from edgeclean.states import ModelSpec

LIMITS = LoadLimits()
SPEC = ModelSpec(
    architecture="net.py:tiny", input_shape=(3, 4, 4), classes=2, mean=(0.0,) * 3, std=(1.0,) * 3
)
CODE = """
from torch import nn
def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
    )
"""


def tiny() -> nn.Module:
    names: dict[str, Any] = {}
    exec(CODE, names)  # noqa: S102 - the text above, as load_checkpoint imports it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = names["tiny"](2)
    module[1].running_mean.fill_(0.3)  # type: ignore[index]
    module[1].running_var.fill_(2.0)  # type: ignore[index]
    return module.eval()


def saved(tree: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(tree, stream, **options)
    return stream.getvalue()


def parsed(contents: bytes, limits: LoadLimits = LIMITS) -> dict[str, Tensor]:
    """As the parsing process and its parent do it, in one process."""
    return strip_prefix(safetensors.torch.load(parse_torch(contents, limits)))


def assert_equal_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


# The published checkpoints. ACC of shared/zoo/README.md, in percent of 2,000 images.
PUBLISHED = {
    "lenet-badnets-nobn": 51.10,
    "resnet20-badnets-rgb5x5": 93.35,
    "resnet20-clean": 92.05,
    "smallvgg-badnets": 84.65,
    "smallvgg-l0-invisible": 85.90,
    "smallvgg-trojan-square": 84.55,
}


@needs_zoo
@needs_images
@pytest.mark.parametrize("name", ZOO_NAMES)
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


def through_file(name: str, contents: bytes, folder: Path, **changes: Any) -> nn.Module:
    (folder / name).write_bytes(contents)
    spec = dataclasses.replace(SPEC, **changes)
    return load_checkpoint(folder / name, spec, code_folder=folder).module


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
    torch.load(io.BytesIO(contents), weights_only=False)  # the control: the bait is live
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
    """bytearray(64 GiB), a callable that torch's own allow-list holds."""
    size = pickle.dumps(64 * 1024**3, protocol=2)[2:-1]
    return b"\x80\x02c__builtin__\nbytearray\n" + size + b"\x85R."


@pytest.mark.parametrize(
    ("payload", "limits", "message"),
    [
        (hash_bomb(), LoadLimits(cpu_seconds=1), "processor time"),
        (memory_bomb(), LIMITS, "limit memory_bytes|damaged"),
    ],
    ids=["time", "memory"],
)
def test_parsing_process_dies_alone(payload: bytes, limits: LoadLimits, message: str) -> None:
    with pytest.raises(InputRejectedError, match=message):
        parse_isolated("torch", raw_pickle(payload), limits)


def test_parsing_process_that_cannot_start_is_no_fault_of_the_input() -> None:
    with pytest.raises(RuntimeError, match="no parser is named"):
        parse_isolated("none", b"", LIMITS)


def test_answer_of_the_parsing_process() -> None:
    def refuse(contents: bytes, limits: LoadLimits) -> bytes:
        raise InputRejectedError(f"{len(contents)} bytes")

    def exhaust(contents: bytes, limits: LoadLimits) -> bytes:
        raise MemoryError

    assert parse_child.answer(lambda contents, limits: contents, b"abc", LIMITS) == (
        ACCEPTED,
        b"abc",
    )
    assert parse_child.answer(refuse, b"abc", LIMITS) == (REFUSED, b"3 bytes")
    verdict, text = parse_child.answer(exhaust, b"abc", LIMITS)
    assert verdict == REFUSED
    assert b"memory_bytes" in text


# State dicts as they are published.


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["", "state_dict", "net", "model", "model_state_dict", "netC"])
def test_state_dict_is_found_under_its_usual_names(name: str, prefix: str) -> None:
    weights = tiny().state_dict()
    tree: Any = OrderedDict((f"{prefix}{key}", tensor) for key, tensor in weights.items())
    if name:
        tree = {name: tree, "epoch": 3, "optimizer": {"lr": [0.1]}, "best": 0.9, "note": "text"}
    assert_equal_tensors(parsed(saved(tree)), weights)


def test_state_dict_two_levels_down() -> None:
    weights = tiny().state_dict()
    assert_equal_tensors(parsed(saved({"model": {"state_dict": weights}})), weights)


def test_prefix_of_some_names_only_is_kept() -> None:
    assert strip_prefix({"module.a": torch.ones(1), "b": torch.ones(1)}).keys() == {"module.a", "b"}


def test_tied_and_transposed_weights_are_read() -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {"a": shared, "b": shared, "c": shared.t(), "d": torch.arange(4.0)[::2]}
    assert_equal_tensors(parsed(saved({"a": shared, "b": shared})), {"a": shared, "b": shared})
    assert_equal_tensors(parsed(saved({"c": tree["c"]})), {"c": tree["c"]})
    assert_equal_tensors(parsed(saved({"d": tree["d"]})), {"d": tree["d"]})


class Subclass(Tensor):
    """A tensor with a behaviour of its own."""


TWO = {"a": torch.ones(2)}
BAD_TREES: dict[str, tuple[object, str]] = {
    "list": ([torch.ones(2)], "is a list, not a filled state dict"),
    "tensor": (torch.ones(2), "is a Tensor, not a filled state dict"),
    "empty": ({}, "is a dict, not a filled state dict"),
    "empty inside": ({"state_dict": {}}, "not a filled state dict"),
    "two networks": ({"net": TWO, "model": TWO}, "holds 2 networks, under net, model"),
    "number inside": ({"state_dict": {**TWO, "x": 3}}, "'x' is a int; only tensors"),
    "nested too deep": ({"net": {"net": {"net": {"net": TWO}}}}, "'net' is a dict"),
    "number as a name": ({3: torch.ones(2)}, "has a key '3'"),
    "escape in a name": ({"a\x1b[31m": torch.ones(2)}, "which is no name"),
    "long name": ({"a" * 501: torch.ones(2)}, "which is no name"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "a is complex64"),
    "expanded": ({"a": torch.ones(1).expand(10**9)}, "shape 1000000000 repeats its numbers"),
    "expanded axis": ({"a": torch.ones(3, 1).expand(3, 10**9)}, "repeats its numbers"),
    "sliding window": ({"a": torch.ones(10).as_strided((8, 3), (1, 1))}, "repeats its numbers"),
    "sparse": ({"a": torch.ones(2, 2).to_sparse()}, "layout torch.sparse_coo"),
    "meta": ({"a": torch.ones(10**9, device="meta")}, "a is a meta tensor"),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_tree_that_is_no_plain_state_dict_is_refused(case: str) -> None:
    tree, message = BAD_TREES[case]
    with pytest.raises(InputRejectedError) as caught:
        parsed(saved(tree))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quantised_tensor_and_subclass_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch will drop these types
        contents = saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
        with pytest.raises(InputRejectedError, match="a is qint8"):
            parsed(contents)
    with pytest.raises(InputRejectedError, match="is a Subclass; only tensors"):
        find_state_dict({"a": torch.ones(2).as_subclass(Subclass)})


def test_tensors_that_share_a_part_are_refused() -> None:
    numbers = torch.arange(10.0)
    with pytest.raises(InputRejectedError, match="a and b share some of their numbers"):
        parsed(saved({"a": numbers[:6], "b": numbers[5:]}))
    apart = {"a": numbers[:5], "b": numbers[5:]}
    assert_equal_tensors(parsed(saved(apart)), apart)


def test_limits_of_a_state_dict_are_exact() -> None:
    tree = {"a": torch.ones(25), "b": torch.ones(25, dtype=torch.float64)}
    check_layout(tree, LoadLimits(entries=2, file_bytes=300))
    with pytest.raises(InputRejectedError, match="300 bytes; the limit file_bytes is 299"):
        check_layout(tree, LoadLimits(file_bytes=299))
    with pytest.raises(InputRejectedError, match="2 tensors; the limit entries is 1"):
        check_layout(tree, LoadLimits(entries=1))


# Names, shapes and numbers against the architecture.


def fitted(change: Callable[[dict[str, Tensor]], object]) -> nn.Module:
    module = tiny()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    change(weights)
    target = tiny()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    fit_weights(target, weights)
    return target


def test_counter_of_batches_may_be_missing() -> None:
    loaded = fitted(lambda weights: weights.pop("1.num_batches_tracked"))
    assert_equal_tensors(loaded.state_dict(), tiny().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in tiny().state_dict().items()}
    weights["1.num_batches_tracked"] = torch.tensor(7)
    target = tiny()
    fit_weights(target, weights)
    expected = {
        name: tensor if name.endswith("tracked") else tensor.float()
        for name, tensor in weights.items()
    }
    assert_equal_tensors(target.state_dict(), expected)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: tensor})


def spoil(number: float) -> Callable[[dict[str, Tensor]], object]:
    def change(weights: dict[str, Tensor]) -> None:
        weights["0.weight"] = weights["0.weight"].double()
        weights["0.weight"][1, 2, 0, 1] = number

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("0.bias"), "missing 1 (0.bias); unexpected none"),
        (put("9.bias", torch.ones(1)), "missing none; unexpected 1 (9.bias)"),
        (dict.clear, "(0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean and 3 more)"),
        (put("0.bias", torch.ones(5)), "1 (0.bias is 5 for 4)"),
        (put("0.weight", torch.ones(3, 4, 3, 3)), "0.weight is 3x4x3x3 for 4x3x3x3"),
        (put("0.weight", torch.ones(4, 3, 1, 3)), "0.weight is 4x3x1x3 for 4x3x3x3"),
        (spoil(float("nan")), "0.weight: 1 of 108 numbers are NaN or infinite, the first at [1, 2"),
        (spoil(float("-inf")), "NaN or infinite"),
        (spoil(1e300), "NaN or infinite"),
        (put("1.running_var", torch.tensor([1.0, 1.0, -1e-9, 1.0])), "variances below zero"),
        (put("0.bias", torch.ones(4, dtype=torch.int8)), "0.bias is int8; the architecture has"),
        (put("1.num_batches_tracked", torch.tensor(1.5)), "the architecture has int64"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    with pytest.raises(InputRejectedError) as caught:
        fitted(change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


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


# Files.


@pytest.mark.parametrize("name", ["a.pt2", "a.pkl", "a", "a.zip", "a.engine"])
def test_other_suffixes_are_refused(name: str) -> None:
    with pytest.raises(InputRejectedError, match=r"allowed are \.pt, \.pth"):
        kind_of(Path(name), saved({}))


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


def test_whole_module_is_refused_with_the_classes_it_asks_for() -> None:
    with pytest.raises(InputRejectedError) as caught:
        parsed(saved(tiny()))
    assert "torch.nn.modules.conv.Conv2d" in str(caught.value)
    assert "nothing was run" in str(caught.value)


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


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(LoadLimits)])
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
    "one name twice": (headed(b'{"a":' + ENTRY + b',"a":' + ENTRY + b"}", b"1234"), "occurs twice"),
    "numbers cut off": (headed(b'{"a":' + ENTRY + b"}", b"12"), "not a valid safetensors file"),
    "no dtype": (headed(b'{"a":{"shape":[1],"data_offsets":[0,4]}}', b"1234"), "not a valid"),
    "empty": (headed(b"{}"), "not a filled state dict"),
}


@pytest.mark.parametrize("case", BAD_SAFETENSORS)
def test_damaged_safetensors_file_is_refused(case: str) -> None:
    contents, message = BAD_SAFETENSORS[case]
    with pytest.raises(InputRejectedError) as caught:
        read_tensors(contents, "safetensors", LIMITS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_a_safetensors_header() -> None:
    contents = headed(b'{"a":' + ENTRY + b"}", b"1234")
    read_tensors(contents, "safetensors", LoadLimits(header_bytes=len(ENTRY) + 6))
    with pytest.raises(InputRejectedError, match="header_bytes"):
        read_tensors(contents, "safetensors", LoadLimits(header_bytes=len(ENTRY) + 5))
    # The header's own limit, before there are tensors to count.
    many = headed(b'{"a":' + ENTRY + b',"b":' + ENTRY + b"}", b"1234")
    with pytest.raises(InputRejectedError, match="must be an object of at most 1 tensors"):
        read_tensors(many, "safetensors", LoadLimits(entries=1))


@pytest.mark.parametrize("name", ["a\x1b[31m.safetensors", "a\u202e.pth", "a\x1b.exe"])
def test_stranger_cannot_steer_the_terminal(name: str, folder: Path) -> None:
    weights = {**tiny().state_dict(), "x": torch.ones(1)}
    with pytest.raises(InputRejectedError) as caught:
        through_file(name, safetensors.torch.save(weights), folder)
    assert str(caught.value).isprintable()
