"""Documents against the shipped schemas: what is refused is named in one bounded line."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from edgeclean.files.schema import first_violation, validator

NAMES = sorted(
    entry.name.removesuffix(".schema.json")
    for entry in resources.files("edgeclean").joinpath("schemas").iterdir()
)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_schema_is_a_schema_and_refuses_an_empty_document(name: str) -> None:
    Draft202012Validator.check_schema(validator(name).schema)
    violation = first_violation({}, name)
    assert violation is not None
    assert violation.startswith("at the top level: ")


@pytest.mark.parametrize(
    "document",
    [
        {"x" * 10**6: 1},
        {"a\x1b[31m\n": "b\u202ec"},
        {"name": "n", "title": "t", "sources": {"\n" * 999: ["\x1b" * 10**5]}},
        ["é" * 10**5],
    ],
)
def test_a_violation_is_one_short_printable_line(document: Any) -> None:
    violation = first_violation(document, "target")
    assert violation is not None
    assert violation.isprintable()
    assert len(violation) <= 410
