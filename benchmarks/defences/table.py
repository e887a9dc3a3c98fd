"""Every defence by name, with what it was given."""

from __future__ import annotations

from benchmarks.defences.anp import anp
from benchmarks.defences.base import DefenceEntry
from benchmarks.defences.clp import clp
from benchmarks.defences.compress import plain_svd, plain_tucker
from benchmarks.defences.finetune import finetune_clean
from benchmarks.defences.ibau import ibau
from benchmarks.defences.nad import nad
from benchmarks.images import LabelledImages
from edgeclean.states import Network

ONE_PERCENT = "1 % of the clean training set"


def nothing(network: Network, clean: LabelledImages, seed: int) -> Network:
    """No defence."""
    return network


DEFENCES: dict[str, DefenceEntry] = {
    "none": DefenceEntry(defend=nothing, images="none"),
    "plain-tucker": DefenceEntry(defend=plain_tucker, images="none"),
    "plain-svd": DefenceEntry(defend=plain_svd, images="none"),
    "clp": DefenceEntry(defend=clp, images="none"),
    "anp": DefenceEntry(defend=anp, images=ONE_PERCENT),
    "nad": DefenceEntry(defend=nad, images=ONE_PERCENT),
    "i-bau": DefenceEntry(defend=ibau, images=ONE_PERCENT),
    "fine-tuning": DefenceEntry(defend=finetune_clean, images=ONE_PERCENT),
}
