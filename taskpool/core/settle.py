"""How an attempt that is over changes its task: pure decisions, one function per way to end.

Each returns an End (or Move) command and brings the TaskRow to the same state. The counting rules: charged counts failures,
timeouts and panics; a success counts too; returned, snoozed, stopped and interrupted attempts do not.
"""

from __future__ import annotations

from taskpool.clock import US, Instant
from taskpool.core import retry
from taskpool.core.commands import Closed, End, Extras, Move
from taskpool.core.events import TaskRow, WorkerDied
from taskpool.core.lifecycle import CANCELLED, FAILED, INTERRUPTED, PENDING, QUEUED, RETRYING, SUCCEEDED, TERMINAL, WAITING
from taskpool.model import TaskError
from taskpool.wire import jobs
from taskpool.wire.jobs import Report


def began_at(began_ns: int, now: Instant) -> int:
    """Return the wall time (µs) of a monotonic reading of this boot."""
    return now.wall - max(0, now.mono - began_ns) // 1000 if began_ns else now.wall


def extras_of(row: TaskRow, finish_reason: str | None = None) -> Extras | None:
    """Return the rarer counts of a task, or None while there are none."""
    counts = (row.round, row.crashes, row.interruptions, row.snoozes)
    if not (any(counts) or row.cancel_requested_at or finish_reason or row.begun):
        return None
    return Extras(*counts, row.cancel_requested_at, row.cancel_reason, finish_reason, row.begun, row.upstream)


def _end(
    row: TaskRow,
    to: str,
    now: Instant,
    closed: Closed,
    *,
    report: Report | None = None,
    error: TaskError | None = None,
    scheduled_at: int | None = None,
    finish_reason: str | None = None,
) -> End:
    end = End(row.id, row.version, to, now.wall, row.charged, closed, report, error, extras_of(row, finish_reason), scheduled_at)
    if row.options.reply_to and to in TERMINAL:
        end.reply_to = row.options.reply_to
    row.status = to
    row.version += 1
    row.worker = 0
    if error is not None:
        row.error = error
    if scheduled_at is not None:
        row.scheduled_at = scheduled_at
    return end


def move(
    row: TaskRow,
    to: str,
    now: Instant,
    *,
    error: TaskError | None = None,
    finish_reason: str | None = None,
    scheduled_at: int | None = None,
) -> Move:
    """Change a task that is not running (or only mark a running one, with `to` its own status)."""
    command = Move(
        row.id,
        row.version,
        row.status,
        to,
        now.wall,
        charged=row.charged,
        extras=extras_of(row, finish_reason),
        error=error,
        scheduled_at=scheduled_at,
        attempt=row.attempt,
        reply_to=row.options.reply_to if to in TERMINAL else "",
    )
    row.status = to
    row.version += 1
    if error is not None:
        row.error = error
    if scheduled_at is not None:
        row.scheduled_at = scheduled_at
    return command


def reported(row: TaskRow, report: Report, pid: int, output: str, now: Instant, *, stopping: bool = False) -> End:
    """A body ended and said how. stopping: the pool had told it to stop, so that its Cancelled is ours, not its own."""
    closed = Closed(
        report.attempt,
        row.worker,
        pid,
        began_at(report.began_ns, now),
        "succeeded",
        report.duration_ns,
        report.cpu_user_us,
        report.cpu_system_us,
        report.peak_rss_kib,
        output=output,
    )
    if report.outcome == jobs.OK:
        row.charged += 1
        return _end(row, SUCCEEDED, now, closed, report=report)
    if report.outcome == jobs.CANCELLED and stopping and row.cancel_requested_at is None:
        if not report.duration_ns:
            return returned(row, pid, now)  # it was told before its body began
        return _interrupted(row, closed, now, counted=False)
    if report.outcome == jobs.CANCELLED or row.cancel_requested_at is not None:
        row.begun = row.begun or report.duration_ns > 0
        return _cancelled(row, closed, report.error, now)
    if report.outcome == jobs.SNOOZED:
        return _snoozed(row, closed, report.snooze_s, now)
    assert report.error is not None
    return failed(row, closed, report.error, now)


def failed(row: TaskRow, closed: Closed, error: TaskError, now: Instant) -> End:
    """An attempt is charged: try again by policy, or give up."""
    row.charged += 1
    closed.error = error
    due = retry.after_failure(row.options, error, row.charged, row.crashes, row.id, now.wall, row.rules)
    if due:
        closed.outcome = "retrying"
        return _end(row, RETRYING, now, closed, error=error, scheduled_at=due)
    closed.outcome = "failed"
    return _end(row, FAILED, now, closed, error=error if due is None else retry.past_deadline(error))


def _cancelled(row: TaskRow, closed: Closed, error: TaskError | None, now: Instant) -> End:
    closed.outcome = "cancelled"
    closed.error = error
    # The reason given with the cancel says more than the traceback of the place where it struck.
    message = row.cancel_reason or (error.message if error is not None else "") or "cancelled"
    if row.upstream:  # as of what waited for its parents
        return _end(row, CANCELLED, now, closed, error=TaskError("upstream", message, False), finish_reason="upstream")
    reason = "user" if row.cancel_requested_at is not None else "handler"
    return _end(row, CANCELLED, now, closed, error=TaskError("cancelled", message, False), finish_reason=reason)


def _snoozed(row: TaskRow, closed: Closed, seconds: float, now: Instant) -> End:
    until = now.wall + round(seconds * US)
    if row.options.at_most_once:
        return failed(row, closed, TaskError("handler", "Snooze is refused in an at_most_once task", False), now)
    deadline = row.options.deadline_at
    if deadline is not None and until >= deadline:
        return failed(row, closed, TaskError("deadline", f"snoozed for {seconds:g} s, past its deadline", False), now)
    row.snoozes += 1
    closed.outcome = "snoozed"
    return _end(row, PENDING, now, closed, scheduled_at=until)


def returned(row: TaskRow, pid: int, now: Instant) -> End:
    """Sent, never begun: back to its place, uncharged; cancelled if that was asked for meanwhile."""
    closed = Closed(row.attempt, row.worker, pid, now.wall, "returned")
    if row.cancel_requested_at is not None:
        return _cancelled(row, closed, None, now)
    return _end(row, QUEUED, now, closed)


def died(row: TaskRow, death: WorkerDied, now: Instant) -> End:
    """The worker died while the body ran."""
    error = death.error
    closed = Closed(
        row.attempt,
        row.worker,
        death.pid,
        began_at(death.began_ns, now),
        "failed",
        max(0, now.mono - death.began_ns) if death.began_ns else 0,
        death.cpu_user_us,
        death.cpu_system_us,
        (error.peak_rss_bytes or 0) // 1024,
        error,
        death.stack,
        death.output,
    )
    if row.cancel_requested_at is not None:
        row.begun = True
        return _cancelled(row, closed, error, now)
    if death.why in ("timeout", "deadline", "heartbeat", "memory"):
        return failed(row, closed, error, now)
    if death.why == "":
        row.crashes += 1
        return failed(row, closed, error, now)
    return _interrupted(row, closed, now, counted=death.why != "stop", words=error.message if death.why == "gone" else "")


def rescued(row: TaskRow, now: Instant) -> End:
    """Its supervisor died while the body ran."""
    began = row.started_at or now.wall
    return _interrupted(row, Closed(row.attempt, row.worker, 0, began, "interrupted"), now, counted=True)


def _interrupted(row: TaskRow, closed: Closed, now: Instant, *, counted: bool, words: str = "") -> End:
    """Stopped by us or by a death above it: never charged. counted: against max_interruptions (an orderly stop is not).

    words: what happened, if it is neither that nor its supervisor's death.
    """
    closed.outcome = "interrupted" if counted else "stopped"
    if counted:
        row.interruptions += 1
    else:
        row.begun = True
    words = words or ("its supervisor died while it ran" if counted else "the pool was stopped while it ran")
    error = TaskError("interrupted", words, False)
    if row.cancel_requested_at is not None:
        return _cancelled(row, closed, error, now)
    policy = "hold" if row.options.at_most_once else row.options.on_interrupt
    if policy == "fail":
        closed.error = error
        return _end(row, FAILED, now, closed, error=error)
    if policy == "hold" or row.interruptions >= row.options.max_interruptions > 0:
        closed.error = error
        return _end(row, INTERRUPTED, now, closed, error=error)
    return _end(row, PENDING, now, closed)


def new_round(row: TaskRow, now: Instant) -> Move:
    """A manual retry: history stays, charging begins anew."""
    row.round += 1
    row.begun = has_begun(row)
    row.charged = row.crashes = row.interruptions = 0
    row.cancel_requested_at, row.cancel_reason, row.upstream, row.error = None, "", False, None
    command = move(row, PENDING, now, scheduled_at=now.wall)
    command.clear_error = True
    return command


def has_begun(row: TaskRow) -> bool:
    """Return whether a body of the task has ever begun."""
    return bool(row.charged or row.snoozes or row.interruptions or row.begun)


def overdue(row: TaskRow, now: Instant) -> Move | None:
    """A waiting task whose deadline or expiry has passed ends here; None if it may go on."""
    assert row.status in WAITING
    options = row.options
    if options.deadline_at is not None and now.wall >= options.deadline_at:
        error = TaskError("deadline", "its deadline passed while it waited", False, cause=row.error)
        return move(row, FAILED, now, error=error)
    if options.expires_at is not None and now.wall >= options.expires_at and not has_begun(row):
        error = TaskError("expired", "it had not started when it expired", False)
        return move(row, CANCELLED, now, error=error, finish_reason="expired")
    return None
