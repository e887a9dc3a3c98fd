"""What a process asks of the system takes effect, in that process alone."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from edgeclean.processes import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(2**26, dtype=np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**26, dtype=np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
        for how in ("kept", "plain")
    }
    assert faults["kept"] < 100
    assert faults["kept"] < faults["plain"]
