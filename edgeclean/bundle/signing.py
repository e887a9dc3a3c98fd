"""Sign bundles and check signatures, in the format of the OpenSSF Model Signing specification.

``model.sig`` holds a Sigstore bundle with a DSSE envelope over the SHA-256 of every other file.
It is made and checked offline, with a key or a certificate of one's own, by the library
``model-signing`` (the extra ``edgeclean[sign]``); its own command line reads it as well.

The library checks the folder; here it is checked, too, that the signed hashes are those of the
bytes that `edgeclean.bundle.verify` looked at, and that no bit of the file is without meaning.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeclean.bundle import manifest as texts
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.files.documents import parse_json
from edgeclean.files.reading import read_small_file

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAX_KEY_BYTES = 2**20
HINT_LENGTH = 64  # SHA-256 of the public key, in hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """The key that signs a bundle.

    Attributes:
        private_key: PEM file of a key on an elliptic curve (P-256, P-384 or P-521), without a
            password.
        certificate: PEM file of that key's certificate; None to sign with the key alone.
    """

    private_key: Path
    certificate: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """The key or the authority whose signature is trusted: exactly one of the two.

    Attributes:
        public_key: PEM file of the signer's public key.
        certificate: PEM file of the authority that signed the signer's certificate.
    """

    public_key: Path | None = None
    certificate: Path | None = None

    def __post_init__(self) -> None:
        if (self.public_key is None) == (self.certificate is None):
            raise UsageError("give the public key or the certificate to trust, one of the two")


def check_signer(signer: Signer) -> None:
    """Refuse, before a run of minutes, a key that could not sign at its end.

    Raises:
        ToolchainError: the extra is not installed.
        UsageError: a file cannot be read, or holds no key of a kind that signs.
    """
    _configured_signer(signer)


def sign_folder(folder: Path, signer: Signer) -> bytes:
    """Sign every file of a folder, and return the content of ``texts.SIGNATURE``.

    Args:
        folder: a folder without a signature; the signature covers its name as well.
        signer: the key that signs.

    Raises:
        ToolchainError: the extra is not installed.
        UsageError: the key or certificate cannot be used.
    """
    config = _configured_signer(signer).set_hashing_config(_hashing())
    path = folder.with_name(f"{folder.name}.signature")
    try:
        config.sign(folder, path)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def check_signature(folder: Path, files: Mapping[str, bytes], trusted: Trusted) -> None:
    """Check that a trusted key signed the folder, and that these are the signed bytes.

    Args:
        folder: the bundle's folder.
        files: every file of it as it was read, the signature included.
        trusted: the key or the authority whose signature it must be.

    Raises:
        ToolchainError: the extra is not installed.
        UsageError: the key or certificate cannot be used.
        InputRejectedError: there is no signature, or it is not by that key, or not of these bytes.
    """
    config = _configured_verifier(trusted).set_hashing_config(_hashing())
    if texts.SIGNATURE not in files:
        raise InputRejectedError(f"the bundle is not signed: it has no {texts.SIGNATURE}")
    payload = _payload(files[texts.SIGNATURE], by_key=trusted.public_key is not None)
    try:
        with TemporaryDirectory() as private:
            # The signature that was read: by its name it could be another one by now.
            (Path(private) / texts.SIGNATURE).write_bytes(files[texts.SIGNATURE])
            config.verify(folder, Path(private) / texts.SIGNATURE)
    except Exception as error:  # noqa: BLE001 - the library raises many kinds on hostile bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise InputRejectedError(f"{texts.SIGNATURE} does not hold: {reason}") from None
    signed, read = _digests(payload), _read_digests(files)
    if signed != read:
        different = sorted(name for name in {*signed, *read} if signed.get(name) != read.get(name))
        raise InputRejectedError(f"{different[0]} is not the file that {texts.SIGNATURE} signs")


def is_signature_of(files: Mapping[str, bytes]) -> bool:
    """Return whether a bundle's signature lists exactly its other files.

    The signature may be by any key or certificate, and is not verified.
    """
    for by_key in (True, False):
        with suppress(InputRejectedError):
            payload = _payload(files[texts.SIGNATURE], by_key=by_key)
            return _digests(payload) == _read_digests(files)
    return False


def _digests(payload: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {entry["name"]: (entry["algorithm"], entry["digest"]) for entry in payload}


def _read_digests(files: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    return {
        name: ("sha256", texts.sha256(content))
        for name, content in files.items()
        if name != texts.SIGNATURE
    }


def _payload(signature: bytes, *, by_key: bool) -> list[dict[str, str]]:
    """Return the files that a signature lists; refuse one with bits that could have any value."""
    try:
        entries = parse_json(signature)
        envelope, material = entries["dsseEnvelope"], entries["verificationMaterial"]
        (seal,) = envelope["signatures"]
        coded = [envelope["payload"], seal["sig"]]
        if by_key:
            whose = {"publicKey": {"hint": material["publicKey"]["hint"]}}
            # Without the hint, the library prints on stdout that it does not check whose key it is.
            named = len(material["publicKey"]["hint"]) == HINT_LENGTH
        else:
            chain = [one["rawBytes"] for one in material["x509CertificateChain"]["certificates"]]
            whose = {"x509CertificateChain": {"certificates": [{"rawBytes": one} for one in chain]}}
            coded, named = [*coded, *chain], bool(chain)
        expected = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {**whose, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": envelope["payload"],
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": seal["sig"], "keyid": ""}],
            },
        }
        whole = all(base64.b64encode(base64.b64decode(one)).decode() == one for one in coded)
        resources = parse_json(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
        keys = ("name", "algorithm", "digest")
        files = [{key: str(one[key]) for key in keys} for one in resources]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputRejectedError(f"{texts.SIGNATURE} is not a model signature") from None
    compact = json.dumps(expected, separators=(",", ":")).encode()
    if not (named and whole and compact == signature):
        raise InputRejectedError(f"{texts.SIGNATURE} is not in the form in which it was written")
    return files


def _configured_signer(signer: Signer) -> Any:
    config = _library("signing").Config()
    with _UsageErrors(f"cannot sign with {signer.private_key}"):
        _try_to_open(signer.private_key, signer.certificate)
        if signer.certificate is None:
            return config.use_elliptic_key_signer(private_key=signer.private_key)
        return config.use_certificate_signer(
            private_key=signer.private_key,
            signing_certificate=signer.certificate,
            certificate_chain=[signer.certificate],  # an empty one it cannot read
        )


def _configured_verifier(trusted: Trusted) -> Any:
    config = _library("verifying").Config()
    with _UsageErrors(f"cannot check signatures by {trusted.public_key or trusted.certificate}"):
        _try_to_open(trusted.public_key, trusted.certificate)
        if trusted.public_key is not None:
            return config.use_elliptic_key_verifier(public_key=trusted.public_key)
        return config.use_certificate_verifier(certificate_chain=[trusted.certificate])


def _try_to_open(*files: Path | None) -> None:
    """The library reads files by their names, to the end, and would wait for a pipe for ever."""
    for file in files:
        if file is not None:
            read_small_file(file, MAX_KEY_BYTES, hint="a key or certificate is not")


def _hashing() -> Any:
    """Configure hashes of every file but the signature, git's own included; links are refused."""
    config = _library("hashing").Config().use_file_serialization(hashing_algorithm="sha256")
    return config.set_ignored_paths(paths=[texts.SIGNATURE], ignore_git_paths=False)


def _library(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise ToolchainError(
            f"signatures need the library model-signing ({error}); pip install 'edgeclean[sign]'"
        ) from None


class _UsageErrors:
    """Turn any exception into a usage error of one line: the key is the user's own."""

    def __init__(self, failure: str) -> None:
        self._failure = failure

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or ["?"])[0]
            raise UsageError(f"{self._failure}: {reason}") from None
