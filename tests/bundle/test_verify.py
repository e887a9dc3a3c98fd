from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_files import make_checksums_fit, make_hashes_fit, make_manifest_fit, put_bundle
from onnx import numpy_helper
from safetensors.numpy import load, save

from edgeclean.bundle import manifest as texts
from edgeclean.bundle import verify
from edgeclean.bundle.verify import verify_bundle
from edgeclean.errors import InputRejectedError

BITS_PER_FILE = 30


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_bundle(tmp_path_factory.mktemp("pristine") / "build")


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "build"))


def test_a_bundle_as_written_is_verified(bundle: Path) -> None:
    record = verify_bundle(bundle)
    assert record.manifest_sha256 == texts.sha256((bundle / "manifest.json").read_bytes())
    assert record.source_sha256 == "ab" * 32
    assert set(record.files) == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()
    }
    assert (record.opset, record.golden_images) == (17, 4)
    assert record.max_relative_difference <= record.tolerance == 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "SHA256SUMS",
        "bom.cdx.json",
        "golden.safetensors",
        "manifest.json",
        "model.onnx",
        "report.html",
        "report.json",
        "triggers/class_3.png",
    ],
)
def test_one_flipped_bit_anywhere_is_found(bundle: Path, name: str) -> None:
    path = bundle / name
    content = path.read_bytes()
    for bit in random.Random(name).choices(range(8 * len(content)), k=BITS_PER_FILE):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(InputRejectedError):
            verify_bundle(bundle)
    path.write_bytes(content)
    assert verify_bundle(bundle)


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "triggers/class_3.png"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(InputRejectedError, match=name):
        verify_bundle(bundle)


def test_an_added_file_is_named(bundle: Path) -> None:
    (bundle / "triggers" / "more.png").touch()
    with pytest.raises(InputRejectedError, match=r"triggers/more.png is not listed"):
        verify_bundle(bundle)


@pytest.mark.parametrize("name", [".hidden", "spa ce", "line\nbreak"])
def test_a_strange_name_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).touch()
    with pytest.raises(InputRejectedError, match="cannot be part of it"):
        verify_bundle(bundle)


def test_an_added_empty_folder_is_named(bundle: Path) -> None:
    (bundle / "triggers" / "empty").mkdir()
    with pytest.raises(InputRejectedError, match="empty folder 'triggers/empty'"):
        verify_bundle(bundle)


def test_links_are_not_followed(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copy(bundle / "model.onnx", outside)
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(
        InputRejectedError, match=r"model.onnx cannot be read: it is a symbolic link"
    ):
        verify_bundle(bundle)
    link = tmp_path / "link"
    link.symlink_to(bundle)
    with pytest.raises(InputRejectedError, match="is a symbolic link; name the folder"):
        verify_bundle(link)


def test_a_linked_folder_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "triggers", tmp_path / "triggers")
    (bundle / "triggers").symlink_to(tmp_path / "triggers")
    with pytest.raises(InputRejectedError, match="triggers cannot be read"):
        verify_bundle(bundle)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of the superuser, to whom every folder is open."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError as error:
        pytest.skip(f"the superuser cannot become another user here: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("check", [verify_bundle, verify.check_unchanged])
@pytest.mark.parametrize("folder", ["build/triggers", "build"])
def test_a_folder_that_may_not_be_read_is_named(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Path], object],
    folder: str,
) -> None:
    closed = bundle.parent / folder
    bundle.parent.chmod(0o755)
    monkeypatch.chdir(bundle.parent)  # above it, another user may not even look
    mode = closed.stat().st_mode
    closed.chmod(0)
    name = folder.removeprefix("build/")
    try:
        with (
            as_nobody(),
            pytest.raises(InputRejectedError, match=f"^{name} cannot be read: Permission denied$"),
        ):
            check(Path("build"))
    finally:
        closed.chmod(mode)


def test_a_folder_of_too_many_entries_is_not_listed_to_its_end(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MAX_FILES", 20)  # a thousand files take longer to make than this
    assert verify.read_folder(bundle)[1] == [Path("triggers")]
    for index in range(21):
        (bundle / "triggers" / f"e{index}").mkdir()
    with pytest.raises(InputRejectedError, match="holds more than"):
        verify.read_folder(bundle)


def test_a_pipe_does_not_hold_it_up(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")

    def give_up(*_: object) -> None:
        raise TimeoutError("opening a pipe waits for a writer that never comes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    try:
        with pytest.raises(InputRejectedError, match=r"model.onnx cannot be read: not a reg"):
            verify_bundle(bundle)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_sizes_and_counts_are_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_TEXT_BYTES", 100)
    with pytest.raises(InputRejectedError, match="larger than 100 bytes"):
        verify_bundle(bundle)
    monkeypatch.undo()
    monkeypatch.setattr(verify, "MAX_FILES", 3)
    with pytest.raises(InputRejectedError, match="more than 3 files"):
        verify_bundle(bundle)


def _swap_model(bundle: Path) -> None:
    """A model whose last bias is moved, all listed hashes made to fit."""
    proto = onnx.load_model_from_string((bundle / "model.onnx").read_bytes())
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm")
    bias = next(one for one in proto.graph.initializer if one.name == gemm.input[2])
    moved = numpy_helper.to_array(bias) + np.float32(0.1)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    (bundle / "model.onnx").write_bytes(proto.SerializeToString())


def _change_manifest(*path: str, to: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        place = manifest
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        (bundle / "manifest.json").write_bytes(texts.canonical_json(manifest))

    return change


def _swap_golden(**tensors: Any) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        golden = load((bundle / "golden.safetensors").read_bytes())
        (bundle / "golden.safetensors").write_bytes(save({**golden, **tensors}))

    return change


def _drop_a_class(bundle: Path) -> None:
    """In all that is said, but not in the network."""
    _change_manifest("model", "classes", to=4)(bundle)
    _swap_golden(logits=np.zeros((4, 4), np.float32))(bundle)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (_drop_a_class, r"model.onnx gives logits \(4, 5\); golden.safetensors holds \(4, 4\)"),
        (_swap_model, r"model.onnx differs from its stored logits by 0\.\d+"),
        (_change_manifest("model", "opset", to=13), "has opset 17; the manifest says 13"),
        (_change_manifest("model", "input_name", to="x"), "input_name 'input'; .* says 'x'"),
        (_change_manifest("model", "output_name", to="x"), "output_name 'logits'; .* says 'x'"),
        (_change_manifest("model", "batch", to=8), "has batch 1; the manifest says 8"),
        (_change_manifest("source", "sha256", to="cd" * 32), "made from another checkpoint"),
        (_change_manifest("model", "input_shape", to=[3, 9, 9]), r"float32 \(4, 3, 9, 9\) is said"),
        (_change_manifest("model", "classes", to=6), r"float32 \(4, 6\) is said"),
        (_change_manifest("golden", "images", to=5), r"float32 \(5, 3, 8, 8\) is said"),
        (_change_manifest("golden", "tolerance", to=2.0), "schema at golden/tolerance"),
        (_change_manifest("schema_version", to=2), "schema at schema_version"),
        (_change_manifest("extra", to=1), "schema at the top level"),
        (_swap_golden(logits=np.full((4, 5), np.nan, np.float32)), "differs from its stored"),
        (_swap_golden(input=np.zeros((4, 3, 8, 8))), "holds float64"),
        (lambda bundle: (bundle / "golden.safetensors").write_bytes(b"no"), "cannot be read"),
        (lambda bundle: (bundle / "model.onnx").write_bytes(b"\xff no"), "not an ONNX file"),
    ],
)
def test_a_change_that_fits_its_hashes_is_found_by_what_it_says_or_computes(
    bundle: Path, tamper: Callable[[Path], None], message: str
) -> None:
    tamper(bundle)
    make_hashes_fit(bundle)
    with pytest.raises(InputRejectedError, match=message):
        verify_bundle(bundle)


def test_the_helper_above_makes_hashes_fit(bundle: Path) -> None:
    """Else the test above would only see hashes that do not."""
    (bundle / "triggers" / "class_3.png").write_bytes(b"another")
    make_hashes_fit(bundle)
    assert verify_bundle(bundle)


def test_the_manifest_must_list_every_reproducible_file(bundle: Path) -> None:
    (bundle / "more.bin").touch()
    make_checksums_fit(bundle)
    with pytest.raises(InputRejectedError, match=r"more.bin is not listed in the manifest"):
        verify_bundle(bundle)
    (bundle / "more.bin").unlink()
    (bundle / "triggers" / "class_3.png").write_bytes(b"another")
    make_checksums_fit(bundle)
    with pytest.raises(InputRejectedError, match="not the file that the manifest describes"):
        verify_bundle(bundle)
    shutil.rmtree(bundle / "triggers")
    make_checksums_fit(bundle)
    with pytest.raises(InputRejectedError, match=r"class_3.png is missing"):
        verify_bundle(bundle)


def test_the_bill_of_materials_must_be_of_this_network(bundle: Path) -> None:
    bill = (bundle / "bom.cdx.json").read_text("utf-8")
    digest = texts.sha256((bundle / "model.onnx").read_bytes())
    (bundle / "bom.cdx.json").write_text(bill.replace(digest, "ef" * 32), encoding="utf-8")
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match="is of another network"):
        verify_bundle(bundle)


def test_the_report_must_name_this_manifest(bundle: Path) -> None:
    report = texts.canonical_json({"ms": 1.5, "manifest_sha256": "0" * 64})
    (bundle / "report.json").write_bytes(report)
    make_checksums_fit(bundle)
    with pytest.raises(InputRejectedError, match="names another manifest"):
        verify_bundle(bundle)


def test_verifying_needs_no_torch(bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgeclean.bundle.verify import verify_bundle\n"
        "verify_bundle(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(bundle)], check=True)


def test_a_page_that_no_list_names_is_refused(bundle: Path) -> None:
    """The manifest leaves the page out, so only the list of hashes can miss it."""
    sums = bundle / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "report.html" not in line))
    with pytest.raises(InputRejectedError, match=r"report\.html is not listed in SHA256SUMS"):
        verify_bundle(bundle)


def test_what_every_bundle_has_is_missed_though_no_list_names_it(bundle: Path) -> None:
    sums = bundle / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if "report.json" not in line))
    (bundle / "report.json").unlink()
    with pytest.raises(InputRejectedError, match=r"report\.json is missing from the bundle"):
        verify_bundle(bundle)


def test_a_bundle_has_a_limit_in_bytes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    monkeypatch.setattr(verify, "MAX_BUNDLE_BYTES", size)
    assert verify_bundle(bundle)
    monkeypatch.setattr(verify, "MAX_BUNDLE_BYTES", size - 1)
    with pytest.raises(InputRejectedError, match="the bundle holds more than"):
        verify_bundle(bundle)
