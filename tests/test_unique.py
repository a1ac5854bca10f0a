"""Unique keys as the scheduler decides them: at most one live task of each, and what becomes of a further one."""

from __future__ import annotations

import pytest

from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.lifecycle import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED
from taskpool.model import Options
from tests.scheduler_rig import PLAIN, Rig, of, the

RAISES = Options(on_conflict="raise")
REPLACES = Options(on_conflict="replace")


def stored(rig: Rig, task_id: int, status: str = QUEUED, *, until: int = 0) -> dict[str, ev.Holder]:
    """Return what the store says of the key "u": a task has it that memory does not hold."""
    row = ev.TaskRow(task_id, "f", "default", 0, status, 2, 1, 0, rig.wall, rig.wall, PLAIN)
    row.unique = "u"
    return {"u": ev.Holder(row, until)}


def test_the_second_is_the_first_also_in_one_submit() -> None:
    rig = Rig(1)
    commands = rig.turn(rig.submitted(3, unique="u"))
    accept = the(commands, cmd.Accept)
    assert len(set(accept.ids)) == 1
    assert accept.known == accept.ids[1:]
    assert len(of(commands, cmd.Insert)) == 1


def test_one_that_only_the_store_knows_is_the_existing_one() -> None:
    rig = Rig(1)
    commands = rig.turn(rig.submitted(unique="u", holders=stored(rig, 77)))
    assert the(commands, cmd.Accept).ids == [77]
    assert not of(commands, cmd.Insert)


def test_raise_stores_nothing_of_it_and_names_the_holder() -> None:
    rig = Rig(1)
    accept = the(rig.turn(rig.submitted(options=RAISES, unique="u", holders=stored(rig, 77, RUNNING))), cmd.Accept)
    assert (accept.ids, accept.taken) == ([0], [(0, 77)])


def test_replace_cancels_what_waits_in_the_same_turn() -> None:
    rig = Rig(1, ready=False)
    (first,) = rig.submit(unique="u")
    holder = {"u": ev.Holder(rig.row(first))}
    commands = rig.turn(rig.submitted(options=REPLACES, unique="u", holders=holder))
    accept = the(commands, cmd.Accept)
    move, insert = the(commands, cmd.Move), the(commands, cmd.Insert)
    assert (move.id, move.to) == (first, CANCELLED)
    assert move.extras is not None
    assert move.extras.finish_reason == "replaced"
    assert (insert.id, insert.after) == (accept.ids[0], first)
    assert accept.replaced == [first]
    assert set(accept.together) == {first, insert.id}, "stored both or none"
    assert commands.index(move) < commands.index(insert)


def test_replace_does_not_touch_what_runs() -> None:
    rig = Rig(1)
    (first,) = rig.submit(unique="u")
    holder = {"u": ev.Holder(rig.row(first))}
    assert the(rig.turn(rig.submitted(options=REPLACES, unique="u", holders=holder)), cmd.Accept).taken == [(0, first)]


@pytest.mark.parametrize("status", [SUCCEEDED, FAILED, CANCELLED])
def test_an_ended_task_has_its_key_no_longer(status: str) -> None:
    rig = Rig(1)
    commands = rig.turn(rig.submitted(unique="u", holders=stored(rig, 77, status)))
    assert the(commands, cmd.Insert).id == the(commands, cmd.Accept).ids[0] != 77


def test_one_that_ends_in_the_turn_leaves_its_key_to_the_next() -> None:
    """The store was asked before; the insert says after whose end it has to be written."""
    rig = Rig(1)
    (first,) = rig.submit(unique="u")
    holder = {"u": ev.Holder(rig.row(first))}
    commands = rig.turn(rig.report(first), rig.submitted(unique="u", holders=holder))
    insert = the(commands, cmd.Insert)
    assert (insert.after, the(commands, cmd.Accept).ids) == (first, [insert.id])


def test_a_period_outlives_the_task() -> None:
    rig = Rig(1)
    options = Options(unique_period_s=60)
    insert = the(rig.turn(rig.submitted(options=options, unique="u")), cmd.Insert)
    assert insert.until == rig.wall + 60_000_000
    rig.turn(rig.report(insert.id))
    holders = stored(rig, insert.id, SUCCEEDED, until=insert.until)
    assert the(rig.turn(rig.submitted(unique="u", holders=holders)), cmd.Accept).ids == [insert.id]
    rig.clock.advance(60)
    assert the(rig.turn(rig.submitted(unique="u", holders=holders)), cmd.Accept).ids != [insert.id]


def test_a_new_round_is_refused_while_another_has_the_key() -> None:
    rig = Rig(1)
    (first,) = rig.submit(unique="u")
    ended = rig.row(first)
    rig.turn(rig.failure(first))
    (second,) = rig.submit(unique="u")
    retry = rig.retry(ended)
    retry.holders = {"u": ev.Holder(rig.row(second))}
    assert the(rig.turn(retry), cmd.Respond).refused == [first]
    rig.turn(rig.report(second))
    assert the(rig.turn(retry), cmd.Respond).ids == [first]


def test_two_rounds_in_one_turn_are_one() -> None:
    rig = Rig(1)
    rows = [stored(rig, number, FAILED)["u"].row for number in (70, 71)]
    answer = the(rig.turn(rig.retry(*rows)), cmd.Respond)
    assert (answer.ids, answer.refused) == ([70], [71])


def test_a_new_round_does_not_depend_on_a_submit_that_finds_it() -> None:
    """A task that another submit of the turn makes does: either both are stored or none."""
    rig = Rig(1, ready=False)
    row = ev.TaskRow(70, "f", "default", 0, FAILED, 2, 1, 1, rig.wall, rig.wall, PLAIN)
    row.unique = "u"
    retry = ev.RetryAsked(1, 5, [row], force=False, holders={"u": ev.Holder(row)})
    accept = the(rig.turn(retry, rig.submitted(2, unique="u")), cmd.Accept)
    assert (accept.known, accept.together) == ([70, 70], [])
    first, second = of(rig.turn(rig.submitted(unique="v"), rig.submitted(2, unique="v")), cmd.Accept)
    assert second.known == first.ids * 2
    assert second.together == first.ids * 2
