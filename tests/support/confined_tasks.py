"""What tests do in a confined process."""

from __future__ import annotations

import importlib
from importlib import metadata

from exporters.confined import Parcel


def import_task(given: Parcel) -> Parcel:
    """Import a module, whatever it does then, and list what is installed before and after."""
    before = _installed()
    try:
        importlib.import_module(given.facts["module"])
    except BaseException as error:  # noqa: BLE001 - it may do anything
        said = type(error).__name__
    else:
        said = "imported"
    return Parcel(facts={"said": said, "packages_before": before, "packages_after": _installed()})


def _installed() -> list[str]:
    return sorted(f"{one.name} {one.version}" for one in metadata.distributions())
