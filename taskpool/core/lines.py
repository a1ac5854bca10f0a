"""What waits: a line for each queue, one for what waits for its time, and the heap of deadlines. Says who is next.

Queues are served in turn, so that none starves; inside one the order is strict. A queue that is paused or has reached its limit
is passed over. Memory holds the beginning of each line (`line`); the rest lies in the store and is asked for by `refills`.

A turn looks only at lines that changed or have something to give: there may be thousands that stand empty.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from taskpool.clock import Instant
from taskpool.core.commands import Refill
from taskpool.core.events import TaskRow
from taskpool.core.keys import Keys
from taskpool.core.lifecycle import PENDING, QUEUED, RETRYING, WAITING
from taskpool.core.line import Key, Line
from taskpool.core.mailbox import Mailbox
from taskpool.core.queues import has_rules
from taskpool.core.rate import Rates
from taskpool.core.waiting import HOLDERS_MAX
from taskpool.model import Queue

DEADLINES_SLACK = 1_000  # entries of the heap of deadlines that nobody waits for any more, beyond as many as tasks are held


class Lines:
    """The lines. tasks: the scheduler's, of which those that wait stand here; queues: those with rules or paused."""

    def __init__(self, tasks: dict[int, TaskRow], line_max: int) -> None:
        """line_max: waiting rows of a queue held in memory."""
        self._tasks = tasks
        self._line_max = line_max
        self.keys = Keys(tasks, line_max, self._serve)
        self.ready: dict[str, Line] = {}
        self.queues: dict[str, Queue] = {}  # costs nothing while there are none
        # queue → how many more of its tasks workers may be given in this turn; those that are bound
        self._room: dict[str, int] = {}
        self.rates = Rates()
        self._token_at: int | None = None  # monotonic ns: somebody waits for a token, and there is one
        self.delayed = Line(cap=line_max, stored=True)
        self._order: OrderedDict[str, Line] = OrderedDict()  # lines that may hold keys, the next to be served first
        self._aside: dict[str, Line] = {}  # of these, those that are closed for the rest of the turn
        self._grown: dict[str, Line] = {}  # lines that may have come over their caps since the last `shed`
        self._beyond: dict[str, Line] = {}  # lines of which the store may hold rows that memory does not
        self._deadlines: list[tuple[int, int]] = []  # (wall µs, task)

    # ---- in ---------------------------------------------------------------------------------------------------------

    def open(self, queue: str) -> None:
        """Know that the store may hold waiting tasks of a queue."""
        self.ready[queue] = self._beyond[queue] = Line(cap=self._cap(queue), stored=True)

    def _grow(self, queue: str) -> Line:
        """Return the line of a queue, of which there may be more from now on."""
        line = self.ready.get(queue)
        if line is None:
            line = self.ready[queue] = Line(cap=self._cap(queue))
        if queue not in self._order:
            self._order[queue] = line
        self._grown[queue] = line
        return line

    def set_rules(self, queue: Queue, full_at: int, now: Instant) -> None:
        """Take a queue's settings; full_at: as in QueueSet."""
        self.rates.set_rules(queue, full_at, now)
        if has_rules(queue):
            self.queues[queue.name] = queue
        else:
            self.queues.pop(queue.name, None)
        line = self.ready.get(queue.name)
        if line is not None:
            line.cap = self._cap(queue.name)
            self._grown[queue.name] = line

    def _cap(self, name: str) -> int:
        """Return how many waiting rows of a queue are held in memory."""
        queue = self.queues.get(name)
        return self._line_max if queue is None or queue.buffer_size is None else min(self._line_max, queue.buffer_size)

    def put(self, row: TaskRow) -> bool:
        """Put a waiting task into its line and the timers; return whether it stands before the line's mark, and so is held."""
        if row.status == QUEUED:
            kept = self._grow(row.queue).offer((row.rank, row.scheduled_at, row.id))
        else:
            kept = self.delayed.offer((0, row.scheduled_at, row.id))
        if kept:
            self._tasks[row.id] = row
            self._watch_deadline(row)
        return kept

    def admit(self, row: TaskRow) -> bool:
        """Put a task into its queue's line before its row says so; return whether it stands before the line's mark."""
        if row.key is not None:
            self.keys.note(row, due=True)
        kept = self._grow(row.queue).offer((row.rank, row.scheduled_at, row.id))
        if kept:
            self._tasks[row.id] = row
            self._watch_deadline(row)
        return kept

    def take_out(self, row: TaskRow) -> None:
        """Take a held task out of its line, before it is put elsewhere: else it might come to stand in one place twice."""
        if row.id in self._tasks:
            line, key = self._place(row)
            line.discard(key)
            self.keys.take_out(row)

    def refilled(self, queue: str | None, rows: Sequence[TaskRow], more: bool, key: str | None = None) -> None:
        """Take the rows after a line's mark (queue None: of those that wait for their time). more: the store has further ones.

        key: these are only the rows of that key, after its mark.
        """
        if key is not None:
            assert queue is not None
            for row in self.keys.refilled(queue, key, rows, more, self.ready[queue].mark):
                self._watch_deadline(row)
            return
        line = self.delayed if queue is None else self._grow(queue)
        keys: list[Key] = []
        end = line.mark
        for row in rows:
            end = (0 if queue is None else row.rank, row.scheduled_at, row.id)
            if row.id in self._tasks:
                continue  # it came back to the line by itself after the shell had read it, or stands aside
            self._tasks[row.id] = row
            keys.append(end)
            self._watch_deadline(row)
            if row.key is not None:
                self.keys.note(row)
        line.refilled(keys, end if more else None)

    def _watch_deadline(self, row: TaskRow) -> None:
        options = row.options
        if options.deadline_at is None and options.expires_at is None:
            return
        if len(self._deadlines) > 2 * len(self._tasks) + DEADLINES_SLACK:
            tasks = self._tasks  # what ended, runs, or stands here twice is not waited for
            self._deadlines = sorted({one for one in self._deadlines if one[1] in tasks and tasks[one[1]].status in WAITING})
        first = min(at for at in (options.deadline_at, options.expires_at) if at is not None)
        heapq.heappush(self._deadlines, (first, row.id))

    # ---- what time brings -------------------------------------------------------------------------------------------

    def next_due(self) -> int | None:
        """Return when (wall µs) the first of those that wait for their time is due."""
        first = self.delayed.first()
        return None if first is None else first[1]

    def next_deadline(self) -> int | None:
        """Return when (wall µs) the first deadline or expiry is."""
        return self._deadlines[0][0] if self._deadlines else None

    def overdue(self, wall: int) -> Iterator[TaskRow]:
        """Yield the waiting tasks whose deadline or expiry has come; one that is held on is met again at its later limit."""
        heap = self._deadlines
        while heap and heap[0][0] <= wall:
            _, task_id = heapq.heappop(heap)
            row = self._tasks.get(task_id)
            if row is None or row.status not in WAITING:
                continue  # running: the killer holds its deadline
            yield row
            later = row.options.deadline_at
            if row.id in self._tasks and later is not None and later > wall:
                heapq.heappush(heap, (later, task_id))  # expiry no longer counted, the deadline does

    def due(self, wall: int) -> Iterator[tuple[TaskRow, bool]]:
        """Move what is due into its queue's line; yield each such task and whether it stands before that line's mark."""
        delayed = self.delayed
        while (first := delayed.first()) is not None and first[1] <= wall:
            delayed.pop()
            _, at, task_id = first
            row = self._tasks.get(task_id)
            if row is None or row.status not in (PENDING, RETRYING) or row.scheduled_at != at:
                continue
            yield row, self._grow(row.queue).offer((row.rank, row.scheduled_at, row.id))

    # ---- out --------------------------------------------------------------------------------------------------------

    def measure_room(self, boxes: Iterable[Mailbox], now: Instant) -> None:
        """See how many more tasks each bound queue may have with workers: by what they hold, so that no counter can be wrong."""
        for name in reversed(self._aside):  # nobody was served before them who may not be once more
            self._order[name] = self._aside[name]
            self._order.move_to_end(name, last=False)
        self._aside.clear()
        if not self.queues and not self._room:
            return
        self._room = room = {}
        for name, queue in self.queues.items():
            if queue.paused:
                room[name] = 0
            elif queue.concurrency is not None:
                room[name] = queue.concurrency
        if room:
            for box in boxes:
                for row in (*box.sent.values(), *box.disowned):
                    if row.queue in room:
                        room[row.queue] -= 1
        for name, bucket in self.rates.buckets.items():
            left = bucket.left(now.mono)
            room[name] = min(left, room.get(name, left))

    def watch_tokens(self, now: Instant, aside: Mapping[str, int]) -> None:
        """At the end of a turn: note when there is a token for what waits in queues that have none. aside: as for `refills`."""
        ends = []
        for name, bucket in self.rates.buckets.items():
            waits = self.ready.get(name) or aside.get(name) or self.keys.first(name) is not None
            if waits and not self.queues[name].paused and not bucket.left(now.mono):
                ends.append(bucket.next_at())
        self._token_at = min(ends, default=None)

    @property
    def is_refilling(self) -> bool:
        """Whether the store was asked for rows that are not here yet."""
        return any(line.refilling for line in (*self.ready.values(), self.delayed))

    def next_token(self) -> int | None:
        """Return when (monotonic ns) a queue that waits for it gets a token."""
        return self._token_at

    def startable(self, enough: int) -> int:
        """Return how many keys stand in lines, up to what their queues may start; no more are counted when there are enough."""
        room, found = self._room, 0
        for name, line in self._order.items():
            count = len(line) + self.keys.open(name)
            found += max(0, min(count, room.get(name, count))) if room else count
            if found >= enough:
                break
        return found

    def next(self) -> TaskRow | None:
        """Take the next task, serving the queues in turn; inside a queue strictly in order."""
        order, room = self._order, self._room
        row, passed = None, []
        for name, line in order.items():
            if room and room.get(name, 1) <= 0:
                self._aside[name] = line  # paused, or at its limit: the others pass
            elif (row := self._first(name, line)) is not None:
                break
            passed.append(name)
        for name in passed:
            del order[name]
        if row is not None and len(order) > 1:
            order.move_to_end(row.queue)
        return row

    def _serve(self, queue: str) -> None:
        """A queue has one again that waited for its key and may start."""
        if queue in self.ready and queue not in self._order:
            self._order[queue] = self.ready[queue]

    def _first(self, queue: str, line: Line) -> TaskRow | None:
        keys = self.keys
        while True:
            opened = keys.first(queue)
            if opened is not None and (line.mark is None or opened <= line.mark):  # else the store has some before it
                first = line.first()
                if first is None or opened < first:
                    return keys.pop(queue)
            key = line.pop()
            if key is None:
                return None
            rank, at, task_id = key
            row = self._tasks.get(task_id)
            if row is None or row.status not in WAITING or row.scheduled_at != at or row.rank != rank:
                continue  # it was cancelled, ended, or moved meanwhile
            if row.key is None or keys.passes(row):
                return row
            keys.park(row, key)

    def put_back(self, row: TaskRow) -> None:
        """Put a task back that finds no room; its queue stays the next to be served, or others would pass it for ever."""
        self._grow(row.queue).put_back((row.rank, row.scheduled_at, row.id))
        self.favour(row.queue)

    def favour(self, queue: str) -> None:
        """Have a queue be the next that is served."""
        if queue in self._order:
            self._order.move_to_end(queue, last=False)

    def pass_over(self, queue: str) -> None:
        """Take nothing more of a queue in this turn."""
        self._room[queue] = 0

    def first_of(self, queue: str) -> Key | None:
        """Return the first place in a queue's line, or beside it, which may be of a task that does not wait any more."""
        line = self.ready.get(queue)
        places = (None if line is None else line.first(), self.keys.first(queue))
        return min((place for place in places if place is not None), default=None)

    def may_start(self, row: TaskRow) -> bool:
        """Return whether a task still waits, in a queue that may start some; after `measure_room`."""
        if self._tasks.get(row.id) is not row or row.status not in WAITING or self._room.get(row.queue, 1) <= 0:
            return False
        return row.key is None or self.keys.admits(row)

    def obstacle(self, row: TaskRow, now: Instant) -> str:
        """Return in words why a task's queue, or its key, starts nothing now, or ""; after `measure_room`."""
        if self._room.get(row.queue, 1) > 0:
            if row.key is not None and not self.keys.admits(row):
                holders = ", ".join(map(str, self.keys.holders(row)[:HOLDERS_MAX]))
                return f"waits for serialization key {row.key!r}, held by task {holders}"
            return ""
        queue = self.queues[row.queue]
        if queue.paused:
            return f"waits because queue {row.queue!r} is paused"
        bucket = self.rates.buckets.get(row.queue)
        if bucket is not None and not bucket.left(now.mono):
            return f"waits for queue {row.queue!r}, which starts {queue.rate:g} tasks a second at most"
        return f"waits for queue {row.queue!r}, of which {queue.concurrency} tasks run, as many as may"

    def started(self, row: TaskRow, now: Instant) -> None:
        """Count a task against its queue's room and rate, and its key."""
        if row.key is not None:
            self.keys.started(row)
        self.rates.take(row.queue, now)
        if row.queue in self._room:
            self._room[row.queue] -= 1

    # ---- the part that memory holds ---------------------------------------------------------------------------------

    def shed(self) -> list[tuple[str, Key]]:
        """Let go of what lies beyond the caps: at the end of a turn, when every row is stored as its line has it.

        Return the queues whose lines end sooner now, and where.
        """
        cut = []
        for name, line in (*self._grown.items(), (None, self.delayed)):
            gone = line.shed()
            if gone and name is not None and line.mark is not None:
                self._beyond[name] = line
                cut.append((name, line.mark))
            self._let_go(line, gone)
        self._grown.clear()
        self.keys.shed()
        return cut

    def cut(self, queue: str, mark: Key) -> None:
        """Let go of what stands behind a place of a queue's line: at the end of a turn, as `shed`."""
        line = self._beyond[queue] = self.ready[queue]
        self._let_go(line, line.cut(mark))

    def _let_go(self, line: Line, keys: Iterable[Key]) -> None:
        for key in keys:
            row = self._tasks.get(key[2])
            if row is not None and row.status in WAITING and self._place(row) == (line, key):
                del self._tasks[row.id]

    def refills(self, aside: Mapping[str, int]) -> list[Refill]:
        """Return what to ask the store for. aside: how many rows memory holds beside the lines, by queue; they have a limit too."""
        asked, whole = [], []
        for queue, line in self._beyond.items():
            if line.wants_refill() and aside.get(queue, 0) <= line.cap // 2:
                line.refilling = True
                asked.append(Refill(queue, line.mark, max(1, line.cap // 2)))
            elif line.mark is None:
                whole.append(queue)
        for queue in whole:
            del self._beyond[queue]
        if self.delayed.wants_refill():
            self.delayed.refilling = True
            asked.append(Refill(None, self.delayed.mark, self._line_max // 2))
        asked += self.keys.refills()
        return asked

    def _place(self, row: TaskRow) -> tuple[Line, Key]:
        """Return where a waiting row stands. Lines may hold older keys of it, which say nothing any more."""
        if row.status == QUEUED:
            return self.ready[row.queue], (row.rank, row.scheduled_at, row.id)
        return self.delayed, (0, row.scheduled_at, row.id)

    def check(self, is_aside: Callable[[TaskRow], bool], running: dict[str, set[int]]) -> None:
        """Assert that each waiting task that is held stands in its line, aside, or beside its key. For the simulation.

        running: the tasks that run, by key.
        """
        self.keys.check(running)
        keys = {line: set(line) for line in (*self.ready.values(), self.delayed)}
        for row in self._tasks.values():
            if row.status in WAITING:
                line, key = self._place(row)
                found = key in keys[line] or is_aside(row) or self.keys.is_parked(row)
                assert found, f"task {row.id} ({row.status}) is not in its line"
