"""What `choose_ranks` decides and `truncate` does: a form for every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeclean.factors.blocks import Factors
from edgeclean.factors.fits import Ranks
from edgeclean.ranks.candidates import Cost, TimeKind
from edgeclean.ranks.latency_table import NS_PER_MS
from edgeclean.states import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """One layer's form.

    Attributes:
        layer: dotted name.
        ranks: (r_out, r_in), or None: it stays, or becomes again, what it was.
        reason: why it is not factored; empty if it is.
        params_before: of the layer as it was, its bias included; 0 of a layer not looked at.
        macs_before: of one image.
        loss: the fraction lost (see `fits.Fit`), of the layer alone.
        ns_before: nanoseconds of the one convolution by the latency table; 0 without one.
        ns_after: of the form that was chosen.
        time_kind: whether the table holds that form; empty without a table.
        effect: what the choice weighed: predicted change of the network's outputs, or the loss.
        factors: fitted to activations; None takes the leading ranks of the decomposition.
    """

    layer: str
    ranks: Ranks | None
    reason: str
    params_before: int = 0
    params_after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    ns_before: int = 0
    ns_after: int = 0
    time_kind: TimeKind = ""
    loss: float = 0.0
    effect: float = 0.0
    factors: Factors | None = field(default=None, repr=False)

    def as_json(self) -> dict[str, JsonValue]:
        """Everything but the weights."""
        times: dict[str, JsonValue] = {}
        if self.time_kind:
            ms = [self.ns_before / NS_PER_MS, self.ns_after / NS_PER_MS]
            times = {"ms": ms, "time_kind": self.time_kind}
        return {
            "layer": self.layer,
            "ranks": None if self.ranks is None else list(self.ranks),
            "reason": self.reason,
            "params": [self.params_before, self.params_after],
            "macs": [self.macs_before, self.macs_after],
            "loss": round(self.loss, 6),
            "effect": round(self.effect, 6),
            "fitted": self.factors is not None,
            **times,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """The forms of all layers, and what they come to.

    Attributes:
        settings: of the choice, as JSON.
        ratio_asked: of the whole network's cost before to after.
        measure: what is counted.
        images: how many images had a say; 0 if only the weights had.
        layers: every convolution and linear layer, in the network's order.
        params_before: of the whole original network.
        macs_before: of one image.
        ns_before: of the whole original network by the latency table; 0 where it holds none.
        table: the facts of that table; None without one.
    """

    settings: Mapping[str, JsonValue]
    ratio_asked: float
    measure: Cost
    images: int
    layers: tuple[LayerPlan, ...]
    params_before: int
    macs_before: int
    ns_before: int = 0
    table: Mapping[str, JsonValue] | None = None

    @property
    def params_after(self) -> int:
        """Of the whole truncated network."""
        return self.params_before - sum(p.params_before - p.params_after for p in self.layers)

    @property
    def macs_after(self) -> int:
        """Of the whole truncated network, for one image."""
        return self.macs_before - sum(p.macs_before - p.macs_after for p in self.layers)

    @property
    def ns_after(self) -> int:
        """Of the whole truncated network, by the latency table; 0 where it holds no such time."""
        if self.ns_before == 0:
            return 0
        return self.ns_before - sum(p.ns_before - p.ns_after for p in self.layers)

    @property
    def ratio(self) -> float:
        """What is met, in the measure that was asked."""
        if self.measure == "latency":
            return self.ns_before / self.ns_after
        if self.measure == "params":
            return self.params_before / self.params_after
        return self.macs_before / self.macs_after

    def ranks(self) -> dict[str, Ranks | None]:
        """By layer."""
        return {plan.layer: plan.ranks for plan in self.layers}
