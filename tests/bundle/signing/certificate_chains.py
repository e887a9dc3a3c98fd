"""Chains of certificates, right but for what a test asks for, and signatures made with any."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import model_signing.signing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from signing_keys import private_pem

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)
CODE = ExtendedKeyUsageOID.CODE_SIGNING
KINDS = ("P-256", "P-384", "P-521", "RSA 2048")


@lru_cache
def key(kind: str, number: int = 0) -> Any:
    """The ``number``-th key of a kind."""
    del number
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind.split()[1]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}
    return ec.generate_private_key({**curves, "secp256k1": ec.SECP256K1}[kind]())


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One certificate. None leaves the extension out."""

    subject: str
    key: Any
    ca: bool | None = False
    path_length: int | None = None
    usages: frozenset[str] | None = frozenset({"digital_signature"})
    purposes: tuple[x509.ObjectIdentifier, ...] | None = (CODE,)
    first: dt.datetime = NOW - DAY
    last: dt.datetime = NOW + DAY
    hashed: hashes.HashAlgorithm | None = field(default_factory=hashes.SHA256)
    more: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    issuer: str | None = None
    signed_by: Any = None

    def but(self, **changes: Any) -> Recipe:
        """The same but for these."""
        return replace(self, **changes)


def authority(subject: str, private: Any, **changes: Any) -> Recipe:
    """One that may sign certificates."""
    usages = frozenset({"key_cert_sign", "crl_sign"})
    return Recipe(subject=subject, key=private, ca=True, usages=usages, purposes=None).but(
        **changes
    )


def name_of(text: str) -> x509.Name:
    """A common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def made(recipes: Sequence[Recipe]) -> list[x509.Certificate]:
    """The certificates of a chain, from the signer's to the root's, which signs itself."""
    issuers = [*recipes[1:], recipes[-1]]
    return [_made(one, issuer) for one, issuer in zip(recipes, issuers, strict=True)]


def _made(one: Recipe, issuer: Recipe) -> x509.Certificate:
    built = (
        x509.CertificateBuilder()
        .subject_name(name_of(one.subject))
        .issuer_name(name_of(one.issuer or issuer.subject))
        .public_key(one.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(one.first)
        .not_valid_after(one.last)
    )
    if one.ca is not None:
        basic = x509.BasicConstraints(ca=one.ca, path_length=one.path_length)
        built = built.add_extension(basic, critical=True)
    if one.usages is not None:
        all_usages = ("digital_signature", "content_commitment", "key_encipherment")
        all_usages += ("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign")
        usage = x509.KeyUsage(
            **{one_usage: one_usage in one.usages for one_usage in all_usages},
            encipher_only=False,
            decipher_only=False,
        )
        built = built.add_extension(usage, critical=True)
    if one.purposes is not None:
        built = built.add_extension(x509.ExtendedKeyUsage(one.purposes), critical=False)
    for extension, critical in one.more:
        built = built.add_extension(extension, critical)
    private = one.signed_by or issuer.key
    plain = isinstance(private, ed25519.Ed25519PrivateKey)  # it hashes by itself
    return built.sign(private, None if plain else one.hashed)


def ders(certificates: Sequence[x509.Certificate]) -> list[bytes]:
    return [one.public_bytes(serialization.Encoding.DER) for one in certificates]


def pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def sign_carelessly(
    bundle: Path, private: Any, chain: Sequence[x509.Certificate], scratch: Path
) -> None:
    """Sign a folder as the library does, which takes a certificate of any purpose and date."""
    (scratch / "signer.pem").write_bytes(private_pem(private))
    (scratch / "signer.crt").write_bytes(pem(chain[:1]))
    (scratch / "chain.crt").write_bytes(pem(chain))
    (bundle / "model.sig").unlink(missing_ok=True)
    hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    model_signing.signing.Config().use_certificate_signer(
        private_key=scratch / "signer.pem",
        signing_certificate=scratch / "signer.crt",
        certificate_chain=[scratch / "chain.crt"],
    ).set_hashing_config(
        hashing.set_ignored_paths(paths=["model.sig"], ignore_git_paths=False)
    ).sign(bundle, bundle / "model.sig")
