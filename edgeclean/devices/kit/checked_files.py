"""Check on the device that a bundle's files are those that its manifest names.

Plain Python 3.6: it runs on the device.
"""

import json
from pathlib import Path
from typing import Dict, Iterable

# In a bundle these files are one: the lines between the marks are left out there.
# <joined>
from edgeclean.devices.kit.storage import Stop, file_hash

# </joined>


def check_files(bundle: Path, roles: Iterable[str], others: Iterable[str] = ()) -> None:
    """Stop unless every file of ``SHA256SUMS`` is there with its hash, and each role with its own.

    A role is bound by the manifest's entry of its very name; that a hash stands somewhere in a list
    proves nothing. Others need be listed, and no more.
    """
    listed = read_list(bundle / "SHA256SUMS")
    bound = sorted(roles)
    for needed in ["manifest.json", "kit/kit.json", *bound, *others]:
        if needed not in listed:
            raise Stop(3, "%s is not listed in SHA256SUMS; copy the bundle again" % needed)
    for name in sorted(listed):
        path = bundle / name
        if not path.is_file() or file_hash(path) != listed[name]:
            raise Stop(3, "%s is missing or was changed; copy the bundle again" % name)
    try:
        entries = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["files"]
        named = {name: entries[name]["sha256"] for name in bound}
    except (OSError, ValueError, KeyError, TypeError):
        raise Stop(3, "manifest.json does not name the networks; copy the bundle again") from None
    for name in sorted(named):
        if listed[name] != named[name]:
            raise Stop(3, "%s is another network than the manifest names" % name)


def read_list(path: Path) -> Dict[str, str]:
    """Return the hashes of ``SHA256SUMS`` by name: each once, each in the bundle."""
    listed: Dict[str, str] = {}
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            digest, name = line.split("  ", 1)
            if name in listed or name.startswith("/") or {".", ".."} & set(name.split("/")):
                raise ValueError(name)
            listed[name] = digest
    except (OSError, ValueError):
        raise Stop(3, "SHA256SUMS is missing or broken; copy the bundle again") from None
    return listed
