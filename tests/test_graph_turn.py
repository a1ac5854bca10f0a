"""A step starts in the turn in which its last parent succeeds: what the scheduler writes of it, and what the store foresees."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core import graph
from taskpool.core.commands import Place
from taskpool.core.events import DueStep, TaskRow
from taskpool.model import FlowSpec, Options, StepSpec
from taskpool.store.store import Store
from tests.scheduler_rig import PLAIN, Rig, of, the
from tests.store_rig import T0, end, insert, move, start

# ---- the scheduler --------------------------------------------------------------------------------------------------


def chain(rig: Rig, options: Options = PLAIN) -> tuple[int, int, TaskRow]:
    """Submit a parent, which starts, and its child; return both ids, and the child's row as the store has it."""
    event = rig.submitted(2, options)
    event.specs[1].step = StepSpec("child", [(-1, graph.ON_SUCCESS, False)])
    commands = rig.turn(event)
    parent, child = the(commands, cmd.Accept).ids
    placed = of(commands, cmd.Insert)[1]
    return parent, child, TaskRow(child, "f", "default", 0, placed.status, 1, 0, 0, placed.scheduled_at, placed.created_at, options)


def test_one_write_says_that_a_step_is_free_and_that_it_starts() -> None:
    rig = Rig()
    parent, child, row = chain(rig)
    rig.clock.advance(1.0)
    commands = rig.turn(rig.report(parent), ev.StepsDue([DueStep(row, 0)]))
    started = the(commands, cmd.Start)
    assert (started.id, started.version, started.status, started.freed_at) == (child, 1, "pending", rig.wall)
    assert not of(commands, cmd.Move)
    assert rig.row(child).scheduled_at == rig.wall


def test_what_finds_no_worker_waits_in_its_line_and_in_its_row() -> None:
    rig = Rig(depth_max=1)
    first, second = chain(rig), chain(rig)
    rig.clock.advance(1.0)
    commands = rig.turn(rig.report(first[0]), ev.StepsDue([DueStep(first[2], 0), DueStep(second[2], 0)]))
    started = the(commands, cmd.Start)
    assert (started.id, started.freed_at) == (second[0], None), "the one that waited longer goes first"
    moved = [(one.id, one.to, one.held, one.scheduled_at) for one in of(commands, cmd.Move)]
    assert moved == [(first[1], "queued", False, rig.wall), (second[1], "queued", False, rig.wall)]


@pytest.mark.parametrize("asked", ["cancel", "update"])
def test_what_is_asked_of_a_free_step_meets_it_as_the_store_will_have_it(asked: str) -> None:
    rig = Rig()
    parent, child, row = chain(rig)
    event = rig.cancel(child, rows=[row]) if asked == "cancel" else ev.UpdateAsked(5, 1, child, 2, row, 7)
    commands = rig.turn(rig.report(parent), ev.StepsDue([DueStep(row, 0)]), event)
    moves = of(commands, cmd.Move)
    assert (moves[0].to, moves[0].held, moves[0].version) == ("queued", False, 1)
    if asked == "cancel":
        assert [one.to for one in moves] == ["queued", "cancelled"]
        assert not of(commands, cmd.Start)
    else:
        assert moves[1].rank == -7
        assert the(commands, cmd.Start).freed_at is None


def test_a_step_whose_limit_has_come_does_not_start() -> None:
    rig = Rig()
    parent, child, row = chain(rig, Options(deadline_at=rig.wall + 500_000))
    rig.clock.advance(1.0)
    commands = rig.turn(ev.StepsDue([DueStep(row, 0)]))
    assert [(one.id, one.to) for one in of(commands, cmd.Move)] == [(child, "failed")]
    assert not of(commands, cmd.Start)
    assert rig.row(parent).status == "running"


def test_a_pool_that_stops_lets_nothing_go() -> None:
    rig = Rig()
    parent, _, row = chain(rig)
    commands = rig.turn(ev.StopAsked(None), rig.report(parent), ev.StepsDue([DueStep(row, 0)]))
    assert not of(commands, cmd.Start)
    assert not of(commands, cmd.Move)


# ---- the end of a flow with its first failure -----------------------------------------------------------------------


def falls(row: TaskRow) -> ev.StepsDue:
    """The flow of a running step ends with the failure of another."""
    return ev.StepsDue([DueStep(copy.copy(row), 0, 9, "bad", "failed", True)])


def stopped(rig: Rig, task_id: int) -> tuple[str, str | None, str, str]:
    """Let a step end by its cancel; return how."""
    end = the(rig.turn(rig.death(begun=task_id, why="cancel", kind="cancelled")), cmd.End)
    assert end.error is not None
    assert end.extras is not None
    return end.to, end.extras.finish_reason, end.error.kind, end.error.message


def test_a_running_step_that_falls_with_its_flow_ends_upstream() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    commands = rig.turn(falls(rig.row(task_id)))
    mark = the(commands, cmd.Move)
    assert mark.extras is not None
    assert (mark.to, mark.extras.cancel_requested_at, mark.extras.upstream) == ("running", rig.wall, True)
    assert the(commands, cmd.Signal).why == "cancel"
    assert not rig.turn(falls(rig.row(task_id))), "it is told once"
    words = "task 9 (bad), with whose failure its flow ends, has ended failed"
    assert stopped(rig, task_id) == ("cancelled", "upstream", "upstream", words)


def test_who_asked_first_is_the_one_who_cancelled() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    rig.turn(rig.cancel(task_id), falls(rig.row(task_id)))
    assert stopped(rig, task_id) == ("cancelled", "user", "cancelled", "enough")
    rig = Rig()
    (task_id,) = rig.submit()
    rig.turn(falls(rig.row(task_id)), rig.cancel(task_id))
    assert stopped(rig, task_id)[:3] == ("cancelled", "upstream", "upstream")


def test_only_a_turn_in_which_all_goes_well_is_foreseen() -> None:
    good = [end(1, value=b"abc"), end(2)]
    assert graph.ended_well([start(7), *good, end(3, "retrying")]) == {1: 3, 2: 6}
    assert graph.ended_well([*good, end(3, "failed")]) == {}
    assert graph.ended_well([*good, move(3, "pending", "cancelled")]) == {}
    assert graph.ended_well([*good, move(3, "failed", "pending", clear_error=True)]) == {}


# ---- the store ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path / "x.db")) as opened:
        yield opened


def step(task_id: int, *parents: tuple[int, int, bool], flow: int | None = None, due_at: int = T0) -> cmd.Insert:
    made = insert(task_id, "pending" if parents else "queued", at=graph.HELD_AT if parents else T0)
    place = Place("", list(parents), due_at, flow, FlowSpec("f") if flow == task_id else None)
    return msgspec.structs.replace(made, place=place)


def free(store: Store, *ended: int) -> list[int]:
    return [one.row.id for one in store.steps_foreseen(dict.fromkeys(ended, 0))]


def held(store: Store, ids: Sequence[int]) -> list[int]:
    return [task_id for task_id in ids if store.is_held(task_id)]


def test_the_last_parents_of_a_step_are_foreseen(store: Store) -> None:
    on_success, on_any, on_failed = (0, False), (1, False), (2, False)
    store.commit(
        [
            *(insert(task_id) for task_id in (1, 2, 3)),
            step(4, (1, *on_success)),
            step(5, (1, *on_success), (2, *on_any)),
            step(6, (1, *on_failed)),
            step(7, (3, *on_success)),
            *(start(task_id) for task_id in (1, 2, 3)),
        ],
        T0,
    )
    assert free(store, 1) == [4]
    assert free(store, 2) == []
    assert free(store, 1, 2) == [4, 5]
    assert free(store, 1, 2, 3) == [4, 5, 7]
    assert free(store) == []


def test_a_parent_that_ended_otherwise_is_never_overlooked(store: Store) -> None:
    store.commit([insert(1), insert(2), step(3, (1, 0, False), (2, 0, False)), start(1), start(2)], T0)
    store.commit([end(1, "failed")], T0)
    assert free(store, 2) == []


def test_results_count_that_the_turn_has_yet_to_store(store: Store) -> None:
    store.commit([insert(1), insert(2), step(3, (1, 0, True), (2, 0, True)), step(4, (2, 0, False)), start(1), start(2)], T0)
    store.commit([end(1, value=b"12345")], T0)
    assert [(one.row.id, one.size) for one in store.steps_foreseen({2: 1_000})] == [(3, 1_005), (4, 0)]


def freed(task_id: int) -> cmd.Start:
    return msgspec.structs.replace(start(task_id, 1, "pending"), freed_at=T0 + 5)


def test_parents_and_child_change_in_one_transaction(store: Store) -> None:
    store.commit([insert(1), step(2, (1, 0, False)), step(3, (2, 0, False)), start(1)], T0)
    assert held(store, [1, 2, 3]) == [2, 3]
    assert store.commit([end(1), freed(2)], T0) == []
    assert held(store, [1, 2, 3]) == [3]
    task = store.task(2)
    assert (task.status, task.scheduled_at, task.version) == ("running", T0 + 5, 2)
    assert store.steps_due() == []


def test_many_steps_start_by_one_statement(store: Store) -> None:
    children = range(2, 102)
    store.commit([insert(1), *(step(task_id, (1, 0, False)) for task_id in children), start(1)], T0)
    starts = [msgspec.structs.replace(freed(task_id), worker=task_id % 2) for task_id in children]
    assert store.commit([end(1), *starts], T0) == []
    assert held(store, children) == []
    assert {store.task(task_id).worker_id for task_id in children} == {0, 1}


def test_what_was_foreseen_wrongly_is_refused_and_waits_on(store: Store) -> None:
    """The counts have the last word: a start that does not match them is not stored, and nothing else is lost by it."""
    store.commit([insert(1), insert(4), step(2, (1, 0, False), (4, 0, False)), start(1), start(4)], T0)
    assert store.commit([end(1), freed(2)], T0) == [2]
    assert (store.task(1).status, store.task(2).status) == ("succeeded", "pending")
    assert held(store, [2]) == [2]
    assert free(store, 4) == [2]


def test_a_child_does_not_start_if_its_parents_end_is_refused(store: Store) -> None:
    """Somebody wrote the parent's row by hand: what was decided on its end is not stored either."""
    store.commit([insert(1), step(2, (1, 0, False)), start(1)], T0)
    assert store.commit([end(1, version=9), freed(2)], T0) == [1, 2]
    assert (store.task(1).status, held(store, [2])) == ("running", [2])


def test_queued_steps_are_stored_like_one(store: Store) -> None:
    children = range(2, 42)
    store.commit([insert(1), *(step(task_id, (1, 0, False)) for task_id in children), start(1)], T0)
    moves = [move(task_id, "pending", "queued", scheduled_at=T0 + 9, held=False, charged=0) for task_id in children]
    assert store.commit([end(1), *moves], T0) == []
    rows = store.rows(list(children))
    assert {(row.status, row.scheduled_at, row.version) for row in rows} == {("queued", T0 + 9, 2)}
    assert store.counts()["queued"] == len(children)
