"""Tasks that not every worker may run: those with a target, and those whose handler nobody here knows.

Such a task stands aside when it becomes first in its line, so that it holds up nobody behind it, and is looked at again before
each start on a worker that it might run on. It never passes a task of its queue that stands before it. Pure.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Final

from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import QUEUED, WAITING
from taskpool.core.line import Key
from taskpool.core.lines import Lines
from taskpool.core.mailbox import Mailbox
from taskpool.model import Reason

HANDLER: Final = "handler"
TARGET: Final = "target"

STALE_MAX: Final = 1_000  # entries of what does not wait any more, beyond as many as do

Aside = tuple[str, str, str]  # queue, HANDLER or TARGET, and which


def may_run(box: Mailbox, target: str) -> bool:
    """Return whether a worker is the one that a task is for: by its number, or by one of its labels."""
    return not target or target in box.labels or target == str(box.worker)


class Routes:
    """What stands aside. handlers: the names that are known here (None: nobody can say, so workers find out)."""

    def __init__(self, tasks: dict[int, TaskRow]) -> None:
        """tasks: those that the scheduler holds."""
        self._tasks = tasks
        self.handlers: frozenset[str] | None = None
        self._aside: dict[Aside, list[Key]] = {}
        self._where: dict[int, Aside] = {}
        self.counts: Counter[str] = Counter()  # how many stand aside, by queue

    def __bool__(self) -> bool:
        return bool(self._where)

    def knows(self, row: TaskRow) -> bool:
        """Return whether a task's handler is known, or may be found by its name: what has a colon, a worker imports."""
        return self.handlers is None or ":" in row.name or row.name in self.handlers

    def diverts(self, row: TaskRow, box: Mailbox | None) -> bool:
        """Put a task aside that is next in its line, unless this worker may run it; return whether that was done."""
        target = row.options.target
        if not self.knows(row):
            place = (row.queue, HANDLER, row.name)
        elif target and (box is None or not may_run(box, target)):
            place = (row.queue, TARGET, target)
        else:
            return False
        self.take_out(row)
        self._where[row.id] = place
        self.counts[row.queue] += 1
        keys = self._aside.setdefault(place, [])
        heapq.heappush(keys, (row.rank, row.scheduled_at, row.id))
        if len(keys) > 2 * len(self._where) + STALE_MAX:
            keys[:] = sorted({key for key in keys if key[2] in self._where})
        return True

    def first_for(self, box: Mailbox, lines: Lines) -> TaskRow | None:
        """Return the first task for a worker among those aside that may start now, where none of its queue stands before it."""
        found: tuple[Key, TaskRow] | None = None
        for place in list(self._aside):
            queue, kind, target = place
            if kind != TARGET or not may_run(box, target):
                continue
            row = self._first(place)
            while row is not None and row.key is not None and not lines.keys.admits(row):
                self.take_out(row)  # it waits for its key now, where it holds up nobody
                lines.keys.park(row, (row.rank, row.scheduled_at, row.id))
                row = self._first(place)
            if row is None or not lines.may_start(row):
                continue
            key, ahead = (row.rank, row.scheduled_at, row.id), lines.first_of(queue)
            if (ahead is None or key < ahead) and (found is None or key < found[0]):
                found = key, row
        return None if found is None else found[1]

    def _first(self, place: Aside) -> TaskRow | None:
        """Return the first that still waits there, and forget those that do not."""
        keys = self._aside[place]
        while keys:
            rank, at, task_id = keys[0]
            row = self._tasks.get(task_id)
            if (
                row is not None
                and self._where.get(task_id) == place
                and row.status in WAITING
                and (row.rank, row.scheduled_at) == (rank, at)
            ):
                return row
            heapq.heappop(keys)
            if row is None or row.status not in WAITING:
                self._drop(task_id)
        del self._aside[place]
        return None

    def take_out(self, row: TaskRow) -> None:
        """A task starts, or is put elsewhere."""
        self._drop(row.id)

    def _drop(self, task_id: int) -> None:
        place = self._where.pop(task_id, None)
        if place is not None:
            self.counts[place[0]] -= 1

    def learn(self, names: Iterable[str]) -> list[TaskRow]:
        """Know these handlers from now on, and return the tasks that waited for them, which stand aside no more."""
        self.handlers = frozenset(names)
        freed = []
        for task_id, (_, kind, _) in list(self._where.items()):
            row = self._tasks.get(task_id)
            if kind == HANDLER and (row is None or self.knows(row)):
                if row is None:
                    self._drop(task_id)
                    continue
                self.take_out(row)
                if row.status == QUEUED:
                    freed.append(row)
        return freed

    def shed(self, lines: Lines) -> None:
        """Where more of a queue stand aside than its line may hold, let the last quarter go, and all behind: the store has them.

        That line then waits until half of those aside have started: memory is bounded, at the price of what stands behind so many.
        """
        for queue, count in list(self.counts.items()):
            line = lines.ready.get(queue)
            if line is not None and count > line.cap:
                keys = sorted((row.rank, row.scheduled_at, row.id) for row in self._of(queue))
                mark = keys[line.cap - line.cap // 4 - 1]
                lines.cut(queue, mark)
                self.cut(queue, mark)

    def cut(self, queue: str, mark: Key) -> None:
        """Let go of what stands behind a place of a queue's line, as the line has: the store will tell of it again."""
        for row in self._of(queue):
            if (row.rank, row.scheduled_at, row.id) > mark:
                self.take_out(row)
                del self._tasks[row.id]

    def _of(self, queue: str) -> list[TaskRow]:
        places = [task_id for task_id, place in self._where.items() if place[0] == queue]
        return [row for row in map(self._tasks.get, places) if row is not None and row.status in WAITING]

    def holds(self, row: TaskRow) -> bool:
        """Return whether a task stands aside."""
        return row.id in self._where

    def reason(self, row: TaskRow, boxes: Iterable[Mailbox]) -> Reason | None:
        """Return in words what a task waits for that not every worker may run; None if that is not why it waits."""
        if not self.knows(row):
            known = ", ".join(sorted(self.handlers or ())[:5]) or "none"
            return Reason(HANDLER, f"waits for a pool that knows its handler {row.name!r}; this one knows {known}")
        target = row.options.target
        if not target:
            return None
        able = [str(box.worker) for box in boxes if box.active and not box.leaving and may_run(box, target)]
        if not able:
            return Reason(TARGET, f"waits for a worker that is {target!r} or has that label; there is none")
        return Reason(TARGET, f"waits for a worker {target!r}, which {', '.join(able[:5])} {'is' if len(able) == 1 else 'are'}")
