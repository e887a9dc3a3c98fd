"""Two networks in turns within the process that their runtime is confined in.

As in `exporters.engines`, neither torch nor onnx is loaded here.
"""

from __future__ import annotations

from dataclasses import replace

from edgeclean.child.parcel import Parcel
from edgeclean.measure.turns import Turns, time_loaded
from exporters.engines.tasks import opened

PAIR = ("original", "compressed")


def time_task(given: Parcel) -> Parcel:
    """Load two networks and time them in turns; `runtime_latency` asks for it.

    Raises:
        UsageError: they cannot be measured on the same images.
        InputRejectedError: the runtime cannot load or run one of them.
        ToolchainError: the runtime is not installed.
    """
    turns = Turns(**given.facts["turns"])
    precisions = ("fp32", given.facts["precision"])
    original, compressed = (
        opened(
            replace(given, facts={**given.facts, "precision": precision}),
            name,
            {
                file.partition("/")[2]: content
                for file, content in given.files.items()
                if file.startswith(f"{name}/")
            },
        )
        for name, precision in zip(PAIR, precisions, strict=True)
    )
    return time_loaded((original, compressed), turns).packed()
