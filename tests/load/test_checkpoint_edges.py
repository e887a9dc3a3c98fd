"""What a whole file may still be wrong about, after its bytes and tensors have passed."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import pytest
import torch
from onnx_graphs import SIDE, graph
from tiny_checkpoint import SPEC, saved, tiny

from edgeclean.errors import InputRejectedError
from edgeclean.load import checkpoint, torch_file
from edgeclean.load.checkpoint import load_checkpoint, parse_torch
from edgeclean.load.isolation import with_limits
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx import importer
from edgeclean.load.state_dict import check_layout
from edgeclean.networks.state import ModelSpec

LIMITS = LoadLimits()
ONNX = dataclasses.replace(SPEC, architecture="onnx", input_shape=(3, SIDE, SIDE))


@pytest.fixture(autouse=True)
def _parsed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, what the child would do: it takes seconds to start."""
    for module in (checkpoint, importer):
        monkeypatch.setattr(
            module,
            "parse_isolated",
            lambda task, given, limits: task(with_limits(given, limits)),
        )


def onnx_file(folder: Path) -> Path:
    path = folder / "a.onnx"
    path.write_bytes(graph([("Relu", [""], {}), ("Flatten", [""], {})]).SerializeToString())
    return path


def test_an_onnx_file_of_another_image_shape(tmp_path: Path) -> None:
    spec = dataclasses.replace(ONNX, input_shape=(3, 32, 32))
    message = "takes images of 3x9x9, and 3x32x32 was said; give 3x9x9"
    with pytest.raises(InputRejectedError, match=message):
        load_checkpoint(onnx_file(tmp_path), spec)


def test_a_network_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputRejectedError, match=r"a\.onnx: the network has no parameters"):
        load_checkpoint(onnx_file(tmp_path), ONNX)


def test_a_batchnorm_without_statistics_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    """Its answer for an image hangs on the others of the batch."""
    code = CODE.replace("BatchNorm2d(4)", "BatchNorm2d(4, track_running_stats=False)")
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    path = tmp_path / "a.pth"
    weights = {k: v for k, v in tiny().state_dict().items() if "running" not in k}
    path.write_bytes(saved({k: v for k, v in weights.items() if "num_batches" not in k}))
    with pytest.raises(InputRejectedError, match="BatchNorm '1' keeps no statistics") as caught:
        load_checkpoint(path, SPEC, code_folder=tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "limits", [LoadLimits(macs=4 * 27 * 4), LoadLimits(activations=60)], ids=["macs", "activations"]
)
def test_a_network_that_is_too_dear_is_refused_by_its_cost(
    limits: LoadLimits, tmp_path: Path
) -> None:
    """And not as one that "does not take" its images, which would send its user on a wrong way."""
    path = tmp_path / "a.pth"
    path.write_bytes(saved(tiny().state_dict()))
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    with pytest.raises(InputRejectedError, match=r"before the network has ended; the limits are"):
        load_checkpoint(path, SPEC, limits=limits, code_folder=tmp_path)


CODE = """
from torch import nn
def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
    )
"""


def with_pickle(payload: bytes) -> bytes:
    """An archive of torch.save, with another pickle in it."""
    stream = io.BytesIO()
    whole = io.BytesIO(saved({"a": torch.ones(1)}))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(stream, "w") as new:
        for member in old.infolist():
            pickled = member.filename.endswith("data.pkl")
            new.writestr(member, payload if pickled else old.read(member))
    return stream.getvalue()


def test_a_pickle_that_cannot_be_searched_for_names_is_refused_all_the_same() -> None:
    """The search for what it asks for gives up on it as well: then the first reason has to do."""
    for payload in (b"\x80\x02cos\nsystem\nq\x00", b"\x80\x02\xff.", b""):
        with pytest.raises(InputRejectedError) as caught:
            parse_torch(with_pickle(payload), LIMITS)
        assert str(caught.value)
        assert "\n" not in str(caught.value)


def test_memory_that_does_not_suffice_is_the_childs_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch_file, "read_pickle", exhaust)
    with pytest.raises(MemoryError):
        parse_torch(saved({"a": torch.ones(1)}), LIMITS)


def test_a_tensor_without_numbers_repeats_none() -> None:
    check_layout({"a": torch.zeros(0, 3), "b": torch.zeros(0).expand(4, 0)}, LIMITS)


def test_the_spec_of_these_tests_is_loaded(tmp_path: Path) -> None:
    """The control of them all: nothing else is wrong with these files."""
    (tmp_path / "a.pth").write_bytes(saved(tiny().state_dict()))
    (tmp_path / "net.py").write_text(CODE, encoding="utf-8")
    loaded = load_checkpoint(tmp_path / "a.pth", SPEC, code_folder=tmp_path)
    assert isinstance(loaded.spec, ModelSpec)
