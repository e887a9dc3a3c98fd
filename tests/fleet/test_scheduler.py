"""The laws of a schedule, on graphs, failures and losses drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclean.fleet.jobs import Answer, Done, Failed, Lost
from edgeclean.fleet.scheduler import NODES, Schedule, Task

DONE = Done(facts={}, seconds=1.0)
FAILED = Failed(kind="ParityError", message="it is another network", exit_code=5)
LOST = Lost(reason="is gone")
MOVED = Lost(reason="went", with_its_node=True)
TRIES = 3


@dataclass(frozen=True)
class Drawn:
    """A graph, and what becomes of each task: how often it is lost, and how it ends then.

    First it goes with its machine so many times, then its process alone dies.
    """

    graph: tuple[tuple[str, tuple[str, ...], tuple[str, ...], bool], ...]
    moves: dict[str, int]
    losses: dict[str, int]
    failing: frozenset[str]
    room: int
    careful: bool

    @property
    def tasks(self) -> list[Task]:
        return [
            Task(name=name, needs=needs, after=after, alone=alone)
            for name, needs, after, alone in self.graph
        ]


@st.composite
def graphs(draw: st.DrawFn) -> Drawn:
    graph: list[tuple[str, tuple[str, ...], tuple[str, ...], bool]] = []
    for number in range(draw(st.integers(0, 14))):
        before = [one[0] for one in graph]
        some = st.lists(st.sampled_from(before), unique=True, max_size=3) if before else st.just([])
        needs, after = draw(some), draw(some)
        graph.append((f"t{number}", tuple(needs), tuple(after), draw(st.booleans())))
    names = [one[0] for one in graph]
    most = NODES * TRIES
    moves = {name: draw(st.sampled_from([0, 0, 0, 1, 4, most - 1, most])) for name in names}
    losses = {name: draw(st.sampled_from([0, 0, 0, 1, 2, 3])) for name in names}
    failing = draw(st.frozensets(st.sampled_from(names))) if names else frozenset()
    room, careful = draw(st.integers(1, 4)), draw(st.booleans())
    return Drawn(tuple(graph), moves, losses, failing, room, careful)


def played(drawn: Drawn, draw: st.DataObject) -> tuple[dict[str, Done | Failed], dict[str, int]]:
    """Play a schedule to its end, checking at every moment; how all ended, and how often begun."""
    by_name = {one.name: one for one in drawn.tasks}
    schedule = Schedule(drawn.tasks, tries=TRIES, careful=drawn.careful)
    ended: dict[str, Done | Failed] = {}
    begun: dict[str, int] = dict.fromkeys(by_name, 0)
    dead: dict[str, int] = dict.fromkeys(by_name, 0)
    flying: list[str] = []
    while not schedule.over:
        while (name := schedule.take(drawn.room)) is not None:
            task = by_name[name]
            assert name not in ended
            assert all(isinstance(ended.get(one), Done) for one in task.needs)
            assert all(one in ended for one in task.after)
            begun[name] += 1
            flying.append(name)
            assert len(flying) <= drawn.room
            quiet = [one for one in flying if by_name[one].alone or dead[one]]
            assert not (drawn.careful and quiet and len(flying) > 1)
        assert flying, "nothing is in flight, and something is left"
        name = flying.pop(draw.draw(st.integers(0, len(flying) - 1)))
        answer: Answer = FAILED if name in drawn.failing else DONE
        if begun[name] <= drawn.moves[name]:
            answer = MOVED
        elif dead[name] < drawn.losses[name]:
            answer, dead[name] = LOST, dead[name] + 1
        for one, how in schedule.end(name, answer):
            assert one not in ended
            ended[one] = how
    assert schedule.in_flight == set()
    return ended, begun


@settings(max_examples=60, deadline=None)
@given(drawn=graphs(), data=st.data())
def test_every_task_ends_once_and_only_what_needs_a_failed_one_fails_with_it(
    drawn: Drawn, data: st.DataObject
) -> None:
    ended, begun = played(drawn, data)
    assert set(ended) == {one.name for one in drawn.tasks}
    for task in drawn.tasks:
        reasons = [ended[one] for one in task.needs if isinstance(ended[one], Failed)]
        own = ended[task.name]
        if reasons:
            assert own in reasons
            assert begun[task.name] == 0
        elif drawn.moves[task.name] >= NODES * TRIES:
            assert isinstance(own, Failed)
            assert (own.exit_code, begun[task.name]) == (1, NODES * TRIES)
            assert "went, 30 times" in own.message
        elif drawn.losses[task.name] >= TRIES:
            assert isinstance(own, Failed)
            assert (own.exit_code, begun[task.name]) == (1, drawn.moves[task.name] + TRIES)
            assert "is gone, 3 times" in own.message
        else:
            assert own == (FAILED if task.name in drawn.failing else DONE)
            assert begun[task.name] == drawn.moves[task.name] + drawn.losses[task.name] + 1


def test_the_first_given_is_the_first_taken_so_that_networks_follow_each_other() -> None:
    tasks = []
    for net in "ab":
        tasks.append(Task(name=f"purify {net}"))
        tasks += [Task(name=f"{net}{cell}", needs=(f"purify {net}",)) for cell in range(2)]
    schedule, order = Schedule(tasks), []
    while (name := schedule.take(1)) is not None:
        order.append(name)
        assert [one for one, _ in schedule.end(name, DONE)] == [name]
    assert order == ["purify a", "a0", "a1", "purify b", "b0", "b1"]


@pytest.mark.parametrize(
    "tasks",
    [
        [Task(name="a"), Task(name="a")],
        [Task(name="a", needs=("b",)), Task(name="b")],
        [Task(name="a", after=("a",))],
    ],
)
def test_a_graph_with_a_round_or_a_stranger_is_refused(tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match="a"):
        Schedule(tasks)
