"""The errors that a user can cause, with the exit code that the command line gives each.

EdgecleanError
├── UsageError               2  an option or setting is wrong, or options contradict each other
│   ├── OutputInUseError     2  the output folder is being written by another run
│   └── AnswerLostError      2  stdout is closed, full, or nobody reads it any more
├── InputRejectedError       3  the checkpoint, ONNX, image set or bundle cannot be accepted
│   └── NotFiniteError       3  a stage came out with NaN or infinity
├── BackdoorSuspectedError   4  the scan suspects a backdoor and the policy forbids it
├── ParityError              5  the exported network does not compute what the PyTorch one does
│   └── AccuracyGateError    5  accuracy fell further than the policy allows
├── BudgetError              6  a size, latency or speed budget is missed
│   └── RatioError           6  the asked compression ratio cannot be met
├── ToolchainError           7  the target needs a tool that is not installed (the ONNX is written)
│   └── ConnectionLostError  7  the device cannot be reached; what was done there is kept
├── CellsFailedError         1  some cells of a fleet failed; the code is that of the first of them
├── NoMemoryError            1  the machine, or a limit of it, has no memory left
└── EndedBySignalError       1  native code crashed, or the system or the process itself ended it;
                                128 + n where somebody asked it to stop by signal n

Anything else that escapes is a defect of ours: exit code 1, with its traceback.
"""

from __future__ import annotations

from typing import Any


class EdgecleanError(Exception):
    """Root of all errors that are shown as one line, without a traceback.

    Attributes:
        facts: entries of the JSON document beside the line, such as the verdicts of the gates.
    """

    exit_code = 1

    def __init__(self, message: str = "", /, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


class UsageError(EdgecleanError):
    """An option or setting is wrong."""

    exit_code = 2


class OutputInUseError(UsageError):
    """Another run is writing the same output folder."""


class AnswerLostError(UsageError):
    """What was asked for cannot be written to stdout."""


class InputRejectedError(EdgecleanError):
    """An untrusted input was refused: nothing of it was executed or kept."""

    exit_code = 3


class NotFiniteError(InputRejectedError):
    """Numbers that are not finite came out of a stage."""


class BackdoorSuspectedError(EdgecleanError):
    """The scan suspects a backdoor and the caller asked to stop then."""

    exit_code = 4


class ParityError(EdgecleanError):
    """Two forms of one network disagree by more than the tolerance."""

    exit_code = 5


class AccuracyGateError(ParityError):
    """Accuracy fell further than allowed: on the user's images, or by a forecast that is needed."""


class BudgetError(EdgecleanError):
    """A latency, speed or size budget is missed."""

    exit_code = 6


class RatioError(BudgetError):
    """The asked compression ratio is out of reach; the message names the nearest.

    Attributes:
        nearest: the largest ratio in reach; None where that is not known, or no ratio was asked.
    """

    def __init__(self, message: str, *, nearest: float | None = None) -> None:
        super().__init__(message)
        self.nearest = nearest


class ToolchainError(EdgecleanError):
    """A tool that the target needs is missing."""

    exit_code = 7


class CellsFailedError(EdgecleanError):
    """Some cells of a fleet failed, and the others are in place; the first one's code is taken."""

    def __init__(self, message: str = "", /, *, exit_code: int = 1, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.exit_code = exit_code


class NoMemoryError(EdgecleanError):
    """There is no memory left."""


class EndedBySignalError(EdgecleanError):
    """The process that did the work did not come to its end; what it left was cleared up."""

    def __init__(self, message: str = "", /, *, exit_code: int = 1, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.exit_code = exit_code
