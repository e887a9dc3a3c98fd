"""What every search of a scan sees and is blind to, read from the searches."""

from __future__ import annotations

from markdown_tables import code, table

from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.searches import (
    ALL_TO_ALL,
    ALL_TO_ALL_SEES,
    BANK,
    BANK_SEES,
    GRATINGS,
    GRATINGS_SEES,
    SEARCHES,
)


def reference() -> str:
    """One line for each search."""
    known = {name: (one.sees, one.blind_to) for name, one in FAMILIES.items()}
    known |= {BANK: BANK_SEES, ALL_TO_ALL: ALL_TO_ALL_SEES, GRATINGS: GRATINGS_SEES}
    rows = [(code(name), *known[name]) for name in SEARCHES]
    return table(["search", "sees", "is blind to"], rows)
