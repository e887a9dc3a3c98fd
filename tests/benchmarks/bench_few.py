"""Settings of every defence for a step or two, on images of 8x8 pixels."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.defences.clean_compact import CleanCompactSettings
from benchmarks.suite.suites import quick_settings
from edgeclean.compression.clamp import ScaleSettings
from edgeclean.compression.finetune import FinetuneSettings
from edgeclean.config import PipelineSettings, settings_from
from edgeclean.images.synthesize import SynthesizeSettings

FEW_IMAGES = {"count": 16, "recovery_count": 8, "recovery_steps": 2, "steps": 2, "batch_size": 16}
FEW = replace(
    quick_settings(),
    clean_compact=CleanCompactSettings(
        scale=ScaleSettings(tau=0.5),
        synthesize=SynthesizeSettings(**FEW_IMAGES),
        finetune=FinetuneSettings(steps=2, batch_size=8, adversarial_share=0.5),
    ),
    edgeclean=settings_from(
        PipelineSettings,
        {
            "synthesize": FEW_IMAGES,
            "scan": {
                "searches": ["patch bank", "masked patch"],
                "images": 16,
                "steps": 2,
                "restarts": 1,
                "bank_candidates": 8,
            },
            "purify": {
                "rounds": 1,
                "restarts": 1,
                "search_steps": 2,
                "candidates": 8,
                "procedural": 8,
                "unlearn": {"steps": 2, "batch_size": 8},
            },
            "ranks": {"images": 4},
            "latency": {"runs": 5, "warmup_runs": 1},
            "finetune": {"steps": 2, "batch_size": 8},
        },
    ),
)
