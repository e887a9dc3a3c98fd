"""What libraries write beside the output goes again, or goes where the user said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeclean.errors import UsageError
from edgeclean.files.writing import FOLDER_VARIABLES, no_lasting_writes

ROOT = Path(__file__).parents[2]
# What a command does that makes the libraries write: an optimiser, and a figure.
PROGRAM = """
import os, sys
from contextlib import nullcontext
from pathlib import Path
from edgeclean.files.writing import no_lasting_writes
guard = no_lasting_writes if sys.argv[1] == "guarded" else nullcontext
with guard():
    import torch
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    import matplotlib.font_manager
    inside = sorted(path.name for path in Path(os.environ["TMPDIR"]).rglob("*"))
print(*inside)
"""


def written(place: Path, guarded: str, **more: str) -> tuple[set[str], list[str]]:
    """What lay in the temporary folder inside, and what lies in the user's folders afterwards."""
    for name in ("temporary", "home"):
        (place / name).mkdir(parents=True)
    environment = {"TMPDIR": str(place / "temporary"), "HOME": str(place / "home"), **more}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, guarded],
        cwd=place,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    left = [path for name in ("temporary", "home") for path in (place / name).iterdir()]
    return set(ended.stdout.split()), sorted(path.name for path in left)


def test_nothing_lasts_beside_the_output(tmp_path: Path) -> None:
    inside, left = written(tmp_path / "guarded", "guarded")
    assert {name.lower() for name in FOLDER_VARIABLES} <= inside
    assert left == []
    # The control: without the guard, the same libraries leave something in both places.
    assert len(written(tmp_path / "bare", "bare")[1]) >= 2


def test_a_place_that_the_user_names_is_used(tmp_path: Path) -> None:
    chosen = {name: str(tmp_path / name) for name in FOLDER_VARIABLES}
    assert written(tmp_path / "run", "guarded", **chosen)[1] == []
    assert {path.name for path in tmp_path.iterdir()} == {"run", *FOLDER_VARIABLES}


def test_no_room_for_a_temporary_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(UsageError, match="No space left on device"), no_lasting_writes():
        pass
