"""A folder with a network in the form of one runtime, as `edgeclean export` writes it.

A record beside the files says what they are and binds them, so that the same command may replace
its own folder, and nobody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeclean.bundle.manifest import canonical_json, file_entries, read_json
from edgeclean.bundle.runtimes import BundledRuntime, runtime_entries
from edgeclean.bundle.verify import read_folder
from edgeclean.errors import InputRejectedError, UsageError

RECORD = "edgeclean-runtime.json"
FORMAT = "edgeclean-runtime-1"


def runtime_folder_files(one: BundledRuntime, source_sha256: str) -> dict[str, bytes]:
    """Return the folder's files by name, with the record.

    Args:
        one: the network in the form of a runtime.
        source_sha256: SHA-256 of the checkpoint that it was made from.
    """
    record = {
        **runtime_entries([one])[one.name],
        "files": file_entries(one.files),
        "format": FORMAT,
        "runtime": one.name,
        "source_sha256": source_sha256,
    }
    return {**one.files, RECORD: canonical_json(record)}


def refuse_other_folder(folder: Path, named: Path) -> None:
    """Refuse to replace anything but a folder that is as `runtime_folder_files` made it.

    Raises:
        UsageError: it holds something else.
    """
    try:
        files, folders = read_folder(folder)
        if not files and not folders:
            return
        fits = not folders and _fits(files)
    except (InputRejectedError, OSError):
        fits = False
    if not fits:
        raise UsageError(
            f"{named} exists and is not as `edgeclean export` wrote it, so it is not replaced; "
            "move it away, or choose another name"
        )


def _fits(files: Mapping[str, bytes]) -> bool:
    record = read_json(files.get(RECORD, b""), RECORD)
    own = {name: content for name, content in files.items() if name != RECORD}
    return record.get("format") == FORMAT and record.get("files") == file_entries(own)
