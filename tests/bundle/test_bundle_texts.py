"""The texts of a bundle, its JSON and its list of checksums, have one form; another is refused."""

from __future__ import annotations

import os

import pytest

from edgeclean.bundle import manifest as texts
from edgeclean.errors import InputRejectedError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]\n", "a JSON object is needed"),
        (b'{"a": 1, "a": 2}\n', "is not JSON: a key is given twice"),
        (b'{"a": NaN}', "is not JSON"),
        (b'{"a":1}', "not in the form"),
    ],
)
def test_json_that_edgeclean_does_not_write_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputRejectedError, match=message):
        texts.read_json(content, "manifest.json")


def test_json_has_one_form() -> None:
    written = texts.canonical_json({"b": 1e-05, "a": ("\u00e9", None)})
    assert written == '{\n  "a": [\n    "\u00e9",\n    null\n  ],\n  "b": 1e-05\n}\n'.encode()


def test_a_name_that_is_not_utf_8_is_written_as_an_escape_and_read_again() -> None:
    named = {"name": os.fsdecode(b"n\xff.onnx")}
    written = texts.canonical_json(named)
    assert written == b'{\n  "name": "n\\udcff.onnx"\n}\n'
    assert texts.read_json(written, "manifest.json") == named


@pytest.mark.parametrize(
    "content",
    [
        b"zz  name\n",
        b"0" * 64 + b"  ../outside\n",
        b"0" * 64 + b"  b\n" + b"0" * 64 + b"  a\n",
        b"0" * 64 + b"  a",
        b"0" * 64 + b"  a\r\n",
    ],
)
def test_a_list_that_edgeclean_does_not_write_is_refused(content: bytes) -> None:
    with pytest.raises(InputRejectedError, match="SHA256SUMS"):
        texts.read_checksums(content)
