"""Documents against the shipped schemas: what is refused is named in one bounded line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from bundle_files import put_bundle
from jsonschema import Draft202012Validator

from edgeclean.bundle import manifest as texts
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


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        schema = list(schema.values())
    if isinstance(schema, list):
        for below in schema:
            yield from parts(below)


def of_kind(schema: Any, kind: str) -> list[dict[str, Any]]:
    return [part for part in parts(schema) if kind in str(part.get("type", ""))]


@pytest.mark.parametrize("name", NAMES)
def test_every_whole_number_and_every_list_of_a_schema_has_a_limit(name: str) -> None:
    schema = validator(name).schema
    numbers, lists = of_kind(schema, "integer"), of_kind(schema, "array")
    assert numbers
    assert lists
    assert all({"minimum", "maximum"} <= part.keys() for part in numbers)
    assert all(-(2**63) <= part["minimum"] <= part["maximum"] < 2**63 for part in numbers)
    assert all(part["maxItems"] <= 10**6 for part in lists)


@pytest.mark.parametrize("name", ["device", "device-runtime", "latency-table", "manifest"])
def test_every_fraction_that_strangers_give_has_a_limit(name: str) -> None:
    parts = list(of_kind(validator(name).schema, "number"))
    assert parts
    for part in parts:
        assert {"maximum", "exclusiveMaximum"} & part.keys()
        assert {"minimum", "exclusiveMinimum"} & part.keys()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = put_bundle(tmp_path_factory.mktemp("schema") / "build")
    return texts.read_json((folder / "manifest.json").read_bytes(), "manifest.json")


def changed(manifest: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    manifest = copy.deepcopy(manifest)
    *above, last = place.split("/")
    inner = manifest
    for step in above:
        inner = inner[step]
    inner[last] = value
    return manifest


@pytest.mark.parametrize(
    ("place", "most"),
    [
        ("golden/images", 4096),
        ("model/batch", 65536),
        ("model/classes", 10**7),
        ("model/input_shape", 65536),
        ("model/macs", 2**63 - 1),
        ("model/opset", 1000),
        ("model/params", 2**63 - 1),
        ("seed", 2**63 - 1),
    ],
)
@pytest.mark.parametrize("more", [1, 10**4000])
def test_a_number_that_is_too_large_is_refused_with_its_limit(
    manifest: dict[str, Any], place: str, most: int, more: int
) -> None:
    def with_number(number: int) -> dict[str, Any]:
        is_shape = place.endswith("shape")
        return changed(manifest, place, [3, number, 8] if is_shape else number)

    assert first_violation(with_number(most), "manifest") is None
    violation = first_violation(with_number(most + more), "manifest")
    assert violation is not None
    assert violation.startswith(f"at {place}")
    assert violation.endswith(f"is greater than the maximum of {most}")


@pytest.mark.parametrize("text", ["rk3588\n", "rk3588\nx", "\nrk3588", "rk3588\r"])
def test_a_line_end_does_not_pass_a_pattern(manifest: dict[str, Any], text: str) -> None:
    place = "target/converter_target"
    assert first_violation(changed(manifest, place, "rk3588"), "manifest") is None
    violation = first_violation(changed(manifest, place, text), "manifest")
    assert violation is not None
    assert "does not match" in violation
    digest = first_violation(changed(manifest, "source/sha256", "ab" * 32 + "\n"), "manifest")
    assert digest is not None


class Counted(str):
    """A text that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str(self) == other

    __hash__ = str.__hash__


def test_items_of_a_list_are_not_compared_each_with_each(manifest: dict[str, Any]) -> None:
    def with_files(files: list[object]) -> dict[str, Any]:
        entry = {"computes": "", "files": files, "made_by": {}, "precision": "fp32"}
        entry |= {"reproducible": True, "tolerance": 0.1, "version": ""}
        return changed(manifest, "runtimes", {"ncnn": entry})

    assert first_violation(with_files(["a", "b"]), "manifest") is None
    twice = first_violation(with_files(["a", "b", "a"]), "manifest")
    assert twice == "at runtimes/ncnn/files: ['a', 'b', 'a'] has non-unique elements"
    assert first_violation(with_files([f"a{index}" for index in range(1001)]), "manifest")
    # A number among texts: they cannot be sorted, so that equal ones would lie together.
    names: list[object] = [1, *(Counted(f"a{index}") for index in range(900))]
    Counted.compared = 0
    assert first_violation(with_files(names), "manifest")
    assert Counted.compared < 10 * len(names)


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
