"""A small network, its checkpoint in bytes, and the ways to load one."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from edgeclean.load.checkpoint import load_checkpoint, parse_torch
from edgeclean.load.limits import LoadLimits
from edgeclean.networks.state import ModelSpec

LIMITS = LoadLimits()
SPEC = ModelSpec(
    architecture="net.py:tiny", input_shape=(3, 4, 4), classes=2, mean=(0.0,) * 3, std=(1.0,) * 3
)
CODE = """
from torch import nn
def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
    )
"""


def tiny() -> nn.Module:
    names: dict[str, Any] = {}
    exec(CODE, names)  # noqa: S102 - the text above, as load_checkpoint imports it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = names["tiny"](2)
    module[1].running_mean.fill_(0.3)  # type: ignore[index]
    module[1].running_var.fill_(2.0)  # type: ignore[index]
    return module.eval()


def saved(tree: object, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(tree, stream, **options)
    return stream.getvalue()


def parsed(contents: bytes, limits: LoadLimits = LIMITS) -> dict[str, Tensor]:
    """The only network in a file, as the parsing process and its parent read it."""
    (tensors,) = all_parsed(contents, limits).values()
    return tensors


def all_parsed(contents: bytes, limits: LoadLimits = LIMITS) -> dict[str, dict[str, Tensor]]:
    """Every network in a file, under the keys that it lies under."""
    answer = parse_torch(contents, limits)
    told = json.loads(answer[8 : 8 + int.from_bytes(answer[:8], "little")])["__metadata__"]
    found: list[dict[str, Tensor]] = [{} for _ in json.loads(told["networks"])]
    for name, tensor in safetensors.torch.load(answer).items():
        index, _, own = name.partition(":")
        if not index.startswith("+"):  # what no state dict holds
            found[int(index)][own] = tensor
    paths = ["/".join(path) for path in json.loads(told["networks"])]
    return dict(zip(paths, found, strict=True))


def assert_equal_tensors(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def through_file(name: str, contents: bytes, folder: Path, **changes: Any) -> nn.Module:
    (folder / name).write_bytes(contents)
    spec = dataclasses.replace(SPEC, **changes)
    return load_checkpoint(folder / name, spec, code_folder=folder).module
