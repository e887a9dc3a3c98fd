"""How long every form of a layer takes on one device, as numbers that ranks are chosen by.

Who measures, and how, is no matter here: `runtime.block_latency` does on this machine; a file may
come from a device. Times are of one form between two borders that are alike for all forms of a
layer, so differences against the one convolution are what counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgeclean.factors.fits import Ranks
from edgeclean.ranks.candidates import LayerTimes
from edgeclean.ranks.signatures import Signature
from edgeclean.states import JsonValue

FORMAT = "edgeclean-latency-table-1"
NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedForm:
    """One form of one layer.

    Attributes:
        ranks: (r_out, r_in); a rank equal to its channel count means that this mode is not
            factored. None is the one convolution.
        ms: median milliseconds.
        spread_ms: between the first and the third quartile.
    """

    ranks: Ranks | None
    ms: float
    spread_ms: float

    @property
    def ns(self) -> int:
        """The median in whole nanoseconds, which budgets add up exactly."""
        return round(self.ms * NS_PER_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTime:
    """The whole original network on the same device.

    Attributes:
        layers_sha256: of the signatures of its layers; see `layers_digest`.
        ms: median milliseconds of one batch.
        spread_ms: between the first and the third quartile.
    """

    layers_sha256: str
    ms: float
    spread_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """What a plan, a manifest and a report name a table by; see `LatencyTable`."""

    sha256: str
    device: str
    runtime: str
    threads: int
    batch: int
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """What one device was measured to take.

    Attributes:
        device: its name, such as the processor's.
        runtime: what computes, with its version.
        threads: of the runtime, inside one operator.
        batch: images in one run.
        precision: that the forms were computed in: fp32, fp16, bf16 or int8.
        versions: of the software that measured.
        network: None where only blocks were measured; budgets of milliseconds need it.
        blocks: the forms of each signature; the one convolution is among them.
    """

    device: str
    runtime: str
    threads: int
    batch: int
    precision: str
    versions: Mapping[str, str]
    network: NetworkTime | None
    blocks: Mapping[Signature, tuple[TimedForm, ...]]

    @property
    def sha256(self) -> str:
        """Of the canonical form, which is what `latency_file` writes."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The table as JSON: sorted keys and blocks, one block to a line."""
        head = {
            "format": FORMAT,
            "device": self.device,
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "precision": self.precision,
            "versions": dict(self.versions),
            "network": None
            if self.network is None
            else {name: getattr(self.network, name) for name in NetworkTime.__slots__},
        }
        blocks = ",\n".join(
            json.dumps(block_as_json(key, self.blocks[key]), sort_keys=True)
            for key in sorted(self.blocks)
        )
        opened = json.dumps(head, sort_keys=True, indent=1)[:-2]  # without the closing brace
        return f'{opened},\n "blocks": [\n{blocks}\n]}}\n'.encode()

    def times(self, signature: Signature) -> LayerTimes | None:
        """What `candidates` needs to know of one layer; None where the table does not know it."""
        if signature not in self.blocks:
            return None
        forms = {form.ranks: form.ns for form in self.blocks[signature]}
        whole_ns = forms.pop(None)
        return LayerTimes(
            whole_ns=whole_ns, forms_ns={ranks: ns for ranks, ns in forms.items() if ranks}
        )

    def network_ns(self, layers_sha256: str) -> int | None:
        """Of the network of these layers (`layers_digest`); None where it holds no such time."""
        if self.network is None or self.network.layers_sha256 != layers_sha256:
            return None
        return round(self.network.ms * NS_PER_MS)

    def facts(self) -> TableFacts:
        """Its name."""
        return TableFacts(
            sha256=self.sha256,
            device=self.device,
            runtime=self.runtime,
            threads=self.threads,
            batch=self.batch,
            precision=self.precision,
        )


def block_as_json(signature: Signature, forms: Iterable[TimedForm]) -> dict[str, JsonValue]:
    """One block of the file; the one convolution comes first, then by ranks."""
    ordered = sorted(forms, key=lambda form: (form.ranks is not None, form.ranks or (0, 0)))
    return {
        "layer": signature.as_json(),
        "forms": [
            {
                "ranks": None if form.ranks is None else list(form.ranks),
                "ms": form.ms,
                "spread_ms": form.spread_ms,
            }
            for form in ordered
        ],
    }


def layers_digest(signatures: Iterable[Signature]) -> str:
    """Names a network's layers, in any order, whatever its weights are."""
    listed = sorted(json.dumps(one.as_json(), sort_keys=True) for one in signatures)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()
