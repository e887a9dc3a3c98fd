"""A bundle is replaced as it was written, together with what belongs to it, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_files import make_checksums_fit, put_bundle
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_networks import tiny_contents
from users_things import looked_at

from edgeclean.bundle.bundle import hold_output, write_bundle
from edgeclean.bundle.verify import verify_bundle
from edgeclean.cli.dependencies import InputFiles
from edgeclean.errors import UsageError
from edgeclean.files import atomic, writing
from edgeclean.files.depfile import depfile


@st.composite
def meddling(draw: st.DrawFn) -> Callable[[Path], object]:
    """Something that happened to a bundle: a file or folder put in, one changed, one taken out."""
    kind = draw(st.sampled_from(["file", "listed", "folder", "link", "change", "grow", "take"]))
    where, which = draw(st.integers(0)), draw(st.integers(0))
    name = draw(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40)
    )
    content = draw(st.binary(max_size=20))

    def meddle(folder: Path) -> None:
        folders = sorted(path for path in [folder, *folder.rglob("*")] if path.is_dir())
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        place, one = folders[where % len(folders)] / name, files[which % len(files)]
        if kind in ("file", "listed", "folder", "link"):
            assume(name not in (".", "..") and not os.path.lexists(place))
        if kind == "change":
            old = one.read_bytes()
            at = where % len(old)
            one.write_bytes(old[:at] + bytes([old[at] ^ (1 + which % 255)]) + old[at + 1 :])
        elif kind == "grow":
            one.write_bytes(one.read_bytes() + content + b"x")
        elif kind == "take":
            one.unlink()
        elif kind == "folder":
            place.mkdir()
        elif kind == "link":
            place.symlink_to(one)
        else:
            place.write_bytes(content)
            if kind == "listed":
                with contextlib.suppress(ValueError):
                    make_checksums_fit(folder)

    return meddle


@given(meddling())
@settings(max_examples=150, deadline=None)
def test_a_bundle_that_was_meddled_with_is_never_replaced(meddle: Callable[[Path], object]) -> None:
    """Whatever was put in, changed or taken out, wherever it is: refused, and nothing is lost."""
    with tempfile.TemporaryDirectory() as place:
        folder = put_bundle(Path(place) / "build")
        with hold_output(folder):
            pass  # as it was written, it could be replaced
        meddle(folder)
        before = looked_at(Path(place))
        with pytest.raises(UsageError, match="would be lost"), hold_output(folder):
            pass
        assert looked_at(Path(place)) == before


@pytest.mark.parametrize("name", ["report.html", "triggers"])
def test_what_a_user_puts_into_the_old_bundle_while_it_is_exchanged_is_kept(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at the bundle and the exchange there is a moment."""
    folder = put_bundle(tmp_path / "build")
    exchange = atomic.exchange

    def late(one: Path, other: Path) -> bool:
        if (other / name).is_file():
            (other / name).write_text("mine")
        else:
            (other / name / "notes.txt").write_text("mine")
        monkeypatch.setattr(atomic, "exchange", exchange)
        return exchange(one, other)

    monkeypatch.setattr(atomic, "exchange", late)
    with pytest.raises(UsageError, match="would be lost"):
        write_bundle(folder, tiny_contents())
    place = folder / name
    assert (place if place.is_file() else place / "notes.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
@pytest.mark.parametrize("step", ["mkdir", "the file", "the bundle", "flushing"])
def test_a_bundle_and_its_dependency_file_are_both_put_in_place_or_neither(
    step: str,
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, place = tmp_path / "build", tmp_path / "deep" / "b.d"
    if there:
        put_bundle(output)
        place.parent.mkdir()
        place.write_bytes(depfile(output / "model.onnx", [Path("old")]))
    inputs = InputFiles(place, output)
    inputs.add(Path("new"))
    before = looked_at(output), place.exists() and place.read_bytes()
    rename, link, sync = Path.rename, os.link, atomic.sync

    def fail(*_: object) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        if step == "mkdir":
            shutil.rmtree(place.parent, ignore_errors=True)
            place.parent.touch()
        elif step == "the file":
            patch.setattr(writing, "exchange", fail)
            patch.setattr("os.link", lambda one, to: fail() if to == place else link(one, to))
        elif step == "the bundle":
            patch.setattr(atomic, "exchange", fail)
            patch.setattr(
                Path, "rename", lambda one, to: fail() if to == output else rename(one, to)
            )
        else:
            patch.setattr(atomic, "sync", lambda one: fail() if one == tmp_path else sync(one))
        with pytest.raises(UsageError, match="what was there is unchanged"):
            write_bundle(output, tiny_contents(), alongside=inputs.written())
    if step == "mkdir":
        assert place.parent.read_bytes() == b""
        assert looked_at(output) == before[0]
        return
    assert (looked_at(output), place.exists() and place.read_bytes()) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"build", "deep"}
    # A folder that was made for the file alone goes again.
    kept = [path.name for path in place.parent.iterdir()] if place.parent.exists() else []
    assert kept == ["b.d"] * there
    write_bundle(output, tiny_contents(), alongside=inputs.written())
    assert b"new" in place.read_bytes()
    assert verify_bundle(output)
