"""What people ask of tasks that are there: to cancel them, to try them again, to change them. Pure."""

from __future__ import annotations

from taskpool.clock import Instant
from taskpool.core import amend, callers, graph, settle, unique
from taskpool.core.callers import Callers
from taskpool.core.commands import Agree, Command, Respond, Signal, TakeBack
from taskpool.core.cron import Cron
from taskpool.core.dispatch import Dispatcher
from taskpool.core.events import CancelAsked, RetryAsked, TaskRow, UpdateAsked
from taskpool.core.lifecycle import CANCELLED, PENDING, QUEUED, RETRYING, RUNNING, SUCCEEDED, TERMINAL
from taskpool.core.mailbox import Mailbox
from taskpool.core.table import Table
from taskpool.model import TaskError


class Asked:
    """Does it, and answers. claims: who took which unique key in this turn; grace_s: from Cancelled to the kill."""

    def __init__(
        self,
        table: Table,
        workers: dict[int, Mailbox],
        loans: Callers,
        dispatcher: Dispatcher,
        claims: unique.Claims,
        cron: Cron,
        grace_s: float,
    ) -> None:
        self._table = table
        self._workers = workers
        self._loans = loans
        self._dispatcher = dispatcher
        self._claims = claims
        self._cron = cron
        self._grace_s = grace_s

    def cancel_all(self, event: CancelAsked, now: Instant, out: list[Command]) -> None:
        """Cancel tasks, of which the event brings the rows that memory does not hold."""
        rows = {row.id: row for row in event.rows}
        accepted, refused = [], []
        for task_id in event.ids:
            row = self._table.find(task_id) or rows.get(task_id)
            if row is None or row.status in TERMINAL:
                refused.append(task_id)
                continue
            accepted.append(task_id)
            self.cancel(row, event, now, out)
        if event.client:
            out.append(Respond(event.client, event.seq, accepted, refused))

    def cancel(self, row: TaskRow, event: CancelAsked, now: Instant, out: list[Command]) -> None:
        """Cancel a task that has not ended: at once if it waits, else by asking its body to end."""
        first = row.cancel_requested_at is None
        if first:
            row.cancel_requested_at, row.cancel_reason, row.upstream = now.wall, event.reason, event.upstream
        if row.status != RUNNING:
            error = TaskError("cancelled", event.reason or "cancelled before it started", False)
            out.append(settle.move(row, CANCELLED, now, error=error, finish_reason="user"))
            self._table.ended(row)
            self._table.forget(row)
            return
        if first:
            out.append(settle.move(row, RUNNING, now))
        grace = self._grace_s if event.grace_s is None else event.grace_s
        box = self._workers.get(row.worker)
        if box is None or row.n not in box.sent:
            return  # its worker's death is on the way
        if box.caller is not None:
            out += self._loans.ask(box.worker, callers.CANCEL, 0.0 if event.force else max(0.0, grace), now)
            return
        if next(iter(box.sent)) != row.n:
            out.append(TakeBack(box.worker, row.n - 1))
        out.append(Signal(box.worker, row.n, 0.0 if event.force else max(0.0, grace)))  # it may have begun meanwhile

    def retry(self, event: RetryAsked, now: Instant, out: list[Command]) -> None:
        """Give ended tasks a new round, and let those that wait for their next attempt have it now."""
        accepted, refused = [], list(event.absent)
        for row in event.rows:
            row = self._table.now(row)
            if row.status in TERMINAL and (row.status != SUCCEEDED or event.force) and self._may_have_key(row, event, now):
                command = settle.new_round(row, now)
                if row.id in event.steps:
                    graph.hold(row, command)
                out.append(command)
                self._claims.take_again(row)
                self._table.wait(row)
                if row.options.recurrence:
                    self._cron.revived(row)
            elif row.status == RETRYING:  # "retry now"
                out.append(settle.move(row, QUEUED, now, scheduled_at=now.wall))
                self._table.wait(row)
            elif row.status != PENDING:  # that waits for its time, or for the turn that begins its new round
                refused.append(row.id)
                continue
            accepted.append(row.id)
        if event.client:
            out.append(Respond(event.client, event.seq, accepted, refused))

    def _may_have_key(self, row: TaskRow, event: RetryAsked, now: Instant) -> bool:
        """Return whether an ended task can live again beside who has its unique key now."""
        if row.unique is None:
            return True
        holder, _ = self._claims.holder(row.unique, event.holders, now.wall)
        return holder is None or unique.is_free(row, self._table.now(holder))

    def update(self, event: UpdateAsked, now: Instant, out: list[Command]) -> None:
        """Change a task that waits."""
        row = self._table.find(event.id) or event.row
        error = amend.refusal(row, event, None if row is None else self._table.lines.queues.get(row.queue))
        if error is not None:
            out.append(Agree(event.client, event.seq, [], error.code, error.message, error.hint))
            return
        assert row is not None
        self._dispatcher.take_out(row)
        out.append(amend.amended(row, event, now))
        self._table.wait(row)
        out.append(Agree(event.client, event.seq, [row.id]))
