"""The folder in which finished stages are kept from one command to the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclean.cli.command import CACHES
from edgeclean.errors import UsageError
from edgeclean.files.writing import check_folder, keep_apart

if TYPE_CHECKING:
    from edgeclean.runner import Cache


def stage_cache(folder: Path | None, no_cache: bool, note: Callable[[str], None]) -> Cache | None:
    """The XDG cache folder, if none is named; where there is no home folder, none."""
    CACHES.set(False)
    if no_cache:
        if folder is not None:
            raise UsageError(
                "--cache names a folder, and --no-cache asks for none; give one of them"
            )
        return None
    from edgeclean.files.reading import is_folder
    from edgeclean.files.store import foreign_entry
    from edgeclean.runner import Cache

    if folder is not None:
        keep_apart([], folder=folder)
        check_folder(folder, "--cache")
        foreign = foreign_entry(folder)
        if foreign is not None:
            raise UsageError(
                f"--cache {folder} holds {foreign!r} and was not made by edgeclean; name a folder "
                "that does not exist, or an empty one"
            )
    else:
        home = os.environ.get("HOME", "")
        above = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
        if not above.startswith("/"):
            return None
        folder = Path(above) / "edgeclean" / "stages"
        if not is_folder(folder) and _holds_results(folder.parent):
            note(
                f"cache: the .kept files in {folder.parent} are an earlier version's and are not "
                "used any more; you may delete them"
            )
    CACHES.set(True)
    return Cache(folder=folder.absolute(), notify=note)


def _holds_results(folder: Path) -> bool:
    try:
        return any(folder.glob("*.kept"))
    except OSError:  # a home that is somebody else's
        return False
