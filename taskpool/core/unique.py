"""Unique keys: at most one task that has not ended has each, and, within the period of one, at most one at all. Pure decisions.

The store's index says so too. It is asked before a turn, so what the turn itself has made or ended since is remembered here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from taskpool.clock import US, Instant
from taskpool.core.commands import Insert, Move, Save
from taskpool.core.events import Holder, TaskRow
from taskpool.core.lifecycle import TERMINAL, WAITING
from taskpool.model import Options

NEW, EXISTING, REFUSED, REPLACED = range(4)
REASON: Final = "replaced"  # why such a task finished


class Decision(msgspec.Struct, frozen=True):
    """What becomes of a task with a unique key. row: of the one that has the key, or had it last (None: nobody)."""

    what: int
    row: TaskRow | None = None


class Claims:
    """Who took which unique key in this turn."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[TaskRow, int]] = {}  # key → task, end of its period
        self._new: set[int] = set()

    def take(self, row: TaskRow, until: int) -> None:
        """A new task has its key from now on, until (wall µs) whatever becomes of it."""
        if row.unique is not None:
            self._taken[row.unique] = (row, until)
            self._new.add(row.id)

    def take_again(self, row: TaskRow) -> None:
        """The new round of an ended task has its key from now on."""
        if row.unique is not None:
            self._taken[row.unique] = (row, 0)

    def is_new(self, task_id: int) -> bool:
        """Return whether the task that has a key is one of this turn, and may still be refused."""
        return task_id in self._new

    def clear(self) -> None:
        """The turn is over."""
        self._taken.clear()
        self._new.clear()

    def holder(self, key: str, stored: dict[str, Holder], wall: int) -> tuple[TaskRow | None, bool]:
        """Return the task that has a key, or had it in the store, and whether it has it for its period."""
        taken = self._taken.get(key)
        if taken is not None:
            return taken[0], taken[1] > wall
        found = stored.get(key)
        return (None, False) if found is None else (found.row, found.until > wall)


def decide(row: TaskRow | None, in_period: bool, options: Options) -> Decision:
    """Return what becomes of a task whose unique key another one has. row: that one, as it is now."""
    if row is None or (row.status in TERMINAL and not in_period):
        return Decision(NEW, row)
    if options.on_conflict == "existing":
        return Decision(EXISTING, row)
    if options.on_conflict == "replace" and row.status in WAITING:
        return Decision(REPLACED, row)
    return Decision(REFUSED, row)


def period_end(options: Options, now: Instant) -> int:
    """Return until when (wall µs) a task that is stored now has its unique key, though it may end before; 0: no longer."""
    return 0 if options.unique_period_s is None else now.wall + round(options.unique_period_s * US)


def is_free(row: TaskRow, holder: TaskRow | None) -> bool:
    """Return whether an ended task may have its unique key again, for a new round."""
    return holder is None or holder.id == row.id or holder.status in TERMINAL


def without(saves: Sequence[Save], refused: Collection[int]) -> list[Save]:
    """Return what is left of a turn when these tasks are refused.

    Of a new one that is nothing. One whose unique key a new one was to take goes on as it was before: what the turn says of it
    until then stays, such as the end of its attempt.
    """
    replaced = {save.id for save in saves if _replaces(save)}
    gone: set[int] = set()
    left = []
    for save in saves:
        if save.id in refused and (save.id not in replaced or isinstance(save, Insert) or _replaces(save)):
            gone.add(save.id)
        if save.id not in gone:
            left.append(save)
    return left


def _replaces(save: Save) -> bool:
    return isinstance(save, Move) and save.extras is not None and save.extras.finish_reason == REASON
