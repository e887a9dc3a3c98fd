"""A setting that means nothing is refused where it is made, with what is allowed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgeclean.backdoor.purify import PurifySettings
from edgeclean.backdoor.scan import ScanSettings
from edgeclean.compression.clamp import ScaleSettings
from edgeclean.compression.finetune import FinetuneSettings
from edgeclean.config import PipelineSettings, settings_from
from edgeclean.errors import UsageError
from edgeclean.images.synthesize import SynthesizeSettings
from edgeclean.networks.state import settings_as_json


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: ScaleSettings(tau=0.0),
            r"tau is 0.0; .* above 0 and at most 10\^6",
        ),
        (
            lambda: ScaleSettings(tau=float("inf")),
            r"tau is inf; .* above 0 and at most 10\^6",
        ),
        (
            lambda: ScaleSettings(agreement=0.0),
            "agreement is 0.0; it must be a number above 0 and",
        ),
        (lambda: FinetuneSettings(steps=-1), "steps is -1; it must be a whole number from 0"),
        (
            lambda: FinetuneSettings(batch_size=1),
            "batch_size is 1; it must be a whole number from 2",
        ),
        (
            lambda: FinetuneSettings(adversarial_share=1.5),
            r"adversarial_share is 1.5; .* from 0 to 1$",
        ),
        (lambda: PurifySettings(rounds=0), "rounds is 0; it must be a whole number from 1 "),
        (lambda: ScanSettings(images=0), "images is 0; it must be a whole number from 1 "),
        (lambda: SynthesizeSettings(recovery_count=0), "recovery_count is 0"),
    ],
)
def test_what_is_allowed_is_said(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"scan": 3}, "scan is 3; it must be a table"),
        ({"ranks": {"overrides": 3}}, "it must be a table"),
        ({"ranks": {"keep": "layer1"}}, r"it must be a list"),
        ({"ranks": {"ratio": "two"}}, "it must be a number"),
        ({"purify": {"mode": "none at all"}}, "it must be one of guided, clean-compact, none"),
    ],
)
def test_a_wrong_entry_is_told_in_the_words_of_toml(entries: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from(PipelineSettings, entries)


def test_what_is_no_settings_object_is_not_written_down() -> None:
    with pytest.raises(TypeError, match="must be a dataclass instance, got dict"):
        settings_as_json({"steps": 1})
