"""Sign bundles and check signatures, in the format of the OpenSSF Model Signing specification.

``model.sig`` holds a Sigstore bundle with a DSSE envelope over the SHA-256 of every other file.
It is made and checked offline, with a key or a certificate of one's own, by the library
``model-signing`` (the extra ``edgeclean[sign]``); its own command line reads it as well.

The library checks the folder; here it is checked, too, that the signed hashes are those of the
bytes that `edgeclean.bundle.verify` looked at, and that no bit of the file is without meaning.
Whose a certificate is, and whether it may sign, is judged in `edgeclean.bundle.certificates`: the
library would take one that has expired, or a server's. It then checks the signature by the key.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclean.bundle import manifest as texts
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.files.documents import parse_json
from edgeclean.files.reading import read_small_file
from edgeclean.files.temporary import temporary_folder
from edgeclean.files.text import first_line, shown

if TYPE_CHECKING:
    from edgeclean.bundle.certificates import SignerCertificate

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
        certificate: PEM file of that key's certificate, which those of its issuers may follow in
            their order; None to sign with the key alone.
    """

    private_key: Path
    certificate: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """The key or the authority whose signature is trusted: exactly one of the two.

    Attributes:
        public_key: PEM file of the signer's public key.
        certificate: PEM file of the authority behind the signer's certificate, or of several.
        at: the moment that a certificate is judged at, with its time zone; None for now.
    """

    public_key: Path | None = None
    certificate: Path | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if (self.public_key is None) == (self.certificate is None):
            raise UsageError("give the public key or the certificate to trust, one of the two")
        if self.at is not None and self.certificate is None:
            raise UsageError("a moment to judge at goes with a certificate; a key has no validity")
        if self.at is not None and self.at.tzinfo is None:
            raise UsageError(f"the moment {self.at} has no time zone; give one, such as UTC")


def check_signer(signer: Signer, folder: Path | None = None) -> None:
    """Refuse, before a run of minutes, a key that could not sign at its end.

    Args:
        signer: the key, and its certificate where there is one.
        folder: what is going to be signed, where it is known; it need not exist.

    Raises:
        ToolchainError: the extra is not installed.
        UsageError: a file cannot be read, or holds no key of a kind that signs, or a certificate
            that `check_signature` would refuse now; or the folder's name cannot be signed.
    """
    if folder is not None:
        _check_name(os.path.realpath(folder))
    _configured_signer(signer)


def sign_folder(folder: Path, signer: Signer) -> bytes:
    """Sign every file of a folder, and return the content of ``texts.SIGNATURE``.

    Args:
        folder: a folder without a signature; the signature covers its name as well.
        signer: the key that signs.

    Raises:
        ToolchainError: the extra is not installed.
        UsageError: the key or certificate cannot be used, or the folder's name cannot be signed.
    """
    _check_name(folder)
    config = _configured_signer(signer).set_hashing_config(_hashing())
    # Beside the folder its name might be too long.
    with temporary_folder("edgeclean-") as made:
        path = made / texts.SIGNATURE
        config.sign(folder, path)
        return path.read_bytes()


def check_signature(
    folder: Path, files: Mapping[str, bytes], trusted: Trusted
) -> SignerCertificate | None:
    """Check that a trusted key signed the folder, and that these are the signed bytes.

    Args:
        folder: the bundle's folder.
        files: every file of it as it was read, the signature included.
        trusted: the key or the authority whose signature it must be.

    Returns:
        The certificate that signed, where an authority is trusted.

    Raises:
        ToolchainError: the extra is not installed.
        UsageError: the key or certificate cannot be used.
        InputRejectedError: there is no signature, or it is not by that key, or not of these bytes.
    """
    key = trusted.public_key
    anchors = _certificates().read_certificates(trusted.certificate) if key is None else ()
    if key is not None:
        _configured_verifier(key)
    if texts.SIGNATURE not in files:
        raise InputRejectedError(f"the bundle is not signed: it has no {texts.SIGNATURE}")
    content, signer = _content(files[texts.SIGNATURE], by_key=key is not None), None
    signed, read = _digests(content.files), _read_digests(files)
    if signed != read:
        listing = (texts.CHECKSUMS, texts.MANIFEST)  # which change with any other file
        different = sorted(
            (name for name in {*signed, *read} if signed.get(name) != read.get(name)),
            key=lambda name: (name in listing, name),
        )
        others = f", nor is {', '.join(different[1:4])}" if different[1:] else ""
        raise InputRejectedError(
            f"{different[0]} is not the file that {texts.SIGNATURE} signs{others}"
        )
    # The bytes that were read are checked, not what lies in the folder by now.
    with temporary_folder("edgeclean-") as made:
        signature = made / texts.SIGNATURE
        signature.write_bytes(files[texts.SIGNATURE])
        if key is None:
            signer, pem = _certificates().judge_chain(content.chain, anchors, trusted.at)
            key = made / "signer.pem"
            key.write_bytes(pem)
            signature.write_text(_as_if_by_key(files[texts.SIGNATURE], pem), encoding="utf-8")
        config = _configured_verifier(key).set_hashing_config(_hashing())
        try:
            config.verify(folder, signature)
        except Exception as error:  # noqa: BLE001 - the library raises many kinds on hostile bytes
            reason = first_line(error)
            raise InputRejectedError(f"{texts.SIGNATURE} does not hold: {reason}") from None
    return signer


def is_signature_of(files: Mapping[str, bytes]) -> bool:
    """Return whether a bundle's signature lists exactly its other files.

    The signature may be by any key or certificate, and is not verified.
    """
    for by_key in (True, False):
        with suppress(InputRejectedError):
            content = _content(files[texts.SIGNATURE], by_key=by_key)
            return _digests(content.files) == _read_digests(files)
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """The files that a signature lists, and the certificates in DER that came with it."""

    files: list[dict[str, str]]
    chain: list[bytes]


def _digests(payload: list[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {entry["name"]: (entry["algorithm"], entry["digest"]) for entry in payload}


def _read_digests(files: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    return {
        name: ("sha256", texts.sha256(content))
        for name, content in files.items()
        if name != texts.SIGNATURE
    }


def _content(signature: bytes, *, by_key: bool) -> _Content:
    """Return what a signature says; refuse one with bits that could have any value."""
    try:
        entries = parse_json(signature)
        envelope, material = entries["dsseEnvelope"], entries["verificationMaterial"]
        (seal,) = envelope["signatures"]
        _check_kind(material, by_key=by_key)
        coded, chain = [envelope["payload"], seal["sig"]], []
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
        certificates = [base64.b64decode(one) for one in chain]
        resources = parse_json(base64.b64decode(envelope["payload"]))["predicate"]["resources"]
        keys = ("name", "algorithm", "digest")
        files = [{key: str(one[key]) for key in keys} for one in resources]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputRejectedError(f"{texts.SIGNATURE} is not a model signature") from None
    compact = json.dumps(expected, separators=(",", ":")).encode()
    if not (named and whole and compact == signature):
        raise InputRejectedError(f"{texts.SIGNATURE} is not in the form in which it was written")
    return _Content(files=files, chain=certificates)


def _check_kind(material: Mapping[str, Any], *, by_key: bool) -> None:
    """Refuse a signature of the other kind than what is trusted."""
    if by_key and "publicKey" not in material and "x509CertificateChain" in material:
        raise InputRejectedError(
            f"{texts.SIGNATURE} was made with a certificate; name the authority that you trust "
            "with --certificate"
        )
    if not by_key and "publicKey" in material and "x509CertificateChain" not in material:
        raise InputRejectedError(
            f"{texts.SIGNATURE} was made with a key alone; name the public key that you trust with "
            "--key"
        )


def _as_if_by_key(signature: bytes, pem: bytes) -> str:
    """Return a certificate's signature as one of its key: the seal does not cover which it is."""
    entries = parse_json(signature)
    entries["verificationMaterial"] = {
        "publicKey": {"hint": texts.sha256(pem)},
        "tlogEntries": [],
    }
    return json.dumps(entries)


def _check_name(folder: str | Path) -> None:
    """Refuse a name of bytes that are no UTF-8: the signature is JSON, and holds the name."""
    name = Path(folder).name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"the folder's name {shown(name)} is not in UTF-8, and the signature has to hold it; "
            "rename the folder"
        ) from None


def _configured_signer(signer: Signer) -> Any:
    config = _library("signing").Config()
    pem = _read_key(signer.private_key)
    with _UsageErrors(f"cannot sign with {signer.private_key}"):
        _certificates().check_key(pem, private=True)
        if signer.certificate is None:
            return config.use_elliptic_key_signer(private_key=signer.private_key)
        judge = _certificates()
        judge.check_own_chain(judge.read_certificates(signer.certificate))
        return config.use_certificate_signer(
            private_key=signer.private_key,
            signing_certificate=signer.certificate,
            certificate_chain=[signer.certificate],  # an empty one it cannot read
        )


def _configured_verifier(key: Path) -> Any:
    config = _library("verifying").Config()
    pem = _read_key(key)
    with _UsageErrors(f"cannot check signatures by {key}"):
        _certificates().check_key(pem, private=False)
        return config.use_elliptic_key_verifier(public_key=key)


def _read_key(path: Path) -> bytes:
    """Read what the library would read by its name, to the end, and wait for where it is a pipe."""
    return read_small_file(path, MAX_KEY_BYTES, hint="a key is not")


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


def _certificates() -> Any:
    _library("verifying")  # the extra brings what judges certificates as well
    return importlib.import_module("edgeclean.bundle.certificates")


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
