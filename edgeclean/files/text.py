"""Untrusted text (layer names, file names, error details), made safe to show.

A name may hold terminal escape sequences, line breaks, or characters that reverse the reading
direction; none of them may reach a terminal or a page. Markup is another matter: whoever shows the
text escapes it for where it goes.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

MOST_SHOWN = 80  # characters of what was got, in a refusal
MOST_OF_AN_ENTRY = 120
MOST_OF_A_LINE = 1000  # characters of a whole refusal: a path alone may have 4096


def printable(text: str, *, keep_newlines: bool = False) -> str:
    r"""Write every control, format, private or unassigned character of a text as an escape.

    And every space but the plain one, and whatever else `str.isprintable` knows not to be shown.

    >>> printable("conv\x1b[31m1")
    'conv\\x1b[31m1'
    """
    return "".join(
        character
        if character.isprintable() or (keep_newlines and character == "\n")
        else character.encode("ascii", "backslashreplace").decode("ascii")
        if ord(character) > 0x7F
        else f"\\x{ord(character):02x}"
        for character in text
    )


def one_line(message: str) -> str:
    r"""Return at most 1000 printable characters of a message, the middle left out where longer.

    >>> one_line("two\nlines")
    'two lines'
    """
    return _cut(" ".join(printable(_cut(message), keep_newlines=True).splitlines()))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind; at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def shown(value: object) -> str:
    """Return at most 80 printable characters of any value, however large or deeply nested."""
    return printable(_SHOWN.repr(value))[:MOST_SHOWN]


def listed(entries: Sequence[str], most: int = 8, *, between: str = ", ") -> str:
    """Join the first entries, at most 120 characters of each, and say how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(entries) - most} more" if len(entries) > most else ""
    return between.join(one[:MOST_OF_AN_ENTRY] for one in entries[:most]) + more


def counted(number: int, noun: str) -> str:
    """Write a number with a noun: "1 thread", "2 threads"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def without_folder(architecture: str) -> str:
    """Turn ``folder/net.py:make``, a place on one machine, into ``net.py:make``."""
    if architecture.startswith("onnx:"):
        return architecture  # the name of an output
    return architecture.replace("\\", "/").rsplit("/", maxsplit=1)[-1]


def short_label(text: str, length: int = 26) -> str:
    """Return at most ``length`` printable ASCII characters, the middle left out where it is longer.

    For figures, whose fonts do not have every character.
    """
    plain = printable(text).encode("ascii", "backslashreplace").decode("ascii")
    if len(plain) <= length:
        return plain
    tail = (length - 2) // 2
    return f"{plain[: length - 2 - tail]}..{plain[len(plain) - tail :]}"


def _cut(text: str) -> str:
    tail = MOST_OF_A_LINE // 4  # what to do stands at the end
    if len(text) <= MOST_OF_A_LINE:
        return text
    return f"{text[: MOST_OF_A_LINE - tail - 5]} ... {text[-tail:]}"


class _Bounded(reprlib.Repr):
    """A bounded repr: Python refuses to write very long numbers, and recursion has a limit."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, MOST_SHOWN - 2, MOST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        """Return short numbers as they are, and of long ones the length in bits."""
        return repr(x) if x.bit_length() <= 250 else f"a number of {x.bit_length()} bits"


_SHOWN = _Bounded()
