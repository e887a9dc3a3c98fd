"""edgeclean: from an untrusted trained CNN to a purified, compressed, checked edge bundle.

The stages, in order, each a function from one value to a new one:

    load_checkpoint -> synthesize -> scan -> purify -> synthesize -> decompose -> scale
    -> choose_ranks -> truncate -> finetune -> export_onnx -> check_parity -> lower_precision
    -> measure_pair -> write_bundle

``edgeclean.pipeline.compress`` runs them all; the command ``edgeclean compress`` is the same
function behind options. This module imports nothing heavy, so ``edgeclean --help`` stays fast.
"""

import os

__version__ = "0.1.0"

# From 1.32 on, ONNX Runtime's packages for Linux report what they run to their maker and keep an
# identifier in the home folder, unless this is set before they are loaded
# (github.com/microsoft/onnxruntime/pull/27379). A user who wants that says so with 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
