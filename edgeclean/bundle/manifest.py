"""Write and read the text files of a bundle that bind its other files.

``SHA256SUMS`` lists every other file but the signature, in the format that ``sha256sum --check``
reads on any device.
``manifest.json`` lists the reproducible ones and says how they were made; ``report.json`` and
``report.html`` hold measurements, which differ from run to run, so the manifest leaves them out.
``model.sig``, where there is one, signs all the others (see ``signing``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from edgeclean.errors import InputRejectedError
from edgeclean.files.documents import parse_json
from edgeclean.files.schema import first_violation
from edgeclean.files.text import shown

FORMAT = "edgeclean-bundle"
SCHEMA_VERSION = 1
MODEL = "model.onnx"
MANIFEST = "manifest.json"
REPORT = "report.json"
REPORT_PAGE = "report.html"
GOLDEN = "golden.safetensors"
CHECKSUMS = "SHA256SUMS"
MATERIALS = "bom.cdx.json"
SIGNATURE = "model.sig"
ALWAYS = frozenset({MANIFEST, REPORT, MODEL, GOLDEN, MATERIALS})
# The manifest lists none of these: they differ from run to run, or are written after it.
UNREPRODUCIBLE = frozenset({MANIFEST, REPORT, REPORT_PAGE, CHECKSUMS, SIGNATURE})

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,3}")
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def sha256(content: bytes) -> str:
    """Return the SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries for these files: size in bytes and SHA-256, by name."""
    return {
        name: {"bytes": len(content), "sha256": sha256(content)} for name, content in files.items()
    }


def is_file_name(name: str) -> bool:
    """Return whether ``name`` may name a file of a bundle: relative, plain, 4 levels at most."""
    return _NAME.fullmatch(name) is not None


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """Return the canonical form of JSON in a bundle: sorted keys, two spaces, a final newline.

    What is no character, such as a byte of a file's name that is not UTF-8, is an escape.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="backslashreplace")


def read_json(content: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object that `canonical_json` wrote.

    Raises:
        InputRejectedError: the content is not JSON, not an object, or not in the canonical form
            (which excludes a key given twice).
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InputRejectedError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputRejectedError(f"{name} holds a {type(value).__name__}; a JSON object is needed")
    try:
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise InputRejectedError(f"{name} is not in the form edgeclean writes: {error}") from error
    if canonical != content:
        raise InputRejectedError(f"{name} is not in the form edgeclean writes: it was changed")
    return value


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """Check a manifest against the schema that is shipped as ``schemas/manifest.schema.json``.

    Raises:
        InputRejectedError: the manifest does not fit; the message names the field. Nothing else
            needs to look at the types of what is read from it.
    """
    violation = first_violation(manifest, "manifest")
    if violation is not None:
        raise InputRejectedError(f"{MANIFEST} does not fit its schema {violation}")
    model = manifest["model"]
    for name in ("mean", "std"):
        if len(model[name]) != model["input_shape"][0]:
            raise InputRejectedError(
                f"{MANIFEST} gives {len(model[name])} numbers as model/{name}, and images of "
                f"{model['input_shape'][0]} channels need one each"
            )


def precision_of(manifest: Mapping[str, Any]) -> str:
    """Return the precision of ``model.onnx`` by a manifest that was checked; fp32 if not said."""
    return str(manifest["configuration"].get("precision", {"format": "fp32"})["format"])


def checksum_lines(files: Mapping[str, bytes]) -> bytes:
    """Return the content of ``SHA256SUMS`` for these files."""
    return "".join(f"{sha256(files[name])}  {name}\n" for name in sorted(files)).encode()


def read_checksums(content: bytes) -> dict[str, str]:
    """Return the SHA-256 of every listed file, by name.

    Raises:
        InputRejectedError: the content is not exactly as `checksum_lines` writes it.
    """
    hashes: dict[str, str] = {}
    for line in content.decode("ascii", errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or not is_file_name(match[2]):
            raise InputRejectedError(
                f"{CHECKSUMS} has a line that is not 'sha256  name': {shown(line)}"
            )
        hashes[match[2]] = match[1]
    written = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()
    if written != content:
        raise InputRejectedError(f"{CHECKSUMS} is not in the form edgeclean writes: it was changed")
    return hashes
