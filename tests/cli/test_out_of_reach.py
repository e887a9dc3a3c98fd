"""Networks of which nothing, or too little, can be factored: refused before any long stage."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import Said, Terminal
from small_checkpoint import quick_config
from torch import nn

from benchmarks.architectures.cells import step_of

CODE = """
import torch
from torch import nn


class Tied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.left, self.right = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.right.weight = self.left.weight
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((self.left(x) + self.right(x).relu()).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.mix = nn.Sequential(nn.Linear(16, 128), nn.GELU(), nn.Linear(128, 16))
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc((x + self.mix(x)).mean(1))


def pooled(classes, *layers): return nn.Sequential(
    *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes))
def plain(classes): return pooled(classes, nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3))
def tied(classes): return Tied(classes)
def transformer(classes): return Transformer(classes)
def grouped(classes): return pooled(
    classes, nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 24, 3, groups=2))
def linear(classes): return nn.Sequential(nn.Flatten(), nn.Linear(300, classes))
def signal(classes): return nn.Sequential(
    nn.Flatten(2), nn.Conv1d(3, 24, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
    nn.Linear(24, classes))
"""
MODES = ["guided", "clean-compact", "none"]
NONE, BEYOND = 2, 6
LAYERS = "--forms=tucker,hidden,separable"  # smaller images would meet the ratio
REFUSED: dict[str, tuple[str, list[str], int, str]] = {
    "signal": ("signal", [], NONE, "1 (a Conv1d; only plain Conv2d are factored)"),
    "grouped": ("grouped", [], NONE, "1 (grouped (2 groups))"),
    "linear": ("linear", [], NONE, "no convolutions"),
    "kept": ("plain", ["--keep=0", "--keep=2"], NONE, "2 (named by --keep)"),
    "tied": ("tied", ["--ratio=1.5", LAYERS], BEYOND, "shares its weights"),
    "transformer": (
        *("transformer", ["--ratio=1.5", LAYERS], BEYOND),
        "mix.0 and 2 more (a linear layer",
    ),
    "ratio": ("plain", ["--ratio=90", LAYERS], BEYOND, "ask for --ratio"),
    "pixels": ("plain", ["--ratio=900"], BEYOND, "ask for --ratio"),
    "params": ("plain", ["--ratio=90", "--measure=params"], BEYOND, "--ratio 90 of params"),
    "size": ("plain", ["--size-budget=4200"], BEYOND, "ask for more bytes"),
    "graph": ("plain", ["--size-budget=50"], BEYOND, "the graph alone"),
    "layer": ("plain", ["--keep=none"], 2, "no layer of this network"),
}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


def run(terminal: Terminal, folder: Path, builder: str, *more: object) -> Said:
    """Compress a network that one of the builders above makes, in a folder that is ours."""
    (folder / "net.py").write_text(CODE, encoding="utf-8")
    names: dict[str, object] = {}
    exec(CODE, names)  # noqa: S102 - the text above, as the command imports it
    make = names[builder]
    assert callable(make)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make(4)
    assert isinstance(module, nn.Module)
    # No pickle: its parsing process would take longer than all else.
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / "net.safetensors")
    words = ["--input-shape=3x10x10", "--classes=4", "--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25"]
    files = ["--config", quick_config(folder), "--no-cache", "-o", folder / "out"]
    given = [f"--arch=net.py:{builder}", *words, *files, *more, "--json"]
    return terminal("compress", folder / "net.safetensors", *given)


@pytest.mark.parametrize(
    ("case", "mode"),
    [(case, MODES[index % len(MODES)]) for index, case in enumerate(REFUSED)]
    + [("tied", mode) for mode in MODES if mode != "clean-compact"],
)
def test_what_cannot_be_reached_is_refused_before_any_long_stage(
    case: str, mode: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    builder, options, code, words = REFUSED[case]
    said = run(terminal, tmp_path, builder, *options, f"--purify={mode}")
    assert said.code == code, said.err
    step = step_of(said.code, said.err, 0.0)
    assert (step.outcome, step.stage) == ("refused", ""), said.err
    message = json.loads(said.out)["error"]["message"]
    assert words in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("builder", ["tied", "transformer"])
def test_the_way_out_that_is_named_is_one(
    builder: str, terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(terminal, tmp_path, builder, "--ratio=3", LAYERS)
    nearest = re.search(r"ask for --ratio (\S+) or less", said.err + said.out)
    assert nearest is not None
    assert float(nearest[1]) < 1.5
    said = run(terminal, tmp_path, builder, f"--ratio={nearest[1]}", LAYERS, "--purify=none")
    assert said.code == 0, said.err
