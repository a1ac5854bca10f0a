"""Serialization keys: of the tasks that share one, at most `key_limit` run at the same time, in the order of their queue.

A key is held by the rows that run, and, with key_on_retry="block", by those that failed and wait for their next attempt. Both are
derived from rows: nothing of a key is stored, so nothing can be left locked. What finds its key taken leaves its line for a place
beside it, where it costs nothing until the key is free; of each key memory holds only the beginning, the store has the rest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from taskpool.core.commands import Refill
from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import QUEUED, RETRYING, WAITING
from taskpool.core.line import Key as Place
from taskpool.core.line import Line

PARKED_MAX: Final = 200  # waiting rows of one key and queue held in memory


def is_firm(row: TaskRow, *, due: bool = False) -> bool:
    """Return whether a waiting task keeps its key: it failed, and lets nobody pass until it has had its next attempt.

    due: it has just become so, and will be queued.
    """
    if row.key is None or row.options.key_on_retry != "block":
        return False
    return row.status == RETRYING or ((due or row.status == QUEUED) and row.charged > 0)


class _Parked:
    """Those of one key and queue that found it taken. firm: of these, those that keep it, which stand in nobody's way."""

    __slots__ = ("firm", "line")

    def __init__(self, cap: int) -> None:
        self.line = Line(cap=cap)
        self.firm: list[Place] = []

    def pop(self, place: Place) -> None:
        """Take out the first of the one or the other that stands there."""
        if self.firm and self.firm[0] == place:
            heapq.heappop(self.firm)
        else:
            self.line.pop()

    def discard(self, place: Place) -> bool:
        """Take one out wherever it stands; return whether it was here."""
        if place in self.firm:
            self.firm.remove(place)
            heapq.heapify(self.firm)
        elif place in self.line:
            self.line.discard(place)
        else:
            return False
        return True


class Keys:
    """Who holds which key, and who waits for one. Costs nothing for tasks without a key."""

    def __init__(self, tasks: dict[int, TaskRow], cap: int, serve: Callable[[str], None] = lambda queue: None) -> None:
        """tasks: the scheduler's; cap: waiting rows of one key held in memory; serve: told of a queue that has one to start."""
        self._serve = serve
        self._tasks = tasks
        self._cap = min(cap, PARKED_MAX)
        self._running: dict[str, set[int]] = {}
        self._firm: dict[str, set[int]] = {}
        self._parked: dict[str, dict[str, _Parked]] = {}  # key → queue → those that wait
        self._limits: dict[str, int] = {}  # the highest key_limit among the parked of a key, if that is not one
        self._open: dict[
            str, list[tuple[Place, str]]
        ] = {}  # queue → a heap of the parked that may start; old entries are passed over
        self._touched: dict[tuple[str, str], None] = {}  # (key, queue) whose parked have changed in this turn
        self._beyond: list[Place] = []  # of this turn: after the part of their key that memory holds

    # ---- who holds a key --------------------------------------------------------------------------------------------

    def admits(self, row: TaskRow) -> bool:
        """Return whether a task's key lets it start now, whoever waits before it."""
        assert row.key is not None
        count = len(self._running.get(row.key, ()))
        firm = self._firm.get(row.key)
        if firm is not None and row.id not in firm:
            count += len(firm)
        return count < row.options.key_limit

    def holders(self, row: TaskRow) -> list[int]:
        """Return the tasks that have a task's key, by id."""
        assert row.key is not None
        return sorted((self._running.get(row.key, set()) | self._firm.get(row.key, set())) - {row.id})

    def lets_wait(self, row: TaskRow) -> bool:
        """Return whether a task still stands in its line, and may start as far as its key goes."""
        return self.admits(row) and not self.is_parked(row)

    def started(self, row: TaskRow) -> None:
        """A task with a key was given to a worker."""
        assert row.key is not None
        self._running.setdefault(row.key, set()).add(row.id)
        _discard(self._firm, row.key, row.id)
        self._announce(row.key)

    def ended(self, row: TaskRow) -> None:
        """Its attempt is over, in whatever way: the key is free in the transaction that stores it, unless the task keeps it.

        What it does now is to be told by `note`.
        """
        assert row.key is not None
        _discard(self._running, row.key, row.id)

    def note(self, row: TaskRow, *, due: bool = False) -> None:
        """A task with a key waits in another way than before, or no longer; due: as for `is_firm`."""
        key = row.key
        assert key is not None
        if is_firm(row, due=due):
            self._firm.setdefault(key, set()).add(row.id)
            parked = self._parked.get(key, {}).get(row.queue)
            place = (row.rank, row.scheduled_at, row.id)
            if parked is not None and parked.discard(place):
                heapq.heappush(parked.firm, place)
        else:
            _discard(self._firm, key, row.id)
        self._announce(key)

    # ---- who waits for one ------------------------------------------------------------------------------------------

    def passes(self, row: TaskRow) -> bool:
        """Return whether a task that was taken from its line may start; if not, `park` it."""
        assert row.key is not None
        parked = self._parked.get(row.key)
        if parked is not None and row.queue in parked:
            return False  # others of its key came before it, or it is to stand among them
        return self.admits(row)

    def park(self, row: TaskRow, place: Place) -> None:
        """Let a task wait beside its line until its key is free."""
        assert row.key is not None
        queues = self._parked.setdefault(row.key, {})
        parked = queues.get(row.queue)
        if parked is None:
            parked = queues[row.queue] = _Parked(self._cap)
        if row.id in self._firm.get(row.key, ()):
            heapq.heappush(parked.firm, place)
        elif not parked.line.offer(place):
            self._beyond.append(place)
        self._know_limit(row)
        self._announce(row.key, row.queue)

    def first(self, queue: str) -> Place | None:
        """Return where the first of a queue's parked tasks stands that may start now."""
        heap = self._open.get(queue)
        while heap:
            place, key = heap[0]
            parked = self._parked.get(key, {}).get(queue)
            if parked is not None and self._first(parked) == place:
                return place
            heapq.heappop(heap)  # of another moment; it was announced anew if it may start
        return None

    def pop(self, queue: str) -> TaskRow:
        """Take out the one that `first` has just named."""
        place, key = heapq.heappop(self._open[queue])
        self._parked[key][queue].pop(place)
        self._touch(key, queue)
        return self._tasks[place[2]]

    def open(self, queue: str) -> int:
        """Return of how many keys, about, a parked task of a queue may start."""
        return len(self._open.get(queue, ()))

    def take_out(self, row: TaskRow) -> None:
        """Take a task out that is about to stand elsewhere."""
        parked = self._parked.get(row.key or "", {}).get(row.queue)
        if parked is not None:
            parked.discard((row.rank, row.scheduled_at, row.id))

    def _know_limit(self, row: TaskRow) -> None:
        if row.options.key_limit > 1:
            assert row.key is not None
            self._limits[row.key] = max(row.options.key_limit, self._limits.get(row.key, 1))

    def _announce(self, key: str, queue: str | None = None) -> None:
        """Let the next of a key stand for its queue, if it may start."""
        queues = self._parked.get(key)
        if queues is None:
            return
        is_taken = len(self._running.get(key, ())) >= self._limits.get(key, 1)  # whoever is the first
        for name in list(queues) if queue is None else [queue]:
            self._touch(key, name)
            if not is_taken and (place := self._first(queues[name])) is not None:
                heapq.heappush(self._open.setdefault(name, []), (place, key))
                self._serve(name)

    def _first(self, parked: _Parked) -> Place | None:
        """Return where the first stands that may start: of those that keep the key, or of the others."""
        while parked.firm and self._row(parked.firm[0]) is None:
            heapq.heappop(parked.firm)
        while (other := parked.line.first()) is not None and self._row(other) is None:
            parked.line.pop()
        if not parked.firm:  # as mostly
            return other if other is not None and self.admits(self._tasks[other[2]]) else None
        heads = [parked.firm[0]] if other is None else [parked.firm[0], other]
        return min((place for place in heads if self.admits(self._tasks[place[2]])), default=None)

    def _row(self, place: Place) -> TaskRow | None:
        """Return the task that stands there, None if it was cancelled, ended, or moved meanwhile."""
        rank, at, task_id = place
        row = self._tasks.get(task_id)
        return row if row is not None and row.status in WAITING and (row.rank, row.scheduled_at) == (rank, at) else None

    # ---- the part that memory holds ---------------------------------------------------------------------------------

    def _touch(self, key: str, queue: str) -> None:
        self._touched[key, queue] = None

    def refilled(self, queue: str, key: str, rows: Sequence[TaskRow], more: bool, mark: Place | None) -> list[TaskRow]:
        """Take the rows of a key after its mark; return those that memory holds from now on. mark: of the queue's line.

        What stands after that comes with the line, in its time.
        """
        queues = self._parked.setdefault(key, {})
        parked = queues.get(queue)
        if parked is None:
            parked = queues[queue] = _Parked(self._cap)
        before = [row for row in rows if mark is None or (row.rank, row.scheduled_at, row.id) <= mark]
        new = [row for row in before if row.id not in self._tasks]
        self._tasks.update((row.id, row) for row in new)
        more = more and len(before) == len(rows)
        last = before[-1] if before and more else None
        parked.line.refilled(
            [(row.rank, row.scheduled_at, row.id) for row in new], None if last is None else (last.rank, last.scheduled_at, last.id)
        )
        for row in new:
            self._know_limit(row)
            self.note(row)
        self._announce(key, queue)
        return new

    def shed(self) -> None:
        """Let go of what lies beyond the caps, and forget keys that nobody waits for: at the end of a turn, as lines do."""
        for place in self._beyond:
            self._let_go(place)
        self._beyond.clear()
        for key, queue in self._touched:
            parked = self._parked.get(key, {}).get(queue)
            if parked is None:
                continue
            for place in parked.line.shed():
                self._let_go(place)
            self._first(parked)  # which passes over what is gone
            if not parked.firm and not parked.line and parked.line.mark is None:
                del self._parked[key][queue]
                if not self._parked[key]:
                    del self._parked[key]
                    self._limits.pop(key, None)
        for queue in [queue for queue, heap in self._open.items() if not heap]:
            del self._open[queue]

    def _let_go(self, place: Place) -> None:
        if self._row(place) is not None:
            del self._tasks[place[2]]

    def refills(self) -> Iterator[Refill]:
        """Yield what to ask the store for; a turn ends with it."""
        for key, queue in self._touched:
            parked = self._parked.get(key, {}).get(queue)
            if parked is not None and parked.line.wants_refill():
                parked.line.refilling = True
                yield Refill(queue, parked.line.mark, max(1, self._cap // 2), key)
        self._touched.clear()

    # ---- what must hold ---------------------------------------------------------------------------------------------

    def line(self, key: str, queue: str) -> Line | None:
        """Return the line of those that wait for a key in a queue; for checks."""
        parked = self._parked.get(key, {}).get(queue)
        return None if parked is None else parked.line

    def is_parked(self, row: TaskRow) -> bool:
        """Return whether a task waits beside its line."""
        parked = self._parked.get(row.key or "", {}).get(row.queue)
        place = (row.rank, row.scheduled_at, row.id)
        return parked is not None and (place in parked.firm or place in parked.line)

    def check(self, running: dict[str, set[int]]) -> None:
        """Assert that keys are held by what runs (by key), and by those that memory holds and keep it."""
        assert self._running == running, f"keys are held by {self._running}, {running} run"
        for row in self._tasks.values():
            held = row.key is not None and row.id in self._firm.get(row.key, ())
            assert row.key is None or held == is_firm(row), f"task {row.id} ({row.status}) keeps its key: {held}"


def _discard(table: dict[str, set[int]], key: str, task_id: int) -> None:
    ids = table.get(key)
    if ids is not None:
        ids.discard(task_id)
        if not ids:
            del table[key]
