"""What memory holds of tasks: all that run, and those that wait before their line's mark. Pure."""

from __future__ import annotations

from taskpool.core import graph
from taskpool.core.cron import Cron
from taskpool.core.events import TaskRow
from taskpool.core.lifecycle import CANCELLED
from taskpool.core.lines import Lines
from taskpool.core.routing import Routes


class Table:
    """The rows by id, in their lines and routes. gone: left memory in this turn; what the store says of them is about to change.

    finished: how many tasks have ended.
    """

    def __init__(self, line_max: int, cron: Cron) -> None:
        """line_max: waiting rows of a queue held in memory; cron: hears of the ends of its tasks."""
        self.rows: dict[int, TaskRow] = {}
        self.gone: dict[int, TaskRow] = {}
        self.lines = Lines(self.rows, line_max)
        self.routes = Routes(self.rows)
        self.finished = 0
        self._cron = cron

    def find(self, task_id: int) -> TaskRow | None:
        """Return a task's row if memory holds it, or did in this turn."""
        return self.rows.get(task_id) or self.gone.get(task_id)

    def now(self, row: TaskRow) -> TaskRow:
        """Return a task as it is, whose row the shell has read."""
        return self.rows.get(row.id) or self.gone.get(row.id) or row

    def wait(self, row: TaskRow) -> None:
        """Put a waiting task into its line, if it stands before the line's mark, and into the timers.

        One that waits for its parents, with no limit to that, lies in the store alone.
        """
        if row.key is not None:
            self.lines.keys.note(row)
        self.place(row)

    def place(self, row: TaskRow) -> None:
        """Do as `wait`, for a new task: nobody waits for its key behind it yet."""
        if row.scheduled_at == graph.HELD_AT or not self.lines.put(row):
            self.forget(row)

    def forget(self, row: TaskRow) -> None:
        """Leave a task to the store."""
        self.rows.pop(row.id, None)
        if self.routes:
            self.routes.take_out(row)
        self.gone[row.id] = row

    def ended(self, row: TaskRow) -> None:
        """Count the end of a task, and let go what it had."""
        self.finished += 1
        if row.key is not None:
            self.lines.keys.note(row)
        if row.options.recurrence:
            self._cron.ended(row)

    def disown(self, row: TaskRow) -> None:
        """Free what a task holds that is not stored as we have it, and does not run."""
        row.status = CANCELLED
        if row.key is not None:
            self.lines.keys.ended(row)
            self.lines.keys.note(row)
