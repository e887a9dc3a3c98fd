"""No bit of a signed bundle, or of its signature, is anybody's to choose."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

pytest.importorskip("model_signing")
from signing_keys import flip

from edgeclean.bundle import signing
from edgeclean.bundle.signing import Trusted
from edgeclean.bundle.verify import read_folder, verify_bundle
from edgeclean.errors import InputRejectedError

FLIPS = 200


def test_each_of_200_flipped_bits_is_found(bundle: Path, trusted: Trusted) -> None:
    draw = random.Random(0)
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    found, tried = 0, set()
    for _ in range(FLIPS):
        path = draw.choice(paths)
        bit = draw.randrange(8 * path.stat().st_size)
        flip(path, bit)
        with pytest.raises(InputRejectedError):
            verify_bundle(bundle, trusted)
        found += 1
        tried.add(path.name)
        flip(path, bit)
    assert found == FLIPS
    assert tried == {path.name for path in paths}
    assert verify_bundle(bundle, trusted).signature == "holds"


def test_each_bit_of_the_signature_counts(bundle: Path, trusted: Trusted) -> None:
    """Each byte once: base64, brackets, names of keys, and the hint that says whose it is."""
    files, _ = read_folder(bundle)
    length = len(files["model.sig"])
    for place in range(0, length, 7):
        changed = bytearray(files["model.sig"])
        changed[place] ^= 1 << place % 8
        with pytest.raises(InputRejectedError):
            signing.check_signature(
                _written(bundle, bytes(changed)), {**files, "model.sig": bytes(changed)}, trusted
            )
    signing.check_signature(_written(bundle, files["model.sig"]), files, trusted)


def _written(bundle: Path, signature: bytes) -> Path:
    (bundle / "model.sig").write_bytes(signature)
    return bundle


@pytest.mark.parametrize(
    "signature", [b"", b"{}", b"[]", b"[" * 10**5, b'{"dsseEnvelope": {"signatures": []}}']
)
def test_what_is_no_signature_is_refused(bundle: Path, trusted: Trusted, signature: bytes) -> None:
    (bundle / "model.sig").write_bytes(signature)
    with pytest.raises(InputRejectedError, match=r"model\.sig is not a model signature"):
        verify_bundle(bundle, trusted)


@pytest.mark.parametrize("kind", ["a space", "loose bits", "no hint"])
def test_a_signature_in_another_form_is_refused(bundle: Path, trusted: Trusted, kind: str) -> None:
    """What the library would take, and what means the same: no bit may be anybody's to choose."""
    files, _ = read_folder(bundle)
    entries = json.loads(files["model.sig"])
    if kind == "loose bits":
        payload = base64.b64decode(entries["dsseEnvelope"]["payload"])
        coded = base64.b64encode(payload + b" " * ((1 - len(payload)) % 3)).decode()
        assert coded.endswith("==")
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        loose = alphabet[alphabet.index(coded[-3]) + 1]
        entries["dsseEnvelope"]["payload"] = coded[:-3] + loose + "=="
        assert base64.b64decode(entries["dsseEnvelope"]["payload"]) == base64.b64decode(coded)
    if kind == "no hint":
        entries["verificationMaterial"]["publicKey"]["hint"] = ""
    separators = (", ", ":") if kind == "a space" else (",", ":")
    changed = json.dumps(entries, separators=separators).encode()
    with pytest.raises(InputRejectedError, match="not in the form in which it was written"):
        signing.check_signature(bundle, {**files, "model.sig": changed}, trusted)
