"""edgeclean: from an untrusted trained CNN to a purified, compressed, checked edge bundle.

The stages, in order, each a function from one value to a new one:

    load_checkpoint -> scan -> purify -> decompose -> scale -> truncate
    -> synthesize -> finetune -> export -> check -> measure -> write_bundle

``edgeclean.pipeline.compress`` runs them all; the command ``edgeclean compress`` is the same
function behind options. This module imports nothing heavy, so ``edgeclean --help`` stays fast.
"""

__version__ = "0.1.0"
