"""TOML and JSON: what a parser would take gigabytes or its whole stack for is refused before it."""

from __future__ import annotations

import json
import time
import tomllib
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclean.files.documents import MOST_DEPTH, MOST_PARTS, parse_json, parse_toml

texts = st.text(max_size=12)
leaves = st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts
values = st.recursive(
    leaves | st.floats(allow_nan=False, allow_infinity=False),
    lambda one: st.lists(one, max_size=4) | st.dictionaries(texts, one, max_size=4),
    max_leaves=20,
)
tables = st.dictionaries(
    texts, leaves | st.lists(leaves, max_size=3) | st.dictionaries(texts, leaves, max_size=3)
)
# What may stand before a key without being part of one: texts of all kinds that hold dots, quotes
# and brackets of their own, and end in the ways that a careless reader gets wrong.
BEFORE = [
    "",
    "[table]\n",
    '"a.b" = 1\n',
    'x = "\\\\"\n',
    'x = "\\""\n',
    "x = '\\'\n",
    'x = 1 # " \'\'\' """\n',
    'x = """a"""\n',
    'x = """a\n"b""c"""""\n',
    'x = """\\""""\n',
    "x = '''a''b\n'''''\n",
    'x = """\n[[[[ \\\n # \'\'\'"""\n',
    "x = [\"\"\"a\"\"\"\", '''b'''']\n",
    "x = 2020-01-01 00:00:00.5\n",
    "x = [1.5, 2.5, 3.5]\n",
    "\r\n",
]
PARTS = ["a", "1", "-", '"b"', "'c'", '"."', "'#'", '"\\""', "'\\'", '""', '"]"']
AROUND = ["{} = 1", "[{}]", "[[{}]]", "z = {{{} = 1}}", "z = [1, {{y = 1, {} = 1}}]", "{}"]


def to_toml(entries: dict[str, Any]) -> str:
    """Texts and numbers of JSON are those of TOML, but for one character."""

    def text(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{text(key)} = {text(one)}" for key, one in value.items()) + "}"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    return "".join(f"{text(key)} = {text(value)}\n" for key, value in entries.items())


@settings(deadline=None)
@given(tables)
def test_toml_is_read_as_its_own_parser_does(entries: dict[str, Any]) -> None:
    text = to_toml(entries)
    assert parse_toml(text.encode()) == tomllib.loads(text)


@settings(deadline=None)
@given(values)
def test_json_is_read_as_its_own_parser_does(value: object) -> None:
    for written in (json.dumps(value), json.dumps(value, indent=1, ensure_ascii=False)):
        try:
            contents = written.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            continue
        assert parse_json(contents) == json.loads(written)


@pytest.mark.parametrize("before", BEFORE)
def test_what_stands_before_the_long_key_is_good(before: str) -> None:
    assert parse_toml(before.encode()) == tomllib.loads(before)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(BEFORE[2:]), max_size=1),
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=4),
    st.integers(MOST_PARTS, 30_000),
    st.sampled_from([".", " . ", "\t."]),
    st.sampled_from(AROUND),
)
def test_a_long_key_is_refused_wherever_it_stands(
    before: list[str], parts: list[str], count: int, dot: str, around: str
) -> None:
    key = dot.join((parts * (count // len(parts) + 1))[: count + 1])
    document = ("".join(before) + around.format(key)).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 16 parts"):
            parse_toml(document)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(document) + 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("around", AROUND[:-1])
def test_the_longest_key_is_read(around: str) -> None:
    document = around.format(".".join(["a"] * MOST_PARTS))
    assert parse_toml(document.encode()) == tomllib.loads(document)


@pytest.mark.parametrize("opening", ["[", "{a=", "[{a=", "[ '[' ,"])
@pytest.mark.parametrize("count", [MOST_DEPTH, 500, 30_000])
def test_deep_toml_is_refused(opening: str, count: int) -> None:
    with pytest.raises(ValueError, match="nested deeper than 64"):
        parse_toml(b"a = " + (opening * (count + 1)).encode())


def test_the_deepest_documents_are_read() -> None:
    deep = "[" * MOST_DEPTH + "]" * MOST_DEPTH
    assert parse_toml(f"a = {deep}\nb = {deep}".encode()) == tomllib.loads(
        f"a = {deep}\nb = {deep}"
    )
    assert parse_json(deep.encode()) == json.loads(deep)
    assert parse_json(b"[" + b",".join([b"[]"] * 1000) + b"]") == [[]] * 1000


@settings(deadline=None)
@given(st.integers(MOST_DEPTH + 1, 40_000), st.sampled_from(["[", '{"a":', '["[", ', '[["\\"",']))
def test_deep_json_is_refused(count: int, opening: str) -> None:
    with pytest.raises(ValueError, match="nested deeper than 64"):
        parse_json((opening * count).encode())


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["[],", "{},", '"",', "0,", '""', "]", '"a":1,', ":"]),
    st.integers(1, 1000),
)
def test_json_of_many_values_is_refused(part: str, most: int) -> None:
    # Four tokens are counted for a value; commas and brackets count as well.
    document = ("[" + part * (4 * most + 2)).encode()
    with pytest.raises(ValueError, match=f"more than {most} values"):
        parse_json(document, most_values=most)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ('{"a": 1, "a": 1}', "a key is given twice"),
        ('[{"a": {"b": 1, "c": 2, "b": 3}}]', "a key is given twice"),
        ("[NaN]", "'NaN' is no finite number"),
        ("[-Infinity]", "'-Infinity' is no finite number"),
        ("[1e999]", "'1e999' is no finite number"),
        ("9" * 400, "is no finite number"),
        ("9" * 100_000, "is no finite number"),
    ],
)
def test_json_that_readers_do_not_read_alike_is_refused(document: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(document.encode())
    assert len(str(caught.value)) < 120


def test_hostile_documents_take_little_time() -> None:
    megabyte = 2**20
    started = time.process_time()
    for content in (b'"' * megabyte, b'"\\' * (megabyte // 2), b"'''" * 2**18, b"=.\n" * 2**18):
        with pytest.raises(ValueError, match=r"\w"):
            parse_toml(content)
    for content in (b'"' * megabyte, b'"\\' * megabyte, b"]" * 2**26, b"[[]," * megabyte):
        with pytest.raises(ValueError, match=r"\w"):
            parse_json(content, most_values=2**14)
    assert time.process_time() - started < 15


def test_what_is_no_utf8_is_a_value_error() -> None:
    for parse in (parse_toml, parse_json):
        with pytest.raises(ValueError, match="utf-8"):
            parse(b'a = "\xff"')
