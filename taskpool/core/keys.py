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
    """Those of one key and queue that found it taken. firm: of these, those that keep it, which stand in nobody's way.

    announced: the places that stand in the heap of those that may start; there each is once, however long its queue is paused.
    """

    __slots__ = ("announced", "firm", "line")

    def __init__(self, cap: int) -> None:
        self.line = Line(cap=cap)
        self.firm: list[Place] = []
        self.announced: set[Place] = set()

    def is_over(self) -> bool:
        """Return whether nobody waits here, nor beyond what memory holds."""
        return not self.firm and self.line.mark is None and not self.line

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


class _Key:
    """A key that somebody has, or waits for."""

    __slots__ = ("firm", "limit", "parked", "running")

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.firm: set[int] = set()  # of those that wait, who keep it
        self.parked: dict[str, _Parked] = {}  # by queue
        self.limit = 1  # the highest key_limit among the parked

    def admits(self, row: TaskRow) -> bool:
        """Return whether it lets a task start now, whoever waits before it."""
        count = len(self.running)
        if self.firm and row.id not in self.firm:
            count += len(self.firm)
        return count < row.options.key_limit


class Keys:
    """Who holds which key, and who waits for one. Costs nothing for tasks without a key."""

    def __init__(self, tasks: dict[int, TaskRow], cap: int, serve: Callable[[str], None] = lambda queue: None) -> None:
        """tasks: the scheduler's; cap: waiting rows of one key held in memory; serve: told of a queue that has one to start."""
        self._serve = serve
        self._tasks = tasks
        self._cap = min(cap, PARKED_MAX)
        self._keys: dict[str, _Key] = {}  # those in use
        # queue → a heap of the parked that may start; old entries are passed over
        self._open: dict[str, list[tuple[Place, str]]] = {}
        self._grown: dict[tuple[str, str], Line] = {}  # by key and queue: lines that may have come over their caps in this turn …
        self._shrunk: dict[tuple[str, str], Line] = {}  # … and those of which the store has more, and memory less than before
        self._beyond: list[Place] = []  # of this turn: after the part of their key that memory holds

    # ---- who holds a key --------------------------------------------------------------------------------------------

    def admits(self, row: TaskRow) -> bool:
        """Return whether a task's key lets it start now, whoever waits before it."""
        assert row.key is not None
        known = self._keys.get(row.key)
        return known is None or known.admits(row)

    def holders(self, row: TaskRow) -> list[int]:
        """Return the tasks that have a task's key, by id."""
        assert row.key is not None
        known = self._keys.get(row.key)
        return [] if known is None else sorted((known.running | known.firm) - {row.id})

    def lets_wait(self, row: TaskRow) -> bool:
        """Return whether a task still stands in its line, and may start as far as its key goes."""
        return self.admits(row) and not self.is_parked(row)

    def started(self, row: TaskRow) -> None:
        """A task with a key was given to a worker."""
        assert row.key is not None
        known = self._keys.get(row.key)
        if known is None:
            known = self._keys[row.key] = _Key()
        known.running.add(row.id)
        known.firm.discard(row.id)
        if known.limit > 1:  # else none of its parked may start
            self._announce(row.key, known)

    def ended(self, row: TaskRow) -> None:
        """Its attempt is over, in whatever way: the key is free in the transaction that stores it, unless the task keeps it.

        What it does now is to be told by `note`.
        """
        assert row.key is not None
        known = self._keys.get(row.key)
        if known is not None:
            known.running.discard(row.id)

    def note(self, row: TaskRow, *, due: bool = False) -> None:
        """A task with a key waits in another way than before, or no longer; due: as for `is_firm`."""
        key = row.key
        assert key is not None
        known = self._keys.get(key)
        if is_firm(row, due=due):
            if known is None:
                known = self._keys[key] = _Key()
            known.firm.add(row.id)
            parked = known.parked.get(row.queue)
            place = (row.rank, row.scheduled_at, row.id)
            if parked is not None and parked.discard(place):
                heapq.heappush(parked.firm, place)
        elif known is None:
            return
        else:
            known.firm.discard(row.id)
        self._announce(key, known)

    # ---- who waits for one ------------------------------------------------------------------------------------------

    def passes(self, row: TaskRow) -> bool:
        """Return whether a task that was taken from its line may start; if not, `park` it."""
        assert row.key is not None
        known = self._keys.get(row.key)
        if known is None:
            return True
        # Where others of its key and queue are parked, they came before it, or it is to stand among them.
        return row.queue not in known.parked and known.admits(row)

    def park(self, row: TaskRow, place: Place) -> None:
        """Let a task wait beside its line until its key is free."""
        assert row.key is not None
        known = self._keys.get(row.key)
        if known is None:
            known = self._keys[row.key] = _Key()
        parked = known.parked.get(row.queue) or self._parked(known, row.queue)
        if row.id in known.firm:
            heapq.heappush(parked.firm, place)
        elif not parked.line.offer(place):
            self._beyond.append(place)
        else:
            self._grown[row.key, row.queue] = parked.line
        if row.options.key_limit > known.limit:
            known.limit = row.options.key_limit
        if len(known.running) < known.limit:
            self._open_first(row.key, known, row.queue, parked)

    def first(self, queue: str) -> Place | None:
        """Return where the first of a queue's parked tasks stands that may start now."""
        heap = self._open.get(queue)
        while heap:
            place, key = heap[0]
            known = self._keys.get(key)
            if known is not None and (parked := known.parked.get(queue)) is not None:
                if self._first(known, parked) == place:
                    return place
                parked.announced.discard(place)
                self._settle(key, known, queue, parked)
            heapq.heappop(heap)  # of another moment; it was announced anew if it may start
        return None

    def pop(self, queue: str) -> TaskRow:
        """Take out the one that `first` has just named."""
        place, key = heapq.heappop(self._open[queue])
        known = self._keys[key]
        parked = known.parked[queue]
        parked.announced.discard(place)
        parked.pop(place)
        self._settle(key, known, queue, parked)
        return self._tasks[place[2]]

    def open(self, queue: str) -> int:
        """Return of how many keys, about, a parked task of a queue may start."""
        return len(self._open.get(queue, ()))

    def take_out(self, row: TaskRow) -> None:
        """Take a task out that is about to stand elsewhere."""
        known = self._keys.get(row.key or "")
        parked = None if known is None else known.parked.get(row.queue)
        if known is not None and parked is not None:
            assert row.key is not None
            parked.discard((row.rank, row.scheduled_at, row.id))
            self._settle(row.key, known, row.queue, parked)

    def _parked(self, known: _Key, queue: str) -> _Parked:
        parked = known.parked.get(queue)
        if parked is None:
            parked = known.parked[queue] = _Parked(self._cap)
        return parked

    def _announce(self, key: str, known: _Key) -> None:
        """Let the next of a key stand for its queue, if it may start."""
        if known.parked and len(known.running) < known.limit:  # else it is taken, whoever is the first
            for queue, parked in list(known.parked.items()):
                self._open_first(key, known, queue, parked)
        self._forget(key, known)

    def _open_first(self, key: str, known: _Key, queue: str, parked: _Parked) -> None:
        place = self._first(known, parked)
        if place is not None:
            if place not in parked.announced:
                parked.announced.add(place)
                heapq.heappush(self._open.setdefault(queue, []), (place, key))
            self._serve(queue)
        else:
            self._settle(key, known, queue, parked)

    def _first(self, known: _Key, parked: _Parked) -> Place | None:
        """Return where the first stands that may start: of those that keep the key, or of the others."""
        line, firm = parked.line, parked.firm
        row = None
        while (other := line.first()) is not None and (row := self._row(other)) is None:
            line.pop()
        if not firm:  # as mostly
            return other if row is not None and known.admits(row) else None
        while firm and self._row(firm[0]) is None:
            heapq.heappop(firm)
        heads = [place for place in (*firm[:1], other) if place is not None]
        return min((place for place in heads if known.admits(self._tasks[place[2]])), default=None)

    def _row(self, place: Place) -> TaskRow | None:
        """Return the task that stands there, None if it was cancelled, ended, or moved meanwhile."""
        rank, at, task_id = place
        row = self._tasks.get(task_id)
        return row if row is not None and row.status in WAITING and row.rank == rank and row.scheduled_at == at else None

    def _settle(self, key: str, known: _Key, queue: str, parked: _Parked) -> None:
        """Some of the parked have left: ask for more, or forget them when it was the last."""
        if parked.line.mark is not None:
            self._shrunk[key, queue] = parked.line
        elif parked.is_over():
            del known.parked[queue]
            if not known.parked:
                known.limit = 1
                self._forget(key, known)

    def _forget(self, key: str, known: _Key) -> None:
        """Forget a key that nobody has or waits for."""
        if not (known.running or known.parked or known.firm):
            self._keys.pop(key, None)

    # ---- the part that memory holds ---------------------------------------------------------------------------------

    def refilled(self, queue: str, key: str, rows: Sequence[TaskRow], more: bool, mark: Place | None) -> list[TaskRow]:
        """Take the rows of a key after its mark; return those that memory holds from now on. mark: of the queue's line.

        What stands after that comes with the line, in its time.
        """
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = _Key()
        parked = self._parked(known, queue)
        before = [row for row in rows if mark is None or (row.rank, row.scheduled_at, row.id) <= mark]
        new = [row for row in before if row.id not in self._tasks]
        self._tasks.update((row.id, row) for row in new)
        more = more and len(before) == len(rows)
        last = before[-1] if before and more else None
        parked.line.refilled(
            [(row.rank, row.scheduled_at, row.id) for row in new], None if last is None else (last.rank, last.scheduled_at, last.id)
        )
        for row in new:
            known.limit = max(known.limit, row.options.key_limit)
            self.note(row)
        self._settle(key, known, queue, parked)
        self._announce(key, known)
        return new

    def shed(self) -> None:
        """Let go of what lies beyond the caps: at the end of a turn, as lines do."""
        for place in self._beyond:
            self._let_go(place)
        self._beyond.clear()
        for (key, queue), line in self._grown.items():
            for place in line.shed():
                self._let_go(place)
            if line.mark is not None:
                self._shrunk[key, queue] = line
        self._grown.clear()
        for queue in [queue for queue, heap in self._open.items() if not heap]:
            del self._open[queue]

    def _let_go(self, place: Place) -> None:
        if self._row(place) is not None:
            del self._tasks[place[2]]

    def refills(self) -> Iterator[Refill]:
        """Yield what to ask the store for; a turn ends with it."""
        for (key, queue), line in self._shrunk.items():
            if line.wants_refill():
                line.refilling = True
                yield Refill(queue, line.mark, max(1, self._cap // 2), key)
        self._shrunk.clear()

    # ---- what must hold ---------------------------------------------------------------------------------------------

    def line(self, key: str, queue: str) -> Line | None:
        """Return the line of those that wait for a key in a queue; for checks."""
        known = self._keys.get(key)
        parked = None if known is None else known.parked.get(queue)
        return None if parked is None else parked.line

    def is_parked(self, row: TaskRow) -> bool:
        """Return whether a task waits beside its line."""
        known = self._keys.get(row.key or "")
        parked = None if known is None else known.parked.get(row.queue)
        place = (row.rank, row.scheduled_at, row.id)
        return parked is not None and (place in parked.firm or place in parked.line)

    def check(self, running: dict[str, set[int]]) -> None:
        """Assert that keys are held by what runs (by key), by those that memory holds and keep it, and that no other is known."""
        held = {key: known.running for key, known in self._keys.items() if known.running}
        assert held == running, f"keys are held by {held}, {running} run"
        for key, known in self._keys.items():
            assert known.running or known.firm or known.parked, f"key {key} is remembered for nobody"
            assert not any(parked.is_over() for parked in known.parked.values()), f"nobody is parked for key {key}"
            for queue, parked in known.parked.items():
                told = {place for place, of in self._open.get(queue, ()) if of == key}
                assert parked.announced <= told, f"of key {key} {parked.announced - told} are thought to be announced"
        for row in self._tasks.values():
            known_as = self._keys.get(row.key or "")
            keeps = known_as is not None and row.id in known_as.firm
            assert row.key is None or keeps == is_firm(row), f"task {row.id} ({row.status}) keeps its key: {keeps}"
