"""A file of ranks for single layers: what `RankSettings` takes as overrides and keep.

::

    "layer1.0.conv1" = [8, 6]      # r_out, r_in
    "layer1.0.conv2" = "keep"      # stays one convolution
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from edgeclean.compress.factorisation import Ranks
from edgeclean.errors import UsageError
from edgeclean.small_files import read_small_toml

MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOverrides:
    """What the file says.

    Attributes:
        ranks: (r_out, r_in) by layer.
        keep: layers that stay whole.
    """

    ranks: Mapping[str, Ranks]
    keep: tuple[str, ...]


def read_rank_file(path: Path) -> RankOverrides:
    """Read and check the file; whether its layers exist, `choose_ranks` knows.

    Raises:
        UsageError: the file cannot be read, is over 1 MiB, is not TOML, or an entry is neither two
            whole numbers from 1 nor "keep".
    """
    ranks: dict[str, Ranks] = {}
    keep: list[str] = []
    entries = read_small_toml(path, MAX_FILE_BYTES, hint="a line for a layer is enough")
    for layer, entry in entries.items():
        if entry == "keep":
            keep.append(layer)
        elif _is_ranks(entry):
            ranks[layer] = (entry[0], entry[1])
        else:
            hint = "; write dotted names in quotes" if isinstance(entry, dict) else ""
            raise UsageError(
                f"{path}: {layer[:80]} = {repr(entry)[:80]}; give [r_out, r_in], whole numbers "
                f'from 1, or "keep"{hint}'
            )
    return RankOverrides(ranks=ranks, keep=tuple(keep))


def _is_ranks(entry: object) -> TypeGuard[list[int]]:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(type(rank) is int and rank >= 1 for rank in entry)
    )
