"""Seeds for the readers of what comes with a bundle, from a device or a signer: good and broken."""

from __future__ import annotations

import datetime
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from bundle_files import put_bundle
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from latency_tables import made_up_table
from PIL import Image
from tiny_networks import tiny_network

from edgeclean.bundle.signing import Signer, sign_folder

Seed = tuple[str, str, bytes]


def seeds() -> Iterator[Seed]:
    """Reader, name and contents of each."""
    yield from (("npz", *one) for one in _packs())
    yield from (("depfiles", *one) for one in _names())
    yield from (("certificate", *one) for one in _certificates())
    with tempfile.TemporaryDirectory() as made:
        bundle = put_bundle(Path(made) / "build")
        listed = (bundle / "SHA256SUMS").read_bytes()
        yield from (("sums", *one) for one in _lists(listed))
        manifest = (bundle / "manifest.json").read_bytes()
        yield from (("manifest", *one) for one in _documents(manifest, canonical=True))
        (bundle / "report.html").write_bytes(b"")
        yield from (("signature", *one) for one in _signatures(bundle, Path(made)))
    table = made_up_table(tiny_network())
    blocks = {shape: timed[:3] for shape, timed in list(table.blocks.items())[:1]}
    small = replace(table, blocks=blocks).canonical()
    yield from (("table", *one) for one in _documents(small, canonical=True))
    yield from (("answer", *one) for one in _documents(_answer(), canonical=False))


def _packs() -> Iterator[tuple[str, bytes]]:
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    labels = np.array([0, 2])
    pictures = []
    for kind in ("PNG", "BMP"):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (1, 2, 3)).save(stream, kind)
        pictures.append(stream.getvalue())
    data = np.frombuffer(b"".join(pictures), np.uint8)
    offsets = np.cumsum([0, *map(len, pictures)])
    yield "good images", _pack(labels=labels, images=pixels)
    yield "good pictures", _pack(labels=labels, data=data, offsets=offsets)
    yield "no labels", _pack(images=pixels)
    yield "labels beyond", _pack(labels=labels + 9, images=pixels)
    yield "labels below", _pack(labels=labels - 9, images=pixels)
    yield "a plane of labels", _pack(labels=labels[None], images=pixels)
    yield "labels of a point", _pack(labels=np.array(1), images=pixels)
    yield "floating images", _pack(labels=labels, images=pixels.astype(np.float32))
    yield "offsets of a point", _pack(labels=labels, data=data, offsets=np.array(3))
    yield "offsets that fall", _pack(labels=labels, data=data, offsets=offsets[::-1].copy())
    yield "unsigned offsets", _pack(labels=labels, data=data, offsets=offsets.astype(np.uint64))
    yield "no pictures", _pack(labels=labels[:0], images=pixels[:0])
    yield "objects", _pack(labels=np.array([None, {}], dtype=object), images=pixels)
    yield "cut short", _pack(labels=labels, images=pixels)[:-20]


def _pack(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _names() -> Iterator[tuple[str, bytes]]:
    names = "a.pth|a b.pth|a#b|a$b|$(touch x)|.IGNORE|./.PHONY|~/a|lib(member)|a;b|a:b|a\\ b|a%b"
    for index, name in enumerate(names.split("|")):
        yield f"name {index}", name.encode()
    yield "letters", "größe/網路.onnx".encode()
    yield "no text", b"a\xff\xfe.pth"
    yield "lines", b"a\nb:\n\techo"
    yield "spaces", b" a "


def _lists(good: bytes) -> Iterator[tuple[str, bytes]]:
    first, *rest = good.splitlines(keepends=True)
    yield "good", good
    yield "turned round", b"".join([*rest, first])
    yield "twice", first + good
    yield "no last line", good[:-1]
    yield "one space", good.replace(b"  ", b" ", 1)
    yield "capital letters", good.replace(good[:64], good[:64].upper())
    yield "a folder above", b"0" * 64 + b"  ../a\n"
    yield "a root", b"0" * 64 + b"  /etc/passwd\n"
    yield "no text", b"0" * 64 + b"  \xff\n"
    yield "windows", good.replace(b"\n", b"\r\n")
    yield "nothing listed", b"\n"


def _documents(good: bytes, *, canonical: bool) -> Iterator[tuple[str, bytes]]:
    whole = json.loads(good)
    spaced = {"indent": 2, "sort_keys": True} if canonical else {}
    yield "good", good
    for index, key in enumerate(sorted(whole)[:6]):
        for name, value in (("none", None), ("deep", [[[[{}]]]])):
            changed = json.dumps({**whole, key: value}, **spaced) + "\n"  # type: ignore[arg-type]
            yield f"key {index} {name}", changed.encode()
    yield "a key twice", good.replace(b"{", b'{"a": 1, "a": 2, ', 1)
    yield "not a number", b'{"a": NaN}\n'
    yield "beyond numbers", b'{"a": 1e999}\n'
    yield "many digits", b'{"a": ' + b"9" * 3000 + b"}\n"
    yield "deep", b"[" * 4000
    yield "deep objects", b'{"a":' * 800
    yield "a list", b"[]\n"
    yield "half a letter", b'{"a": "\\ud800"}\n'
    yield "no text", b'{"a": "\xff"}\n'


def _answer() -> bytes:
    """What the kit's schema takes, of a device that is made up."""
    device = dict.fromkeys(
        ("compute_capability", "compute_capability_from", "kernel", "machine", "python"), "8.7"
    )
    state: dict[str, object] = {"clocks_mhz": {}, "temperatures_c": {"cpu": 40.0}}
    state |= {"memory_available_mib": 5000, "uptime_s": 12.5}
    times = ("p50_ms", "p90_ms", "p99_ms", "min_ms", "mean_ms")
    sample: dict[str, object] = dict.fromkeys(times, 1.5)
    sample |= {"coefficient_of_variation": 0.01, "runs": 200, "rounds_p50_ms": [1.5]}
    settings: dict[str, object] = {
        "rounds": 5,
        "seconds": 3,
        "warmup_ms": 200,
        "workspace_mib": 512,
    }
    settings |= {"dla_core": None, "transfers": False, "cuda_graph": True, "batch": 1}
    both = ("original", "compressed")
    engine: dict[str, object] = {
        "key": "k",
        "onnx_sha256": "0" * 64,
        "engine_sha256": "0" * 64,
        "precision": "fp16",
    }
    engine |= {"bytes": 5, "build_seconds": 9.5, "cached": False, "flags": ["--fp16"]}
    engine |= {"layer_precisions": None}
    document = {
        "format": "edgeclean-device-1",
        "manifest_sha256": "0" * 64,
        "device": {**device, "model": "a board", "l4t": None, "memory_total_mib": None},
        "tensorrt": "10.3.0",
        "power_mode": None,
        "before": state,
        "after": state,
        "resumed": False,
        "settings": settings,
        "engines": dict.fromkeys(both, engine),
        "latency": {**dict.fromkeys(both, sample), "speedup": 1.0, "kind": "measured"},
    }
    return json.dumps(document).encode()


def _signatures(bundle: Path, scratch: Path) -> Iterator[tuple[str, bytes]]:
    key = ec.derive_private_key(5, ec.SECP256R1())
    (scratch / "key.pem").write_bytes(_private_pem(key))
    (scratch / "cert.pem").write_bytes(_certificate().public_bytes(serialization.Encoding.PEM))
    for name in [path for path in bundle.rglob("*") if path.is_file()][2:]:
        name.unlink()
    for folder in sorted(bundle.rglob("*"), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    by_key = sign_folder(bundle, Signer(private_key=scratch / "key.pem"))
    signer = Signer(private_key=scratch / "key.pem", certificate=scratch / "cert.pem")
    by_certificate = sign_folder(bundle, signer)
    for kind, good in (("key", by_key), ("certificate", by_certificate)):
        entries = json.loads(good)
        yield f"good by {kind}", good
        yield f"spaced by {kind}", json.dumps(entries).encode()
        yield f"nothing of {kind}", json.dumps({**entries, "verificationMaterial": {}}).encode()
        yield f"unsealed by {kind}", json.dumps({**entries, "dsseEnvelope": None}).encode()
        envelope = {**entries["dsseEnvelope"], "payload": "é="}
        yield f"odd by {kind}", json.dumps({**entries, "dsseEnvelope": envelope}).encode()
    yield "deep", b"[" * 4000


def _certificates() -> Iterator[tuple[str, bytes]]:
    many = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    names = x509.NameConstraints([x509.DNSName("a")], [x509.DNSName("b")])
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x05\0")
    made = {
        "good": _certificate(),
        "long name": _certificate(name="\x1b[2J" * 12),
        "odd letters": _certificate(name="\u202egpj"),
        "server": _certificate(more=(many,)),
        "constraints": _certificate(more=(names,)),
        "strange": _certificate(more=(strange,)),
        "authority": _certificate(authority=True),
        "SHA-512": _certificate(hashed=hashes.SHA512()),
        "P-521": _certificate(curve=ec.SECP521R1()),
        "secp256k1": _certificate(curve=ec.SECP256K1()),
    }
    for name, certificate in made.items():
        yield name, certificate.public_bytes(serialization.Encoding.DER)
    good = made["good"]
    yield "PEM", good.public_bytes(serialization.Encoding.PEM)
    yield "cut short", good.public_bytes(serialization.Encoding.DER)[:200]
    yield "longer", good.public_bytes(serialization.Encoding.DER) + b"\0\0"


def _certificate(
    *,
    name: str = "a maker",
    more: tuple[x509.ExtensionType, ...] = (),
    authority: bool = False,
    hashed: hashes.HashAlgorithm | None = None,
    curve: ec.EllipticCurve | None = None,
) -> x509.Certificate:
    key = ec.derive_private_key(5, curve or ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    first = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, False, False, False)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(first)
        .not_valid_after(first.replace(year=2099))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(usage, critical=True)
    )
    if not any(isinstance(one, x509.ExtendedKeyUsage) for one in more):
        more = (*more, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]))
    for one in more:
        built = built.add_extension(one, critical=False)
    return built.sign(key, hashed or hashes.SHA256(), ecdsa_deterministic=True)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
