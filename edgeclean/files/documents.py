"""Parse TOML and JSON of strangers, looked through before: nothing deep, nothing with many parts.

A parser makes objects of a hundred bytes and more of two characters, and Python's own for TOML
takes time and memory by the square of a key's length: 64 KB of dots were 4 GiB. So each text is
read once by its tokens alone, up to the first part that is too much. Where the text is well formed,
these are the parser's own tokens; where it is not, the parser stops at the same place or before.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any

from edgeclean.files.text import shown

MOST_DEPTH = 64  # brackets within brackets
MOST_PARTS = 16  # of a dotted key of TOML
MOST_VALUES = 250_000  # of a JSON document, keys aside
TOKENS_PER_VALUE = 4  # a key, what separates the two, a text, and what separates it from the next
_SHORT = r'"(?:[^"\\\n]|\\.)*+"?'
_TOML = re.compile(
    # A text runs to its end, or where that is missing, as far as it could: a parser fails there.
    # What closes a long one may follow up to two quotes that belong to it.
    r'"""(?:[^"\\]|\\.|"(?!""))*+(?:"{3,5})?'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5})?"
    rf"|{_SHORT}|'[^'\n]*+'?|\#[^\n]*+|[.,=\[\]{{}}\n]",
    re.DOTALL,
)
_JSON = re.compile(r'"(?:[^"\\]|\\.)*+"?|[,:\[\]{}]', re.DOTALL)


def parse_toml(contents: bytes) -> dict[str, Any]:
    """Return the tables and keys of a TOML document in UTF-8.

    Raises:
        ValueError: it is none, has more than 64 brackets within each other, or a key of more than
            16 parts.
    """
    text = contents.decode("utf-8")
    depth = dots = 0
    for token in _TOML.finditer(text):
        mark = token[0]
        if mark == ".":
            dots += 1
            if dots >= MOST_PARTS:
                raise ValueError(
                    f"a key has more than {MOST_PARTS} parts, at character {token.end()}"
                )
        elif mark in ",=[]{}\n":
            dots = 0
            try:
                depth = _deeper(depth, mark, token.end())
            except ValueError as deep:
                line = text[text.rfind("\n", 0, token.start()) + 1 :][:40]
                raise ValueError(f"{deep}: {shown(line)}") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_json(contents: bytes, *, most_values: int = MOST_VALUES) -> Any:
    """Return what a JSON document in UTF-8 holds; what readers do not read alike is refused.

    Args:
        contents: the document.
        most_values: how many values it may have, keys aside; a few more may pass.

    Raises:
        ValueError: it is none, has more than 64 brackets within each other, or more values; a key
            is given twice in one object, or a number is not finite: NaN, Infinity, 1e999.
    """
    text = contents.decode("utf-8")
    depth = 0
    for number, token in enumerate(_JSON.finditer(text)):
        if number > TOKENS_PER_VALUE * most_values:
            raise ValueError(f"more than {most_values} values, at character {token.end()}")
        depth = _deeper(depth, token[0], token.end())
    try:
        return json.loads(
            text,
            object_pairs_hook=_each_once,
            parse_float=_finite,
            parse_int=_whole,
            parse_constant=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text)} is no finite number")
    return number


def _whole(text: str) -> int:
    _finite(text)  # before Python reads, and later writes, thousands of digits
    return int(text)


def _deeper(depth: int, mark: str, place: int) -> int:
    """Return how deep it is behind a bracket; other marks change nothing."""
    if mark in "[{":
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested deeper than {MOST_DEPTH} brackets, at character {place}")
    elif mark in "]}":
        depth = max(0, depth - 1)
    return depth
