"""Judge the certificate behind a signature: its chain, its moment and its purpose.

The chain is built and checked by ``cryptography.x509.verification``, by the rules of RFC 5280:
every link's signature, validity and issuer, basic constraints, path lengths, name constraints,
critical extensions that nobody knows, and the algorithms and key sizes of the web's authorities.
Its ready policies are for TLS; the rules of who may sign a bundle are written out here:

- The signer's key is on P-256, P-384 or P-521, and its certificate is no authority's.
- Its key usage is given and has ``digitalSignature``; its extended key usage is given and has
  ``codeSigning``, and neither ``serverAuth`` nor ``anyExtendedKeyUsage``. RFC 5280 lets a
  certificate without any purpose do anything; here it must say that it signs code, or whatever has
  a general certificate of the same authority could sign firmware.
- An authority whose certificate lists purposes lists ``codeSigning`` (or any) among them.

Nothing in a bundle says in a way that could be trusted when it was signed (that takes a timestamp
of a third party, and a connection), so a certificate is judged now, or at a moment that the
verifier names. Revocation is not looked up, for the same reason.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from edgeclean.errors import EdgecleanError, InputRejectedError, UsageError
from edgeclean.files.reading import read_small_file
from edgeclean.files.text import first_line, printable

MAX_CERTIFICATES = 10
MAX_PEM_BYTES = 2**20
MAX_NAME = 200  # characters of a name that are shown
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_WANTED_KEY = "wanted is one on P-256, P-384 or P-521, such as "
_MADE_BY = {
    "private": "`openssl ecparam -genkey -noout -name prime256v1` makes",
    "public": "`openssl ec -in PRIVATE_KEY -pubout` takes from the private one",
}
SIGNED_WITH = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.RSASSA_PSS,
    }
)
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerCertificate:
    """The certificate that signed. Its names are whatever its authority let in: a stranger's text.

    Attributes:
        subject: whose it is, by RFC 4514, printable and at most 200 characters long.
        issuer: whose authority signed it, in the same form.
        serial: its serial number in hexadecimal, at most 20 bytes.
        valid_from: the first second of its validity (ISO 8601, UTC).
        valid_until: the last second of its validity (ISO 8601, UTC).
        sha256: the SHA-256 of the certificate, its fingerprint.
        trusted: the subject of the trusted certificate that the chain ends in.
        judged_at: the moment that it was judged at (ISO 8601, UTC).
    """

    subject: str
    issuer: str
    serial: str
    valid_from: str
    valid_until: str
    sha256: str
    trusted: str
    judged_at: str


def read_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """Read the certificates of a PEM file, at least one and at most ten.

    Raises:
        UsageError: the file cannot be read, or a certificate in it cannot.
    """
    pem = read_small_file(path, MAX_PEM_BYTES, hint="name a PEM file with a few certificates")
    with _refusal_as(f"{path} holds no certificates as PEM", UsageError):
        read = tuple(x509.load_pem_x509_certificates(pem))
    if len(read) > MAX_CERTIFICATES:
        raise UsageError(
            f"{path} holds {len(read)} certificates; at most {MAX_CERTIFICATES} are read"
        )
    return read


def check_key(pem: bytes, *, private: bool) -> None:
    """Check that a file holds a key of a kind that bundles are signed with, and that it opens.

    Args:
        pem: the content of the file.
        private: whether it must be the private key, that signs, or the public one, that checks.

    Raises:
        ValueError: it holds another thing, or a key of another kind, or one with a password.
    """
    which = "private" if private else "public"
    wanted = f"{_WANTED_KEY}{_MADE_BY[which]}"
    try:
        key = (
            serialization.load_pem_private_key(pem, password=None)
            if private
            else serialization.load_pem_public_key(pem)
        )
    except TypeError:
        raise ValueError("it has a password, which is not asked for; remove it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"it holds no {which} key as PEM; {wanted}") from None
    if not isinstance(getattr(key, "curve", None), CURVES):
        raise ValueError(f"it holds a {which} key of another kind; {wanted}")


def check_own_chain(chain: Sequence[x509.Certificate]) -> None:
    """Check, before signing, what every verifier will, whichever authority it trusts.

    Args:
        chain: the signer's certificate, then its issuer's, and so on; the root may be left out.

    Raises:
        UsageError: a verifier would refuse the certificate, now.
    """
    try:
        _judge(chain, anchors=chain[-1:], moment=_now())
    except InputRejectedError as error:
        raise UsageError(str(error)) from None


def judge_chain(
    encoded: Sequence[bytes], anchors: Sequence[x509.Certificate], at: datetime | None
) -> tuple[SignerCertificate, bytes]:
    """Judge the certificates that came with a signature.

    Args:
        encoded: the signer's certificate and those of its issuers, in DER; untrusted.
        anchors: the certificates that are trusted: of authorities, or the signer's own.
        at: the moment to judge at; None for now.

    Returns:
        The signer, and its public key as PEM, which the signature is still to be checked with.

    Raises:
        InputRejectedError: the signer's certificate is not one that may sign a bundle, at that
            moment, by these authorities.
    """
    if len(encoded) > MAX_CERTIFICATES + 1:
        raise InputRejectedError(
            f"the signature comes with {len(encoded)} certificates; at most {MAX_CERTIFICATES} "
            "make a chain"
        )
    with _refusal_as("the signature's certificates cannot be read"):
        chain = [x509.load_der_x509_certificate(der) for der in encoded]
    for der, certificate in zip(encoded, chain, strict=True):
        # Neither signed nor read by the library: how many bits of the last octet do not count.
        if not der.endswith(b"\0" + certificate.signature):
            raise InputRejectedError(
                "the signature's certificates cannot be read: one ends in no whole signature"
            )
    if chain[1:2] == chain[:1]:  # so the library writes it where no issuers are given
        del chain[1]
    moment = _now() if at is None else at.astimezone(UTC)
    path = _judge(chain, anchors, moment)
    with _refusal_as("the signer's certificate cannot be read"):
        public = path[0].public_key()
        pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return _described(path[0], path[-1], moment), pem


def _judge(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], moment: datetime
) -> list[x509.Certificate]:
    """Return the path from the signer to an anchor, all of whose rules hold."""
    with _refusal_as("the signer's certificate cannot be read"):
        _check_purpose(chain[0])
        for certificate in chain:
            _check_algorithm(certificate)
        _check_moment(chain[0], moment)
    try:
        with _refusal_as(
            "the signer's certificate does not hold", but=verification.VerificationError
        ):
            path = _verifier(anchors, moment).verify(chain[0], list(chain[1:])).chain
    except verification.VerificationError as error:
        for certificate in (*chain[1:], *anchors):
            if "at validation time" in str(error):
                _check_moment(certificate, moment)
        raise InputRejectedError(_no_chain(str(error), chain[-1])) from None
    known = min(len(path), len(chain))  # the trusted one may stand in the middle of what came
    if list(chain[:known]) != path[:known] or not _is_in_order(chain[known - 1 :]):
        raise InputRejectedError(
            "the signature comes with certificates that are no part of the signer's chain, or not "
            "in its order; whoever signs gives the signer's first, then its issuer's, and so on"
        )
    return path


def _is_in_order(chain: Sequence[x509.Certificate]) -> bool:
    """Return whether each certificate was issued by the next, and none stands there twice."""
    if len({*chain}) < len(chain):
        return False
    try:
        for one, issuer in itertools.pairwise(chain):
            one.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _verifier(anchors: Sequence[x509.Certificate], moment: datetime) -> verification.ClientVerifier:
    """Return the library's verifier without the rules of TLS; a signer's are `_check_purpose`."""
    either = verification.Criticality.AGNOSTIC
    everything = verification.ExtensionPolicy.permit_all
    authority = (
        everything()
        .require_present(x509.BasicConstraints, either, None)  # that it is one: by the library
        .may_be_present(x509.KeyUsage, either, _may_sign_certificates)
        .may_be_present(x509.ExtendedKeyUsage, either, _may_speak_for_code)
        .may_be_present(x509.NameConstraints, either, _names_that_are_compared)
    )
    return (
        verification.PolicyBuilder()
        .time(moment)
        .store(verification.Store(list(anchors)))
        .max_chain_depth(MAX_CERTIFICATES)
        .extension_policies(ca_policy=authority, ee_policy=everything())
        .build_client_verifier()
    )


def _check_purpose(signer: x509.Certificate) -> None:
    name = f"the certificate of {_shown(signer.subject)}"
    basic = _extension(signer, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise InputRejectedError(f"{name} is an authority's; a signer needs one of its own")
    usage = _extension(signer, x509.KeyUsage)
    if usage is None or not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise InputRejectedError(
            f"{name} is not for signatures: its key usage must have digitalSignature, and not "
            "keyCertSign or cRLSign"
        )
    purposes = _extension(signer, x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        found = "none" if purposes is None else _purposes(purposes)
        raise InputRejectedError(
            f"{name} is not for signing code: its extended key usage is {found}, and must have "
            "codeSigning"
        )
    for wrong in (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE):
        if wrong in purposes:
            raise InputRejectedError(
                f"{name} is for {_purposes(purposes)}; one that signs code is not for servers or "
                "for anything as well"
            )
    key = signer.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES)):
        raise InputRejectedError(f"{name} is of another key than one on P-256, P-384 or P-521")


def _check_algorithm(certificate: x509.Certificate) -> None:
    if certificate.signature_algorithm_oid not in SIGNED_WITH:
        oid = certificate.signature_algorithm_oid.dotted_string[:60]
        raise InputRejectedError(
            f"the certificate of {_shown(certificate.subject)} is signed with algorithm {oid}; "
            "allowed are ECDSA and RSA with SHA-256, SHA-384 or SHA-512"
        )


def _check_moment(certificate: x509.Certificate, moment: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= moment.replace(microsecond=0) <= last:
        raise InputRejectedError(
            f"the certificate of {_shown(certificate.subject)} is valid from {_iso(first)} to "
            f"{_iso(last)}, and was judged at {_iso(moment)}; a verifier may name another moment"
        )


def _may_sign_certificates(
    _policy: verification.Policy, _authority: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the key usage of an authority lacks keyCertSign")


def _may_speak_for_code(
    _policy: verification.Policy,
    _authority: x509.Certificate,
    purposes: x509.ExtendedKeyUsage | None,
) -> None:
    fitting = (ExtendedKeyUsageOID.CODE_SIGNING, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if purposes is not None and not any(one in purposes for one in fitting):
        raise ValueError("the extended key usage of an authority lacks codeSigning")


def _names_that_are_compared(
    _policy: verification.Policy,
    _authority: x509.Certificate,
    constraints: x509.NameConstraints | None,
) -> None:
    """Refuse constraints that the library would not compare, critical or not."""
    if constraints is None:
        return
    for name in (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ())):
        if not isinstance(name, x509.DNSName | x509.IPAddress):
            raise ValueError("name constraints of other kinds than DNS and IP cannot be judged")


def _no_chain(reason: str, last: x509.Certificate) -> str:
    if reason.endswith("no interior errors"):
        reason = f"no trusted certificate is the issuer of {_shown(last.subject)}"
    return f"the signer's certificate does not hold: {_short(reason)}"


def _described(
    signer: x509.Certificate, anchor: x509.Certificate, moment: datetime
) -> SignerCertificate:
    return SignerCertificate(
        subject=_shown(signer.subject),
        issuer=_shown(signer.issuer),
        serial=f"{signer.serial_number:x}",
        valid_from=_iso(signer.not_valid_before_utc),
        valid_until=_iso(signer.not_valid_after_utc),
        sha256=signer.fingerprint(hashes.SHA256()).hex(),
        trusted=_shown(anchor.subject),
        judged_at=_iso(moment),
    )


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _purposes(purposes: x509.ExtendedKeyUsage) -> str:
    return _short(", ".join(_purpose(one) for one in list(purposes)[:5]))


def _purpose(purpose: x509.ObjectIdentifier) -> str:
    return _PURPOSE_NAMES.get(purpose, purpose.dotted_string[:60])


_PURPOSE_NAMES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}


def _shown(name: x509.Name) -> str:
    return _short(name.rfc4514_string()) or "nobody"


def _short(text: str) -> str:
    plain = printable(text)
    return plain if len(plain) <= MAX_NAME else f"{plain[: MAX_NAME - 3]}..."


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _refusal_as(
    failure: str,
    kind: type[EdgecleanError] = InputRejectedError,
    *,
    but: type[Exception] = EdgecleanError,
) -> Iterator[None]:
    """Turn whatever the library raises or warns of into a refusal: the certificate is hostile."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except (EdgecleanError, but):
        raise
    except Exception as error:  # noqa: BLE001 - parsers raise many kinds on hostile bytes
        reason = _short(first_line(error))
        raise kind(f"{failure}: {reason}") from None
