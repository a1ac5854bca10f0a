"""The pure part of graphs: what edges ask for, in which order steps are stored, and what becomes of those that wait."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpool.clock import ManualClock
from taskpool.core import graph, settle
from taskpool.core.events import DueStep, TaskRow
from taskpool.core.lifecycle import MOVES, SUCCEEDED, TERMINAL
from taskpool.errors import InvalidTask
from taskpool.model import FlowSpec, Options, StepSpec

STATUSES = sorted(status for status in MOVES if status)
CONDITIONS = sorted(graph.CONDITIONS.values())
name: Callable[[int], str] = "s{}".format


@given(st.sampled_from(CONDITIONS), st.sampled_from(STATUSES))
def test_an_edge_waits_while_its_parent_lives_and_is_met_or_broken_by_its_end(condition: int, status: str) -> None:
    live = status not in TERMINAL
    assert graph.is_open(status) == live
    met = {
        graph.ON_SUCCESS: status == SUCCEEDED,
        graph.ON_ANY: True,
        graph.ON_FAILED: status in ("failed", "cancelled", "interrupted"),
    }[condition]
    assert graph.is_broken(condition, status) == (not live and not met)
    assert graph.counted([(condition, status)]) == (int(live), int(not live and not met))


@st.composite
def forests(draw: st.DrawFn) -> list[list[int]]:
    """Steps of an acyclic graph, in an order that need not be that of the edges."""
    size = draw(st.integers(1, 12))
    shuffled = draw(st.permutations(range(size)))
    parents: list[list[int]] = [[] for _ in range(size)]
    for place, step in enumerate(shuffled):
        parents[step] = [before for before in shuffled[:place] if draw(st.booleans())]
    return parents


@given(forests())
def test_parents_come_before_their_children(parents: list[list[int]]) -> None:
    order = graph.order(parents, name)
    assert sorted(order) == list(range(len(parents)))
    place = {step: index for index, step in enumerate(order)}
    assert all(place[parent] < place[step] for step, mine in enumerate(parents) for parent in mine)


def test_steps_that_are_in_order_stay_as_they_are() -> None:
    assert graph.order([[], [], [0], [1, 2]], name) == [0, 1, 2, 3]


@given(forests(), st.data())
def test_a_cycle_is_refused_and_named(parents: list[list[int]], data: st.DataObject) -> None:
    order = graph.order(parents, name)
    length = data.draw(st.integers(1, len(order)))
    ring = order[:length]
    for index, step in enumerate(ring):
        parents[step].append(ring[index - 1])
    with pytest.raises(InvalidTask) as refused:
        graph.order(parents, name)
    path = [int(part[1:]) for part in refused.value.message.removeprefix("the steps wait for each other: ").split(" → ")]
    assert path[0] == path[-1]
    assert len(set(path)) == len(path) - 1
    assert all(parent in parents[child] for parent, child in pairwise(path)), "each edge of it is there"


def test_a_long_cycle_is_named_in_part() -> None:
    size = 5_000
    with pytest.raises(InvalidTask, match=r"s0 → s1 → .* … \(\d+ more\) → .*") as refused:
        graph.order([[(step - 1) % size] for step in range(size)], name)
    assert len(refused.value.message) < 500


def test_references_become_ids_and_the_first_step_opens_the_flow() -> None:
    flow = FlowSpec("nightly")
    place, at = graph.placed(StepSpec("a"), flow, [7], 50, Options())
    assert (place.flow_id, place.opens, at) == (7, flow, 50)
    place, at = graph.placed(StepSpec("c", [(-1, 0, True), (3, 1, False)]), flow, [7, 8, 9], 50, Options())
    assert (place.parents, place.flow_id, place.opens, place.due_at) == ([(7, 0, True), (3, 1, False)], 7, None, 50)
    assert at == graph.HELD_AT


def test_what_waits_for_its_parents_waits_no_longer_than_its_limits() -> None:
    assert graph.limit(Options(), begun=False) == graph.HELD_AT
    assert graph.limit(Options(deadline_at=9, expires_at=5), begun=False) == 5
    assert graph.limit(Options(deadline_at=9, expires_at=5), begun=True) == 9


def row(status: str = "pending") -> TaskRow:
    return TaskRow(2, "f", "default", 0, status, 1, 0, 0, graph.HELD_AT, 0, Options())


def test_a_step_may_start_now_or_when_it_is_due() -> None:
    now = ManualClock().now()
    command = graph.decided(row(), DueStep(row(), now.wall - 1), now)
    assert (command.to, command.scheduled_at, command.held) == ("queued", now.wall, False)
    command = graph.decided(row(), DueStep(row(), now.wall + 1), now)
    assert (command.to, command.scheduled_at, command.held) == ("pending", now.wall + 1, False)


def test_no_place_in_the_line_is_taken_twice_by_two_rounds() -> None:
    """The line forgets lazily: what waits for the same moment in a newer round stands elsewhere in it."""
    now = ManualClock().now()
    late = [
        graph.decided(
            TaskRow(2, "f", "default", 0, "pending", 1, 0, 0, 0, 0, Options(), round=n), DueStep(row(), now.wall + 9), now
        )
        for n in range(3)
    ]
    assert len({command.scheduled_at for command in late}) == 3
    held = []
    for n in range(3):
        renewed = TaskRow(2, "f", "default", 0, "failed", 1, 0, 0, 0, 0, Options(deadline_at=now.wall + 9), round=n)
        command = settle.new_round(renewed, now)
        graph.hold(renewed, command)
        held.append(command.scheduled_at)
        assert command.held
        assert renewed.scheduled_at == command.scheduled_at
    assert len(set(held)) == 3


def test_a_step_that_can_never_start_names_its_culprit() -> None:
    step = DueStep(row(), 0, 1, "load", "failed")
    command = graph.decided(row(), step, ManualClock().now())
    assert command.error is not None
    assert command.extras is not None
    assert (command.to, command.error.kind, command.extras.finish_reason) == ("cancelled", "upstream", "upstream")
    assert command.error.message == "task 1 (load), which it depends on, has ended failed"


def test_results_that_are_too_big_together_are_no_arguments() -> None:
    step = DueStep(row(), 0, size=graph.INPUT_BYTES_MAX + 1)
    command = graph.decided(row(), step, ManualClock().now())
    assert command.error is not None
    assert (command.to, command.error.kind) == ("failed", "decode")
    assert graph.decided(row(), DueStep(row(), 0, size=graph.INPUT_BYTES_MAX), ManualClock().now()).to == "queued"
