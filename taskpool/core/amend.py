"""What may be changed of a task that waits: its priority, when it is due, its options. Pure decisions."""

from __future__ import annotations

from taskpool.clock import Instant
from taskpool.core import retry, settle
from taskpool.core.commands import Move
from taskpool.core.events import TaskRow, UpdateAsked
from taskpool.core.graph import HELD_AT
from taskpool.core.lifecycle import PENDING, QUEUED, RETRYING, WAITING
from taskpool.errors import IllegalTransition, InvalidTask, NotFound, StaleVersion, TaskpoolError
from taskpool.model import Options, Queue, encode

# Options that are what a task is, not what is to become of it.
FIXED = ("parent_id", "recurrence", "unique_period_s", "on_conflict")


def refusal(row: TaskRow | None, asked: UpdateAsked, queue: Queue | None) -> TaskpoolError | None:
    """Return why a task cannot be changed as somebody asks, None if it can."""
    if row is None:
        return NotFound(f"there is no task {asked.id}")
    if row.version != asked.version:
        return StaleVersion(f"task {row.id} is at version {row.version}, not {asked.version}", hint="read it again")
    if row.status not in WAITING:
        return IllegalTransition(f"task {row.id} is {row.status}", hint="only what waits can be changed")
    options = asked.options
    if (asked.held or row.scheduled_at == HELD_AT) and (options is not None or asked.scheduled_at is not None):
        words = f"task {row.id} waits for its parents"
        return IllegalTransition(words, hint="until they have ended, only its priority can be changed")
    if options is None:
        return None
    for field in FIXED:
        if getattr(options, field) != getattr(row.options, field):
            return InvalidTask(f"{field} of a task cannot be changed")
    if options.at_most_once and not row.options.at_most_once and settle.has_begun(row):
        return InvalidTask(f"task {row.id} has begun before: it is too late for at_most_once")
    if options.at_most_once:
        policy = options.retry
        if (options.max_attempts or 1) > 1 or (policy is not None and policy.maximum_attempts != 1):
            words = f"task {row.id} runs at most once, it cannot be retried"
            return InvalidTask(words, hint="say at_most_once=False, or no retry and one attempt")
        if options.on_interrupt == "rerun":
            return InvalidTask(
                f"task {row.id} runs at most once, it cannot have on_interrupt='rerun'", hint="say at_most_once=False"
            )
    limit = retry.max_attempts(options, queue)
    if 0 < limit <= row.charged:
        return InvalidTask(f"task {row.id} was tried {row.charged} times, it cannot be given {limit} attempts")
    return None


def amended(row: TaskRow, asked: UpdateAsked, now: Instant) -> Move:
    """Change a waiting task, which stands elsewhere from now on if it is due at another time."""
    at, to = asked.scheduled_at, row.status
    if at is not None and at <= now.wall and row.status in (PENDING, RETRYING):
        to = QUEUED
    elif at is not None and at > now.wall and row.status == QUEUED:
        to = PENDING
    if asked.priority is not None:
        row.rank = -asked.priority
    if asked.options is not None:
        row.options = asked.options
    command = settle.move(row, to, now, scheduled_at=at)
    if asked.priority is not None:
        command.rank = row.rank
    if asked.options is not None:
        command.options = b"" if asked.options == _DEFAULTS else encode(asked.options)
    return command


_DEFAULTS = Options()
