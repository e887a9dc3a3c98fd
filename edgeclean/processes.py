"""What a process that this one started has to know of it: when it is gone."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, where the system can do that, and at once if it has.

    Source: prctl(2), PR_SET_PDEATHSIG.

    Args:
        parent: the process number of the one that started this one.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
