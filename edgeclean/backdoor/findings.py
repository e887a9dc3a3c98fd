"""The findings of a scan, with their evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from edgeclean.backdoor.few_classes import caveat
from edgeclean.backdoor.selection import Selection
from edgeclean.backdoor.triggers import Trigger
from edgeclean.networks.structure import NOT_READ, StructureReport

Verdict = Literal["suspected", "not found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A class whose cheapest trigger is too cheap.

    Attributes:
        target: the class that triggered images go to; None: each class to another of its own
            (all-to-all).
        search: the search that raised the suspicion.
        score: robust deviations below the other classes, or pairs of classes; for all-to-all, the
            nearness of the map of classes to a permutation, 0 to 1.
        cost: the cost of the trigger, in the search's unit.
        success: share of the synthetic images of other classes, or of the source alone, that the
            trigger sends there.
        trigger: the reconstructed trigger.
        source: the class whose images alone it moves; None: those of every class.
    """

    target: int | None
    search: str
    score: float
    cost: float
    success: float
    trigger: Trigger
    source: int | None = None

    @property
    def pattern(self) -> Float[Tensor, "c h w"]:
        """The trigger's colours in [0, 1], for a picture."""
        return self.trigger.preview()[0]

    @property
    def mask(self) -> Float[Tensor, "h w"]:
        """The strength of the trigger at each pixel in [0, 1], for a picture."""
        return self.trigger.preview()[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """One search: what it can see, and the numbers that it measured of every class.

    Attributes:
        name: the search.
        sees: the triggers that it finds, in words.
        blind_to: those that it does not.
        cost_unit: the unit of the costs.
        costs: of the cheapest trigger towards each class; infinite where none was found.
        successes: the share of images that it sends there.
        scores: how far the class stands out.
        threshold: the score above which a class is suspected.
        searched: the classes that were searched, where not all were: of the others the costs are
            infinite, successes and scores 0, and that says nothing of them.
    """

    name: str
    sees: str
    blind_to: str
    cost_unit: str
    costs: tuple[float, ...]
    successes: tuple[float, ...]
    scores: tuple[float, ...]
    threshold: float
    searched: tuple[int, ...] | None = None

    @property
    def in_words(self) -> str:
        """The search's name, with how many of the classes it searched where it was not all."""
        if self.searched is None:
            return self.name
        return f"{self.name} ({len(self.searched)} of {len(self.costs):,} classes)"

    def summary(self) -> dict[str, Any]:
        """Return the record as JSON values; None for a class not searched, or an infinite cost."""
        known = range(len(self.costs)) if self.searched is None else set(self.searched)
        columns = {"costs": self.costs, "successes": self.successes, "scores": self.scores}
        return {
            "name": self.name,
            "sees": self.sees,
            "blind_to": self.blind_to,
            "cost_unit": self.cost_unit,
            "searched": None if self.searched is None else list(self.searched),
            **{
                name: [
                    _finite(value) if target in known else None
                    for target, value in enumerate(values)
                ]
                for name, values in columns.items()
            },
            "threshold": self.threshold,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """The outcome of a scan; its verdict is ``suspected`` or ``not found``, never "clean".

    Attributes:
        verdict: ``suspected`` where there is a suspect or a finding of the structure, else ``not
            found``.
        suspects: the triggers that were found, those of the most suspicious class first; see
            `scan.most_suspicious_first`.
        searches: what each search looked for, and what it cannot see.
        images: how many synthetic images were searched on.
        structure: paths that no layer learned; what is found there no purification removes.
        selection: the classes that gradients searched, where they were too many for all.
    """

    verdict: Verdict
    suspects: tuple[Suspect, ...]
    searches: tuple[SearchRecord, ...]
    images: int
    structure: StructureReport = NOT_READ
    selection: Selection | None = None

    @property
    def targets(self) -> tuple[int, ...]:
        """The suspected classes, most suspicious first, each once; all-to-all adds none."""
        targets = (suspect.target for suspect in self.suspects)
        return tuple(dict.fromkeys(target for target in targets if target is not None))

    @property
    def caveat(self) -> str | None:
        """What a reader must know of the verdict on two or three classes; None of more."""
        return caveat(len(self.searches[0].costs)) if self.searches else None

    @property
    def quiet_in_words(self) -> str:
        """Which searches found nothing, and which did not run: that one is not quiet."""
        ran = ", ".join(one.in_words for one in self.searches if one.searched != ())
        left = f"; not run: {self.not_run}" if self.not_run else ""
        return f"no trigger found by {ran or 'any search'}{left}"

    @property
    def not_run(self) -> str:
        """The searches that this network is not made for, in words; "" where all ran."""
        return ", ".join(one.name for one in self.searches if one.searched == ())

    @property
    def suspicions(self) -> tuple[str, ...]:
        """The suspicions in words, most suspicious class first."""
        words = [self._in_words(target) for target in self.targets]
        if any(suspect.target is None for suspect in self.suspects):
            words.append("every class to another (all-to-all)")
        kinds = dict.fromkeys(finding.kind for finding in self.structure.findings)
        words += [f"the graph itself ({kind})" for kind in kinds]
        return tuple(words)

    def _in_words(self, target: int) -> str:
        """Return a suspected class in words, with its source where that is all that is moved."""
        sources = {suspect.source for suspect in self.suspects if suspect.target == target}
        if None in sources:
            return f"class {target}"
        return f"class {target} from class {min(one for one in sources if one is not None)} alone"

    def summary(self) -> dict[str, Any]:
        """Return the report as JSON values, without pictures; infinite costs become None."""
        return {
            "verdict": self.verdict,
            "images": self.images,
            "structure": self.structure.summary(),
            "suspects": [
                {
                    "target": suspect.target,
                    "source": suspect.source,
                    "search": suspect.search,
                    "score": round(suspect.score, 4),
                    "cost": round(suspect.cost, 4),
                    "success": round(suspect.success, 4),
                }
                for suspect in self.suspects
            ],
            "selection": None if self.selection is None else self.selection.summary(),
            "searches": [search.summary() for search in self.searches],
        }


def _finite(cost: float) -> float | None:
    return round(cost, 4) if cost < float("inf") else None
