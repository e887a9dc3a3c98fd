from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeclean.errors import OutputInUseError, UsageError
from edgeclean.files import atomic
from edgeclean.files.atomic import hold_folder, replace_folder, staging_name

OLD = {"kept.txt": b"old", "folder/inner.txt": b"old"}
NEW = {"kept.txt": b"new", "folder/other.txt": b"new", "folder/deep/er.txt": b"new"}

# Replaces a folder, and dies without a word just before the n-th thing that it does to the
# filesystem (Python announces each one to audit hooks).
DYING_WRITER = """
import os, sys
from pathlib import Path
from edgeclean.files import atomic
output, die_at, can_exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
if not can_exchange:
    atomic.exchange = lambda one, other: False
seen = 0
def count(event, parameters):
    global seen
    if event in {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlopen"}:
        seen += 1
        if seen == die_at:
            os._exit(9)
new = {"kept.txt": b"new", "folder/other.txt": b"new", "folder/deep/er.txt": b"new"}
sys.addaudithook(count)
with atomic.hold_folder(output, lambda *_: None) as held:
    atomic.replace_folder(held, new)
os._exit(0)
"""


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(output: Path, files: Mapping[str, bytes]) -> None:
    with hold_folder(output, lambda *_: None) as held:
        replace_folder(held, files)


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_is_made_and_replaced_and_nothing_stays_beside_it(
    tmp_path: Path, exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanging:
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    output = tmp_path / "made" / "on the way" / "build"
    for files in (OLD, NEW):
        write(output, files)
        assert read_folder(output) == files
        assert list(output.parent.iterdir()) == [output]


def test_this_system_exchanges_in_one_step(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "mark").touch()
    assert atomic.exchange(one, other)
    assert (other / "mark").exists()
    assert not (one / "mark").exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_run_killed_at_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, can_exchange: bool
) -> None:
    output = tmp_path / "build"
    outcomes = set()
    for die_at in range(1, 200):
        write(output, OLD)
        code = subprocess.run(
            [sys.executable, "-c", DYING_WRITER, str(output), str(die_at), str(can_exchange)],
            check=False,
        ).returncode
        if can_exchange:
            left = read_folder(output)
        else:
            with hold_folder(output, lambda *_: None):  # what any next run does first
                left = read_folder(output)
        assert left in (OLD, NEW), f"died at step {die_at}"
        outcomes.add(left == NEW)
        write(output, OLD)
        assert list(tmp_path.iterdir()) == [output], f"died at step {die_at}"
        if code == 0:
            break
    assert code == 0
    assert die_at > 15  # it did die in between
    assert outcomes == {True, False}


def test_a_second_run_is_refused_while_the_first_lives_and_not_after(tmp_path: Path) -> None:
    output = tmp_path / "build"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from edgeclean.files.atomic import hold_folder\n"
            "with hold_folder(Path(sys.argv[1]), lambda *_: None):\n"
            "    print('held', flush=True); sys.stdin.read()",
            str(output),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(OutputInUseError, match="another run is writing"), hold_folder(output):
            pass
        link = tmp_path / "link"
        link.symlink_to(output)
        with pytest.raises(OutputInUseError), hold_folder(link):
            pass
        holder.send_signal(signal.SIGKILL)
    write(output, NEW)
    assert read_folder(output) == NEW


def test_the_lock_is_never_held_twice(tmp_path: Path) -> None:
    """Threads hold and let go in turns; a removed lock file must not let two in.

    A busy machine needs more than half a second for ten turns.
    """
    output = tmp_path / "build"
    inside, most, held_count = 0, 0, 0
    counter = threading.Lock()
    end = time.monotonic() + 0.5

    def hold_again_and_again() -> None:
        nonlocal inside, most, held_count
        while time.monotonic() < end or (held_count <= 10 and time.monotonic() < end + 30):
            try:
                with hold_folder(output):
                    with counter:
                        inside += 1
                        held_count += 1
                        most = max(most, inside)
                    time.sleep(0)
                    with counter:
                        inside -= 1
            except OutputInUseError:
                continue

    threads = [threading.Thread(target=hold_again_and_again) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert held_count > 10
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    """A limit on the file size stands for the disk: the write fails in the middle of a file."""
    output = tmp_path / "build"
    write(output, OLD)
    program = (
        "import resource, sys; from pathlib import Path; from edgeclean.files import atomic\n"
        "from edgeclean.errors import UsageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    with atomic.hold_folder(Path(sys.argv[1]), lambda *_: None) as held:\n"
        "        atomic.replace_folder(held, {'a': b'x', 'b': b'x' * 2000})\n"
        "except UsageError as error: print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(output)],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},  # what measures coverage could not write its file either
    )
    assert "File too large; what was there is unchanged" in told.stdout
    assert read_folder(output) == OLD
    assert list(tmp_path.iterdir()) == [output]


def test_a_failing_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "build"
    write(output, OLD)
    monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if self.parent.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(UsageError, match="Input/output error"):
        write(output, NEW)
    assert read_folder(output) == OLD
    assert list(tmp_path.iterdir()) == [output]


def test_a_link_is_followed_once_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert read_folder(tmp_path / "real") == NEW


def test_a_link_left_where_the_partial_folder_goes_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").touch()
    staging = tmp_path / staging_name("build")
    staging.mkdir()
    (staging / "lock").touch()
    for name in ("new", "old"):
        (staging / name).symlink_to(victim)
    write(tmp_path / "build", NEW)
    assert (victim / "precious").exists()
    assert not os.path.lexists(staging)


def link(path: Path) -> None:
    path.symlink_to("elsewhere")


def filled(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("mine")


def filled_beside_a_lock(path: Path) -> None:
    filled(path)
    (path / "lock").touch()


def folder_as_lock(path: Path) -> None:
    (path / "lock").mkdir(parents=True)


@pytest.mark.parametrize("put", [Path.touch, link, filled, filled_beside_a_lock, folder_as_lock])
def test_what_is_not_ours_is_refused_where_we_write_first(
    put: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    staging = tmp_path / staging_name("build")
    put(staging)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="is not its own; move it away"):
        write(tmp_path / "build", NEW)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("exchanging", [True, False])
@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_folder_that_may_not_be_replaced_is_whole_whenever_it_is_found_out(
    tmp_path: Path, moment: int, exchanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked at the start, before the exchange, and of what came out of the exchange."""
    if not exchanging:
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    output = tmp_path / "build"
    write(output, OLD)
    asked: list[Path] = []

    def refuse(folder: Path, named: Path) -> None:
        assert read_folder(folder) == OLD
        asked.append(folder)
        if len(asked) == moment:
            raise UsageError(f"{named} is mine")

    undone = []

    @contextmanager
    def alongside() -> Iterator[None]:
        try:
            yield
        except UsageError:
            undone.append(True)
            raise

    with pytest.raises(UsageError, match="is mine"), hold_folder(output, refuse) as held:
        replace_folder(held, NEW, alongside=alongside())
    assert len(asked) == moment
    assert read_folder(output) == OLD
    assert list(tmp_path.iterdir()) == [output]
    assert undone == [True] * (moment == 3)


def test_a_loop_of_links_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    for path in (tmp_path / "one", tmp_path / "one" / "build"):
        with pytest.raises(UsageError, match="loop of symbolic links"), hold_folder(path):
            pass


def test_a_place_that_cannot_be_says_why(tmp_path: Path) -> None:
    for name, why in {"x" * 300: "File name too long", "a\0b": "null byte"}.items():
        with pytest.raises(UsageError, match=why), hold_folder(tmp_path / name):
            pass


def test_what_an_earlier_version_or_a_user_left_beside_stays(tmp_path: Path) -> None:
    for name in ("lock", "partial", "previous"):
        (tmp_path / f".build.{name}").mkdir()
        (tmp_path / f".build.{name}" / "mine").write_text(name)
    write(tmp_path / "build", NEW)
    assert sorted(path.read_text() for path in tmp_path.glob(".build.*/mine")) == [
        "lock",
        "partial",
        "previous",
    ]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write(tmp_path / "build", NEW)
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "build").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("filled", [False, True])
def test_parents_that_a_failed_run_made_go_again(tmp_path: Path, filled: bool) -> None:
    output = tmp_path / "new" / "deep" / "build"
    held = hold_folder(output)
    held.__enter__()
    if filled:  # by somebody else, meanwhile
        (tmp_path / "new" / "theirs").touch()
    with pytest.raises(RuntimeError):
        held.gen.throw(RuntimeError())  # type: ignore[attr-defined]
    assert [path.name for path in tmp_path.rglob("*")] == (["new", "theirs"] if filled else [])
    write(output, NEW)
    assert output.is_dir()


def test_a_file_cannot_be_an_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"), hold_folder(tmp_path / "file"):
        pass
    with pytest.raises(UsageError, match="Not a directory"), hold_folder(tmp_path / "file" / "x"):
        pass
    with pytest.raises(UsageError, match="cannot be an output folder"), hold_folder(Path("/")):
        pass


def test_other_errors_of_the_exchange_are_told(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(FileNotFoundError):
        atomic.exchange(tmp_path / "one", tmp_path / "not there")
