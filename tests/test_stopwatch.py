"""The stopwatch of a run: seconds by stage, told as they pass."""

from __future__ import annotations

import pytest

from edgeclean.runner import Stopwatch, peak_memory_mib


def test_a_stopwatch_adds_up_and_tells() -> None:
    told: list[tuple[str, int, int]] = []
    watch = Stopwatch(lambda *step: told.append(step))

    def load_checkpoint(number: int) -> int:
        if number < 0:
            raise ValueError
        return sum(range(number))

    assert watch(load_checkpoint, "Loading")(1000) == 499_500
    first = watch.seconds["load"]
    watch(load_checkpoint)(3_000_000)
    second = watch.seconds["load"]
    assert second > first
    watch(load_checkpoint)(0)
    assert watch.seconds["load"] >= second
    with pytest.raises(ValueError):  # noqa: PT011 - any
        watch(load_checkpoint, "Loading")(-1)
    assert told == [("Loading", 0, 1), ("Loading", 1, 1)] * 2
    peak = peak_memory_mib()
    assert peak is not None
    assert 10 < peak < 100_000
