"""Outputs that something is mounted on: refused at the start, not after the work."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from programs import Program
from small_filesystem import mounted

from edgeclean.errors import UsageError
from edgeclean.files.atomic import hold_folder, replace_folder
from edgeclean.files.writing import check_place


def bound(source: Path, place: Path, program: Program) -> AbstractContextManager[None]:
    """``source`` at ``place`` as well, as a container's volume is."""
    return mounted(["--bind", str(source)], place, program)


@pytest.mark.parametrize("name", ["plain", "with space\tand \\ in ä"])
def test_a_mounted_folder_is_refused_at_the_start_and_one_inside_it_is_not(
    tmp_path: Path, name: str, program: Program
) -> None:
    place, source = tmp_path / name, tmp_path / "source"
    place.mkdir()
    source.mkdir()
    (tmp_path / "link").symlink_to(place)
    with bound(source, place, program):
        for named in (place, tmp_path / "link"):
            with (
                pytest.raises(UsageError, match=r"is a mount point, .* name a folder inside it"),
                hold_folder(named),
            ):
                pass
        with hold_folder(place, replaced=False) as held:  # as a fleet does, which fills it
            (held.path / "kept").touch()
        with hold_folder(place / "inner") as held:
            replace_folder(held, {"a": b"1"})
    assert (source / "kept").exists()
    assert (source / "inner" / "a").read_bytes() == b"1"
    assert list(place.iterdir()) == []
    with hold_folder(place) as held:  # and as soon as nothing is mounted there
        replace_folder(held, {"a": b"1"})


def test_a_mounted_file_is_refused_before_anything_is_written(
    tmp_path: Path, program: Program
) -> None:
    source, place = tmp_path / "source", tmp_path / "f.onnx"
    for file in (source, place):
        file.touch()
    with (
        bound(source, place, program),
        pytest.raises(UsageError, match=r"is a mount point, .* a file in a mounted folder"),
    ):
        check_place(place, lambda _: True)
    assert check_place(place, lambda _: True) == place
