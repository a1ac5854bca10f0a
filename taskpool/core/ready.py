"""What becomes ready in a turn: by its time, or by the ends of its parents.

Most of it starts in the same turn, and then one write says both. So what becomes ready stands in its line at once, and is written
to be queued only at the end of the turn, if it found no worker. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

from taskpool.clock import Instant
from taskpool.core import graph, settle
from taskpool.core.commands import Command
from taskpool.core.events import CancelAsked, DueStep, StepsDue, TaskRow
from taskpool.core.lifecycle import PENDING, QUEUED, RETRYING, RUNNING, TERMINAL
from taskpool.core.table import Table

Cancel = Callable[[TaskRow, CancelAsked, Instant, list[Command]], None]


class Ready:
    """Of one turn. freed: need not wait for their parents any longer, and may start in it."""

    def __init__(self, table: Table, cancel: Cancel) -> None:
        self._table = table
        self._cancel = cancel
        self._due: list[TaskRow] = []  # stand in lines, stored as pending or retrying
        self.freed: dict[int, DueStep] = {}

    def steps_due(self, event: StepsDue, now: Instant, out: list[Command]) -> None:
        """Let go on what waited for its parents, and cancel what can never start."""
        for step in event.steps:
            row = self._table.now(step.row)
            if row.status in TERMINAL or (row.status != PENDING and not step.culprit):
                continue
            if row.status == RUNNING:
                if step.culprit and row.cancel_requested_at is None:
                    self._cancel(row, CancelAsked(0, 0, [row.id], [], graph.why(step), upstream=True), now, out)
                continue
            if graph.is_free(row, step, now):
                self.freed[row.id] = step
            else:
                self._go_on(row, step, now, out)

    def _go_on(self, row: TaskRow, step: DueStep, now: Instant, out: list[Command]) -> None:
        command = graph.decided(row, step, now)
        out.append(command)
        if command.to in TERMINAL:
            self._table.ended(row)
            self._table.forget(row)
        else:
            self._table.wait(row)

    def queue_freed(self, now: Instant, out: list[Command]) -> None:
        """Write at once of those that may start that they wait for a worker."""
        freed, self.freed = self.freed, {}
        for step in freed.values():
            self._go_on(self._table.now(step.row), step, now, out)

    def admit_due(self, now: Instant, out: list[Command]) -> None:
        """Move what is due into its queue's line. Its row says so only if it does not start in this same turn."""
        for row, is_held in self._table.lines.due(now.wall):
            if row.key is not None:
                self._table.lines.keys.note(row, due=True)
            if is_held:
                self._due.append(row)
            else:
                out.append(settle.move(row, QUEUED, now))
                self._table.forget(row)

    def admit_freed(self, now: Instant, out: list[Command]) -> None:
        """Put them into their queues' lines. As of what is due, their rows say so only if they do not start in this same turn."""
        for task_id, step in list(self.freed.items()):
            row = self._table.now(step.row)
            if row.status != PENDING:
                del self.freed[task_id]  # its limit has come
                continue
            row.scheduled_at = now.wall
            if self._table.lines.admit(row):
                self._due.append(row)
            else:
                self._queue(row, now, out)
                self._table.forget(row)

    def queue_rest(self, now: Instant, out: list[Command]) -> None:
        """Write of what found no worker in this turn that it waits for one."""
        for row in self._due:
            if row.status in (PENDING, RETRYING) and row.id in self._table.rows:
                self._queue(row, now, out)
        self._due.clear()
        self.freed.clear()

    def _queue(self, row: TaskRow, now: Instant, out: list[Command]) -> None:
        """Write that what became ready in this turn waits for a worker."""
        command = settle.move(row, QUEUED, now)
        if row.id in self.freed:
            command.scheduled_at, command.held = row.scheduled_at, False
        out.append(command)
