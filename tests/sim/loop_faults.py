"""Faults to plant into the supervisor's loop and desk, which the world with the real parts must see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskpool.core import commands as cmd
from taskpool.store import eventlog, graphs, pruning
from taskpool.store.stages import Stage
from taskpool.supervisor.desk import Desk
from taskpool.supervisor.loop import Loop
from taskpool.supervisor.readings import Readings

from .real_parts import RealStore

Plant = Callable[[pytest.MonkeyPatch], None]
LOOP_FAULTS: dict[str, Plant] = {}


def fault(plant: Plant) -> Plant:
    """Register a fault under its name."""
    LOOP_FAULTS[plant.__name__] = plant
    return plant


def _before(patch: pytest.MonkeyPatch, owner: Any, name: str, first: Callable[..., None]) -> None:
    """Do something before each call of owner.name."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        first(*args, **kwargs)
        return original(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


@fault
def what_was_started_is_sent_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    def send_early(self: Loop, turn: Any) -> None:
        self._sender.send(turn.starts)
        turn.starts = []

    _before(patch, Loop, "_is_stored", send_early)


@fault
def clients_are_answered_before_it_is_stored(patch: pytest.MonkeyPatch) -> None:
    def answer_early(self: Loop, turn: Any) -> None:
        for act in [act for act in turn.acts if isinstance(act, cmd.Accept)]:
            self._act(act, turn)
            turn.acts.remove(act)

    _before(patch, Loop, "_is_stored", answer_early)


@fault
def records_are_freed_before_they_are_stored(patch: pytest.MonkeyPatch) -> None:
    _before(patch, Loop, "_is_stored", lambda self, turn: self._engine.committed(turn.mark))


@fault
def what_is_asked_while_a_turn_is_stuck_is_not_kept_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Desk, "hold", lambda self, why: None)


@fault
def a_turn_that_was_stuck_is_dropped(patch: pytest.MonkeyPatch) -> None:
    def forget(self: Loop, stuck: Any) -> bool:
        self._stuck = None
        self._desk.release()
        return True

    patch.setattr(Loop, "_try_again", forget)


@fault
def nobody_is_told_of_tasks_that_ended_while_they_waited(patch: pytest.MonkeyPatch) -> None:
    original = Readings.settle

    def settle(self: Readings, ended: list[Any]) -> None:
        original(self, [end for end in ended if isinstance(end, cmd.End)])

    patch.setattr(Readings, "settle", settle)


@fault
def the_scheduler_does_not_hear_what_was_refused(patch: pytest.MonkeyPatch) -> None:
    original = Loop._follow

    def follow(self: Loop, turn: Any) -> None:
        before = len(self._events)
        original(self, turn)
        self._events[before:] = [event for event in self._events[before:] if type(event).__name__ != "Dropped"]

    patch.setattr(Loop, "_follow", follow)


@fault
def the_log_of_transitions_knows_one_stage_of_a_turn(patch: pytest.MonkeyPatch) -> None:
    whole = eventlog.pack

    def pack(stages: list[Stage]) -> bytes:
        return whole(stages[-1:])

    patch.setattr(eventlog, "pack", pack)


@fault
def the_log_of_transitions_counts_no_attempts(patch: pytest.MonkeyPatch) -> None:
    whole = eventlog.pack

    def pack(stages: list[Stage]) -> bytes:
        for stage in stages:
            stage.attempts.clear()
        return whole(stages)

    patch.setattr(eventlog, "pack", pack)


@fault
def a_parents_end_does_not_change_the_counts_of_its_children(patch: pytest.MonkeyPatch) -> None:
    told = graphs._told
    patch.setattr(graphs, "_told", lambda stage: ({}, told(stage)[1]))


@fault
def a_parents_new_round_does_not_change_the_counts_of_its_children(patch: pytest.MonkeyPatch) -> None:
    told = graphs._told
    patch.setattr(graphs, "_told", lambda stage: (told(stage)[0], []))


@fault
def an_edge_is_counted_as_broken_whatever_it_asks_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graphs, "_ENDED", graphs._ENDED.replace("SUM(edge.condition = ?)", "SUM(edge.condition = ? OR 1)"))


@fault
def nobody_asks_which_steps_are_due(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RealStore, "steps_due", lambda self: [])


@fault
def a_step_is_foreseen_to_start_while_one_of_its_parents_lives(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(graphs, "_FORESEEN", graphs._FORESEEN.replace("step.open = found.n", "step.open >= found.n"))


@fault
def ids_are_given_again_after_they_were_pruned(patch: pytest.MonkeyPatch) -> None:
    remove = pruning.remove

    def forgetful(db: Any, ids: Any) -> Any:
        done = remove(db, ids)
        db.execute("UPDATE meta SET pruned_id = 0")
        return done

    patch.setattr(pruning, "remove", forgetful)


@fault
def parents_are_pruned_before_their_children(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pruning.Walk, "_children", lambda self, db, ids: {})


@fault
def a_flow_is_pruned_step_by_step(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pruning.Walk, "_is_over", lambda self, db, group, budget: (True, budget))


@fault
def children_find_no_room_and_their_parents_succeed(patch: pytest.MonkeyPatch) -> None:
    whole = Loop._refuse_new

    def refuse(self: Loop, turn: Any, error: Any) -> bool:
        for save in turn.saves:
            if isinstance(save, cmd.Insert):
                save.of = 0
        return whole(self, turn, error)

    patch.setattr(Loop, "_refuse_new", refuse)
