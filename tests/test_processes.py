"""What a process asks of the system takes effect, in that process alone."""

import signal
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


RESIDENT = """
import numpy as np
from edgeclean.processes import keep_freed_memory, return_freed_memory
def resident():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096
keep_freed_memory()
before = resident()
blocks = [np.ones(2**22, dtype=np.uint8) for _ in range(32)]
del blocks[:-1]  # the last one holds the top of the heap
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_returned_between_what_is_left():
    answer = subprocess.check_output([sys.executable, "-c", RESIDENT])
    kept, returned = (int(number) for number in answer.split())
    assert kept > 31 * 2**22
    assert returned < 2 * 2**22


ORDERLY = """
import signal, sys, time
from edgeclean.processes import ended_in_order
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with ended_in_order():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("cleared", signal.getsignal(signal.SIGINT) is signal.SIG_IGN, flush=True)
"""


def test_a_signal_lets_what_is_within_clear_up_and_then_ends_the_process():
    with subprocess.Popen(
        [sys.executable, "-c", ORDERLY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGHUP)  # ignored before, and now
        run.send_signal(signal.SIGTERM)
        assert run.stdout.read() == "cleared True\n"
        assert run.stderr.read() == ""
    assert run.returncode == -signal.SIGTERM
