"""Checkpoints as they are found, through the command line: what was done is told."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from command_line import Terminal
from small_checkpoint import CODE, write_checkpoint

OPTIONS = ["--arch=net.py:make", "--threads=1", "--ratio=1.1", "--json"]
SPEC = [
    *("--input-shape=3x12x12", "--classes=4"),
    *("--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25"),
]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.chdir(tmp_path)
    return safetensors.torch.load_file(write_checkpoint(tmp_path))


def test_two_networks_under_a_trainers_names(
    weights: dict[str, torch.Tensor], terminal: Terminal
) -> None:
    """In a file of any name: listed, chosen by an option, and the report of it in words."""
    average = {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in weights.items()}}
    last = {f"model.{name}": tensor + 0 for name, tensor in weights.items()}
    last["model.0.weight"] = last["model.0.weight"] + 1
    loss = {"criterion.weight": torch.ones(4)}
    settings = argparse.Namespace(lr=0.1)
    tree = {"state_dict": last | loss, "ema": average, "args": settings}
    torch.save(tree, "ckpt.t7", _use_new_zipfile_serialization=False)
    said = terminal("inspect", "ckpt.t7", *OPTIONS, *SPEC)
    assert said.code == 3
    assert "2 networks that fit, under state_dict/model, ema; choose one" in said.err
    said = terminal("inspect", "ckpt.t7", *OPTIONS, *SPEC, "--state-dict", "state_dict/model")
    assert said.code == 0, said.err
    assert "network under state_dict/model was taken" in said.err
    assert "'model.' taken from the names; left out: criterion.weight" in said.err
    assert "Beside the weights, not read: argparse.Namespace" in said.err
    assert json.loads(said.out)["layers"]
    said = terminal("inspect", "ckpt.t7", *OPTIONS, *SPEC, "--state-dict", "args")
    assert said.code == 2
    assert "there is state_dict/model, ema" in said.err


def test_a_folder_of_the_hub_says_what_it_is(
    weights: dict[str, torch.Tensor], terminal: Terminal
) -> None:
    """Its numbers are shown; an architecture of one's own wins over its name."""
    folder = Path("hub")
    folder.mkdir()
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    stated = {"input_size": [3, 12, 12], "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": "resnet18", "num_classes": 4, "pretrained_cfg": stated}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    said = terminal("inspect", folder, *OPTIONS)
    assert said.code == 0, said.err
    told = "hub: net.py:make, images of 3x12x12, 4 classes, mean 0.5, 0.5, 0.5, std 0.25, 0.25"
    assert told in said.err
    # What is read of it is never the output, and the folder itself may hold it.
    said = terminal("export", folder, *OPTIONS[:1], "-o", folder / "config.json")
    assert said.code == 2
    assert json.loads((folder / "config.json").read_text("utf-8")) == config


def test_architecture_code_in_a_package_is_an_input(
    weights: dict[str, torch.Tensor], terminal: Terminal
) -> None:
    """A file of it is not overwritten by an output, though it is named as a module."""
    package = Path("nets")
    package.mkdir()
    (package / "inside.py").write_text(CODE, encoding="utf-8")
    words = ["--arch=nets.inside:make", *SPEC]
    said = terminal("export", "model.safetensors", *words, "-o", package / "inside.py")
    assert said.code == 2
    assert "nets/inside.py is read" in said.err
    said = terminal("inspect", "model.safetensors", *words, "--ratio=1.1", "--json", "-q")
    assert said.code == 0, said.err
