"""A temporary folder goes with its run, or with the next one; no other is touched."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclean.files.temporary import MARK, remove_left, temporary_folder

PROGRAM = """
import sys
from edgeclean.files.temporary import temporary_folder
with temporary_folder("edgeclean-") as folder:
    (folder / "large").mkdir()
    (folder / "large" / "file").write_bytes(b"1")
    print(folder, flush=True)
    sys.stdin.read()  # until the test is over, whatever becomes of it
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # which remembers the first answer
    return tmp_path


def test_a_folder_goes_at_the_end_also_after_an_error(place: Path) -> None:
    def fail() -> None:
        with temporary_folder("edgeclean-") as folder:
            assert folder.parent == place
            (folder / "file").write_bytes(b"1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(place.iterdir()) == []


def test_what_a_killed_run_left_goes_with_the_next_and_what_is_in_use_stays(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        assert (folder / "large" / "file").is_file()
        remove_left("edgeclean-")
        with temporary_folder("edgeclean-"):
            assert (folder / "large" / "file").is_file()  # the other run still works
        run.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    with temporary_folder("other-"):
        assert folder.is_dir()
    with temporary_folder("edgeclean-"):
        assert not folder.exists()
    assert list(place.iterdir()) == []


def test_what_is_not_known_as_ours_stays(place: Path) -> None:
    (place / "edgeclean-unmarked").mkdir()
    (place / "edgeclean-file").write_text("mine", "utf-8")
    (place / "users").mkdir()
    (place / "users" / MARK).write_bytes(b"")
    (place / "edgeclean-link").symlink_to("users")
    (place / "edgeclean-marked-by-a-link").mkdir()
    (place / "edgeclean-marked-by-a-link" / MARK).symlink_to(place / "users" / MARK)
    before = sorted(place.rglob("*"))
    with temporary_folder("edgeclean-"):
        pass
    assert sorted(place.rglob("*")) == before
