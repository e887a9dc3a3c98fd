"""Write the bill of materials: a CycloneDX 1.6 ML-BOM of the compressed network.

It says what the network is (hash, shapes, operators' version), what it was made from (the pedigree:
the checkpoint as it came, and the stages that changed it), and with which libraries. It holds no
time and no random number: the serial number follows from the hashes, so the file is reproducible.

Source: CycloneDX v1.6, bom-1.6.schema.json (component.type "machine-learning-model", modelCard,
pedigree); tests/bundle/test_materials.py checks against that schema.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from edgeclean.bundle import manifest as texts
from edgeclean.environment import LIBRARIES

MODEL_REF, SOURCE_REF = "compressed-network", "source-network"


def bill_of_materials(manifest: Mapping[str, Any], model_sha256: str) -> bytes:
    """Return the content of ``bom.cdx.json``.

    Args:
        manifest: the manifest without its list of files.
        model_sha256: the SHA-256 of ``model.onnx``.
    """
    libraries = [
        _library(name, version)
        for name, version in sorted(manifest["versions"].items())
        if name in LIBRARIES
    ]
    identity = "\n".join(
        [model_sha256, manifest["source"]["sha256"], *_pairs(manifest["versions"])]
    )
    references = [one["bom-ref"] for one in libraries]
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [_tool(manifest["versions"]["edgeclean"])]},
            "component": _network(manifest, model_sha256),
        },
        "components": libraries,
        "dependencies": [{"ref": MODEL_REF, "dependsOn": references}],
    }
    return texts.canonical_json(bill)


def model_hash(bill: Mapping[str, Any]) -> str:
    """Return the SHA-256 that a bill of materials gives for the network, or "" for none."""
    try:
        hashes = bill["metadata"]["component"]["hashes"]
        return str(next(one["content"] for one in hashes if one["alg"] == "SHA-256"))
    except (KeyError, TypeError, StopIteration):
        return ""


def _network(manifest: Mapping[str, Any], model_sha256: str) -> dict[str, Any]:
    model, source = manifest["model"], manifest["source"]
    name = source["architecture"]
    image = "x".join(map(str, model["input_shape"]))
    return {
        "type": "machine-learning-model",
        "bom-ref": MODEL_REF,
        "name": f"{name} (compressed)",
        "version": model_sha256[:12],
        "description": f"{texts.MODEL}: ONNX, opset {model['opset']}",
        "hashes": [_sha256(model_sha256)],
        "pedigree": {
            "ancestors": [_source(source)],
            "notes": " -> ".join(stage["stage"] for stage in manifest["history"]),
        },
        "modelCard": {
            "modelParameters": {
                "task": "image-classification",
                "architectureFamily": "convolutional neural network",
                "modelArchitecture": name,
                "inputs": [{"format": f"normalised images, n x {image}, float32"}],
                "outputs": [{"format": f"logits, n x {model['classes']}, float32"}],
            }
        },
        "properties": [
            {"name": f"edgeclean:{key}", "value": str(model[key])} for key in ("macs", "params")
        ],
    }


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of the network as it came, of which only its bytes are certain."""
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": SOURCE_REF,
        "name": source["architecture"],
        "hashes": [_sha256(source["sha256"])],
    }
    files = [
        {"type": "file", "name": name, "hashes": [_sha256(digest)]}
        for name, digest in sorted(source["external_sha256"].items())
    ]
    return {**component, "components": files} if files else component


def _tool(version: str) -> dict[str, Any]:
    return {"type": "application", "name": "edgeclean", "version": version}


def _library(name: str, version: str) -> dict[str, Any]:
    # A local version (2.13.0+cpu) is percent-encoded in a package URL.
    url = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _sha256(digest: str) -> dict[str, Any]:
    return {"alg": "SHA-256", "content": digest}


def _pairs(versions: Mapping[str, str]) -> list[str]:
    return [f"{name} {version}" for name, version in sorted(versions.items())]
