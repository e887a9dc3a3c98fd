"""A signature holds for a bundle as it was signed, and for nobody else's key."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from bundle_files import make_hashes_fit, put_bundle
from tiny_networks import tiny_contents

pytest.importorskip("model_signing")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from signing_keys import flip, private_pem, public_pem, sign, write_certificates, write_keys

from edgeclean import cli
from edgeclean.bundle import signing
from edgeclean.bundle.bundle import hold_output, put_in_place, write_bundle
from edgeclean.bundle.sign import sign_bundle
from edgeclean.bundle.signing import Signer, Trusted, check_signer
from edgeclean.bundle.verify import read_folder, verify_bundle
from edgeclean.cli.compress import _signer
from edgeclean.errors import InputRejectedError, OutputInUseError, ToolchainError, UsageError


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The real entry point, in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["edgeclean", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_a_changed_bundle_whose_hashes_fit_is_found_by_the_signature_alone(
    bundle: Path, trusted: Trusted
) -> None:
    (bundle / "triggers" / "class_3.png").write_bytes(b"another")
    make_hashes_fit_but_the_signature(bundle)
    assert verify_bundle(bundle).signature == "not checked"
    with pytest.raises(InputRejectedError, match=r"not the file that model.sig.*class_3\.png"):
        verify_bundle(bundle, trusted)


def make_hashes_fit_but_the_signature(bundle: Path) -> None:
    signature = (bundle / "model.sig").read_bytes()
    (bundle / "model.sig").unlink()
    make_hashes_fit(bundle)
    (bundle / "model.sig").write_bytes(signature)


def test_a_bundle_that_another_run_writes_is_not_signed_and_no_other_output_is_advised(
    bundle: Path, keys: tuple[Path, Path]
) -> None:
    with hold_output(bundle), pytest.raises(OutputInUseError) as refusal:
        sign(bundle, keys[0])
    assert "wait until it has ended" in str(refusal.value)
    assert "choose another" not in str(refusal.value)  # this one is to be signed


def test_the_bytes_that_were_read_are_the_signed_ones(bundle: Path, trusted: Trusted) -> None:
    """Somebody may put the signed file back between our reading and the library's."""
    files, _ = read_folder(bundle)
    with pytest.raises(InputRejectedError, match=r"report.html is not the file that model\.sig"):
        signing.check_signature(bundle, {**files, "report.html": b"other"}, trusted)


def test_the_signature_that_was_read_is_the_one_that_is_judged(
    bundle: Path, trusted: Trusted, tmp_path: Path
) -> None:
    """Somebody may exchange it after our reading: for better or worse, it has no say any more."""
    ours = (bundle / "model.sig").read_bytes()
    read, _ = read_folder(bundle)
    sign(bundle, write_keys(tmp_path, "theirs")[0])
    theirs = (bundle / "model.sig").read_bytes()
    assert signing.check_signature(bundle, read, trusted) is None  # it holds
    read, _ = read_folder(bundle)
    (bundle / "model.sig").write_bytes(ours)
    assert theirs == read["model.sig"] != ours
    with pytest.raises(InputRejectedError, match="does not hold"):
        signing.check_signature(bundle, read, trusted)


def test_a_list_that_is_a_hole_is_refused_unread_before_it_is_signed(
    bundle: Path, keys: tuple[Path, Path]
) -> None:
    signer = Signer(private_key=keys[0])
    check_signer(signer)  # what it imports is not counted
    before, _ = read_folder(bundle)
    with (bundle / "SHA256SUMS").open("r+b") as hole:
        hole.truncate(3 * 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(InputRejectedError, match="SHA256SUMS is larger than 1048576"):
            sign_bundle(bundle, signer)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert list(bundle.parent.iterdir()) == [bundle]
    with (bundle / "SHA256SUMS").open("r+b") as hole:
        hole.truncate(len(before["SHA256SUMS"]))
    assert read_folder(bundle)[0] == before


def test_somebody_elses_signature_does_not_hold(
    bundle: Path, trusted: Trusted, tmp_path: Path
) -> None:
    theirs, public = write_keys(tmp_path, "theirs")
    sign(bundle, theirs)
    assert verify_bundle(bundle, Trusted(public_key=public)).signature == "holds"
    with pytest.raises(InputRejectedError, match="does not hold"):
        verify_bundle(bundle, trusted)


@pytest.mark.parametrize("name", [b"n\xff\xfe", b"\xc3"])
def test_a_folder_whose_name_is_no_utf_8_is_refused_before_any_work(
    bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    signer = Signer(private_key=keys[0])
    folder = bundle.rename(bundle.parent / os.fsdecode(name))
    before = read_folder(folder)
    # That nothing was read shows nowhere but in the time that a large bundle takes.
    monkeypatch.setattr("edgeclean.bundle.sign.check_unchanged", lambda _: pytest.fail("read"))
    with pytest.raises(UsageError, match=r"name 'n?\\udc.* is not in UTF-8.*rename the folder"):
        sign_bundle(folder, signer)
    with pytest.raises(UsageError, match="is not in UTF-8"):
        signing.sign_folder(folder, signer)
    assert read_folder(folder) == before
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(UsageError, match="is not in UTF-8"):
        check_signer(signer, folder.parent / "link")
    with pytest.raises(UsageError, match="is not in UTF-8"):
        check_signer(signer, folder.parent / os.fsdecode(b"not-there\xff"))
    check_signer(signer, folder.parent / "caf\u00e9")


def test_compress_refuses_a_name_that_cannot_be_signed_before_it_runs(
    tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    with pytest.raises(UsageError, match="is not in UTF-8"):
        _signer(keys[0], None, tmp_path / os.fsdecode(b"b\xff"))
    assert _signer(keys[0], None, tmp_path / "b") == Signer(private_key=keys[0])


def test_an_unsigned_bundle_is_refused_where_a_signature_is_asked(
    bundle: Path, trusted: Trusted
) -> None:
    (bundle / "model.sig").unlink()
    assert verify_bundle(bundle).signature == "none"
    with pytest.raises(InputRejectedError, match="not signed"):
        verify_bundle(bundle, trusted)


def test_a_bundle_is_signed_before_it_is_in_place(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    signer = Signer(private_key=keys[0])
    written = write_bundle(tmp_path / "build", tiny_contents(), signer=signer)
    assert "model.sig" in written.file_bytes
    assert verify_bundle(written.path, Trusted(public_key=keys[1])).signature == "holds"
    assert list(tmp_path.iterdir()) == [written.path]
    envelope = json.loads((written.path / "model.sig").read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["subject"][0]["name"] == "build"
    assert str(tmp_path) not in json.dumps(statement)


def test_a_key_that_fails_at_the_end_leaves_the_old_bundle(
    bundle: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    before, _ = read_folder(bundle)
    with pytest.raises(UsageError, match="cannot sign with"):
        write_bundle(bundle, tiny_contents(), signer=Signer(private_key=keys[1]))
    assert read_folder(bundle)[0] == before
    assert list(tmp_path.iterdir()) == [bundle]


def test_keys_that_cannot_be_used_are_refused_early(tmp_path: Path, bundle: Path) -> None:
    strange = tmp_path / "rsa.pem"
    strange.write_bytes(private_pem(rsa.generate_private_key(65537, 2048)))
    missing = tmp_path / "none.pem"
    for signer in (
        lambda: check_signer(Signer(private_key=missing)),
        lambda: verify_bundle(bundle, Trusted(public_key=missing)),
    ):
        with pytest.raises(UsageError, match=f"^{missing}: cannot be read"):  # and named once
            signer()
    for path in (strange, bundle / "report.json"):
        with pytest.raises(UsageError, match=r"cannot sign with"):
            check_signer(Signer(private_key=path))
        with pytest.raises(UsageError, match=r"cannot check signatures by"):
            verify_bundle(bundle, Trusted(public_key=path))
    with pytest.raises(UsageError, match="one of the two"):
        Trusted()


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=lambda key: type(key).__name__,
)
def test_a_key_of_another_kind_is_said_to_be_so(
    key: PrivateKeyTypes, bundle: Path, tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "private.pem", tmp_path / "public.pem"
    mine.write_bytes(private_pem(key))
    theirs.write_bytes(public_pem(key))
    with pytest.raises(UsageError, match="a private key of another kind; wanted is one on P-256"):
        check_signer(Signer(private_key=mine))
    with pytest.raises(UsageError, match="a public key of another kind; wanted is one on P-256"):
        verify_bundle(bundle, Trusted(public_key=theirs))
    with pytest.raises(UsageError, match="it holds no private key as PEM; wanted is one on"):
        check_signer(Signer(private_key=theirs))
    with pytest.raises(UsageError, match=r"holds no public key .* -in PRIVATE_KEY -pubout"):
        verify_bundle(bundle, Trusted(public_key=mine))


def test_a_private_key_with_a_password_is_said_to_have_one(tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    with pytest.raises(UsageError, match="it has a password, which is not asked for"):
        check_signer(Signer(private_key=locked))


def test_without_the_extra_the_error_says_what_to_install(
    bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "model_signing":
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(ToolchainError, match=r"pip install 'edgeclean\[sign\]'"):
        check_signer(Signer(private_key=keys[0]))
    with pytest.raises(ToolchainError, match=r"pip install 'edgeclean\[sign\]'"):
        verify_bundle(bundle, Trusted(public_key=keys[1]))


def test_the_commands(
    tmp_path: Path,
    keys: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = put_bundle(tmp_path / "build")
    assert command(monkeypatch, "verify", folder, "--key", keys[1]) == 3
    assert command(monkeypatch, "sign", folder, "--key", keys[0], "--quiet") == 0
    capsys.readouterr()
    assert command(monkeypatch, "verify", folder, "--key", keys[1], "--json") == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "holds"
    for name, bit in (("model.sig", 4001), ("model.onnx", 9), ("report.html", 3)):
        flip(folder / name, bit)
        assert command(monkeypatch, "verify", folder, "--key", keys[1]) == 3
        flip(folder / name, bit)
    flip(folder / "model.onnx", 9)
    assert command(monkeypatch, "sign", folder, "--key", keys[0]) == 3, "a broken one was signed"
    words = ["compress", "x.pth", "--model", "none.toml", "-o", tmp_path / "out"]
    (tmp_path / "none.toml").touch()
    assert command(monkeypatch, *words, "--sign-certificate", "x.pem") in (2, 3)


def test_the_librarys_own_command_reads_it(bundle: Path, keys: tuple[Path, Path]) -> None:
    words = ["verify", "key", str(bundle), "--signature", str(bundle / "model.sig")]
    ended = subprocess.run(
        [sys.executable, "-m", "model_signing", *words, "--public_key", str(keys[1])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout


def test_a_certificate_signs_for_who_trusts_its_authority(tmp_path: Path) -> None:
    key, certificate, root = write_certificates(tmp_path)
    folder = put_bundle(tmp_path / "build")
    files, _ = read_folder(folder)
    with hold_output(folder) as held:
        put_in_place(held, files, Signer(private_key=key, certificate=certificate))
    assert verify_bundle(folder, Trusted(certificate=root)).signature == "holds"
    (tmp_path / "other").mkdir()
    other = write_certificates(tmp_path / "other")[2]
    with pytest.raises(InputRejectedError, match="does not hold"):
        verify_bundle(folder, Trusted(certificate=other))


def test_one_is_trusted_not_two_and_not_none() -> None:
    for both in ({}, {"public_key": Path("a"), "certificate": Path("b")}):
        with pytest.raises(UsageError, match="one of the two"):
            Trusted(**both)


def test_signing_leaves_nothing_beside_the_folder(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = put_bundle(tmp_path / "build")
    signing.sign_folder(folder, Signer(private_key=keys[0]))
    assert [path.name for path in tmp_path.iterdir()] == ["build"]
