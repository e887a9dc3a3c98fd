"""A certificate signs only if it may: each rule broken alone is found, and what is right holds."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_files import put_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("model_signing")
from certificate_chains import (
    CODE,
    DAY,
    KINDS,
    NOW,
    Recipe,
    authority,
    ders,
    key,
    made,
    name_of,
    pem,
    sign_carelessly,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from signing_keys import flip, private_pem

from edgeclean import cli
from edgeclean.bundle.certificates import MAX_NAME, judge_chain, read_certificates
from edgeclean.bundle.signing import Signer, Trusted, check_signer
from edgeclean.bundle.verify import verify_bundle
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.text import printable

HASHES = (hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
Change = Callable[[list[Recipe]], list[Recipe]]


def signer(**changes: Any) -> Change:
    return lambda chain: [chain[0].but(**changes), *chain[1:]]


def issuer(**changes: Any) -> Change:
    return lambda chain: [chain[0], chain[1].but(**changes), *chain[2:]]


def root(**changes: Any) -> Change:
    return lambda chain: [*chain[:-1], chain[-1].but(**changes)]


def usages(*names: str) -> frozenset[str]:
    return frozenset(names)


def constraints(*names: x509.GeneralName) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.NameConstraints(list(names), None), True),)


def called(name: str) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.SubjectAlternativeName([x509.DNSName(name)]), False),)


def unknown(*, critical: bool) -> tuple[tuple[x509.ExtensionType, bool], ...]:
    return ((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"), critical),)


# What breaks the chain by itself: in words, how, and whether a signer can know without the root.
BROKEN: dict[str, tuple[Change, bool]] = {
    "expired": (signer(first=NOW - 9 * DAY, last=NOW - DAY), True),
    "not yet valid": (signer(first=NOW + DAY, last=NOW + 9 * DAY), True),
    "an authority": (signer(ca=True, usages=usages("digital_signature", "key_cert_sign")), True),
    "an authority that signs": (signer(ca=True), True),
    "no key usage": (signer(usages=None), True),
    "another key usage": (signer(usages=usages("key_encipherment", "key_agreement")), True),
    "signs certificates": (signer(usages=usages("digital_signature", "key_cert_sign")), True),
    "signs revocations": (signer(usages=usages("digital_signature", "crl_sign")), True),
    "a TLS server": (signer(purposes=(Purpose.SERVER_AUTH,)), True),
    "a TLS server and code": (signer(purposes=(Purpose.SERVER_AUTH, CODE)), True),
    "a TLS client": (signer(purposes=(Purpose.CLIENT_AUTH,)), True),
    "a timestamp": (signer(purposes=(Purpose.TIME_STAMPING,)), True),
    "any purpose": (signer(purposes=(Purpose.ANY_EXTENDED_KEY_USAGE,)), True),
    "any purpose and code": (signer(purposes=(CODE, Purpose.ANY_EXTENDED_KEY_USAGE)), True),
    "no purpose": (signer(purposes=None), True),
    "an RSA signer": (signer(key=key("RSA 2048")), True),
    "an Ed25519 signer": (signer(key=key("Ed25519")), True),
    "a strange curve": (signer(key=key("secp256k1")), True),
    "hashed with SHA-224": (signer(hashed=hashes.SHA224()), True),
    "an unknown critical extension": (signer(more=unknown(critical=True)), True),
    "signed by another key": (signer(signed_by=key("P-256", 99)), False),
    "issued by another name": (signer(issuer="somebody else"), False),
    "issuer expired": (issuer(first=NOW - 9 * DAY, last=NOW - DAY), False),
    "issuer not yet valid": (issuer(first=NOW + DAY, last=NOW + 9 * DAY), False),
    "issuer no authority": (issuer(ca=False, path_length=None), False),
    "issuer says nothing of itself": (issuer(ca=None, path_length=None), False),
    "issuer signs no certificates": (issuer(usages=usages("crl_sign")), False),
    "issuer for TLS": (issuer(purposes=(Purpose.SERVER_AUTH,)), False),
    "issuer of a weak key": (issuer(key=key("RSA 1024")), False),
    "issuer of another kind of key": (issuer(key=key("Ed25519")), False),
    "names that are not permitted": (
        lambda chain: issuer(more=constraints(x509.DNSName("a.example")))(
            signer(more=called("b.example"))(chain)
        ),
        False,
    ),
    "constraints of a subject": (
        issuer(more=constraints(x509.DirectoryName(name_of("a maker")))),
        False,
    ),
    "constraints of a subject, not critical": (
        issuer(
            more=((x509.NameConstraints([x509.DirectoryName(name_of("x"))], None), False),),
        ),
        False,
    ),
    "issuer has an unknown critical extension": (issuer(more=unknown(critical=True)), False),
    "root expired": (root(first=NOW - 9 * DAY, last=NOW - DAY), False),
    "root of another key": (root(key=key("P-256", 98), signed_by=key("P-256", 98)), False),
}


@st.composite
def chains(draw: st.DrawFn) -> list[Recipe]:
    """A right chain of one to three authorities, with what an honest one may vary."""
    authorities = draw(st.integers(1, 3))
    recipes = [
        Recipe(
            subject="a maker",
            key=key(draw(st.sampled_from(KINDS[:3]))),
            ca=draw(st.sampled_from([False, None])),
            usages=usages(
                "digital_signature", *draw(st.sampled_from([(), ("content_commitment",)]))
            ),
            purposes=(CODE, *draw(st.sampled_from([(), (Purpose.EMAIL_PROTECTION,)]))),
            more=draw(st.sampled_from([(), unknown(critical=False), called("a.example")])),
        )
    ]
    for above in range(authorities):
        length = draw(st.sampled_from([None, above, above + 1]))
        purposes = st.sampled_from([None, (CODE,), (Purpose.ANY_EXTENDED_KEY_USAGE,)])
        permitted = (
            [x509.DNSName("a.example")],
            [x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))],
        )
        names = draw(st.sampled_from([(), *(constraints(*some) for some in permitted)]))
        private = key(draw(st.sampled_from(KINDS)), above + 1)
        recipe = authority(f"authority {above}", private, path_length=length, more=names)
        recipes.append(recipe.but(purposes=draw(purposes)))
    return [one.but(hashed=draw(st.sampled_from(HASHES))) for one in recipes]


def broken_chain(kind: str, recipes: list[Recipe]) -> list[x509.Certificate]:
    if kind == "root of another key":  # the one that is trusted, not the one that signed
        return [*made(recipes)[:-1], made(BROKEN[kind][0](recipes))[-1]]
    return made(BROKEN[kind][0](recipes))


few = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@few
@given(chains(), st.booleans())
def test_a_right_chain_holds_and_says_who(recipes: list[Recipe], rooted: bool) -> None:
    certificates = made(recipes)
    chain = certificates if rooted else certificates[:-1]
    found, public = judge_chain(ders(chain), certificates[-1:], None)
    assert found.subject == "CN=a maker"
    assert found.issuer == "CN=authority 0"
    assert found.trusted == f"CN=authority {len(recipes) - 2}"
    assert int(found.serial, 16) == certificates[0].serial_number
    assert found.sha256 == certificates[0].fingerprint(hashes.SHA256()).hex()
    assert found.valid_from == (NOW - DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert found.valid_until == (NOW + DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert public.startswith(b"-----BEGIN PUBLIC KEY-----")


@settings(few, max_examples=200)
@given(chains(), st.sampled_from(sorted(BROKEN)), st.booleans())
def test_one_broken_thing_is_enough(recipes: list[Recipe], kind: str, rooted: bool) -> None:
    certificates = broken_chain(kind, recipes)
    chain = certificates if rooted else certificates[:-1]
    with pytest.raises(InputRejectedError) as refused:
        judge_chain(ders(chain), certificates[-1:], None)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_each_broken_thing_is_refused(kind: str, tmp_path: Path) -> None:
    """Each at least once; and what a signer can know is refused before anything is signed."""
    middle = [authority(f"authority {n}", key("P-256", n + 1)) for n in range(2)]
    recipes = [Recipe(subject="a maker", key=key("P-256")), *middle]
    certificates = broken_chain(kind, recipes)
    with pytest.raises(InputRejectedError):
        judge_chain(ders(certificates[:-1]), certificates[-1:], None)
    change, known = BROKEN[kind]
    (tmp_path / "key.pem").write_bytes(private_pem(change(recipes)[0].key))
    signing = Signer(private_key=tmp_path / "key.pem", certificate=tmp_path / "chain.pem")
    for sent in (certificates[:1], certificates):
        (tmp_path / "chain.pem").write_bytes(pem(sent))
        if known or (len(sent) > 1 and kind != "root of another key"):
            with pytest.raises(UsageError):
                check_signer(signing)


def test_a_path_longer_than_an_authority_allows(tmp_path: Path) -> None:
    for length, holds in ((0, False), (1, True)):
        chain = [
            Recipe(subject="a maker", key=key("P-256")),
            authority("below", key("P-256", 1)),
            authority("above", key("P-256", 2), path_length=length),
            authority("root", key("P-256", 3)),
        ]
        certificates = made([*chain[:2], chain[2].but(path_length=length), chain[3]])
        if holds:
            judge_chain(ders(certificates[:-1]), certificates[-1:], None)
        else:
            with pytest.raises(InputRejectedError, match="path length"):
                judge_chain(ders(certificates[:-1]), certificates[-1:], None)


def plain(**changes: Any) -> list[x509.Certificate]:
    middle = authority("middle", key("P-384", 1))
    maker = Recipe(subject="a maker", key=key("P-256")).but(**changes)
    return made([maker, middle, authority("root", key("P-256", 2))])


def test_an_authority_in_the_middle_may_be_all_that_is_trusted() -> None:
    chain = plain()
    assert judge_chain(ders(chain[:1]), chain[1:2], None)[0].trusted == "CN=middle"
    assert judge_chain(ders(chain[:1]), chain[:1], None)[0].trusted == "CN=a maker"
    expired = plain(first=NOW - 9 * DAY, last=NOW - DAY)
    for alone in (expired[:1], chain[1:2]):
        with pytest.raises(InputRejectedError):
            judge_chain(ders(alone), alone, None)


def test_the_trusted_one_may_stand_in_the_middle_of_what_the_signature_brings() -> None:
    """Who signs does not know whom each reader trusts."""
    chain = plain()
    stranger = made([authority("root", key("P-256", 3))])
    for sent in (chain[:2], chain):
        assert judge_chain(ders(sent), chain[:1], None)[0].trusted == "CN=a maker"
        assert judge_chain(ders(sent), chain[1:2], None)[0].trusted == "CN=middle"
    for more in (stranger, [chain[2], chain[2]], [chain[1]], [chain[0]]):
        with pytest.raises(InputRejectedError, match="no part of the signer's chain"):
            judge_chain(ders([*chain[:2], *more]), chain[1:2], None)


def test_certificates_beside_the_chain_are_refused() -> None:
    """Whoever carries a bundle could add them: the seal does not cover them."""
    chain, other = plain(), plain()
    for sent in (
        [*chain[:2], other[2]],
        [chain[0], other[1], chain[1]],
        [chain[0], chain[2], chain[1]],
        [chain[0], *chain[:2], *chain[:2]],
        [*chain, chain[2]],
    ):
        with pytest.raises(InputRejectedError, match="no part of the signer's chain"):
            judge_chain(ders(sent), chain[2:], None)
    with pytest.raises(InputRejectedError, match=r"comes with 40 certificates"):
        judge_chain(ders(chain[:1]) * 40, chain[2:], None)


@pytest.mark.parametrize("junk", [b"", b"\x30\x82\xff\xff", b"0" * 2000])
def test_what_is_no_certificate_is_refused(junk: bytes) -> None:
    chain = plain()
    for sent in ([junk], [*ders(chain[:1]), junk]):
        with pytest.raises(InputRejectedError, match="cannot be read"):
            judge_chain(sent, chain[2:], None)


@pytest.mark.parametrize("which", [0, 1])
def test_a_signature_of_another_length_is_refused(which: int) -> None:
    """The count of unused bits before it is not signed; the library takes 1 if that bit is 0."""
    for _ in range(8):
        encoded = ders(chain := plain())
        place = len(encoded[which]) - len(chain[which].signature) - 1
        changed = bytearray(encoded[which])
        changed[place] ^= 1
        encoded[which] = bytes(changed)
        with pytest.raises(InputRejectedError):
            judge_chain(encoded, chain[2:], None)


@settings(few, max_examples=300)
@given(st.integers(0, 1), st.integers(0, 2**14))
def test_no_changed_bit_of_a_chain_holds(which: int, place: int) -> None:
    chain = plain()
    encoded = ders(chain)
    changed = bytearray(encoded[which])
    changed[place // 8 % len(changed)] ^= 1 << place % 8
    encoded[which] = bytes(changed)
    with pytest.raises(InputRejectedError):
        judge_chain(encoded, chain[2:], None)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=64))
def test_names_are_shown_bounded_and_printable(subject: str) -> None:
    try:
        chain = plain(subject=subject)
    except ValueError:  # a text that no name may be
        return
    try:
        shown = judge_chain(ders(chain[:2]), chain[2:], None)[0].subject
    except InputRejectedError as refused:
        shown = str(refused)
    assert shown == printable(shown)
    assert len(shown) <= MAX_NAME + 400


def test_a_long_name_is_cut() -> None:
    long = x509.Name(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{'x' * 58}\x1b[2J{n}") for n in range(9)]
    )
    middle = authority("middle", key("P-384", 1))
    maker = made([Recipe(subject="a maker", key=key("P-256")), middle])
    built = x509.CertificateBuilder(
        issuer_name=maker[0].issuer,
        subject_name=long,
        public_key=maker[0].public_key(),
        serial_number=5,
        not_valid_before=NOW - DAY,
        not_valid_after=NOW + DAY,
        extensions=list(maker[0].extensions),
    ).sign(middle.key, hashes.SHA256())
    found, _ = judge_chain(ders([built]), maker[1:], None)
    assert len(found.subject) == MAX_NAME
    assert found.subject.endswith("...")
    assert found.subject.isprintable()


def test_the_verifier_names_the_moment(tmp_path: Path) -> None:
    expired = plain(first=NOW - 9 * DAY, last=NOW - 2 * DAY)
    old = [Recipe(subject="a maker", key=key("P-256"), first=NOW - 9 * DAY, last=NOW - 2 * DAY)]
    old += [authority("root", key("P-256", 2), first=NOW - 20 * DAY)]
    certificates = made(old)
    for holds, moment in (
        (True, NOW - 5 * DAY),
        (True, NOW - 9 * DAY),
        (True, NOW - 2 * DAY),
        (False, NOW - 2 * DAY + dt.timedelta(seconds=1)),
        (False, NOW - 9 * DAY - dt.timedelta(seconds=1)),
        (False, None),
        (False, dt.datetime(1, 1, 1, tzinfo=dt.UTC)),
        (False, dt.datetime(9999, 12, 31, tzinfo=dt.UTC)),
    ):
        if holds:
            assert moment is not None
            zone = dt.timezone(dt.timedelta(hours=-7))  # the same moment, in other words
            found, _ = judge_chain(
                ders(certificates[:1]), certificates[1:], moment.astimezone(zone)
            )
            assert found.judged_at == moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        else:
            with pytest.raises(InputRejectedError, match=r"is valid from .* judged at"):
                judge_chain(ders(certificates[:1]), certificates[1:], moment)
    # Neither was the authority there yet: the whole chain is judged at that moment.
    with pytest.raises(InputRejectedError, match=r"CN=middle is valid from"):
        judge_chain(ders(expired[:2]), expired[2:], NOW - 5 * DAY)


def test_a_moment_needs_a_zone_and_a_certificate() -> None:
    with pytest.raises(UsageError, match="no time zone"):
        Trusted(certificate=Path("a"), at=dt.datetime(2026, 1, 1))
    with pytest.raises(UsageError, match="goes with a certificate"):
        Trusted(public_key=Path("a"), at=NOW)


def test_trusted_certificates_are_read_bounded(tmp_path: Path) -> None:
    chain = plain()
    path = tmp_path / "trusted.pem"
    path.write_bytes(pem(chain[1:]) + b"some words\n")
    assert read_certificates(path) == tuple(chain[1:])
    for content, words in (
        (b"", "holds no certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no cert"),
        (pem(chain) * 4, "holds 12 certificates"),
        (b" " * (2**20 + 1), "larger than"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=words):
            read_certificates(path)


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str, str]:
    """The real entry point, in this process: its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["edgeclean", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    spoken = capsys.readouterr()
    return int(ended.value.code or 0), spoken.out, spoken.err


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("expired", "is valid from"),
        ("not yet valid", "is valid from"),
        ("a TLS server", "serverAuth"),
        ("an authority", "is an authority's"),
        ("no purpose", "must have codeSigning"),
        ("signed by another key", "signature does not match"),
        ("issuer expired", "is valid from"),
        ("issuer no authority", "must be asserted"),
    ],
)
def test_what_may_not_sign_does_not_hold_on_the_command_line(
    kind: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Signed by the library itself, which takes each of these."""
    folder = put_bundle(tmp_path / "build")
    recipes = [Recipe(subject="a maker", key=key("P-256")), authority("root", key("P-256", 2))]
    recipes.insert(1, authority("middle", key("P-384", 1)))
    certificates = broken_chain(kind, recipes)
    sign_carelessly(folder, key("P-256"), certificates[:-1], tmp_path)
    (tmp_path / "root.pem").write_bytes(pem(certificates[-1:]))
    asked = ("verify", folder, "--certificate", tmp_path / "root.pem")
    code, out, err = command(monkeypatch, capsys, *asked)
    assert (code, out) == (3, "")
    assert words in err
    assert len(err.splitlines()) == 2  # what it does, and the one line of why it ends
    assert verify_bundle(folder).signature == "not checked"


def test_the_signer_is_in_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, chain = put_bundle(tmp_path / "build"), plain()
    (tmp_path / "key.pem").write_bytes(private_pem(key("P-256")))
    (tmp_path / "chain.pem").write_bytes(pem(chain[:2]))
    (tmp_path / "root.pem").write_bytes(pem(chain[2:]))
    words = ("--key", tmp_path / "key.pem", "--certificate", tmp_path / "chain.pem", "--quiet")
    assert command(monkeypatch, capsys, "sign", folder, *words)[0] == 0
    asked = ("verify", folder, "--certificate", tmp_path / "root.pem")
    code, out, _ = command(monkeypatch, capsys, *asked, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["signature"] == "holds"
    assert answer["signer"]["subject"] == "CN=a maker"
    assert answer["signer"]["sha256"] == chain[0].fingerprint(hashes.SHA256()).hex()
    code, out, _ = command(monkeypatch, capsys, *asked)
    for shown in ("CN=a maker", "CN=middle", "CN=root", f"{chain[0].serial_number:x}"):
        assert shown in out
    later = (NOW + 3 * DAY).strftime("%Y-%m-%d")
    assert command(monkeypatch, capsys, *asked, "--at", later)[0] == 3
    sooner = (NOW - dt.timedelta(hours=1)).isoformat()
    assert command(monkeypatch, capsys, *asked, "--at", sooner)[0] == 0
    for wrong in ("yesterday", "", "2026-13-01", "9" * 5000, "0001-01-01T00:00:00+23:00"):
        code, _, err = command(monkeypatch, capsys, *asked, "--at", wrong)
        assert code == 2
        assert "ISO 8601" in err
    code, _, err = command(monkeypatch, capsys, "verify", folder, "--at", sooner)
    assert code == 2
    assert "give --certificate as well" in err
    chain_length = (folder / "model.sig").stat().st_size
    for place in range(3, 8 * chain_length, 8 * 37):
        flip(folder / "model.sig", place)
        with pytest.raises(InputRejectedError):
            verify_bundle(folder, Trusted(certificate=tmp_path / "root.pem"))
        flip(folder / "model.sig", place)
    verify_bundle(folder, Trusted(certificate=tmp_path / "root.pem"))


def test_somebody_elses_seal_under_a_good_chain_does_not_hold(tmp_path: Path) -> None:
    """A right chain with a signature by another key."""
    folder, chain = put_bundle(tmp_path / "build"), plain()
    theirs = made([Recipe(subject="t", key=key("P-256", 7)), authority("r", key("P-256", 8))])
    sign_carelessly(folder, key("P-256", 7), theirs[:1], tmp_path)
    entries = json.loads((folder / "model.sig").read_bytes())
    (tmp_path / "other").mkdir()
    sign_carelessly(folder, key("P-256"), chain[:2], tmp_path / "other")
    ours = json.loads((folder / "model.sig").read_bytes())
    ours["dsseEnvelope"] = entries["dsseEnvelope"]
    (folder / "model.sig").write_text(json.dumps(ours, separators=(",", ":")))
    (tmp_path / "root.pem").write_bytes(pem(chain[2:]))
    with pytest.raises(InputRejectedError, match="does not hold"):
        verify_bundle(folder, Trusted(certificate=tmp_path / "root.pem"))
