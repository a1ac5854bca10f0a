"""What holds of serialization keys, stated once more: who holds one, who waits for one, and that memory forgets nobody."""

from __future__ import annotations

from collections.abc import Iterable

from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import QUEUED, RETRYING, RUNNING, WAITING
from taskpool.core.line import Key
from taskpool.core.scheduler import Scheduler
from taskpool.testing.simulation.model_store import place


def _is_due(row: TaskRow, now: int) -> bool:
    """Return whether a task is queued, or is to be: what becomes due is not written as queued before the end of its turn."""
    return row.status == QUEUED or (row.status in WAITING and row.scheduled_at <= now)


def keeps_key(row: TaskRow, now: int = 0) -> bool:
    """Return whether a task that failed keeps its key while it waits for its next attempt."""
    waits = row.status == RETRYING or (_is_due(row, now) and row.charged > 0)
    return row.key is not None and waits and row.options.key_on_retry == "block"


def is_free(row: TaskRow, rows: Iterable[TaskRow], now: int = 0, *, strict: bool = False) -> bool:
    """Return whether a task may start as far as its key goes, by the rows there are. now: wall µs, during a turn.

    strict: others hold the key only as far as it is written, for the store may have some due ones that memory has not.
    """
    if row.key is None:
        return True
    others = [other for other in rows if other.key == row.key and other.id != row.id]
    mine = keeps_key(row, now)
    held = sum(other.status == RUNNING or (keeps_key(other, 0 if strict else now) and not mine) for other in others)
    return held < row.options.key_limit


def waits_for_key(row: TaskRow, rows: Iterable[TaskRow], now: int = 0) -> bool:
    """Return whether a queued task waits for its key, or behind one of its key and queue that does.

    now: wall µs, during a turn. What has a target may stand aside, where it holds up nobody, or not.
    """
    if row.key is None:
        return False
    of_key = [other for other in rows if other.key == row.key]
    mine = keeps_key(row, now)
    line = [one for one in of_key if _is_due(one, now) and one.queue == row.queue and keeps_key(one, now) == mine]
    untargeted = [one for one in line if not one.options.target]
    firsts = [min((row, *some), key=lambda one: (one.rank, one.scheduled_at, one.id)) for some in (line, untargeted)]
    return not all(is_free(first, of_key, now) for first in firsts)


def waits_for_line(scheduler: Scheduler, row: TaskRow) -> bool:
    """Return whether a task that waited for its key has to wait for those before it that only the store has for now."""
    line = scheduler.lines.ready.get(row.queue)
    return row.key is not None and line is not None and line.mark is not None and place(row) > line.mark


def is_beyond(scheduler: Scheduler, row: TaskRow, where: Key) -> bool:
    """Return whether a task is one of those of its key that only the store has for now."""
    parked = scheduler.lines.keys.line(row.key, row.queue) if row.key is not None else None
    return parked is not None and parked.mark is not None and where > parked.mark
