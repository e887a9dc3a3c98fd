"""Coverage-guided fuzzing of one reader: ``python tests/fuzz/fuzz.py READER [libFuzzer options]``.

Starts from ``seeds/READER`` and writes what it finds into the working folder. ``make fuzz`` runs
every reader for ten minutes.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
warnings.simplefilter("ignore")
INSTRUMENTED = ["edgeclean", "zipfile", "tomllib", "pickletools"]
with atheris.instrument_imports(include=INSTRUMENTED):
    import fuzz_targets


def main() -> None:
    """Fuzz until libFuzzer's own options say stop."""
    reader, options = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as corpus, fuzz_targets.limited_memory():
        words = [sys.argv[0], *options, "-max_len=65536", "-timeout=60", "-rss_limit_mb=8192"]
        atheris.Setup(
            [*words, corpus, str(fuzz_targets.SEEDS / reader)],
            lambda contents: fuzz_targets.run(reader, contents),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
