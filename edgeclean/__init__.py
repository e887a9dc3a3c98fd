"""Make a purified, compressed and checked edge bundle of an untrusted trained CNN.

The public names are those of this module, and no others: everything below it is private and may
change between two versions. None is imported before it is used, so that ``edgeclean --help`` stays
fast.

Input. A `ModelSpec` holds what a checkpoint does not: `read_model_file` reads one from a
``model.toml``. `load_target` looks up a device and `list_targets` lists all. `settings_for` makes
the `PipelineSettings` for it from nested mappings, such as `read_config` reads from a TOML file.
`read_policy`, `read_latency_table` and `read_labelled_images` read what a run may be given besides.

Work. `compress` runs every stage and writes a bundle. In order, each stage turns one value into a
new one::

    load_checkpoint -> synthesize -> scan -> purify -> synthesize -> decompose -> scale
    -> choose_ranks -> truncate -> finetune -> export_onnx -> check_parity -> lower_precision
    -> measure_pair -> write_bundle

`scan`, `inspect` and `export` do a part of it, and write nothing.

Output. `verify` checks a bundle, `sign` signs it, and `embed` turns its network into source code.

Errors. What a user can cause is an `EdgecleanError` of one of the kinds below, with the exit code
that the command line gives it. The library prints nothing and keeps no state.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edgeclean.version import __version__

# From 1.32 on, ONNX Runtime's packages for Linux report what they run to their maker and keep an
# identifier in the home folder, unless this is set before they are loaded
# (github.com/microsoft/onnxruntime/pull/27379). A user who wants that says so with 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "AccuracyGateError",
    "AnswerLostError",
    "BackdoorSuspectedError",
    "BudgetError",
    "Bundle",
    "Cache",
    "CellsFailedError",
    "Compression",
    "ConnectionLostError",
    "EdgecleanError",
    "EmbedSettings",
    "EmbeddedFiles",
    "EndedBySignalError",
    "ExportedCheckpoint",
    "InputRejectedError",
    "InspectedCheckpoint",
    "LabelledImages",
    "LatencyTable",
    "LoadedNetwork",
    "ModelSpec",
    "NoMemoryError",
    "NotFiniteError",
    "OutputInUseError",
    "ParityError",
    "PipelineSettings",
    "Policy",
    "Progress",
    "RatioError",
    "ScanReport",
    "ScannedCheckpoint",
    "SignRecord",
    "Signer",
    "Target",
    "ToolchainError",
    "Trusted",
    "UsageError",
    "VerifyRecord",
    "WrittenCompression",
    "__version__",
    "compress",
    "embed",
    "export",
    "inspect",
    "list_targets",
    "load_target",
    "read_config",
    "read_labelled_images",
    "read_latency_table",
    "read_model_file",
    "read_policy",
    "scan",
    "settings_for",
    "sign",
    "verify",
]

if TYPE_CHECKING:
    from edgeclean.backdoor.findings import ScanReport
    from edgeclean.bundle.bundle import Bundle
    from edgeclean.bundle.embed import EmbeddedFiles, EmbedSettings
    from edgeclean.bundle.embed import embed_bundle as embed
    from edgeclean.bundle.sign import SignRecord
    from edgeclean.bundle.sign import sign_bundle as sign
    from edgeclean.bundle.signing import Signer, Trusted
    from edgeclean.bundle.verify import VerifyRecord
    from edgeclean.bundle.verify import verify_bundle as verify
    from edgeclean.compression.latency_table import LatencyTable, read_latency_table
    from edgeclean.config import PipelineSettings, read_config, settings_for
    from edgeclean.devices.exchange import ConnectionLostError
    from edgeclean.devices.targets import Target, list_targets, load_target
    from edgeclean.errors import (
        AccuracyGateError,
        AnswerLostError,
        BackdoorSuspectedError,
        BudgetError,
        CellsFailedError,
        EdgecleanError,
        EndedBySignalError,
        InputRejectedError,
        NoMemoryError,
        NotFiniteError,
        OutputInUseError,
        ParityError,
        RatioError,
        ToolchainError,
        UsageError,
    )
    from edgeclean.gates import Policy, read_policy
    from edgeclean.images.labelled import LabelledImages, read_labelled_images
    from edgeclean.load.model_file import read_model_file
    from edgeclean.networks.state import LoadedNetwork, ModelSpec
    from edgeclean.outcome import (
        Compression,
        ExportedCheckpoint,
        InspectedCheckpoint,
        ScannedCheckpoint,
    )
    from edgeclean.pipeline import WrittenCompression, compress
    from edgeclean.pipeline import export_checkpoint as export
    from edgeclean.pipeline import inspect_checkpoint as inspect
    from edgeclean.pipeline import scan_checkpoint as scan
    from edgeclean.progress import Progress
    from edgeclean.runner import Cache
else:
    # Where each name is defined, and under which name where that is another.
    _MODULES = {
        "backdoor.findings": ("ScanReport",),
        "bundle.bundle": ("Bundle",),
        "bundle.embed": ("EmbedSettings", "EmbeddedFiles", "embed_bundle"),
        "bundle.sign": ("SignRecord", "sign_bundle"),
        "bundle.signing": ("Signer", "Trusted"),
        "bundle.verify": ("VerifyRecord", "verify_bundle"),
        "compression.latency_table": ("LatencyTable", "read_latency_table"),
        "config": ("PipelineSettings", "read_config", "settings_for"),
        "devices.exchange": ("ConnectionLostError",),
        "devices.targets": ("Target", "list_targets", "load_target"),
        "errors": (
            *("AccuracyGateError", "AnswerLostError", "BackdoorSuspectedError", "BudgetError"),
            *("CellsFailedError", "EdgecleanError", "EndedBySignalError", "InputRejectedError"),
            *("NoMemoryError", "NotFiniteError"),
            *("OutputInUseError", "ParityError", "RatioError", "ToolchainError", "UsageError"),
        ),
        "gates": ("Policy", "read_policy"),
        "images.labelled": ("LabelledImages", "read_labelled_images"),
        "load.model_file": ("read_model_file",),
        "networks.state": ("LoadedNetwork", "ModelSpec"),
        "outcome": (
            *("Compression", "ExportedCheckpoint", "InspectedCheckpoint", "ScannedCheckpoint"),
        ),
        "pipeline": (
            *("WrittenCompression", "compress"),
            *("export_checkpoint", "inspect_checkpoint", "scan_checkpoint"),
        ),
        "progress": ("Progress",),
        "runner": ("Cache",),
    }
    _SHORT = {
        "embed_bundle": "embed",
        "export_checkpoint": "export",
        "inspect_checkpoint": "inspect",
        "scan_checkpoint": "scan",
        "sign_bundle": "sign",
        "verify_bundle": "verify",
    }
    _PLACES = {
        _SHORT.get(name, name): (module, name)
        for module, names in _MODULES.items()
        for name in names
    }

    def __getattr__(name: str) -> object:
        """The public name, imported when it is first used (PEP 562).

        Raises:
            AttributeError: there is no such name.
        """
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        module, defined = _PLACES[name]
        value = getattr(import_module(f"{__name__}.{module}"), defined)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """The public names, whether they were used or not."""
        return sorted(__all__)
