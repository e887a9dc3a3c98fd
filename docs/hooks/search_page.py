"""What every search of a scan sees and is blind to, read from the searches."""

from __future__ import annotations

from markdown_tables import code, table

from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.pairs import PAIRS_SEE
from edgeclean.backdoor.searches import (
    ALL_TO_ALL,
    ALL_TO_ALL_SEES,
    BANK,
    BANK_SEES,
    GRATINGS,
    GRATINGS_SEES,
    ONE_SOURCE,
    SEARCHES,
)


def reference() -> str:
    """One line for each search."""
    known = {name: (one.sees, one.blind_to) for name, one in FAMILIES.items()}
    known |= {BANK: BANK_SEES, ALL_TO_ALL: ALL_TO_ALL_SEES, GRATINGS: GRATINGS_SEES}
    known |= {ONE_SOURCE: PAIRS_SEE}
    rows = [(code(name), *known[name]) for name in SEARCHES]
    return table(["search", "sees", "is blind to"], rows)
