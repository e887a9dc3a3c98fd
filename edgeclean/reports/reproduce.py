"""How to run again what was run: one command, and the settings that are not the defaults."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgeclean.config import PipelineSettings, non_default, settings_from, to_toml
from edgeclean.effort import lengths_of
from edgeclean.printable import without_folder
from edgeclean.states import ModelSpec

CONFIG_NAME = "edgeclean.toml"


def command_line(checkpoint: Path, spec: ModelSpec, settings: PipelineSettings) -> str:
    """The command, with file names instead of paths: a report names no place on a machine."""
    words = ["edgeclean", "compress", checkpoint.name]
    words += ["--arch", without_folder(spec.architecture)]
    words += ["--input-shape", "x".join(str(side) for side in spec.input_shape)]
    words += ["--classes", str(spec.classes)]
    words += [f"--mean={','.join(str(number) for number in spec.mean)}"]
    words += [f"--std={','.join(str(number) for number in spec.std)}"]
    if changed_settings(settings):
        words += ["--config", CONFIG_NAME]
    return shlex.join([*words, "-o", "build"])


def changed_settings(settings: PipelineSettings) -> str:
    """The settings that are not the defaults, as a configuration file; empty if there are none.

    What the effort decides is said by its name alone.
    """
    level = settings_from(PipelineSettings, lengths_of(settings.effort))
    return to_toml(non_default(settings, level))
