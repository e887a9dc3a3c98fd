"""Runtimes that tests run for real, or are skipped with what to install."""

from __future__ import annotations

import pytest

from edgeclean.errors import ToolchainError
from edgeclean.measure.runtimes import CONVERTED
from exporters.confined_runtime import ConfinedExporter, HeldSettings
from exporters.protocol import confined_exporter


def installed_runtime(name: str, **held: object) -> ConfinedExporter:
    """The runtime's exporter, held as these settings say; skips the test where it is not here."""
    exporter = confined_exporter(name, HeldSettings(**held))  # type: ignore[arg-type]
    try:
        exporter.require()
    except ToolchainError as error:
        pytest.skip(str(error))
    return exporter


SLOW = {"litert", "litert-micro", "executorch"}  # their converters take tens of seconds to start
every_runtime = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CONVERTED],
)
