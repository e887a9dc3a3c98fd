"""Untrusted text (layer names, file names, error details), made safe to show.

A name may hold terminal escape sequences, line breaks, or characters that reverse the reading
direction; none of them may reach a terminal or a page. Markup is another matter: whoever shows the
text escapes it for where it goes.
"""

from __future__ import annotations

import reprlib
import unicodedata

MOST_SHOWN = 80  # characters of what was got, in a refusal
UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def printable(text: str, *, keep_newlines: bool = False) -> str:
    r"""Write every control, format, private or unassigned character of a text as an escape.

    >>> printable("conv\x1b[31m1")
    'conv\\x1b[31m1'
    """
    return "".join(
        character
        if unicodedata.category(character) not in UNSAFE_CATEGORIES
        or (keep_newlines and character == "\n")
        else character.encode("ascii", "backslashreplace").decode("ascii")
        if ord(character) > 0x7F
        else f"\\x{ord(character):02x}"
        for character in text
    )


def shown(value: object) -> str:
    """Return at most 80 printable characters of any value, however large or deeply nested."""
    return printable(_SHOWN.repr(value))[:MOST_SHOWN]


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


class _Bounded(reprlib.Repr):
    """A bounded repr: Python refuses to write very long numbers, and recursion has a limit."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, MOST_SHOWN - 2, MOST_SHOWN

    def repr_int(self, x: int, level: int) -> str:
        """Return short numbers as they are, and of long ones the length in bits."""
        return repr(x) if x.bit_length() <= 250 else f"a number of {x.bit_length()} bits"


_SHOWN = _Bounded()
