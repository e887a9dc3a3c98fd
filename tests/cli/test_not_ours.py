"""Nothing is removed or replaced that this program did not make, whatever the options name."""

from __future__ import annotations

import os
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from bundle_files import make_checksums_fit, put_bundle
from command_line import Said, Terminal
from exhaustive import exhaustive
from fleet_folder import MODEL
from small_checkpoint import OPTIONS, quick_config
from users_things import looked_at, nothing_touched, users_folder

from edgeclean.cli.caches import stage_cache


@pytest.fixture
def own(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a checkpoint, its code and settings; all that is read."""
    here = tmp_path / "own"
    here.mkdir()
    for name in ("model.safetensors", "net.py"):
        shutil.copy(source.parent / name, here / name)
    quick_config(here)
    (here / "model.toml").write_text(MODEL, encoding="utf-8")
    (here / "fleet.toml").write_text(CATALOGUE, encoding="utf-8")
    monkeypatch.chdir(here)
    return here


CATALOGUE = '[[networks]]\ncheckpoint = "model.safetensors"\nmodel = "model.toml"\n'
FLEET = ["fleet", "fleet.toml", "-o"]
NETWORK = ["model.safetensors", *OPTIONS, "--config", "quick.toml"]
COMPRESS = ["compress", *NETWORK, "--no-cache"]
EXPORT = ["export", *NETWORK]
TABLE = ["latency-table", *NETWORK, "--rounds", "5"]
INPUTS = ["model.safetensors", "net.py", "quick.toml"]


def refused(said: Said, *words: str) -> None:
    """Exit code 2, and one line that says why."""
    assert said.code == 2, said.err
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0]
    assert "Traceback" not in said.err
    assert "Loading" not in said.err, "it worked before it found out"


LAW = {
    "the bundle": [*COMPRESS, "-o", "MINE"],
    "the bundle, a link": [*COMPRESS, "-o", "MINE/link"],
    "the bundle, a pipe": [*COMPRESS, "-o", "MINE/pipe"],
    "the bundle, a folder within": [*COMPRESS, "-o", "MINE/sub"],
    "the cache": ["compress", *NETWORK, "-o", "b", "--cache", "MINE"],
    "the cache, a folder within": ["compress", *NETWORK, "-o", "b", "--cache", "MINE/sub"],
    "the dependency file": [*COMPRESS, "-o", "b", "--depfile", "MINE"],
    "the dependency file, a file": [*COMPRESS, "-o", "b", "--depfile", "MINE/notes.txt"],
    "the dependency file, a link": [*COMPRESS, "-o", "b", "--depfile", "MINE/link"],
    "the dependency file, a pipe": [*COMPRESS, "-o", "b", "--depfile", "MINE/pipe"],
    "the ONNX file": [*EXPORT, "-o", "MINE"],
    "the ONNX file, a file": [*EXPORT, "-o", "MINE/notes.txt"],
    "the ONNX file, somebody's": [*EXPORT, "-o", "MINE/model.onnx"],
    "the ONNX file, a link": [*EXPORT, "-o", "MINE/link"],
    "the ONNX file, a pipe": [*EXPORT, "-o", "MINE/pipe"],
    "the table": [*TABLE, "-o", "MINE"],
    "the table, a file": [*TABLE, "-o", "MINE/second name"],
    "the table, a pipe": [*TABLE, "-o", "MINE/pipe"],
    "a fleet": [*FLEET, "MINE"],
    "a fleet, a link": [*FLEET, "MINE/link"],
    "a fleet, a pipe": [*FLEET, "MINE/pipe"],
    "a fleet, a folder within": [*FLEET, "MINE/sub"],
    "a fleet's cache": [*FLEET, "b", "--cache", "MINE"],
    "evidence": ["scan", *NETWORK, "-o", "MINE"],
    "evidence, a file": ["scan", *NETWORK, "-o", "MINE/notes.txt"],
    "source code": ["embed", "BUNDLE", "-o", "MINE", "--symbol", "net"],
    "source code, a file": ["embed", "BUNDLE", "-o", "MINE/notes.txt"],
}


@pytest.mark.parametrize("case", LAW)
def test_an_output_that_is_a_users_is_refused_and_nothing_of_it_is_touched(
    case: str, terminal: Terminal, own: Path, bundle: Path, tmp_path: Path
) -> None:
    mine = users_folder(tmp_path / "mine")
    words = [word.replace("MINE", str(mine)).replace("BUNDLE", str(bundle)) for word in LAW[case]]
    before = looked_at(tmp_path)
    with nothing_touched(mine):
        refused(terminal(*words))
    assert looked_at(tmp_path) == before, "something new lies there"


@pytest.mark.parametrize("words", [["sign", "MINE", "--key", "k.pem"], ["build-engine", "MINE"]])
def test_no_bundle_no_work(words: list[str], terminal: Terminal, own: Path, tmp_path: Path) -> None:
    mine = users_folder(tmp_path / "mine")
    before = looked_at(mine)
    further = ["-o", mine] if words[0] == "build-engine" else []
    with nothing_touched(mine):
        said = terminal(*(word.replace("MINE", str(mine)) for word in words), *further)
    assert said.code in (2, 3, 7)
    assert looked_at(mine) == before


def test_a_whole_run_among_a_users_things(
    terminal: Terminal, own: Path, bundle: Path, tmp_path: Path
) -> None:
    """Every command that writes, with every output between the files of a user, twice."""
    mine = users_folder(tmp_path / "mine")
    names = set(looked_at(mine))
    run = ["compress", *NETWORK, "-o", mine / "out", "--cache", mine / "kept"]
    commands = [
        [*run, "--depfile", mine / "out.d"],
        [*EXPORT, "-o", mine / "new.onnx"],
        [*TABLE, "-o", mine / "table.json"],
        ["embed", bundle, "-o", mine, "--form", "incbin"],
        ["scan", *NETWORK, "-o", mine / "evidence"],
    ]
    source = {f"edgeclean_model.{suffix}" for suffix in ("h", "S", "onnx")}
    for done in ("made", "replaced"):
        for words in commands:
            with nothing_touched(mine, names):
                said = terminal(*words)
            again = words[0] == "scan" and done == "replaced"  # evidence is never replaced
            assert said.code == (2 if again else 0), said.err
        made = {path.split("/")[0] for path in set(looked_at(mine)) - names}
        assert made == {"out", "kept", "out.d", "new.onnx", "table.json", "evidence", *source}


@pytest.mark.parametrize("how", ["itself", "a link", "a second name", "by another way"])
@pytest.mark.parametrize("read", INPUTS)
@pytest.mark.parametrize("command", [EXPORT, TABLE, [*COMPRESS, "-o", "b", "--depfile"]])
def test_an_input_is_no_output(
    command: list[str], read: str, how: str, terminal: Terminal, own: Path
) -> None:
    named = {"itself": read, "by another way": f"../own/{read}"}.get(how, "other")
    if how == "a link":
        (own / named).symlink_to(read)
    if how == "a second name":
        (own / named).hardlink_to(read)
    before = looked_at(own)
    with nothing_touched(own):
        option = [] if command[-1] == "--depfile" else ["-o"]
        refused(terminal(*command, *option, named), named, read, "is read")
    assert looked_at(own) == before


def test_no_output_holds_or_lies_in_an_input(
    terminal: Terminal, own: Path, tmp_path: Path, bundle: Path
) -> None:
    images = own / "images"
    images.mkdir()
    inside = put_bundle(tmp_path / "b")
    before = looked_at(tmp_path)
    for words in (
        [*COMPRESS, "-o", "."],
        [*COMPRESS, "-o", "../own"],
        ["scan", *NETWORK, "-o", "."],
        [*COMPRESS, "-o", "images/out", "--evaluate", images],
        [*COMPRESS, "-o", "out", "--evaluate", images, "--depfile", "images/x.d"],
        ["compress", *NETWORK, "-o", "out", "--cache", "out"],
        ["compress", *NETWORK, "-o", "out", "--cache", "out/kept"],
        ["embed", inside, "-o", inside],
        ["embed", inside, "-o", inside / "source"],
        [*EXPORT, "-o", inside / "x.onnx"],
        [*TABLE, "-o", inside / "triggers" / "t.json"],
        [*COMPRESS, "-o", inside / "out"],
        [*COMPRESS, "-o", "out", "--depfile", inside / "x.d"],
        ["compress", *NETWORK, "-o", "out", "--cache", inside / "kept"],
        ["scan", *NETWORK, "-o", inside / "evidence"],
        ["build-engine", inside, "-o", inside],
    ):
        refused(terminal(*words))
        assert looked_at(tmp_path) == before, words


def add_file(folder: Path) -> None:
    (folder / "triggers" / "my-notes.txt").write_text("mine")


def add_listed(folder: Path) -> None:
    add_file(folder)
    make_checksums_fit(folder)


def change_file(folder: Path) -> None:
    (folder / "report.html").write_text("mine")


def own_signature(folder: Path) -> None:
    (folder / "model.sig").write_text("mine")


def only_listed(folder: Path) -> None:
    """A web site, say: a manifest of its own, and a list of its files."""
    (folder / "manifest.json").write_text("{}")
    make_checksums_fit(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (add_file, "triggers/my-notes.txt"),
        (add_listed, "triggers/my-notes.txt"),
        (change_file, "report.html"),
        (own_signature, "model.sig"),
        (only_listed, "manifest.json"),
    ],
)
def test_a_bundle_that_is_not_as_it_was_written_is_not_replaced(
    change: Callable[[Path], None], named: str, terminal: Terminal, own: Path
) -> None:
    folder = put_bundle(own / "b")
    change(folder)
    before = looked_at(own)
    with nothing_touched(own):
        refused(terminal(*COMPRESS, "-o", "b"), named, "would be lost", "move it away")
    assert looked_at(own) == before


@pytest.mark.parametrize("command", [EXPORT, TABLE, [*COMPRESS, "-o", "b", "--depfile"]])
@pytest.mark.parametrize("kind", ["socket", "device", "folder", "loop"])
def test_what_is_no_plain_file_is_not_replaced(
    kind: str, command: list[str], terminal: Terminal, own: Path
) -> None:
    place = own / "place"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("place")
    elif kind == "folder":
        place.mkdir()
    elif kind == "loop":
        place.symlink_to("place")
    else:
        try:
            os.mknod(place, 0o600 | 0o020000, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("a device needs the right to make one")
    before = looked_at(own)
    with nothing_touched(own):
        option = [] if command[-1] == "--depfile" else ["-o"]
        refused(terminal(*command, *option, place))
    assert looked_at(own) == before


@pytest.mark.parametrize("command", [COMPRESS, ["scan", *NETWORK], ["embed", "BUNDLE"]])
def test_a_loop_of_links_is_refused_in_a_line(
    command: list[str], terminal: Terminal, own: Path, bundle: Path
) -> None:
    (own / "loop").symlink_to("loop")
    words = [str(bundle) if word == "BUNDLE" else word for word in command]
    refused(terminal(*words, "-o", "loop"), "loop of symbolic links")


@pytest.mark.parametrize("weights", exhaustive(["w;x.bin", "w.bin ", ".IGNORE"], ["w;x.bin"]))
def test_a_name_known_only_after_loading_is_refused_before_the_work(
    weights: str, terminal: Terminal, own: Path, source: Path, bundle: Path
) -> None:
    proto = onnx.load(source.parent / "original.onnx")
    onnx.save_model(proto, "a.onnx", save_as_external_data=True, location=weights, size_threshold=0)
    folder = put_bundle(own / "b")
    before = looked_at(own)
    words = ["compress", "a.onnx", "--arch=onnx", *OPTIONS[1:], "--config", "quick.toml"]
    said = terminal(*words, "--no-cache", "-o", folder, "--depfile", "d.d")
    assert said.code == 2, said.err
    assert "cannot stand in a dependency file" in said.err
    assert "Scanning" not in said.err
    assert looked_at(own) == before


def test_weights_beside_an_onnx_file_are_inputs(
    terminal: Terminal, own: Path, source: Path, bundle: Path
) -> None:
    proto = onnx.load(source.parent / "original.onnx")
    onnx.save_model(proto, "a.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    onnx_network = ["a.onnx", "--arch=onnx", *OPTIONS[1:], "--config", "quick.toml"]
    (own / "w.d").hardlink_to("w.bin")
    before = looked_at(own)
    for words in (
        ["export", *onnx_network, "-o", "w.bin"],
        ["latency-table", *onnx_network, "-o", "w.d"],
        ["compress", *onnx_network, "--no-cache", "-o", "b", "--depfile", "w.d"],
    ):
        said = terminal(*words)
        assert said.code == 2, said.err
        assert looked_at(own) == before


def test_the_default_cache_of_an_earlier_version_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "edgeclean"
    old.mkdir()
    for name in ("secret", "1.kept"):
        (old / name).write_bytes(b"old")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told: list[str] = []
    cache = stage_cache(None, False, told.append)
    assert cache is not None
    cache.store.put("one", b"result")
    assert cache.store.get("one") == b"result"
    assert (old / "secret").read_bytes() == (old / "1.kept").read_bytes() == b"old"
    assert len(told) == 1
    assert "you may delete them" in told[0]
    stage_cache(None, False, told.append)
    assert len(told) == 1, "once is enough"


def test_a_large_file_in_the_place_of_embedded_bytes_is_not_taken_into_memory(
    tmp_path: Path, terminal: Terminal
) -> None:
    bundle, mine = put_bundle(tmp_path / "build"), tmp_path / "source"
    words = ["embed", bundle, "-o", mine, "--form", "incbin", "--file", "golden.safetensors"]
    assert terminal(*words).code == 0
    place = mine / "edgeclean_model.safetensors"
    os.truncate(place, 2**26)
    tracemalloc.start()
    try:
        answer = terminal(*words)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.code == 2
    assert "was not written by this command" in answer.err
    assert place.stat().st_size == 2**26 > 4 * most
