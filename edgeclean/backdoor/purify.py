"""Purify a network, guided by its scan: search and unlearn in rounds, until nothing is cheap.

The plainest suspect is unlearned first, and alone. Each round gathers triggers towards it: the
scan's own, fresh gradient searches from new starts in the suspecting families, the best candidates
of the discrete bank, and the best gratings where no other search suspects the class. They are
unlearned while they adapt (`unlearn`), with the network *as it came* as the teacher of clean
images; from the second round on, not of the class that is unlearned (`unlearn.overruled`). The
rounds end when a fresh search finds the class no cheaper than the others. Then the searches that
suspected other classes look at them again (`rounds.still_suspected`); the plainest of those that
are still suspected is unlearned next.

Without a suspect, the network is only made consistent under random stamps of the bank, at a
fraction of the strength, so that a network without a backdoor keeps its accuracy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from edgeclean.backdoor.bank import IN_FULL, Stamps, build_bank
from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.gradient import ANY, ELSEWHERE, Evidence
from edgeclean.backdoor.gratings import build_gratings
from edgeclean.backdoor.population import TargetedTrigger
from edgeclean.backdoor.rounds import (
    Rescan,
    SearchContext,
    bank_triggers_of_round,
    family_triggers_of_round,
    still_suspected,
    triggers_of_scan,
)
from edgeclean.backdoor.scan import predictions
from edgeclean.backdoor.searches import BANK, GRATINGS, ONE_SOURCE, slot_of, target_of
from edgeclean.backdoor.unlearn import (
    MOST_RATE,
    UnlearningInputs,
    UnlearnSettings,
    overruled,
    unlearn,
)
from edgeclean.errors import UsageError
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.autocast import channels_last, device_of
from edgeclean.networks.folding import inference_copy
from edgeclean.networks.layers import evaluated
from edgeclean.networks.pixels import pixel_copy
from edgeclean.networks.state import (
    Network,
    PurifiedNetwork,
    SyntheticImages,
    following,
    record,
)
from edgeclean.processes import return_freed_memory
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting

AGAIN = "Searching the other suspects again"


@dataclass(frozen=True, slots=True, kw_only=True)
class PurifySettings(Settings):
    """The rounds of search and unlearning, and how long each is.

    Attributes:
        mode: ``guided`` unlearns what the scan suspects, or runs the general defence if it
            suspects nothing; ``none`` and ``clean-compact`` pass the network on unchanged, the
            latter to be clamped, truncated and fine-tuned as in Clean & Compact (`pipeline`).
        rounds: the most rounds of search and unlearning, for each class that is unlearned.
        one_by_one: whether the plainest suspect is unlearned first and the others only if they are
            suspected again afterwards; else all are unlearned together.
        restarts: gradient searches towards each suspected class in a round.
        search_steps: Adam steps of each of them.
        candidates: the number of the bank's candidates to try in a round.
        bank_triggers: the most of them kept for unlearning, for each suspected class; and the most
            gratings, where those alone suspect one.
        procedural: procedural images beside the synthetic ones.
        overrule: whether, from the second round on, the student gives the logits of suspected
            classes (`unlearn.overruled`).
        general_strength: the general defence's learning rate, as a share of the guided one's;
            0 leaves a network without suspects untouched.
        unlearn: the purification of each round.
    """

    mode: Literal["guided", "clean-compact", "none"] = "guided"
    rounds: int = setting(3, at_least=1, at_most=100)
    one_by_one: bool = True
    restarts: int = setting(6, at_least=1, at_most=1000)
    search_steps: int = setting(80, at_least=1, at_most=10**6)
    candidates: int = setting(5000, at_least=1, at_most=10**6)
    bank_triggers: int = setting(16, at_least=0, at_most=10**4)
    procedural: int = setting(512, at_least=1, at_most=10**5)
    overrule: bool = True
    general_strength: float = setting(0.1, at_least=0, at_most=100)
    unlearn: UnlearnSettings = field(default_factory=UnlearnSettings)

    def check_together(self) -> None:
        """Refuse a general defence whose own learning rate no unlearning takes."""
        rate = self.general_strength * self.unlearn.learning_rate
        if rate > MOST_RATE:
            raise UsageError(
                f"general_strength {self.general_strength:g} of the learning rate "
                f"{self.unlearn.learning_rate:g} is {rate:g}; it must be at most {MOST_RATE}"
            )


def purify(
    network: Network,
    images: SyntheticImages,
    report: ScanReport,
    settings: PurifySettings,
    *,
    seed: int,
    progress: Progress = silent,
) -> PurifiedNetwork:
    """Return the network with the suspected triggers unlearned; see the module's docstring.

    Args:
        network: the network as it came.
        images: synthesised from it.
        report: the report of its scan, whose suspects guide the rounds.
        settings: see `PurifySettings`.
        seed: the seed of searches and unlearning.
        progress: called during each round.
    """
    if settings.mode != "guided":
        return _purified(network, copy.deepcopy(network.module), settings, [], ())
    purification = _Purification(network, images, report, settings, seed)
    log = (
        purification.unlearn_suspects(report, progress)
        if report.suspects
        else purification.general_defence(progress)
    )
    return _purified(network, purification.module(), settings, log, purification.unlearned)


def unlearned_classes(network: PurifiedNetwork) -> tuple[int, ...]:
    """Return the classes that `purify` unlearned, () where none was or where every class was.

    An all-to-all backdoor has no class of its own, so no class is left that it does not concern.
    """
    notes = network.history[-1].notes
    if notes.get("all_to_all"):
        return ()
    return tuple(notes.get("targets", ()))


class _Purification:
    """The rounds on one network, and the state that one leaves to the next."""

    def __init__(
        self,
        network: Network,
        images: SyntheticImages,
        report: ScanReport,
        settings: PurifySettings,
        seed: int,
    ) -> None:
        self._settings, self._classes, self._seed = settings, network.spec.classes, seed
        self._synthetic = images.pixels
        self.unlearned: list[int] = []  # the classes, in their order; `ELSEWHERE` among them
        self._generator = torch.Generator().manual_seed(seed)
        self._student: nn.Module = pixel_copy(network).requires_grad_(False)
        self._infected = inference_copy(self._student, images.pixels)
        shape = network.spec.input_shape
        self._inputs = UnlearningInputs(
            source=self._infected,
            teacher=self._infected,
            synthetic=images.pixels,
            procedural=procedural_images(settings.procedural, shape, self._generator),
            bank=build_bank(shape, self._generator),
        )
        suspecting = [suspect.search for suspect in _guides(report).suspects]
        self._gratings = build_gratings(shape) if GRATINGS in suspecting else None
        # Stripes are additive, and what is left of them need not be a grating of the bank.
        kinds = ["additive" if name in (GRATINGS, ONE_SOURCE) else name for name in suspecting]
        families = [name for name in kinds if name in FAMILIES]
        self._families = tuple(dict.fromkeys(["masked patch", *families]))

    def unlearn_suspects(self, report: ScanReport, progress: Progress) -> list[dict[str, Any]]:
        """Unlearn one suspected class after the other; return what each round found."""
        waiting = list(_plain_suspects(report))
        store: list[TargetedTrigger] = []
        log: list[dict[str, Any]] = []
        while waiting:
            first = 1 if self._settings.one_by_one else len(waiting)
            targets, waiting = tuple(waiting[:first]), waiting[first:]
            self.unlearned += targets
            store += triggers_of_scan(_guides(report), targets)
            log += self._rounds(targets, store, progress, source_of(report, targets))
            if waiting:
                again = self._suspected_again(report, waiting, progress)
                cleared = [target for target in waiting if target not in again]
                log.append({"suspected_again": again, "no_longer_suspected": cleared})
                waiting = again
        return log

    def _rounds(
        self,
        targets: tuple[int, ...],
        store: list[TargetedTrigger],
        progress: Progress,
        source: int,
    ) -> list[dict[str, Any]]:
        """Search and unlearn until nothing towards ``targets`` is cheap; ``store`` grows."""
        log: list[dict[str, Any]] = []
        for index in range(self._settings.rounds):
            progress(f"Searching, round {index + 1}", 0, 1)
            found, facts = self._search(targets, source)
            progress(f"Searching, round {index + 1}", 1, 1)
            facts = {"round": index + 1, "targets": list(targets), "found": len(found), **facts}
            log.append(facts)
            if index > 0 and not found:
                break
            store += found
            self._unlearn(store, self._settings.unlearn, f"Unlearning, round {index + 1}", progress)
            if self._settings.overrule:
                self._inputs = overruled(
                    self._inputs, self._infected, self._student, self.unlearned
                )
        return log

    def _suspected_again(
        self, report: ScanReport, waiting: list[int], progress: Progress
    ) -> list[int]:
        """Return the waiting classes that the scan's own searches suspect in the student too."""
        progress(AGAIN, 0, 1)
        pixels = self._synthetic[: report.images]
        student = inference_copy(self._student, pixels)
        evidence = Evidence(pixels, predictions(student, pixels))
        asked = self._settings
        length = Rescan(steps=asked.search_steps, candidates=asked.candidates, seed=self._seed)
        again = still_suspected(student, evidence, report, waiting, length, self._generator)
        progress(AGAIN, 1, 1)
        return again

    def general_defence(self, progress: Progress) -> list[dict[str, Any]]:
        """Make the network consistent under random stamps, at a fraction of the learning rate."""
        strength = self._settings.general_strength
        if strength > 0:
            rate = strength * self._settings.unlearn.learning_rate
            gentle = replace(self._settings.unlearn, learning_rate=rate)
            self._unlearn([], gentle, "General defence", progress)
        return [{"general_strength": strength}]

    def module(self) -> nn.Module:
        """Return the student without its normalisation, in the contiguous memory format."""
        assert isinstance(self._student, nn.Sequential)  # noqa: S101
        student = evaluated(copy.deepcopy(self._student[1]).requires_grad_(True))
        for parameter in student.parameters():
            parameter.data = parameter.data.contiguous()
        return student

    def _unlearn(
        self,
        store: list[TargetedTrigger],
        settings: UnlearnSettings,
        title: str,
        progress: Progress,
    ) -> None:
        progress(title, 0, settings.steps)
        self._student = channels_last(
            unlearn(
                self._student,
                self._inputs,
                store,
                settings,
                self._generator,
                lambda done: progress(title, done, settings.steps),
            )
        )
        return_freed_memory()

    def _search(
        self, targets: tuple[int, ...], source: int
    ) -> tuple[list[TargetedTrigger], dict[str, Any]]:
        """Find triggers to ``targets`` that are cheaper than to the other classes."""
        asked = self._settings
        pixels = self._inputs.pixels()
        student = inference_copy(self._student, pixels)
        context = SearchContext(
            student=student,
            evidence=Evidence(pixels, predictions(student, pixels)).of_source(source),
            targets=targets,
            classes=self._classes,
            generator=self._generator,
            source=source,
        )
        found: list[TargetedTrigger] = []
        facts: dict[str, Any] = {}
        for name in self._families:
            cheap, facts[name] = family_triggers_of_round(
                context, name, asked.restarts, asked.search_steps
            )
            found += cheap
            return_freed_memory()
        drawn = self._inputs.bank.drawn(asked.candidates, self._generator)
        banks: dict[str, Stamps] = {BANK: drawn}
        if self._gratings is not None:
            banks[GRATINGS] = self._gratings
        for name, bank in banks.items():
            cheap, facts[name] = bank_triggers_of_round(context, bank, asked.bank_triggers)
            found += cheap
        return found, facts


def source_of(report: ScanReport, targets: Sequence[int]) -> int:
    """Return the class whose images alone all suspects' triggers to ``targets`` move, or `ANY`."""
    sources = {slot_of(one).source for one in report.suspects if target_of(one) in targets}
    return sources.pop() if len(sources) == 1 else ANY


def _guides(report: ScanReport) -> ScanReport:
    """Return the report without gratings to classes that another search suspects as well.

    They are stamps over the whole image, the dearest to unlearn, and what leads to such a class is
    told better by the other search.
    """
    others = {one.target for one in report.suspects if one.search != GRATINGS}
    kept = [one for one in report.suspects if one.search != GRATINGS or one.target not in others]
    return replace(report, suspects=tuple(kept))


def _plain_suspects(report: ScanReport) -> tuple[int, ...]:
    """Return the classes at least half as suspicious as the most suspicious; `ELSEWHERE` always.

    They are at most twelve, the most suspicious: a round searches towards each of them.

    Beside one strong backdoor, classes that are only easy to reach stand out of the rest too, and
    unlearning what is natural costs accuracy. They stay in the report; a scan of the purified
    network shows what is left of them.
    """
    best: dict[int, float] = {}
    for suspect in report.suspects:
        score = math.inf if suspect.target is None else suspect.score
        best[target_of(suspect)] = max(score, best.get(target_of(suspect), 0.0))
    most = max((score for score in best.values() if math.isfinite(score)), default=0.0)
    plain = [target for target, score in best.items() if score >= most / 2]
    if len(plain) > IN_FULL:
        first = sorted(plain, key=lambda target: -best[target])[:IN_FULL]
        plain = [target for target in plain if target in first]
    return tuple(plain)


def _purified(
    network: Network,
    module: nn.Module,
    settings: PurifySettings,
    log: list[dict[str, Any]],
    unlearned: Sequence[int],
) -> PurifiedNetwork:
    targets = [target for target in unlearned if target != ELSEWHERE]
    notes = {"targets": targets, "all_to_all": ELSEWHERE in unlearned, "rounds": log}
    made_by = record("purify", module, network.spec, settings, notes)
    return following(network, PurifiedNetwork, module.to(device_of(network.module)), made_by)
