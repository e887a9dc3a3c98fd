"""Readers of what comes with a bundle, from a device, from a signer, or names a file of a build."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.remote_bench import read_record
from edgeclean.bundle.signing import is_signature_of
from edgeclean.compression.latency_table import parse_latency_table
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.depfile import depfile, is_depfile
from edgeclean.images.labelled import read_labelled_images
from edgeclean.networks.state import ModelSpec

with suppress(ImportError):  # of the extra that signs; here, for the fuzzer follows what it imports
    from edgeclean.bundle import certificates

SPEC = ModelSpec(
    architecture="onnx", input_shape=(3, 4, 4), classes=3, mean=(0.0,) * 3, std=(1.0,) * 3
)
TARGET = Path("build/model.onnx")


def npz(contents: bytes) -> None:
    """A pack of labelled images."""
    images = read_labelled_images(fuzzed_file(contents, ".npz"), SPEC)
    if images.pixels.shape != (len(images.labels), *SPEC.input_shape):
        raise AssertionError("pixels that do not fit the network")
    if not ((images.labels >= 0) & (images.labels < SPEC.classes)).all():
        raise AssertionError("a label beyond the network's classes")


def sums(contents: bytes) -> None:
    """SHA256SUMS."""
    hashes = texts.read_checksums(contents)
    written = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    if written.encode() != contents:
        raise AssertionError("two lists of the same hashes are taken")


def manifest(contents: bytes) -> None:
    """manifest.json."""
    read = texts.read_json(contents, texts.MANIFEST)
    if texts.canonical_json(read) != contents:
        raise AssertionError("two forms of the same manifest are taken")
    texts.check_manifest(read)


def table(contents: bytes) -> None:
    """A latency table."""
    parse_latency_table(contents, where="table.json")


def answer(contents: bytes) -> None:
    """What a device answers to a measurement."""
    read_record(contents, "0" * 64)


def depfiles(contents: bytes) -> None:
    """The name of a checkpoint's file, in a dependency file: who reads it gets the name back."""
    name = os.fsdecode(contents.replace(b"\0", b"").replace(b"//", b"/"))
    if name:
        path = Path(name)
        rule = depfile(TARGET, [path])
        if not is_depfile(rule):
            raise AssertionError("our own file is not known again")
        lines = os.fsdecode(rule).split("\n")
        escaped = lines[1].removeprefix("  ")
        if len(lines) != 4 or lines[2] != f"{escaped}:" or read_back(escaped) != str(path):
            raise AssertionError(f"{str(path)!r} is read as {read_back(escaped)!r}")


def signature(contents: bytes) -> None:
    """model.sig, of a key and of a certificate."""
    is_signature_of({texts.SIGNATURE: contents})


def certificate(contents: bytes) -> None:
    """A signer's certificate, trusted by itself; and PEM of the user's."""
    try:
        anchors = (certificates.x509.load_der_x509_certificate(contents),)
    except Exception:  # noqa: BLE001 - no certificate: what is asked is whether we say so
        anchors = ()
    try:
        certificates.judge_chain([contents], anchors, None)
    except InputRejectedError as error:
        check_line(error)
    try:
        certificates.read_certificates(fuzzed_file(contents, ".pem"))
    except UsageError as error:
        check_line(error)


def check_line(error: Exception) -> None:
    """A refusal is one printable line of a bounded length."""
    if not 0 < len(str(error)) < 2000 or "\n" in str(error) or "\x1b" in str(error):
        raise AssertionError(f"a refusal that cannot be shown: {str(error)[:3000]!r}")


def read_back(escaped: str) -> str:
    """A name as GNU Make and Ninja read it."""
    return re.sub(r"\\([ #])", r"\1", escaped).replace("$$", "$")


def fuzzed_file(contents: bytes, suffix: str) -> Path:
    """Some readers take a path; the same file each time, in memory."""
    path = Path(tempfile.gettempdir()) / f"edgeclean-fuzz-{os.getpid()}{suffix}"
    path.write_bytes(contents)
    return path
