"""Who runs next, and where: tasks are given from their lines to mailboxes, at the end of each turn.

First one for each worker that has none, so that no work waits beside an idle one; then what each may hold ahead. What a worker was
given ahead is taken back when it stands behind something long.
"""

from __future__ import annotations

from collections.abc import Callable

from taskpool.clock import Instant
from taskpool.core.admission import Room
from taskpool.core.commands import TakeBack
from taskpool.core.events import TaskRow
from taskpool.core.lines import Lines
from taskpool.core.mailbox import Durations, Mailbox
from taskpool.core.routing import Routes

Start = Callable[[Mailbox, TaskRow, int | None, Instant], None]  # worker, task, expected ns, now


class Dispatcher:
    """Gives out work. stuck_at: when (monotonic ns) a worker is to be looked at because its task takes long."""

    def __init__(
        self,
        lines: Lines,
        routes: Routes,
        room: Room,
        workers: dict[int, Mailbox],
        depth_max: int,
        *,
        start: Start,
        ends: Callable[[TaskRow, Instant], bool],
    ) -> None:
        """depth_max: tasks of one mailbox; start: gives a task to a worker; ends: whether a task whose time is over was ended."""
        self._lines = lines
        self._routes = routes
        self._room = room
        self._workers = workers
        self._depth_max = depth_max
        self._start = start
        self._ends = ends
        self.durations = Durations()
        self.stuck_at: int | None = None
        self._no_room: list[TaskRow] = []  # with keys, passed over in this turn because the machine has no room for them

    def measure(self, now: Instant) -> None:
        """See what may start in this turn: by queue, and of what the machine has."""
        self._lines.measure_room(self._workers.values(), now)
        self._room.measure(self._workers.values(), self._lines.may_start)

    def obstacle(self, row: TaskRow, now: Instant) -> str:
        """Return in words why a task may not start now, or ""."""
        self.measure(now)
        return self._lines.obstacle(row, now) or self._room.obstacle(row)

    def take_out(self, row: TaskRow) -> None:
        """A task is about to stand elsewhere, or to start for somebody who asked for it."""
        self._lines.take_out(row)
        self._routes.take_out(row)
        self._room.let_go(row)

    def fill(self, now: Instant) -> None:
        """Give workers what they may have now."""
        self._no_room.clear()
        self.measure(now)
        if self._room.held is not None:
            self._lines.favour(self._room.held.queue)
        if not self._lines.startable(1) and not self._routes:
            return
        boxes = [box for box in self._workers.values() if box.takes_work()]
        # First one for each idle worker, so that no work waits beside one; then what each may hold ahead.
        for box in boxes:
            if not box.sent:
                row = self._next_admitted(now, box)
                if row is None and self._routes:
                    continue  # what stands aside may be for another
                if row is None:
                    break
                self._start(box, row, self.durations.expected(row.name), now)
        if self._depth_max == 1 or self._room.is_closed:
            return
        quota = min(self._depth_max, -(-self._lines.startable(self._depth_max * len(boxes)) // max(1, len(boxes))) + 1)
        for box in boxes:
            if len(box.sent) * 2 > self._depth_max:
                continue
            while True:
                row = self._next(now)
                if row is None:
                    return
                expected = self.durations.expected(row.name)
                if not box.has_room(row, expected, quota):
                    self._lines.put_back(row)
                    break
                self._start(box, row, expected, now)

    def _next(self, now: Instant, box: Mailbox | None = None) -> TaskRow | None:
        """Take the next task that may still start, on that worker (None: on any)."""
        while (row := self._lines.next()) is not None:
            if self._routes.diverts(row, box):
                self._lines.favour(row.queue)  # it had its turn for nothing
                if row.key is not None:
                    self._lines.keys.note(row, due=True)  # which stays free for those behind it, unless it failed before
                continue
            if not ((row.options.deadline_at or row.options.expires_at) and self._ends(row, now)):
                return row
        return None

    def _next_admitted(self, now: Instant, box: Mailbox) -> TaskRow | None:
        """Take the next task that the machine has room for; a queue whose first has to wait for room is passed over."""
        row = self._next_aside(box)
        if row is not None:
            return row
        while True:
            row = self._next(now, box)
            if self._waits_for_room_in_vain():
                # It waits for its key now, not for room: whoever waited behind it may go.
                self._lines.measure_room(self._workers.values(), now)
                self._no_room.clear()
                if row is None:
                    continue
            if row is None:
                return self._next_aside(box)  # what seemed to stand before it may have been nothing any more
            if self._room.admits(row):
                return row
            self._lines.put_back(row)
            self._lines.pass_over(row.queue)
            if row.key is not None:
                self._no_room.append(row)

    def _next_aside(self, box: Mailbox) -> TaskRow | None:
        """Take the next task that stands aside for that worker, if the machine has room for it."""
        row = self._routes.first_for(box, self._lines) if self._routes else None
        if row is None or not self._room.admits(row):
            return None
        self._routes.take_out(row)
        return row

    def _waits_for_room_in_vain(self) -> bool:
        """Return whether one that was found no room for waits for its key by now, which another start has taken."""
        held, keys = self._room.held, self._lines.keys
        if held is not None and held.key is not None and not keys.lets_wait(held):
            self._room.let_go(held)
            return True
        return not all(map(keys.lets_wait, self._no_room))

    def take_back_stuck(self, now: Instant) -> list[TakeBack]:
        """Return what takes back the tasks that stand behind one that takes longer than was thought."""
        found = []
        boxes = self._workers.values()
        self.stuck_at = None
        idle = any(not box.sent and box.takes_work() for box in boxes)
        for box in boxes:
            patience = box.patience(self.durations, idle)
            if patience is None:
                continue
            at = box.silent_since + patience
            if at <= now.mono:
                box.silent_since = now.mono
                found.append(TakeBack(box.worker, next(iter(box.sent)), patience))
                at = now.mono + patience  # the engine may have seen it get on
            if self.stuck_at is None or at < self.stuck_at:
                self.stuck_at = at
        return found
