"""A checkpoint small enough to send through the whole pipeline in seconds, and settings for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from edgeclean.config import PipelineSettings, settings_from
from edgeclean.networks.state import ModelSpec

CODE = """
from torch import nn

def make(classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )
"""
CLASSES = 4
SIDE = 12
OPTIONS = [
    "--arch=net.py:make",
    "--input-shape=3x12x12",
    "--classes=4",
    "--mean=0.5,0.5,0.5",
    "--std=0.25,0.25,0.25",
]
QUICK: dict[str, Any] = {
    "synthesize": {
        "count": 24,
        "recovery_count": 12,
        "recovery_steps": 3,
        "steps": 3,
        "batch_size": 12,
    },
    "scan": {"images": 16, "steps": 3, "restarts": 1, "bank_candidates": 40},
    "purify": {
        "rounds": 1,
        "restarts": 1,
        "search_steps": 3,
        "candidates": 40,
        "procedural": 8,
        "unlearn": {"steps": 3, "batch_size": 8},
    },
    "ranks": {"images": 8, "rank_multiple": 1},
    "finetune": {"steps": 3, "batch_size": 8},
    "latency": {"runs": 8, "warmup_runs": 5},
}


def spec() -> ModelSpec:
    """What the checkpoint does not say."""
    return ModelSpec(
        architecture="net.py:make",
        input_shape=(3, SIDE, SIDE),
        classes=CLASSES,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


def write_checkpoint(folder: Path, name: str = "model.safetensors", channels: int = 3) -> Path:
    """Weights and, beside them, the code of the architecture; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    code = CODE.replace("Conv2d(3,", f"Conv2d({channels},")
    (folder / "net.py").write_text(code, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(code, namespace)  # noqa: S102 - the same code that the architecture names
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = namespace["make"](CLASSES)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean, -0.3, 0.3)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
    path = folder / name
    safetensors.torch.save_file(module.state_dict(), path)
    return path


def quick_settings(**changes: Any) -> PipelineSettings:
    """Every stage at a few steps; ``changes`` are whole tables or single keys."""
    return settings_from(PipelineSettings, {**QUICK, **changes})


def quick_config(folder: Path) -> Path:
    """The same as a configuration file."""
    from edgeclean.config import to_toml

    path = folder / "quick.toml"
    path.write_text(to_toml(QUICK), encoding="utf-8")
    return path
