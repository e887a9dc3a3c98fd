"""Programs from outside that tests start: a test asks for each here, and has no other.

While tests run, the search path is a folder of links to `EVERYWHERE`, so a test that starts a
program without asking fails on the developer's machine too, where that program is installed.
``program("cmake")`` puts one more link there, or skips the test with the Debian package that brings
it. Whatever test asks, itself or by a fixture, has the marker ``programs``.

As a script it names the packages whose programs are missing here, one a line: see ``.ci/programs``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Program = Callable[[str], Path]

PACKAGES = {
    "cc": "build-essential",  # gcc alone brings no headers
    "chromium": "chromium",
    "cmake": "cmake",
    "make": "make",
    "mount": "mount",
    "ninja": "ninja-build",
    "openssl": "openssl",
    "ps": "procps",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "systemd-analyze": "systemd",
    "umount": "mount",
}
OTHER_NAMES = {"chromium": ["chromium-browser"]}
# What a program itself looks for on the search path.
USES = {"cc": ["ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip"]}
# What a shell script may expect of any system: POSIX's utilities, and GNU's sha256sum and mktemp.
EVERYWHERE = (
    *("awk", "basename", "cat", "chmod", "cmp", "cp", "cut", "date", "dirname", "echo", "env"),
    *("expr", "false", "find", "grep", "head", "id", "install", "ln", "ls", "mkdir", "mktemp"),
    *("mv", "od", "printf", "readlink", "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep"),
    *("sort", "sync", "tail", "tee", "test", "touch", "tr", "true", "uname", "uniq", "wc"),
    "xargs",
)
# Debian's users have no sbin on their path, and sshd lies there.
MACHINE = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--programs",
        choices=("any", "none", "all"),
        default="any",
        help="of the programs in tests/support/programs.py: take those that are installed (any), "
        "take none as if none were installed, or fail where one is missing (all)",
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "program" in getattr(item, "fixturenames", ()):
            item.add_marker("programs")


@pytest.fixture(autouse=True, scope="session")
def _programs_of_every_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("everywhere")
    for name in EVERYWHERE:
        _link(folder, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        yield


@pytest.fixture
def program(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Program:
    """``program(name)`` is where that program lies; from then on the test finds it by name too."""
    wanted = request.config.getoption("--programs")
    folder = tmp_path_factory.mktemp("programs")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def ask(name: str) -> Path:
        package = PACKAGES[name]
        found = None if wanted == "none" else installed(name)
        if found is None:
            reason = f"{name} is not installed here; Debian's package {package} has it"
            pytest.fail(reason) if wanted == "all" else pytest.skip(reason)
        for one in (name, *USES.get(name, ())):
            _link(folder, one)
        return found

    return ask


def installed(name: str) -> Path | None:
    """The machine's own program, under this or another of its names."""
    for one in (name, *OTHER_NAMES.get(name, ())):
        if place := shutil.which(one, path=MACHINE):
            return Path(place)
    return None


def _link(folder: Path, name: str) -> None:
    place = installed(name)
    if place is not None and not (folder / name).is_symlink():
        (folder / name).symlink_to(place)


if __name__ == "__main__":
    missing = {package for name, package in PACKAGES.items() if installed(name) is None}
    print("\n".join(sorted(missing)))  # noqa: T201 - it is what the script is for
