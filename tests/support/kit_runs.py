"""A kit that is run as a device runs it: by its shell script, from the bundle."""

from __future__ import annotations

import subprocess
from pathlib import Path


def run_kit(bundle: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished kit, which sees no other variables than these and a short PATH."""
    return subprocess.run(
        ["sh", str(bundle / "kit/run.sh"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
