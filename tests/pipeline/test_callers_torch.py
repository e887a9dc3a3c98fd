"""What a caller did to PyTorch before a call changes nothing, and is as it was after it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_checkpoint import quick_settings, spec, write_checkpoint

from edgeclean.devices.targets import load_target
from edgeclean.errors import UsageError
from edgeclean.pipeline import compress, export_checkpoint, inspect_checkpoint


@contextmanager
def of_float64() -> Any:
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "without gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "double numbers": of_float64,
    "another device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def state() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.random.get_rng_state().tolist(),
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("callers"))


@pytest.fixture(scope="module")
def digest(checkpoint: Path) -> str:
    return exported(checkpoint)


def exported(checkpoint: Path) -> str:
    found = export_checkpoint(checkpoint, spec(), quick_settings(), code_folder=checkpoint.parent)
    return hashlib.sha256(found.model).hexdigest()


@pytest.mark.parametrize("kind", STATES)
def test_the_callers_state_is_neither_used_nor_changed(
    kind: str, checkpoint: Path, digest: str
) -> None:
    with STATES[kind]():
        before = state()
        assert exported(checkpoint) == digest
        assert inspect_checkpoint(
            checkpoint, spec(), quick_settings(), code_folder=checkpoint.parent
        ).layers
        assert state() == before


@pytest.mark.parametrize("kind", ["without gradients", "inference", "double numbers"])
def test_a_whole_run_learns_whatever_the_caller_did(
    kind: str, checkpoint: Path, tmp_path: Path
) -> None:
    models = []
    for name, around in (("plain", torch.enable_grad), ("changed", STATES[kind])):
        with around():
            compress(
                *(checkpoint, spec(), tmp_path / name, quick_settings()),
                code_folder=checkpoint.parent,
            )
        models.append((tmp_path / name / "model.onnx").read_bytes())
    assert models[0] == models[1]


def test_no_random_numbers_of_the_process_are_drawn(checkpoint: Path) -> None:
    """Not even by a library that does so while it is imported; beartype would, in this process."""
    program = (
        "import random, sys\nfrom pathlib import Path\nfrom small_checkpoint import *\n"
        "from edgeclean.pipeline import export_checkpoint\nbefore = random.getstate()\n"
        "path = Path(sys.argv[1])\n"
        "export_checkpoint(path, spec(), quick_settings(), code_folder=path.parent)\n"
        "assert random.getstate() == before"
    )
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, checkpoint], env=paths, check=True)


def test_settings_of_another_target_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="settings are of the target cpu, and the target is orin"):
        compress(
            *(checkpoint, spec(), tmp_path / "out", quick_settings()),
            target=load_target("orin-nano"),
            code_folder=checkpoint.parent,
        )
    assert not (tmp_path / "out").exists()
