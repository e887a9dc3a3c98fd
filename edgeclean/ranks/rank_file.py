"""A file of ranks for single layers: what `RankSettings` takes as overrides and keep.

::

    "layer1.0.conv1" = [8, 6]      # r_out, r_in
    "layer1.0.conv2" = "keep"      # stays one convolution
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from edgeclean.errors import UsageError
from edgeclean.factors.fits import Ranks

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
    for layer, entry in _entries(path).items():
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


def _entries(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            contents = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if len(contents) > MAX_FILE_BYTES:
        raise UsageError(
            f"{path}: larger than {MAX_FILE_BYTES} bytes; a line for a layer is enough"
        )
    try:
        return tomllib.loads(contents.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or ["nested too deeply"])[0][:200]
        raise UsageError(f"{path}: is not a TOML file ({reason})") from None


def _is_ranks(entry: object) -> TypeGuard[list[int]]:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(type(rank) is int and rank >= 1 for rank in entry)
    )
