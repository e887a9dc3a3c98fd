"""What is demanded of a run, from ``policy.toml`` or from options.

::

    fail-on-backdoor = true
    max-accuracy-drop = 1.5      # percentage points, on the images of --evaluate
    min-speedup = 1.2            # of the median latency on the machine that builds
    max-size = "2 MiB"           # of model.onnx

A policy is no part of the settings: the same network comes out with it or without it, or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from edgeclean.config import overlay, read_config, settings_from
from edgeclean.errors import UsageError
from edgeclean.printable import shown
from edgeclean.settings import Settings, setting

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(B|kB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Settings):
    """The gates that are asked; None for one that is not.

    Attributes:
        fail_on_backdoor: refuse a network that the scan suspects.
        max_accuracy_drop: percentage points that the compressed network may lose to the original.
        min_speedup: median latency of the original over that of the compressed network.
        max_size: of ``model.onnx``: bytes, or a text with a unit such as "500 kB" or "2 MiB".
    """

    fail_on_backdoor: bool = False
    max_accuracy_drop: float | None = setting(None, at_least=0, at_most=100)
    min_speedup: float | None = setting(None, above=0, at_most=10**6)
    max_size: int | str | None = setting(None, at_least=1, at_most=2**63 - 1, longest=40)

    def check_together(self) -> None:
        """Refuse a size that nothing could keep to."""
        try:
            size = self.max_size_bytes
        except UsageError as error:
            raise UsageError(f"max_size: {error}") from None
        if self.max_size is not None and size < 1:
            raise UsageError(f"max_size is {shown(self.max_size)}; it must be 1 byte or more")

    @property
    def max_size_bytes(self) -> int:
        """``max_size`` in bytes; 0 where none is asked."""
        return 0 if self.max_size is None else read_size(self.max_size)


def read_policy(path: Path | None, options: Mapping[str, Any]) -> Policy:
    """The policy in a file, strictly read, with the options that were given on top.

    Raises:
        UsageError: the file cannot be read, holds an unknown key, or a value is out of range.
    """
    entries = {} if path is None else read_config(path)
    plain = {key.replace("-", "_"): entry for key, entry in entries.items()}
    if len(plain) != len(entries):
        raise UsageError(f"{path}: a gate is given twice, with - and with _; keep one")
    where = "options" if path is None else str(path)
    return settings_from(Policy, overlay(plain, options), where=where)


def read_size(text: int | str) -> int:
    """Bytes; kB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024, in any case.

    Raises:
        UsageError: it is not a number with one of these units, or none.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(
            f"size {str(text)[:40]!r} was given; it must be bytes, or a number with kB, MB, GB, "
            "KiB, MiB or GiB, such as 2 MiB"
        )
    return int(Decimal(match[1]) * _UNITS[(match[2] or "").lower()])
