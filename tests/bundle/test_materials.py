"""The bill of materials is CycloneDX 1.6, says what is true, and is the same every time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_networks import tiny_contents

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import BundleContents, write_bundle
from edgeclean.bundle.materials import model_hash
from edgeclean.networks.state import StageRecord


@pytest.fixture(scope="module")
def contents() -> BundleContents:
    return tiny_contents(ms=1.5)


def bill_of(folder: Path, contents: BundleContents) -> dict[str, Any]:
    path = write_bundle(folder / "build", contents).path
    bill: dict[str, Any] = json.loads((path / "bom.cdx.json").read_bytes())
    return bill


def loaded_with(contents: BundleContents, **external: str) -> BundleContents:
    """As from an ONNX file some of whose weights lay beside it."""
    notes = {"format": "onnx", "external_sha256": external}
    load = StageRecord(stage="load", settings={}, params=1, macs=1, notes=notes)
    network = replace(contents.network, history=(load, *contents.network.history))
    return replace(contents, network=network)


def test_it_fits_the_official_schema(tmp_path: Path, contents: BundleContents) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    from cyclonedx.schema import SchemaVersion

    checker = validation.JsonStrictValidator(SchemaVersion.V1_6)
    whole = bill_of(tmp_path, loaded_with(contents, **{"w.bin": "cd" * 32}))
    assert checker.validate_str(json.dumps(whole)) is None
    whole["metadata"]["component"]["type"] = "network"  # the control
    assert checker.validate_str(json.dumps(whole)) is not None


def test_it_says_what_the_bundle_holds_and_where_it_comes_from(
    tmp_path: Path, contents: BundleContents
) -> None:
    bill = bill_of(tmp_path, loaded_with(contents, **{"w.bin": "cd" * 32}))
    network = bill["metadata"]["component"]
    assert network["type"] == "machine-learning-model"
    assert model_hash(bill) == texts.sha256(contents.model)
    (ancestor,) = network["pedigree"]["ancestors"]
    assert ancestor["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert ancestor["components"] == [
        {
            "type": "file",
            "name": "w.bin",
            "hashes": [{"alg": "SHA-256", "content": "cd" * 32}],
        }
    ]
    assert network["pedigree"]["notes"] == "load -> truncate"
    assert {"torch", "onnx", "onnxruntime"} <= {one["name"] for one in bill["components"]}
    assert all(one["purl"].startswith("pkg:pypi/") for one in bill["components"])
    assert bill["dependencies"][0]["dependsOn"] == [one["bom-ref"] for one in bill["components"]]


def test_its_serial_number_follows_from_what_it_describes(
    tmp_path: Path, contents: BundleContents
) -> None:
    first, again = (bill_of(tmp_path / name, contents) for name in ("a", "b"))
    assert first == again
    other = replace(contents, network=replace(contents.network, source_sha256="12" * 32))
    assert bill_of(tmp_path / "c", other)["serialNumber"] != first["serialNumber"]
    assert "timestamp" not in first["metadata"]


def test_external_weights_of_the_input_are_bound_in_the_manifest(
    tmp_path: Path, contents: BundleContents
) -> None:
    of_one, of_other = (
        write_bundle(tmp_path / name, loaded_with(contents, **{"w.bin": digest * 32}))
        for name, digest in (("a", "cd"), ("b", "ef"))
    )
    assert of_one.manifest["source"]["external_sha256"] == {"w.bin": "cd" * 32}
    assert of_one.manifest_sha256 != of_other.manifest_sha256


@pytest.mark.parametrize("bill", [{}, {"metadata": 3}, {"metadata": {"component": {"hashes": []}}}])
def test_a_bill_without_a_hash_has_none(bill: dict[str, Any]) -> None:
    assert model_hash(bill) == ""
