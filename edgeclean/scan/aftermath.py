"""What the reconstructed triggers still do: the same stamps on the networks that came after."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from edgeclean.scan.gradient import ELSEWHERE, Slot, success_rate
from edgeclean.scan.report import ScanReport
from edgeclean.scan.scan import under_test
from edgeclean.states import Network

IMAGES = 256


def trigger_success(
    report: ScanReport, networks: Mapping[str, Network], pixels: Float[Tensor, "n c h w"]
) -> tuple[dict[str, float], ...]:
    """For each suspect, the share of images that its trigger moves, by network.

    A share is of the images that a network gives another class than the trigger's (or of all, for
    an all-to-all one), so networks that disagree on an image are each taken at their word. It
    tells of these triggers alone: a network may fall to another.

    Args:
        report: of the network as it came.
        networks: by name, in the order of the answer's keys.
        pixels: synthetic images in [0, 1], of which the first 256 are used.
    """
    if not report.suspects:
        return ()
    tested = {name: under_test(network, pixels[:IMAGES]) for name, network in networks.items()}
    return tuple(
        {
            name: success_rate(module, evidence, _slot(suspect.target), suspect.trigger)
            for name, (module, evidence) in tested.items()
        }
        for suspect in report.suspects
    )


def _slot(target: int | None) -> Slot:
    return Slot(ELSEWHERE if target is None else target)
