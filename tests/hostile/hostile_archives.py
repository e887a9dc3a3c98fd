"""Zip archives: bombs, names that lead elsewhere, directories that lie."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from hostile_case import Case, compressing, hole

STORED, PACKED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
EMPTY_DICT = b"\x80\x02}."


def archive(members: Mapping[str, bytes], *, method: int = STORED) -> bytes:
    """An ordinary archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as writer:
        for name, contents in members.items():
            writer.writestr(name, contents)
    return stream.getvalue()


def zipped(payload: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """A torch.save archive around a pickle of one's own."""
    numbers = {f"a/data/{name}": content for name, content in (storages or {}).items()}
    return archive(
        {"a/data.pkl": payload, "a/byteorder": b"little", **numbers, "a/version": b"3\n"}
    )


def good(**more: bytes) -> dict[str, bytes]:
    """The members of a small checkpoint, and more; "__" in a name is a slash."""
    others = {name.replace("__", "/"): content for name, content in more.items()}
    return {"a/data.pkl": EMPTY_DICT, "a/data/0": b"1234", "a/version": b"3\n", **others}


def patched(contents: bytes, signature: bytes, offset: int, value: bytes, *, last: bool) -> bytes:
    """With some bytes of the first or last record of this signature replaced."""
    start = contents.rindex(signature) if last else contents.index(signature)
    place = start + offset
    return contents[:place] + value + contents[place + len(value) :]


DIRECTORY, END = b"PK\x01\x02", b"PK\x05\x06"


def lying_size() -> bytes:
    """64 MiB packed small; the directory says that it unpacks to four bytes."""
    contents = archive({**good(), "a/data/1": bytes(2**26)}, method=PACKED)
    return patched(contents, DIRECTORY, 24, struct.pack("<I", 4), last=True)


def same_name_twice() -> bytes:
    """Two members of one name: zipfile takes the last, others the first."""
    contents = archive(good(a__dataXpkl=b"x"))
    return contents.replace(b"a/dataXpkl", b"a/data.pkl")


def overlapping() -> bytes:
    """Every directory entry points at the same data: Fifield's bomb, in small."""
    contents = archive({**good(), **{f"a/data/{i}": bytes(64) for i in range(1, 40)}})
    first = contents.index(DIRECTORY)
    offset = contents[first + 42 : first + 46]
    places = [i for i in range(len(contents)) if contents.startswith(DIRECTORY, i)]
    for place in places:
        contents = contents[: place + 42] + offset + contents[place + 46 :]
    return contents


def end_record_only() -> bytes:
    """A directory of 65,535 entries that is not there."""
    end = END + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, 0, 0, 0)
    return b"PK\x03\x04" + end


def huge_zip64() -> bytes:
    """A zip64 size of 2^63 for a member of a few bytes."""
    contents = archive(good())
    contents = patched(contents, DIRECTORY, 20, b"\xff" * 8, last=True)
    place = contents.rindex(DIRECTORY)
    extra = struct.pack("<HHQQ", 1, 16, 2**63 - 1, 2**63 - 1)
    name = struct.unpack_from("<H", contents, place + 28)[0]
    contents = patched(contents, DIRECTORY, 30, struct.pack("<H", len(extra)), last=True)
    at = place + 46 + name
    contents = contents[:at] + extra + contents[at:]
    size = struct.unpack_from("<I", contents, contents.rindex(END) + 12)[0]
    return patched(contents, END, 12, struct.pack("<I", size + len(extra)), last=True)


def encrypted() -> bytes:
    """The encryption bit of one entry is set."""
    return patched(archive(good()), DIRECTORY, 8, struct.pack("<H", 1), last=False)


def many_bombs() -> bytes:
    """Each member is small enough; all together are not."""
    return archive({**good(), **{f"a/data/{i}": bytes(2**20) for i in range(40)}}, method=PACKED)


def at_length(head: bytes, size: int) -> Callable[[Path], list[str]]:
    """A file that is one hole behind its first bytes."""

    def build(folder: Path) -> list[str]:
        hole(folder / "a.pth", size, head)
        return compressing(folder, "a.pth", None)

    return build


NAMES = "has a name that torch.save would not write"
TORCHSCRIPT, EXPORTED = "a TorchScript archive, which holds code", "an exported program"
FILES: list[tuple[str, str, Callable[[], bytes], str]] = [
    (
        "TorchScript",
        "code in a language that weights_only refuses, loaded by torch.jit.load",
        lambda: archive(good(a__constants__pkl=b"", **{"a__constants.pkl": b""})),
        TORCHSCRIPT,
    ),
    (
        "TorchScript without constants",
        "the same, its mark removed",
        lambda: archive(good(a__code__x=b"def forward")),
        TORCHSCRIPT,
    ),
    (
        "exported program",
        "torch.export unpickles parts of it without the safe switch",
        lambda: archive({"a/archive_format": b"pt2", "a/data.pkl": EMPTY_DICT}),
        EXPORTED,
    ),
    (
        "exported program without its mark",
        "the same, its mark removed",
        lambda: archive(good(a__models__m=b"{}")),
        EXPORTED,
    ),
    (
        "climbing name",
        "unpacked by a careless tool, it lands outside",
        lambda: archive({**good(), "a/../../canary": b""}),
        NAMES,
    ),
    ("absolute name", "lands in /tmp", lambda: archive({**good(), "/tmp/canary": b""}), NAMES),  # noqa: S108
    ("backslash", "climbs on Windows", lambda: archive({**good(), "a\\..\\canary": b""}), NAMES),
    ("drive", "C: is a place, not a name", lambda: archive({**good(), "c:canary": b""}), NAMES),
    (
        "NUL in a name",
        "one reader stops at the NUL, another does not",
        lambda: archive(good(a__bXc=b"")).replace(b"bXc", b"b\0c"),
        NAMES,
    ),
    (
        "escape in a name",
        "waiting to be printed",
        lambda: archive({**good(), "a/\x1b[31m": b""}),
        NAMES,
    ),
    (
        "DATA.PKL",
        "a scanner looks at one pickle, torch loads the other (CVE-2025-1945's family)",
        lambda: archive({**good(), "a/DATA.PKL": b"cposix\nsystem\n."}),
        "holds 'a/data.pkl' twice",
    ),
    ("same name twice", "which one counts depends on the reader", same_name_twice, "twice"),
    ("encrypted", "flag bits that make scanners skip a member", encrypted, "is encrypted"),
    (
        "bzip2",
        "a packer that torch does not have, so that only the scanner fails",
        lambda: archive(good(), method=zipfile.ZIP_BZIP2),
        "packed by method 12",
    ),
    (
        "bomb",
        "64 MiB of zeros in 64 KiB",
        lambda: archive({**good(), "a/data/1": bytes(2**26)}, method=PACKED),
        "zip_ratio is 20",
    ),
    (
        "many bombs",
        "forty members of a megabyte, each below the size at which one is looked at",
        many_bombs,
        "times its size; the limit zip_ratio is 20",
    ),
    (
        "bomb that lies",
        "the directory says four bytes",
        lying_size,
        "is of type dict, not a filled state dict",
    ),
    (
        "overlapping members",
        "forty directory entries, one run of data",
        overlapping,
        "member 'a/data.pkl' overlaps another",
    ),
    (
        "size of 2^63",
        "a zip64 field for a member of two bytes",
        huge_zip64,
        "unpacks to 9223372036854775815 bytes",
    ),
    (
        "directory that is not there",
        "an end record alone",
        end_record_only,
        "not one of torch.save",
    ),
    (
        "20,001 members",
        "one over the limit",
        lambda: archive({**good(), **{f"a/data/{i}": b"" for i in range(1, 20_000)}}),
        "20002 members; the limit entries",
    ),
    (
        "two folders",
        "two checkpoints in one archive",
        lambda: archive({**good(), "b/data.pkl": EMPTY_DICT}),
        "not one of torch.save",
    ),
    (
        "no checkpoint",
        "a zip archive of something else",
        lambda: archive({"a/readme": b"hello"}),
        "not one of torch.save",
    ),
    (
        "cut short",
        "the second half of the download is missing",
        lambda: archive(good())[:-60],
        "damaged",
    ),
]
ARCHIVES = [
    *(
        Case(
            kind="zip",
            name=name,
            story=story,
            build=lambda folder, make=make: compressing(folder, "a.pth", make()),  # type: ignore[misc]
            message=message,
        )
        for name, story, make, message in FILES
    ),
    Case(
        kind="zip",
        name="3 GiB of nothing",
        story="a sparse file: free to send, and all of the memory to read",
        build=at_length(b"PK\x03\x04", 3 * 2**30),
        message="larger than 1073741824 bytes",
    ),
]
