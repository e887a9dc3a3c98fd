"""Scan a network for backdoors on synthetic images alone.

For every class, each search looks for the least trigger of its family that sends the images of
all other classes there; a class far cheaper than the others is suspected (`searches`), and so is
one that alone can be reached. One search looks for a stamp that sends every class to another of its
own (`all_to_all`). Of more than twelve classes, gradients search a selection (`selection`), so that
a thousand cost little more than ten. "Not found" means what these searches could not find, never
that there is nothing. What a graph's structure says is read beside the searches
(`networks.structure`): a path that no layer learned makes a network suspected as well.
`trigger_success` puts the reconstructed triggers on the networks of the later stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeclean.backdoor.bank import IN_FULL
from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.findings import ScanReport, SearchRecord, Suspect
from edgeclean.backdoor.gradient import Evidence, success_rate
from edgeclean.backdoor.searches import (
    ALL_TO_ALL,
    BANK,
    GRATINGS,
    ONE_SOURCE,
    SEARCHES,
    Probe,
    slot_of,
)
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.batching import images_shown
from edgeclean.networks.folding import inference_copy
from edgeclean.networks.pixels import pixel_copy
from edgeclean.networks.state import Network, SyntheticImages
from edgeclean.networks.structure import read_structure
from edgeclean.processes import return_freed_memory
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting

CHOOSING = "Scanning: choosing classes"
TRIGGER_IMAGES = 256  # of the synthetic ones, that a reconstructed trigger is put on


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSettings(Settings):
    """The searches of a scan, and how long each runs.

    Attributes:
        searches: names out of ``patch bank``, ``masked patch``, ``additive``, ``warp``,
            ``all-to-all``, ``gratings``, ``source-specific``.
        images: the number of synthetic images to use (gradient searches draw from them).
        steps: Adam steps of each gradient search.
        restarts: independent starts of each gradient search; each class keeps its cheapest.
        bank_candidates: the number of the bank's candidates to try, drawn at random.
    """

    searches: tuple[str, ...] = setting(
        (BANK, "masked patch", "additive", ALL_TO_ALL, "warp", GRATINGS, ONE_SOURCE),
        one_of=tuple(SEARCHES),
        entries=(1, 10),
    )
    images: int = setting(512, at_least=1, at_most=10**5)
    steps: int = setting(100, at_least=1, at_most=10**6)
    restarts: int = setting(2, at_least=1, at_most=1000)
    bank_candidates: int = setting(5000, at_least=1, at_most=10**6)


def scan(
    network: Network,
    images: SyntheticImages,
    settings: ScanSettings,
    *,
    seed: int,
    progress: Progress = silent,
) -> ScanReport:
    """Search for triggers towards every class; see the module's docstring.

    Args:
        network: a network of any stage; it is copied, not changed.
        images: synthetic (or any) images; their labels are not used, the network's own are.
        settings: see `ScanSettings`.
        seed: the seed of starts, draws and the bank's random textures.
        progress: called before every search and after the last.
    """
    module, evidence = under_test(network, images.pixels[: settings.images])
    probe = Probe(
        module=module,
        evidence=evidence,
        classes=network.spec.classes,
        steps=settings.steps,
        restarts=settings.restarts,
        candidates=settings.bank_candidates,
        seed=seed,
        run=settings.searches,
    )
    records: list[SearchRecord] = []
    suspects: list[Suspect] = []
    total = len(settings.searches)
    for done, name in enumerate(settings.searches):
        if name in FAMILIES and probe.classes > IN_FULL:
            progress(CHOOSING, done, total)
            probe.selection  # noqa: B018 - chosen once; the next family finds it there
        progress(f"Scanning: {name}", done, total)
        generator = torch.Generator().manual_seed(seed + 7919 * done)
        record, suspected = SEARCHES[name](probe, name, generator)
        records.append(record)
        suspects += suspected
        return_freed_memory()  # of large images gigabytes, in pieces of other sizes than the next
    progress("Scanning", total, total)
    structure = read_structure(network.module, network.spec.input_shape)
    return ScanReport(
        verdict="suspected" if suspects or structure.findings else "not found",
        suspects=most_suspicious_first(without_parts(suspects), records),
        searches=tuple(records),
        images=len(evidence.pixels),
        structure=structure,
        selection=None if probe.selection.is_whole else probe.selection,
    )


def trigger_success(
    report: ScanReport, networks: Mapping[str, Network], pixels: Float[Tensor, "n c h w"]
) -> tuple[dict[str, float], ...]:
    """Return for each suspect the share of images that its trigger moves, by network.

    A share is of the images that a network gives another class than the trigger's (or of all, for
    an all-to-all one; or the source's class, for one that moves that alone), so networks that
    disagree on an image are each judged by their own predictions. It is a fact about these triggers
    alone: another may work on the network.

    Args:
        report: the scan of the network as it came.
        networks: the networks by name, in the order of the answer's keys.
        pixels: synthetic images in [0, 1], of which the first 256 are used.
    """
    if not report.suspects:
        return ()
    tested = {
        name: under_test(network, pixels[:TRIGGER_IMAGES]) for name, network in networks.items()
    }
    return tuple(
        {
            name: success_rate(module, evidence, slot_of(suspect), suspect.trigger)
            for name, (module, evidence) in tested.items()
        }
        for suspect in report.suspects
    )


def without_parts(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Leave out triggers from one class where another suspect says more of them.

    A stamp that sends images of every class to a target sends those of each, and an all-to-all
    stamp is one from each class to its next.
    """
    whole = {suspect.target for suspect in suspects if suspect.source is None}
    return [one for one in suspects if one.source is None or whole.isdisjoint((one.target, None))]


def most_suspicious_first(
    suspects: Sequence[Suspect], records: Sequence[SearchRecord]
) -> tuple[Suspect, ...]:
    """Sort suspects by their class's scores in all searches together, then by their own score.

    The bank knows few sizes, so two classes often cost the same there; the scores of the other
    searches, even below their thresholds, then set the target apart from a class that is only easy
    to reach. A score below 0 counts as 0: a search that is blind to a trigger is no evidence
    against it.
    """

    def total(suspect: Suspect) -> float:
        if suspect.target is None:  # all-to-all: its score is of another scale, and final
            return math.inf
        if suspect.source is not None:  # the searches of every class are blind to it
            return suspect.score
        apart = (record for record in records if record.name not in (ALL_TO_ALL, ONE_SOURCE))
        return sum(max(0.0, record.scores[suspect.target]) for record in apart)

    return tuple(sorted(suspects, key=lambda one: (-total(one), -one.score)))


def under_test(network: Network, pixels: Float[Tensor, "n c h w"]) -> tuple[nn.Module, Evidence]:
    """Return an inference copy as a function of pixels, with its predictions for ``pixels``."""
    module = inference_copy(pixel_copy(network), pixels)
    return module, Evidence(pixels, predictions(module, pixels))


@torch.no_grad()
def predictions(module: nn.Module, pixels: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    """Return the class that a function of pixels gives each image."""
    device = device_of(module)
    outputs = []
    for batch in pixels.split(images_shown(pixels.shape[1:])):
        with mixed_precision(device):
            logits = module(batch.to(device, memory_format=torch.channels_last))
        outputs.append(logits.argmax(1).cpu())
    return torch.cat(outputs)
