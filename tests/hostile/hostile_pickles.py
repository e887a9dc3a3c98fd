"""Pickles: code, bombs of memory and time, tensors that are not what they seem.

To look at one by hand: `python -m pickletools`.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hostile_archives import zipped
from hostile_case import CANARY, CODE, Case, compressing
from torch import Tensor, nn

TOUCH = f"touch {CANARY}"
PYTHON = f"open('{CANARY}', 'w').close()"


def text(word: str) -> bytes:
    """The opcode for a short text."""
    encoded = word.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def call(module: str, name: str, *words: str) -> bytes:
    """Opcodes that import a global and call it with texts."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(text, words)) + b"tR"


def dict_of(value: bytes) -> bytes:
    """A pickled dict with one entry, whose value these opcodes make."""
    return b"\x80\x02}" + text("w") + value + b"s."


def saved(tree: object, **options: Any) -> bytes:
    """As torch.save writes it."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these types are about to be dropped
        torch.save(tree, stream, **options)
    return stream.getvalue()


def tiny_weights(**changes: Tensor) -> dict[str, Tensor]:
    """A state dict that fits the case's architecture."""
    names: dict[str, Any] = {}
    exec(CODE, names)  # noqa: S102 - the text of hostile_case.py
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights: dict[str, Tensor] = names["tiny"](2).state_dict()
    return {**weights, **{name.replace("_", "."): one for name, one in changes.items()}}


class Storage:
    """Stands for a stored run of numbers in a pickle written by hand."""

    def __init__(self, numel: Any, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.identity = ("storage", kind, key, "cpu", numel)


class Rebuilt:
    """Stands for a tensor made of a storage."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (*self.parts, False, OrderedDict())


class Quantised(Rebuilt):
    """The same of a quantised tensor."""

    def __reduce__(self) -> tuple[Any, ...]:
        scheme = (torch.per_tensor_affine, 0.1, 0)
        return torch._utils._rebuild_qtensor, (*self.parts, scheme, False, OrderedDict())


class HandWriter(pickle.Pickler):
    """Writes the two above as torch.save would have."""

    def persistent_id(self, one: Any) -> Any:
        """What a storage is called in the file."""
        return one.identity if isinstance(one, Storage) else None


def by_hand(tree: object, storage: bytes = bytes(16)) -> bytes:
    """A torch.save archive around a tree with `Rebuilt` tensors."""
    stream = io.BytesIO()
    HandWriter(stream, protocol=2).dump(tree)
    return zipped(stream.getvalue(), {"0": storage})


def lying_record() -> bytes:
    """The sizes in a record's own header are not those of the archive's directory."""
    contents = by_hand({"w": Rebuilt(Storage(4), 0, (4,), (1,))})
    place = contents.index(b"a/data/0") - 30
    sizes = struct.pack("<II", 2**31 - 1, 2**31 - 1)
    return contents[: place + 18] + sizes + contents[place + 26 :]


def legacy_file() -> tuple[bytes, bytes]:
    """An old torch.save file: its magic number, protocol and system; and the tree behind them."""
    good = saved({"w": torch.ones(1)}, _use_new_zipfile_serialization=False)
    stream = io.BytesIO(good)
    for _ in range(3):
        pickle.load(stream)  # noqa: S301 - our own
    return good[: stream.tell()], good[stream.tell() :]


def legacy_with_second_pickle() -> bytes:
    """The first pickles of an old torch.save file are what scanners read; the bait is behind."""
    head, tree = legacy_file()
    return head + dict_of(call("posix", "system", TOUCH)) + tree


def side_module(folder: Path) -> list[str]:
    """A module beside the checkpoint, which an import by name would run."""
    (folder / "evil.py").write_text(PYTHON, encoding="utf-8")
    return compressing(folder, "a.pth", zipped(dict_of(call("evil", "run"))))


def doubled(times: int) -> bytes:
    """A tuple of a tuple of a tuple, each twice: short to write, endless to hash."""
    return b")" + b"q\x00h\x00\x86" * times


def zip_case(
    name: str, story: str, payload: bytes | Callable[[], bytes], message: str, *, bait: bool = False
) -> Case:
    """A case whose pickle lies in a torch.save archive."""

    def build(folder: Path) -> list[str]:
        content = payload if isinstance(payload, bytes) else payload()
        return compressing(folder, "a.pth", zipped(content))

    return Case(kind="pickle", name=name, story=story, build=build, message=message, bait=bait)


def file_case(name: str, story: str, make: Callable[[], bytes], message: str) -> Case:
    """A case that is a whole file."""
    return Case(
        kind="pickle",
        name=name,
        story=story,
        build=lambda folder: compressing(folder, "a.pth", make()),
        message=message,
    )


ASKS = r"asks for code: {}.*nothing was run"
CODE_CASES = [
    zip_case(
        "os.system",
        "the classic: loading runs a shell command",
        dict_of(call("posix", "system", TOUCH)),
        ASKS.format(r"posix\.system"),
        bait=True,
    ),
    zip_case(
        "eval",
        "Python text evaluated while it loads",
        dict_of(call("builtins", "eval", PYTHON)),
        ASKS.format(r"builtins\.eval"),
        bait=True,
    ),
    zip_case(
        "exec under its old name",
        "Python 2's module name, which pickle still translates",
        dict_of(call("__builtin__", "exec", PYTHON)),
        ASKS.format(r"(builtins|__builtin__)\.exec"),
        bait=True,
    ),
    zip_case(
        "subprocess",
        "a process of its own, past lists that know os.system only",
        dict_of(call("subprocess", "getoutput", TOUCH)),
        ASKS.format(r"subprocess\.getoutput"),
        bait=True,
    ),
    zip_case(
        "runpy",
        "runs a file that was unpacked beside the checkpoint",
        dict_of(call("runpy", "run_path", "net.py")),
        ASKS.format(r"runpy\.run_path"),
    ),
    zip_case(
        "pip",
        "installs a package while it loads",
        dict_of(call("pip", "main", "install")),
        ASKS.format(r"pip\.main"),
    ),
    zip_case(
        "torch.load inside",
        "asks torch itself to load another file, without the safe switch",
        dict_of(call("torch.serialization", "load", "b.pth")),
        ASKS.format(r"torch\.serialization\.load"),
    ),
    zip_case(
        "torch.hub",
        "torch's own downloader of code",
        dict_of(call("torch.hub", "load", "evil/evil", "evil")),
        ASKS.format(r"torch\.hub\.load"),
    ),
    zip_case(
        "getattr chain",
        "builds os.system from harmless names, so that no list of names sees it",
        dict_of(
            b"cbuiltins\ngetattr\n(" + call("builtins", "__import__", "os") + text("system") + b"tR"
            b"(" + text(TOUCH) + b"tR"
        ),
        ASKS.format(r"builtins\.__import__, builtins\.getattr"),
        bait=True,
    ),
    zip_case(
        "compiled code",
        "a code object by marshal, called as a function: no source to grep for",
        dict_of(call("marshal", "loads", "x")),
        ASKS.format(r"marshal\.loads"),
    ),
    zip_case(
        "name from the stack",
        "module and name as computed texts (STACK_GLOBAL), not as a line of the file",
        b"\x80\x04}"
        + text("w")
        + text("posix")
        + text("system")
        + b"\x93("
        + text(TOUCH)
        + b"tRs.",
        r"nothing was run|Unsupported operand 147|damaged",
        bait=True,
    ),
    zip_case(
        "OBJ opcode",
        "an old way to call a class, forgotten by readers that only watch REDUCE",
        dict_of(b"(csubprocess\nPopen\n" + text(TOUCH) + b"o"),
        r"subprocess\.Popen|damaged",
    ),
    zip_case(
        "INST opcode",
        "a still older one, with the name in the opcode itself",
        dict_of(b"(" + text(TOUCH) + b"iposix\nsystem\n"),
        r"posix\.system|damaged",
        bait=True,
    ),
    zip_case(
        "extension registry",
        "a global by number (EXT1): no name in the file at all",
        dict_of(b"\x82\x01"),
        r"damaged",
    ),
    zip_case(
        "state with code",
        "an innocent class whose state is set by an attacker's __setstate__",
        dict_of(b"ctorch.nn.modules.module\nModule\n)\x81}" + text("_x") + text("y") + b"sb"),
        r"torch\.nn\.modules\.module\.Module",
    ),
    Case(
        kind="pickle",
        name="module beside the file",
        story="the checkpoint comes in a folder with evil.py, and asks for evil.run",
        build=side_module,
        message=ASKS.format(r"evil\.run"),
    ),
    Case(
        kind="pickle",
        name="os.system in the old format",
        story="without the archive: a bare pickle, as torch.save wrote it until 2020",
        build=lambda folder: compressing(folder, "a.pth", dict_of(call("posix", "system", TOUCH))),
        message=ASKS.format(r"posix\.system"),
        bait=True,
    ),
    file_case(
        "second pickle",
        "the first three pickles of the file are good; scanners have stopped after the first",
        legacy_with_second_pickle,
        ASKS.format(r"posix\.system"),
    ),
    file_case(
        "whole network",
        "torch.save(model): honest, common, and a pickle of classes all the same",
        lambda: saved(nn.Sequential(nn.Conv2d(1, 1, 1))),
        ASKS.format(r"torch\.nn\.modules\.c"),
    ),
]
BOMBS = [
    zip_case(
        "hash bomb",
        "a dict key of nested tuples: 300 bytes that take 2^60 steps",
        b"\x80\x02}" + doubled(60) + b"K\x01s.",
        r"used up its processor time; .*cpu_seconds 10",
    ),
    zip_case(
        "64 GiB bytearray",
        "a callable that torch's own list allows, with a large number",
        b"\x80\x02c__builtin__\nbytearray\n" + pickle.dumps(2**36, 2)[2:-1] + b"\x85R.",
        r"memory_bytes|damaged",
    ),
    zip_case(
        "text of 2^60 bytes",
        "a length that the file does not have",
        b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"x.",
        r"damaged|memory_bytes",
    ),
    zip_case(
        "deep nest",
        "a million lists in lists: readers that recurse overflow their stack",
        b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
        r"is a list, not a filled state dict|damaged",
    ),
    zip_case(
        "stack without an end",
        "the pickle stops in the middle",
        b"\x80\x02}" + text("w"),
        r"damaged",
    ),
    zip_case("protocol 255", "a pickle of the future", b"\x80\xff}.", r"damaged|not a filled"),
    zip_case("nothing on the stack", "pops what is not there", b"\x80\x02000000.", r"damaged"),
]
TENSORS: list[tuple[str, str, Callable[[], bytes], str]] = [
    (
        "4 GB from one number",
        "a stride of zero makes a tensor of 10^9 numbers from four bytes",
        lambda: saved({"w": torch.ones(1).expand(10**9)}),
        r"w of shape 1000000000 repeats its numbers",
    ),
    (
        "windows that overlap",
        "rows that share numbers: written to, they change each other",
        lambda: saved({"w": torch.ones(10).as_strided((8, 3), (1, 1))}),
        "repeats its numbers",
    ),
    (
        "two tensors share a part",
        "one name's numbers are half of another's",
        lambda: saved(dict(zip("vw", _halves(), strict=True))),
        "v and w share some of their numbers",
    ),
    (
        "beyond its storage",
        "four numbers are stored, a thousand are claimed",
        lambda: by_hand({"w": Rebuilt(Storage(4), 0, (1000,), (1,))}),
        "damaged",
    ),
    (
        "before its storage",
        "a negative offset reads memory in front of the numbers",
        lambda: by_hand({"w": Rebuilt(Storage(4), -64, (4,), (1,))}),
        "damaged",
    ),
    (
        "negative size",
        "a shape of -1",
        lambda: by_hand({"w": Rebuilt(Storage(4), 0, (-1,), (1,))}),
        "damaged",
    ),
    (
        "sizes that overflow",
        "2^40 times 2^40 numbers are 0 to a careless multiplication",
        lambda: by_hand({"w": Rebuilt(Storage(4), 0, (2**40, 2**40), (2**40, 1))}),
        "damaged",
    ),
    (
        "storage longer than its record",
        "a thousand numbers from a record of four: the memory behind it is read as weights",
        lambda: by_hand({"w": Rebuilt(Storage(1000), 0, (1000,), (1,))}),
        "damaged",
    ),
    (
        "record that lies",
        "the directory says sixteen bytes, the record itself 2 GiB (pytorch issue 185440)",
        lying_record,
        "damaged|names do not match",
    ),
    (
        "storage that is not there",
        "names a record that the archive lacks",
        lambda: by_hand({"w": Rebuilt(Storage(4, key="7"), 0, (4,), (1,))}),
        "damaged",
    ),
    (
        "storage outside",
        "the record's name climbs out of the archive",
        lambda: by_hand({"w": Rebuilt(Storage(4, key="../../etc/passwd"), 0, (4,), (1,))}),
        "damaged",
    ),
    (
        "storage of no type",
        "a function where the storage's type should be",
        lambda: by_hand({"w": Rebuilt(Storage(4, kind=print), 0, (4,), (1,))}),
        r"damaged|builtin(s|__)\.print",
    ),
    (
        "NaN",
        "one weight is NaN: every later number is, and comparisons are all false",
        lambda: saved(tiny_weights(**{"0_bias": torch.full((4,), float("nan"))})),
        "0.bias: 4 of 4 numbers are NaN or infinite",
    ),
    (
        "infinity by narrowing",
        "1e300 is finite as a double and infinite as the float that it becomes",
        lambda: saved(tiny_weights(**{"0_bias": torch.full((4,), 1e300, dtype=torch.float64)})),
        "NaN or infinite",
    ),
    (
        "negative variance",
        "a square root of it is NaN, later and elsewhere",
        lambda: saved({**tiny_weights(), "1.running_var": torch.full((4,), -1.0)}),
        "variances below zero",
    ),
    (
        "complex",
        "numbers that lose half of themselves when cast",
        lambda: saved({"w": torch.ones(2, dtype=torch.complex64)}),
        "w is complex64; only plain floats",
    ),
    (
        "quantised",
        "8-bit numbers with a scale that a cast would drop",
        lambda: saved({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}),
        "w is qint8",
    ),
    (
        "quantised, out of bounds",
        "a stride of 2^40 that torch does not check for this type (pytorch issue 184652)",
        lambda: by_hand({"w": Quantised(Storage(4, kind=torch.QInt8Storage), 0, (2,), (2**40,))}),
        "w is qint8|damaged|asks for code",
    ),
    (
        "sparse",
        "indices without bounds, made dense by the reader",
        lambda: saved({"w": torch.ones(2, 2).to_sparse()}),
        "layout torch.sparse_coo|damaged",
    ),
    (
        "no numbers at all",
        "a meta tensor: 4 TB in shape, nothing in the file",
        lambda: saved({"w": torch.ones(10**12, device="meta")}),
        "w is a meta tensor",
    ),
    (
        "name that steers the terminal",
        "a key with escape sequences, waiting to be printed",
        lambda: saved({"w\x1b]0;owned\x07": torch.ones(1)}),
        "which is no name",
    ),
    (
        "name that reads backwards",
        "a right-to-left override makes one name look like another",
        lambda: saved({"w\u202egp.exe": torch.ones(1)}),
        "which is no name",
    ),
    ("number as a name", "a key that is no text", lambda: saved({3: torch.ones(1)}), "key '3'"),
    (
        "two networks",
        "a reader that takes the first and one that takes the last see different ones",
        lambda: saved({"net": {"w": torch.ones(1)}, "model": {"w": torch.zeros(1)}}),
        "holds 2 networks",
    ),
    (
        "hidden deep",
        "the state dict lies under more names than are looked under",
        lambda: saved({"net": {"net": {"net": {"net": {"w": torch.ones(1)}}}}}),
        "'net' is a dict",
    ),
    (
        "another network",
        "weights that do not belong to what they are said to be",
        lambda: saved(nn.Linear(3, 3).state_dict()),
        "names do not match the architecture",
    ),
    (
        "20,001 tensors",
        "one over the limit: each costs a record, a name, a message",
        lambda: saved(
            {f"w{index}": torch.ones(1) for index in range(20_001)},
            _use_new_zipfile_serialization=False,
        ),
        "20001 tensors; the limit entries is 20000",
    ),
]
NO_PICKLES = [
    Case(
        kind="pickle",
        name="a web page",
        story="the download was a login page, saved as model.pth",
        build=lambda folder: compressing(folder, "a.pth", b"<!doctype html><title>Sign in"),
        message="neither a zip archive nor a pickle",
    ),
    Case(
        kind="pickle",
        name="nothing",
        story="the download broke off at once",
        build=lambda folder: compressing(folder, "a.pth", b""),
        message="the file is empty",
    ),
    Case(
        kind="pickle",
        name="text pickle",
        story="protocol 0 has no magic number, and runs code as well as any",
        build=lambda folder: compressing(
            folder, "a.pth", f"cposix\nsystem\n(S'{TOUCH}'\ntR.".encode()
        ),
        message="neither a zip archive nor a pickle",
        bait=True,
    ),
]


def _halves() -> tuple[Tensor, Tensor]:
    numbers = torch.arange(8.0)
    return numbers[:5], numbers[4:]


PICKLES = [*CODE_CASES, *BOMBS, *(file_case(*one) for one in TENSORS), *NO_PICKLES]
