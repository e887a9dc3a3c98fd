"""The machine that reads pickles as data: right about what is there, and it imports nothing."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import subprocess
import sys
from collections import OrderedDict, defaultdict
from typing import Any

import pytest

from edgeclean.load.pickles import Named, PickledTree, StandIn, Stored, _Machine, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(contents: bytes) -> PickledTree:
    return read_pickle(io.BytesIO(contents))


def drawn(draw: random.Random, depth: int = 0) -> Any:
    """Plain data, as settings beside weights are."""
    kinds = ["int", "float", "text", "none", "truth", "large"]
    kind = draw.choice(kinds if depth > 3 else [*kinds, "list", "tuple", "dict", "ordered", "miss"])
    many = range(draw.choice([0, 1, 2, 3, 4, 20]))
    if kind in ("list", "tuple"):
        items = [drawn(draw, depth + 1) for _ in many]
        return items if kind == "list" else tuple(items)
    if kind in ("dict", "ordered", "miss"):
        table = {draw.choice(["a", 3, None, 2.5]): drawn(draw, depth + 1) for _ in many}
        made: dict[Any, Any] = {"dict": dict, "ordered": OrderedDict}.get(kind, dict)(table)
        return made if kind != "miss" else defaultdict(int, table)
    return {
        "int": draw.randrange(-(10**6), 10**6),
        "float": draw.uniform(-1e9, 1e9),
        "text": draw.choice(["", "ä\n'", "x" * 300]),
        "none": None,
        "truth": draw.random() < 0.5,
        "large": draw.choice([-1, 1]) * 2 ** draw.randrange(200),
    }[kind]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_is_what_python_reads(protocol: int) -> None:
    draw = random.Random(protocol)
    for _ in range(60):
        tree = drawn(draw)
        assert read(pickle.dumps(tree, protocol)).root == tree


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_and_what_holds_itself(protocol: int) -> None:
    inner: list[Any] = [1]
    inner.append(inner)
    root = read(pickle.dumps([inner, inner], protocol)).root
    assert root[0] is root[1]
    assert root[0][1] is root[0]


class Thing:
    """Its state says what it is."""

    def __init__(self) -> None:
        self.inside = {"x": 1}


class Table(dict[str, int]):
    """A dict with an attribute."""

    def __init__(self) -> None:
        super().__init__(a=1)
        self.extra = "y"


class Sequence(list[int]):
    """A list with none."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_stand_ins_with_all_that_they_had(protocol: int) -> None:
    tree = read(pickle.dumps([Thing(), Table(), Sequence([3, 4])], protocol))
    thing, table, sequence = tree.root
    for one in (thing, table, sequence):
        assert isinstance(one, StandIn)
    assert thing.state == {"inside": {"x": 1}}
    old = protocol < 2  # which hands the contents to the constructor
    assert old or table.entries == {"a": 1}
    assert table.state == {"extra": "y"}
    assert old or sequence.items == [3, 4]
    assert f"{__name__}.Thing" in tree.names


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_is_only_a_name(protocol: int) -> None:
    (name,) = read(pickle.dumps([Thing], protocol)).root
    assert isinstance(name, Named)
    assert name.full == f"{__name__}.Thing"


def test_what_lies_beside_is_told_in_order() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, one: Any) -> Any:
            return ("storage", one.inside) if isinstance(one, Thing) else None

    for protocol in PROTOCOLS[1:]:
        stream = io.BytesIO()
        Pickler(stream, protocol).dump([Thing(), Thing()])
        tree = read(stream.getvalue())
        assert [type(one) for one in tree.root] == [Stored, Stored]
        assert tree.stored == tuple(tree.root)
        assert tree.root[0].identity == ("storage", {"x": 1})


def test_python_2_wrote_texts_as_bytes() -> None:
    """A dict of a text of eight bits and a Unicode one, as `cPickle` of protocol 2 wrote it."""
    contents = b"\x80\x02}q\x01(U\x05epochq\x02K\x03U\x04nameX\x03\x00\x00\x00\xc3\xa4xu."
    assert read(contents).root == {"epoch": 3, "name": "äx"}


def test_every_opcode_of_python_is_known() -> None:
    known = _Machine().steps()
    assert [opcode.name for opcode in pickletools.opcodes if opcode.name not in known] == []


@pytest.mark.parametrize(
    "contents",
    [
        b"\x80\x02\x82\x01.",  # a global by number
        b"\x80\x05\x97.",  # a buffer that is not in the file
        b"\x80\x02]K\x01K\x02s.",  # an entry of a list
        b"\x80\x02}K\x01a.",  # an item of a dict
        b"\x80\x02K\x01}R.",  # called with a dict
        b"\x80\x02}(K\x01u.",  # a key without a value
        b"\x80\x02R.",
        b"\x80\x02.",
        b"\x80\x02u.",
        b"\x80\x02h\x07.",
        b"\x80\x04K\x01K\x02\x93.",  # a global of numbers
        b"",
    ],
)
def test_damaged_pickles_raise(contents: bytes) -> None:
    with pytest.raises(Exception, match=r"."):
        read(contents)


PROGRAM = """
import sys
from edgeclean.load.pickles import read_pickle
import io
seen = []
def hook(event, arguments):
    if event.split(".")[0] in ("import", "pickle", "exec", "compile", "open", "os", "subprocess"):
        seen.append((event, str(arguments[:1])))
contents = sys.stdin.buffer.read()
before = set(sys.modules)
sys.addaudithook(hook)
read_pickle(io.BytesIO(contents))
print(seen, sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_opened_or_run() -> None:
    """As Python's own audit sees it, which tells every import, and unpickled names."""
    calls = b"".join(
        f"c{module}\n{name}\n".encode() + b"(X\x01\x00\x00\x00xtR"
        for module, name in (
            *(("os", "system"), ("builtins", "eval"), ("antigravity", "fly"), ("this", "s")),
            *(("subprocess", "Popen"), ("no_such_module", "f"), ("builtins", "open")),
        )
    )
    contents = b"\x80\x02(" + calls + b"(iposix\nsystem\nl."
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=contents, capture_output=True, check=True
    )
    assert ended.stdout.decode().strip() == "[] []"
