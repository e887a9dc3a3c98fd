"""The user's own file: the text that can be read is what runs, and its folder stays as it was."""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeclean.errors import UsageError
from edgeclean.load.architectures.named_code import build_named
from edgeclean.networks.state import ModelSpec

SPEC = ModelSpec(
    architecture="net.py:make", input_shape=(3, 4, 4), classes=2, mean=(0.0,) * 3, std=(1.0,) * 3
)
SEEN = "from torch import nn\ndef make(): return nn.Linear(2, 2)\n"
HIDDEN = "from torch import nn\ndef make(): return nn.Linear(9, 9)\n"


def sides(folder: Path) -> tuple[int, ...]:
    module = build_named("net.py:make", SPEC, folder)
    assert isinstance(module, nn.Linear)
    return tuple(module.weight.shape)


def test_bytecode_that_came_along_is_not_run(tmp_path: Path) -> None:
    source = tmp_path / "net.py"
    source.write_text(HIDDEN, encoding="utf-8")
    cached = Path(
        py_compile.compile(
            str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        or ""
    )
    source.write_text(SEEN, encoding="utf-8")
    # The control: a plain import of the file runs what cannot be read.
    spec = importlib.util.spec_from_file_location("net", source)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    assert plain.make().weight.shape == (9, 9)
    assert cached.is_file()
    assert sides(tmp_path) == (2, 2)


def test_nothing_is_written_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (tmp_path / "net.py").write_text(SEEN, encoding="utf-8")
    assert sides(tmp_path) == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["net.py"]


SETTING = """
import os, torch
from torch import nn

os.chdir("/")
torch.set_grad_enabled(False)
torch.set_default_dtype(torch.float64)

def make():
    os.chdir("/")
    return nn.Linear(2, 2)
"""


def test_what_a_file_sets_for_its_process_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(SETTING, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second finds the file again, by its relative name
        module = build_named("net.py:make", SPEC)
        assert isinstance(module, nn.Linear)
        assert module.weight.requires_grad
        assert Path.cwd() == tmp_path
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_a_device_that_a_file_sets_at_its_top_is_not_that_of_its_network(
    device: str, tmp_path: Path
) -> None:
    top = f"import torch\ntorch.set_default_device({device!r})\n"
    (tmp_path / "net.py").write_text(top + SEEN, encoding="utf-8")
    module = build_named("net.py:make", SPEC, tmp_path)
    assert {one.device.type for one in module.parameters()} == {"cpu"}
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize(
    "made",
    ["torch.set_default_device('meta') or nn.Linear(2, 2)", "nn.Linear(2, 2, device='meta')"],
)
def test_a_network_without_numbers_is_refused_as_such(made: str, tmp_path: Path) -> None:
    source = f"import torch\nfrom torch import nn\ndef make(): return {made}\n"
    (tmp_path / "net.py").write_text(source, encoding="utf-8")
    with pytest.raises(UsageError, match="weight is on PyTorch's device 'meta'"):
        build_named("net.py:make", SPEC, tmp_path)
    assert torch.get_default_device().type == "cpu"


def test_the_file_knows_its_name_and_place(tmp_path: Path) -> None:
    source = "from torch import nn\ndef make(): return nn.Linear(len(__file__), len(__name__))\n"
    (tmp_path / "net.py").write_text(source, encoding="utf-8")
    assert sides(tmp_path) == (3, len(str(tmp_path / "net.py")))


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    sides: int = 2

def make():
    @dataclass
    class Late:
        sides: int = 5
    return nn.Linear(Settings().sides, Late().sides)
"""


def test_the_code_may_have_dataclasses_and_leaves_no_module_behind(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(DATACLASS, encoding="utf-8")
    before = dict(sys.modules)
    assert sides(tmp_path) == (5, 2)
    assert "net" not in sys.modules
    assert {name: sys.modules[name] for name in before} == before


@pytest.mark.parametrize("name", ["json", "chunk_of_torch", "this"])
def test_a_file_never_stands_in_for_a_module_of_its_name(tmp_path: Path, name: str) -> None:
    """Neither for one that was imported before nor for one that its code imports."""
    text = f"import importlib\n{SEEN}\nkept = importlib.import_module({name!r})\n"
    if name == "chunk_of_torch":  # nothing else has this name: the file is found itself
        text = SEEN
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    before = sys.modules.get(name)
    module = build_named(f"{name}.py:make", SPEC, tmp_path)
    assert isinstance(module, nn.Linear)
    if before is not None:
        assert sys.modules[name] is before
    elif name in sys.modules:
        assert sys.modules[name].__file__ != str(tmp_path / f"{name}.py")
