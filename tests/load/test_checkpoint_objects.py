"""Whatever a training script leaves beside the weights is left unread, and the weights are read."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import pathlib
import pickle
import random
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickle_forms import by_hand_with, renamed_global
from tiny_checkpoint import all_parsed, assert_equal_tensors, parsed, saved, tiny
from torch import nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.numpy_arrays import array, is_array
from edgeclean.load.pickles import Named, StandIn

PROTOCOLS = (2, 3, 4, 5)
RAN: list[str] = []  # what a careless reader would have run


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntFlag):
    HIGH = 2


@dataclasses.dataclass
class Settings:
    rate: float = 0.1
    names: tuple[str, ...] = ("a",)


class Attributes(dict[str, Any]):
    """As Lightning's AttributeDict is."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        self.frozen = True


class Outer:
    class Inner:
        pass

    def method(self) -> None:
        RAN.append("method")


class Slots:
    __slots__ = ("one", "two")

    def __init__(self) -> None:
        self.one, self.two = 1, [2]


class Live:
    """Would leave a mark in each of the ways in which pickles run code of a class."""

    def __init__(self) -> None:
        self.x = 1

    def __setstate__(self, state: Any) -> None:
        RAN.append("setstate")

    def __reduce__(self) -> tuple[Any, ...]:
        return made, (), {"x": 1}, iter([1]), iter([("a", 1)])


def made() -> Live:
    RAN.append("made")
    return Live()


Pair = collections.namedtuple("Pair", "one two")

BESIDE: dict[str, Any] = {
    "numpy scalar": np.float64(91.2),
    "numpy array": np.zeros((2, 3)),
    "numpy objects": np.array([{"a": 1}, None], dtype=object),
    "numpy records": np.zeros(2, dtype=[("a", "f4")]),
    "numpy generator": np.random.default_rng(0),
    "numpy state": np.random.RandomState(0).get_state(),
    "numpy type": np.dtype("f4"),
    "namespace": argparse.Namespace(lr=0.1, layers=[1]),
    "path": pathlib.PurePosixPath("runs/best.ckpt"),
    "windows path": pathlib.PureWindowsPath("C:/runs"),
    "date": datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
    "duration": datetime.timedelta(1),
    "defaultdict": collections.defaultdict(list, loss=[1.0]),
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], 3),
    "chain": collections.ChainMap({"a": 1}),
    "ordered": collections.OrderedDict(a=1),
    "enum": Colour.RED,
    "flag": Level.HIGH,
    "dataclass": Settings(),
    "dict subclass": Attributes(a=Attributes(b=1)),
    "nested class": Outer.Inner(),
    "method": Outer().method,
    "slots": Slots(),
    "named tuple": Pair(1, 2),
    "live": Live(),
    "function": made,
    "optimiser class": torch.optim.Adam,
    "optimiser": torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1),
    "scheduler class": torch.optim.lr_scheduler.StepLR,
    "loss": nn.CrossEntropyLoss(),
    "partial": functools.partial(made, 1, a=2),
    "torch.Size": torch.Size([1, 2]),
    "torch.dtype": torch.float16,
    "torch.device": torch.device("cpu"),
    "simple namespace": types.SimpleNamespace(a=1),
    "uuid": uuid.UUID(int=3),
    "decimal": decimal.Decimal("1.5"),
    "complex": 1j,
    "slice": slice(1, 2),
    "range": range(3),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "bytes": b"abc",
    "bytearray": bytearray(b"x"),
    "large number": 2**80,
    "class of Python": int,
    "exception": ValueError("x"),
    "odd keys": {(1, 2): 3, frozenset([1]): 2, None: 1},
    "random state": random.Random(0).getstate(),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", BESIDE)
def test_weights_are_read_whatever_lies_beside(name: str, zipped: bool) -> None:
    weights = tiny().state_dict()
    RAN.clear()
    for protocol in PROTOCOLS:
        tree = {"epoch": 3, "state_dict": weights, "extra": BESIDE[name], "list": [BESIDE[name]]}
        contents = saved(tree, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert_equal_tensors(all_parsed(contents)["state_dict"], weights)
    assert RAN == []


def test_the_tensors_of_all_networks_together_are_limited() -> None:
    one = {f"{index}": torch.ones(1) for index in range(10)}
    contents = saved({"a": one, "b": {**one}}, _use_new_zipfile_serialization=False)
    assert all_parsed(contents, LoadLimits(entries=20)).keys() == {"a", "b"}
    with pytest.raises(InputRejectedError, match="20 tensors; the limit entries is 19"):
        all_parsed(contents, LoadLimits(entries=19))


def test_the_bait_is_live() -> None:
    """The control: Python's unpickler runs the code of `Live` in each way."""
    RAN.clear()
    with pytest.raises(AttributeError):  # it cannot be appended to
        pickle.loads(pickle.dumps(Live()))  # noqa: S301 - that is the point
    assert "made" in RAN


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_weights_of_a_plain_pickle_are_read(protocol: int) -> None:
    """Of ``pickle.dump``, which writes a file of torch.save for each storage."""
    weights = tiny().state_dict()
    contents = pickle.dumps({"model": weights, "extra": BESIDE["namespace"]}, protocol)
    assert_equal_tensors(parsed(contents), weights)


# Names of modules that are not installed here: nothing can import them.
STRANGERS = [
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "omegaconf.dictconfig.DictConfig",
    "distiller.scheduler.CompressionScheduler",
    "ai8x.QATPolicy",
    "__main__.Config",
    "utils.Config",
    "models.yolo.Model",
    "torch.no_such_module.Thing",
    "code.Config",
    "test.Config",
]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("stranger", STRANGERS)
def test_classes_that_nobody_has_are_no_hindrance(stranger: str, zipped: bool) -> None:
    weights = tiny().state_dict()
    for thing in (Settings(), Settings, Attributes(a=1)):
        with renamed_global(type(thing) if not isinstance(thing, type) else thing, stranger):
            contents = saved(
                {"state_dict": weights, "cfg": thing}, _use_new_zipfile_serialization=zipped
            )
        before = set(sys.modules)
        assert_equal_tensors(parsed(contents), weights)
        assert stranger.rpartition(".")[0] not in set(sys.modules) - before


CODE = [
    *("os.system", "posix.system", "nt.system", "subprocess.Popen", "builtins.eval"),
    *("builtins.exec", "__builtin__.execfile", "builtins.__import__", "importlib.import_module"),
    *(
        "runpy.run_path",
        "pickle.loads",
        "marshal.loads",
        "shutil.rmtree",
        "socket.create_connection",
    ),
    *("torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "types.FunctionType"),
    *("urllib.request.urlopen", "code.InteractiveConsole", "cloudpickle.cloudpickle.subimport"),
    *("numpy.load", "numpy.testing._private.utils.runstring", "webbrowser.open", "ctypes.CDLL"),
]


@pytest.mark.parametrize("name", CODE)
def test_a_file_that_asks_for_what_runs_code_is_refused(name: str) -> None:
    contents = by_hand_with(name)
    module, _, attribute = name.rpartition(".")
    shown = f"{module.replace('__builtin__', 'builtins')}.{attribute}"
    with pytest.raises(InputRejectedError) as caught:
        parsed(contents)
    assert f"its pickle asks for code: {shown}; nothing was run" in str(caught.value)


def test_a_way_out_by_attributes_is_refused() -> None:
    class Climb:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (collections.OrderedDict, "__subclasses__")

    contents = saved({"state_dict": tiny().state_dict(), "x": Climb()})
    with pytest.raises(
        InputRejectedError, match=r"asks for code: builtins\.getattr; nothing was run"
    ):
        parsed(contents)


AMONG: dict[str, Any] = {
    "an epoch": 3,
    "a share": 0.9,
    "a text": "best",
    "nothing": None,
    "a flag": True,
    "numbers": [1.0, 2.0],
    "settings": {"lr": 0.1, "layers": (1, 2)},
    "a number of numpy": np.float64(0.9),
}


@pytest.mark.parametrize("name", AMONG)
def test_plain_values_among_the_tensors_are_left_unread(name: str) -> None:
    weights = tiny().state_dict()
    for tree in ({**weights, "best": AMONG[name]}, {"model": {"best": AMONG[name], **weights}}):
        for protocol in PROTOCOLS:
            assert_equal_tensors(parsed(saved(tree, pickle_protocol=protocol)), weights)


ARRAYS = {
    **{
        kind: np.arange(6).reshape(2, 3).astype(kind)
        for kind in ("f2", "<f4", ">f4", "f8", ">f8", "i1", "i2", ">i8", "u1", "?")
    },
    "by columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "a part of another": np.arange(24, dtype=np.float32).reshape(4, 6)[::2, 1:4],
    "a scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_numpy_are_read_as_tensors(name: str, protocol: int) -> None:
    numbers = ARRAYS[name]
    contents = pickle.dumps({"model": {"a": numbers}, "author": "zoo"}, protocol=protocol)
    expected = torch.from_numpy(
        np.ascontiguousarray(numbers.astype(numbers.dtype.newbyteorder("=")))
    )
    assert_equal_tensors(all_parsed(contents)["model"], {"a": expected.reshape(numbers.shape)})


def test_arrays_that_are_damaged_or_of_objects_are_no_weights() -> None:
    weights = np.ones(4, np.float32)
    good = pickle.dumps({"a": weights}, protocol=2)
    bad = good.replace(b"K\x04\x85", b"K\x05\x85")
    assert bad != good
    with pytest.raises(InputRejectedError, match="16 bytes in an array of"):
        parsed(bad)
    for odd in (np.array(["a"]), np.array([1j]), np.array([Settings()])):
        with pytest.raises(InputRejectedError, match=r"only tensors are|asks for code"):
            parsed(pickle.dumps({"a": odd}, protocol=4))


def made_by(call: str, *parts: Any) -> StandIn:
    node = StandIn(Named(f"numpy.core.{call}"), parts)
    if call == "multiarray._reconstruct":
        node.state = (1, *parts)
    return node


FLOAT = StandIn(Named("numpy.dtype"), ("f4", False, True))
EIGHT = bytes(8)


def test_what_only_looks_like_an_array_is_none() -> None:
    assert is_array(made_by("multiarray._reconstruct", (2,), FLOAT, False, EIGHT))
    assert is_array(made_by("numeric._frombuffer", EIGHT, FLOAT, (2,), "C"))
    for node in (
        made_by("multiarray.scalar", FLOAT, EIGHT),
        made_by("multiarray._reconstruct", (2,), FLOAT),
        made_by("numeric._frombuffer", EIGHT, FLOAT),
        made_by("numeric._frombuffer", EIGHT, "f4", (2,), "C"),
        made_by("numeric._frombuffer", EIGHT, StandIn(Named("numpy.dtype"), ()), (2,), "C"),
        made_by("numeric._frombuffer", EIGHT, StandIn(Named("numpy.dtype"), (4,)), (2,), "C"),
        made_by("numeric._frombuffer", EIGHT, StandIn(Named("os.system"), ("f4",)), (2,), "C"),
        StandIn(Named("numpy.other"), ()),
        "numpy.core",
    ):
        assert not is_array(node)


@pytest.mark.parametrize("shape", [[2], (2.0,), (-2,), ("2",), (True, 2), 2])
def test_an_array_of_an_odd_shape_is_damaged(shape: Any) -> None:
    with pytest.raises(ValueError, match="not of whole numbers"):
        array(made_by("numeric._frombuffer", EIGHT, FLOAT, shape, "C"))


@pytest.mark.parametrize("key", ["optimized_model", "amp_net", "model_optimum"])
def test_a_network_may_have_a_name_like_an_optimisers(key: str) -> None:
    weights = tiny().state_dict()
    assert_equal_tensors(all_parsed(saved({key: weights, "optimizer": {"m": 1}}))[key], weights)


def test_what_is_made_by_a_call_is_no_tensor_of_a_state_dict() -> None:
    contents = saved({"state_dict": {**tiny().state_dict(), "x": Settings()}})
    with pytest.raises(InputRejectedError) as caught:
        parsed(contents)
    assert f"'x' asks for code: {__name__}.Settings; nothing was run" in str(caught.value)


@contextmanager
def as_module(text: str, name: str) -> Iterator[types.ModuleType]:
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(text, module.__dict__)  # noqa: S102 - our own text
        yield module
    finally:
        del sys.modules[name]


MODEL = """
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.tied = self.conv
        self.register_buffer("kept", __import__("torch").ones(2))
        self.register_buffer("passing", __import__("torch").ones(3), persistent=False)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.one = self.blocks[0]
        self.none = None
        self.scale = nn.Parameter(__import__("torch").ones(1))
        self.bn = nn.BatchNorm2d(4)
"""


@pytest.mark.parametrize(
    "wrapped",
    [lambda one: one, lambda one: {"model": one, "epoch": 3}, lambda one: [3, one]],
    ids=["alone", "in a dict", "in a list"],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_whole_module_of_a_stranger_is_read_by_its_names(
    protocol: int, wrapped: Callable[[Any], Any]
) -> None:
    with as_module(MODEL, "a_strangers_net") as code:
        module = code.Net()
        contents = saved(wrapped(module), pickle_protocol=protocol)
        expected = module.state_dict()
    assert_equal_tensors(parsed(contents), expected)


def test_a_module_within_itself_is_refused() -> None:
    module = nn.Sequential(nn.Linear(1, 1))
    module._modules["self"] = module
    with pytest.raises(InputRejectedError, match="nested deeper than 100"):
        parsed(saved(module))


def test_storages_of_every_kind_are_read_with_their_numbers() -> None:
    """Also of tensors that share one, and of those that begin within it."""
    base = torch.arange(12, dtype=torch.float32)
    tree = {
        "half": torch.rand(3).half(),
        "bfloat16": torch.rand(3).bfloat16(),
        "double": torch.rand(2, 2, dtype=torch.float64),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "truth": torch.tensor([True, False]),
        "short": torch.arange(5, dtype=torch.int16),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "part": base[4:8].view(2, 2).t(),
        "parameter": nn.Parameter(torch.rand(2)),
    }
    for zipped in (True, False):
        for protocol in PROTOCOLS:
            contents = saved(tree, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            assert_equal_tensors(parsed(contents), {k: v.detach() for k, v in tree.items()})


def test_a_file_of_a_machine_with_the_other_byte_order_is_read() -> None:
    import zipfile

    weights = {"a": torch.arange(3, dtype=torch.float32), "b": torch.arange(3, dtype=torch.int16)}
    stream = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(saved(weights)))
    with zipfile.ZipFile(stream, "w") as new:
        for member in old.infolist():
            contents = old.read(member)
            if member.filename.endswith("byteorder"):
                contents = b"big"
            if member.filename.endswith("data/0"):
                contents = np.frombuffer(contents, "<f4").astype(">f4").tobytes()
            if member.filename.endswith("data/1"):
                contents = np.frombuffer(contents, "<i2").astype(">i2").tobytes()
            new.writestr(member.filename, contents)
    assert_equal_tensors(parsed(stream.getvalue()), weights)


def test_weights_without_a_checksum_are_read_as_torch_does() -> None:
    """`torch.serialization.set_crc32_options(False)` leaves it out, to be faster."""
    weights = tiny().state_dict()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        contents = saved(weights)
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equal_tensors(parsed(contents), weights)


def test_published_path_of_a_case(tmp_path: Path) -> None:
    """The classes of a checkpoint are told, so that the report can say what was left unread."""
    from edgeclean.load.checkpoint import read_networks

    tree = {"state_dict": tiny().state_dict(), "a": BESIDE["namespace"], "b": BESIDE["path"]}
    read = read_networks(saved(tree), "torch-zip", LoadLimits())
    assert read.beside == ("argparse.Namespace", "pathlib.PurePosixPath")


def test_a_quantised_state_dict_is_told_as_what_it_is() -> None:
    """As of `torch.ao.quantization.convert`: types of numbers, and packed weights."""
    for tree in ({"w": torch.ones(1), "8._packed_params.dtype": torch.qint8},):
        with pytest.raises(InputRejectedError, match="is of a quantised network, whose weights"):
            parsed(saved(tree))
