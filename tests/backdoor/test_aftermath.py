"""The same triggers on the networks that came after: shares, each of a network's own answers."""

import pytest
import torch
from test_scan import CLASSES, SIZE, TARGET, planted

from edgeclean.backdoor.findings import ScanReport, Suspect
from edgeclean.backdoor.scan import trigger_success
from edgeclean.backdoor.triggers import MaskedTrigger
from edgeclean.images.procedural import procedural_images


def report(target: int | None) -> ScanReport:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, -2:, -2:] = 1
    suspect = Suspect(
        target=target,
        search="masked patch",
        score=5.0,
        cost=4.0,
        success=1.0,
        trigger=MaskedTrigger(mask, torch.ones(3, SIZE, SIZE)),
    )
    return ScanReport(verdict="suspected", suspects=(suspect,), searches=(), images=1)


def test_the_share_is_of_images_that_the_network_itself_puts_elsewhere():
    pixels = procedural_images(120, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    networks = {"original": planted(30.0), "purified": planted(0.0)}
    (shares,) = trigger_success(report(TARGET), networks, pixels)
    assert list(shares) == ["original", "purified"]
    assert shares["original"] > 0.95
    stamped = pixels.clone()
    stamped[:, :, -2:, -2:] = 1.0
    own, given = (networks["purified"].module(x).argmax(1) for x in (pixels, stamped))
    expected = float((given[own != TARGET] == TARGET).float().mean())
    assert shares["purified"] == pytest.approx(expected, abs=0.02)  # bfloat16 moves an image
    assert expected < 0.5


def test_an_all_to_all_trigger_is_judged_by_the_images_that_leave_their_class():
    pixels = procedural_images(120, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    network = planted(30.0)
    (shares,) = trigger_success(report(None), {"original": network}, pixels)
    own = network.module(pixels).argmax(1)
    # All images go to one class, so those of that class do not leave it.
    assert shares["original"] == pytest.approx(float((own != TARGET).float().mean()), abs=0.02)
    assert 1 / CLASSES < shares["original"] < 1


def test_without_suspects_there_is_nothing_to_try():
    nothing = ScanReport(verdict="not found", suspects=(), searches=(), images=1)
    assert trigger_success(nothing, {"original": planted(0.0)}, torch.rand(4, 3, SIZE, SIZE)) == ()
