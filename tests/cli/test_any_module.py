"""Modules of every kind through the command: taken, or refused in a line before any long stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import Terminal
from small_checkpoint import quick_config
from torch import nn

CODE = """
import torch
from torch import nn, relu
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm


class Net(nn.Module):
    def __init__(self, classes, tail, first=nn.Conv2d, outputs=None):
        super().__init__()
        self.c1, self.b1 = first(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.c2, self.fc = nn.Conv2d(16, 24, 3, 2, 1), nn.Linear(24, outputs or classes)
        self.auxiliary = nn.Sequential(nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8))
        self.tail = tail

    def forward(self, x):
        x = x.to(self.c1.weight.dtype)
        return self.tail(self, relu(self.c2(relu(self.b1(self.c1(x))))))


class Same(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), self.weight, self.bias, 2)


def pooled(x):
    return functional.avg_pool2d(x, x.size()[2:])

def tuple_(classes): return Net(classes, lambda m, x: (m.fc(x.mean((2, 3))), x))
def dictionary(classes): return Net(classes, lambda m, x: {"out": m.fc(x.mean((2, 3)))})
def view(classes): return Net(classes, lambda m, x: m.fc(pooled(x).view(x.size(0), -1)))
def planes(classes): return Net(
    classes, lambda m, x: m.fc(pooled(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
def same(classes): return Net(classes, lambda m, x: m.fc(x.mean((2, 3))), first=Same)
def one_logit(classes): return Net(classes, lambda m, x: m.fc(x.mean((2, 3))), outputs=1)
def given_one_logit(classes): return Net(classes, lambda m, x: m.fc(x.mean((2, 3))))
def sized(classes): return Net(classes, lambda m, x: m.fc(pooled(x).flatten(1)))
def normed(classes): return nn.Sequential(
    weight_norm(nn.Conv2d(3, 24, 3, 2, 1)), nn.ReLU(), weight_norm(nn.Conv2d(24, 24, 3, 2, 1)),
    nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes))
def enlarged(classes): return nn.Sequential(
    nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
    nn.Linear(24 * 49, classes))
def masked(classes): return Net(  # written out for the tuple; a cast of what is no float
    classes, lambda m, x: (m.fc(x.mean((2, 3)) * (x.amax((2, 3)) > 0.5).float()), x))
class InFiveAxes(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.c1, self.fc = nn.Conv2d(3, 24, 3, 2, 1), nn.Linear(24, classes)
        self.scale = nn.Parameter(torch.full((1, 2, 12, 1, 1), 1.5))
    def forward(self, x):
        x = relu(self.c1(x)).unflatten(1, (2, 12)) * self.scale
        return self.fc(x.flatten(1, 2).mean((2, 3)))
def five_axes(classes): return InFiveAxes(classes)
def no_onnx(classes): return Net(
    classes, lambda m, x: m.fc(torch.special.i0e(x).mean((2, 3))))
def in_one_dimension(classes): return nn.Sequential(
    nn.Flatten(2), nn.Conv1d(3, 24, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    nn.Linear(24, classes))
"""
SCALING = ["--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25", "--ratio=1.1"]
INSPECTED = ["tuple_", "dictionary", "same", "normed"]
EXPORTED = ["planes", "sized", "enlarged", "masked", "five_axes"]


def checkpoint(folder: Path, name: str, classes: int = 4) -> Path:
    (folder / "net.py").write_text(CODE, encoding="utf-8")
    names: dict[str, object] = {}
    exec(CODE, names)  # noqa: S102 - the text above, as the command imports it
    builder = names[name]
    assert callable(builder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = builder(classes)
    assert isinstance(module, nn.Module)
    # No pickle: its parsing process would take longer than all else.
    safetensors.torch.save_file(module.state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors"


def words(name: str, classes: int = 4) -> list[str]:
    return [f"--arch=net.py:{name}", "--input-shape=3x10x10", f"--classes={classes}", *SCALING[:2]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.mark.parametrize("name", INSPECTED)
def test_modules_whose_layers_are_listed(
    name: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(tmp_path, name)
    said = terminal("inspect", weights, *words(name), SCALING[2], "--json")
    assert (said.code, said.err) == (0, said.err)
    layers = json.loads(said.out)["layers"]
    factored = [layer["name"] for layer in layers if layer["kind"] == "convolution"]
    assert factored


@pytest.mark.parametrize("name", EXPORTED)
def test_modules_that_are_exported(
    name: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(tmp_path, name)
    said = terminal("export", weights, *words(name), "-o", tmp_path / "out.onnx", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["parity"]["max_relative_difference"] < 1e-5


@pytest.mark.parametrize("name", ["one_logit", "given_one_logit"])
def test_one_logit_is_two_classes(
    name: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(tmp_path, name, classes=1)
    said = terminal("export", weights, *words(name, 2), "-o", tmp_path / "out.onnx")
    assert said.code == 0, said.err
    said = terminal("inspect", weights, *words(name, 1))
    assert said.code == 2
    assert "a network with one logit has two classes, give 2" in said.err


def test_a_whole_run_of_code_that_no_stage_could_take(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(tmp_path, "view")
    given = ["--config", quick_config(tmp_path), "--no-cache", "-o", tmp_path / "out"]
    said = terminal("compress", weights, *words("view"), *given, "--ratio=1.2")
    assert said.code == 0, said.err
    manifest = (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    assert "used as the stages do, it raises AttributeError" in manifest
    assert str(tmp_path) not in manifest


@pytest.mark.parametrize("command", ["export", "compress"])
def test_what_onnx_cannot_express_is_found_before_any_long_stage(
    command: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with --json, stdout is one document all the same."""
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(tmp_path, "no_onnx")
    said = terminal(command, weights, *words("no_onnx"), "-o", tmp_path / "out", "--json")
    assert said.code == 3
    message = json.loads(said.out)["error"]["message"]
    assert "special_i0e" in message
    assert len(message) < 400
    assert "Synthesising" not in said.err


def test_where_nothing_is_factored_the_error_says_why_each_convolution_stays(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = checkpoint(tmp_path, "in_one_dimension")
    said = terminal("inspect", weights, *words("in_one_dimension"), SCALING[2])
    assert said.code == 2
    assert "1 (a Conv1d; only plain Conv2d are factored)" in said.err
