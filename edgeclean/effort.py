"""The effort of a run: one word that scales the length of every stage.

``standard`` is the settings' own defaults; the other levels list what they change of them.
No length was chosen by what it does to one network: ``quick`` is about a quarter of the work of a
run, ``thorough`` about twice, by the counts that multiply: images, steps, restarts. Two lengths
``quick`` cuts least: a search's steps, whose cost settles only after some 80 (with half of them it
overlooked a backdoor), and a round of unlearning. But it starts each search once and makes one
round, where the others search once more afterwards: what that would find stays in the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Effort = Literal["quick", "standard", "thorough"]
LEVELS: tuple[Effort, ...] = get_args(Effort)

# By stage, as in a configuration file. Nothing but lengths: what a stage does is the same.
LENGTHS: Mapping[Effort, Mapping[str, Any]] = {
    "quick": {
        "synthesize": {"count": 256, "steps": 25, "recovery_count": 384, "recovery_steps": 15},
        "scan": {"images": 256, "steps": 80, "restarts": 1, "bank_candidates": 1250},
        "purify": {
            "rounds": 1,
            "restarts": 2,
            "candidates": 1250,
            "procedural": 256,
            "unlearn": {"steps": 80},
        },
        "ranks": {"images": 48},
        "finetune": {"steps": 240},
    },
    "standard": {},
    "thorough": {
        "synthesize": {"count": 960, "steps": 110, "recovery_count": 1536, "recovery_steps": 55},
        "scan": {"steps": 140, "restarts": 3, "bank_candidates": 10000},
        "purify": {
            "rounds": 4,
            "restarts": 8,
            "search_steps": 120,
            "candidates": 10000,
            "unlearn": {"steps": 240},
        },
        "finetune": {"steps": 3600},
    },
}


def lengths_of(level: object) -> dict[str, Any]:
    """Return the changes of a level to the defaults, as a configuration file would hold them.

    Anything that is no level changes nothing: the settings' own check refuses it by name.
    """
    return dict(LENGTHS[level]) if isinstance(level, str) and level in LEVELS else {}
