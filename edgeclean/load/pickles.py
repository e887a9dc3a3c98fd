"""Read a pickle as data: nothing that it names is imported, nothing is called.

A pickle is a program for a machine with a stack. This is such a machine without the two
instructions that make pickles dangerous: where the program would import something, a `Named` is put
on the stack; where it would call something or make an object, a `StandIn` that remembers of what.
Whoever reads the result decides what a stand-in means to him; to the machine it means nothing.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Dicts to whoever reads them, whatever else they can do.
_DICTS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
# Names of Python 2, which pickles of the protocols 0 to 2 keep.
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """What a pickle would import.

    Attributes:
        full: the module and the name in it, with a dot between.
    """

    full: str


# No text is made of one for a message: it may hold itself, or be endless to write.
@dataclass(slots=True, eq=False, repr=False)
class StandIn:
    """What a pickle would make by calling something.

    Attributes:
        of: what it would call: a `Named`, or anything else that lay on the stack.
        arguments: what it would call it with.
        state: what it would give to ``__setstate__``; None if nothing.
        items: what it would append.
        entries: what it would set under keys.
    """

    of: Any
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The full name of what it would call; empty where that is no name."""
        return self.of.full if isinstance(self.of, Named) else ""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Stored:
    """What a pickle says to lie beside it: for PyTorch, the numbers of a tensor.

    Attributes:
        identity: what it is called there.
    """

    identity: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PickledTree:
    """What a pickle holds.

    Attributes:
        root: dicts, lists, tuples, plain values and the three classes above.
        names: all that the pickle would import, in order.
        attributes: all that it would look up by ``getattr``, in order.
        stored: all that it says to lie beside it, in order.
        states: dicts and what it would give to their ``__setstate__``, by the dict's identity.
    """

    root: Any
    names: tuple[str, ...]
    attributes: tuple[str, ...]
    stored: tuple[Stored, ...]
    states: Mapping[int, tuple[Any, Any]]


def read_pickle(stream: io.BytesIO) -> PickledTree:
    """Read one pickle of any protocol; the stream then stands behind it.

    Raises:
        ValueError: it is damaged, or needs what is not in the file (an extension's number, a
            buffer). As parsers of hostile bytes do, it may raise other exceptions as well.
    """
    machine = _Machine()
    steps = machine.steps()
    for opcode, argument, _ in pickletools.genops(stream):
        steps[opcode.name](argument)
    return PickledTree(
        root=machine.stack[-1],
        names=tuple(machine.names),
        attributes=tuple(machine.attributes),
        stored=tuple(machine.stored),
        states=machine.states,
    )


def bytes_of(node: Any) -> bytes:
    """Return bytes, which the older protocols write as a text and its encoding."""
    if isinstance(node, StandIn) and node.kind == "_codecs.encode":
        text, encoding = node.arguments
        if type(text) is str and encoding == "latin1":
            return text.encode("latin1")
    if isinstance(node, StandIn) and node.kind == "builtins.bytes" and not node.arguments:
        return b""
    if type(node) is not bytes:
        raise ValueError("no bytes where a storage should be")
    return node


def swapped_bytes(numbers: bytearray, size: int) -> bytearray:
    """Return numbers of ``size`` bytes each with their bytes in the other order."""
    turned = bytearray(len(numbers))
    for place in range(size):
        turned[place::size] = numbers[size - 1 - place :: size]
    return turned


class _Machine:
    """The stack, the memo, and what each instruction does to them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.names: dict[str, Named] = {}
        self.attributes: dict[str, None] = {}
        self.stored: list[Stored] = []
        self.states: dict[int, tuple[Any, Any]] = {}
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}

    def steps(self) -> Mapping[str, Callable[[Any], object]]:
        """Return what to do for each opcode, given the argument in the file."""
        return {**self._values(), **self._containers(), **self._objects()}

    def _values(self) -> Mapping[str, Callable[[Any], object]]:
        pushed = (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT"),
            *("BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"),
            *("SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
            "BYTEARRAY8",
        )
        outside = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
        return {
            **dict.fromkeys(pushed, lambda value: self.stack.append(value)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._get),
            **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _: None),
            **dict.fromkeys(outside, _outside),
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "MARK": self._mark,
            "POP": self._pop,
            "POP_MARK": lambda _: self._since_mark(),
            "DUP": lambda _: self.stack.append(self.stack[-1]),
        }

    def _containers(self) -> Mapping[str, Callable[[Any], object]]:
        return {
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_SET": lambda _: self._called(Named("builtins.set"), ()),
            "LIST": lambda _: self._push(self._since_mark()),
            "TUPLE": lambda _: self._push(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._push(tuple(self._take(1))),
            "TUPLE2": lambda _: self._push(tuple(self._take(2))),
            "TUPLE3": lambda _: self._push(tuple(self._take(3))),
            "DICT": lambda _: self._push(_paired(self._since_mark())),
            "FROZENSET": lambda _: self._called(Named("builtins.frozenset"), (self._since_mark(),)),
            "APPEND": lambda _: self._append(self._take(1)),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "ADDITEMS": lambda _: self._append(self._since_mark()),
            "SETITEM": lambda _: self._set(self._take(2)),
            "SETITEMS": lambda _: self._set(self._since_mark()),
        }

    def _objects(self) -> Mapping[str, Callable[[Any], object]]:
        return {
            "GLOBAL": lambda pair: self._push(self._named(*pair.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._push(self._named(*self._take(2))),
            "INST": lambda pair: self._called(
                self._named(*pair.split(" ", 1)), tuple(self._since_mark())
            ),
            "OBJ": self._obj,
            "NEWOBJ": lambda _: self._called(*self._take(2)),
            "NEWOBJ_EX": lambda _: self._called(*self._take(3)[:2]),
            "REDUCE": lambda _: self._called(*self._take(2)),
            "BUILD": self._build,
            "PERSID": self._lies_beside,
            "BINPERSID": lambda _: self._lies_beside(*self._take(1)),
        }

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("it takes more from its stack than is there")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _put(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    def _get(self, place: int) -> None:
        self.stack.append(self._memo[place])

    def _mark(self, _: object) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self._below.pop()
        return taken

    def _pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:  # the mark itself
            self._since_mark()

    def _append(self, items: list[Any]) -> None:
        container = self.stack[-1]
        (container.items if isinstance(container, StandIn) else _a(list, container)).extend(items)

    def _set(self, keys_and_values: list[Any]) -> None:
        container = self.stack[-1]
        entries = container.entries if isinstance(container, StandIn) else _a(dict, container)
        entries.update(_paired(keys_and_values))

    def _named(self, module: Any, name: Any) -> Named:
        module, name = _a(str, module), _a(str, name)
        full = f"{_OLD_MODULES.get(module, module)}.{name}"
        return self.names.setdefault(full, Named(full))

    def _obj(self, _: object) -> None:
        of, *arguments = self._since_mark()
        self._called(of, tuple(arguments))

    def _called(self, of: Any, arguments: Any) -> None:
        arguments = _a(tuple, arguments)
        full = of.full if isinstance(of, Named) else ""
        if full == "builtins.getattr" and len(arguments) > 1:
            name = arguments[1]
            self.attributes[name if isinstance(name, str) else "no text"] = None
        if full not in _DICTS:
            self.stack.append(StandIn(of, arguments))
            return
        # The first argument of a defaultdict is what makes its missing values.
        pairs = arguments[1 if full == "collections.defaultdict" else 0 :]
        self.stack.append(dict(pairs[0]) if pairs else {})

    def _lies_beside(self, identity: Any) -> None:
        self.stored.append(Stored(identity))
        self.stack.append(self.stored[-1])

    def _build(self, _: object) -> None:
        (state,) = self._take(1)
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state
        elif isinstance(self.stack[-1], dict):
            self.states[id(self.stack[-1])] = (self.stack[-1], state)  # the dict lives as long


def _paired(keys_and_values: list[Any]) -> dict[Any, Any]:
    return dict(zip(keys_and_values[::2], keys_and_values[1::2], strict=True))


def _a(kind: type[Any], value: Any) -> Any:
    """Return the value, whose class must be just this one: a dict of our own, say, or a text."""
    if type(value) is not kind:
        raise ValueError(f"there is a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _outside(_: object) -> None:
    raise ValueError("it refers to something outside of the file")
