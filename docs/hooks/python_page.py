"""The public names of the package, for mkdocstrings to read from the source."""

from __future__ import annotations

import edgeclean

# What this page shows for as long as the package itself names nothing.
FALLBACK = (
    "edgeclean.pipeline.compress",
    "edgeclean.pipeline.WrittenCompression",
    "edgeclean.config.settings_for",
    "edgeclean.config.PipelineSettings",
    "edgeclean.backdoor.scan.scan",
    "edgeclean.backdoor.purify.purify",
    "edgeclean.bundle.verify.verify_bundle",
    "edgeclean.devices.targets.load_target",
    "edgeclean.networks.state.ModelSpec",
)


def names() -> list[str]:
    """Where each public name is defined, as a dotted path."""
    public = getattr(edgeclean, "__all__", ())
    found = [getattr(edgeclean, name) for name in public if not name.startswith("__")]
    paths = [
        f"{one.__module__}.{one.__qualname__}" for one in found if hasattr(one, "__qualname__")
    ]
    return paths or list(FALLBACK)


def reference() -> str:
    """A section for each public name; mkdocstrings fills them in."""
    return "\n".join(f"::: {name}\n" for name in names())
