"""How an attempt that is over changes its task: rules that hold for every task, whatever became of its attempt."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from taskpool.clock import US, Instant
from taskpool.core import settle
from taskpool.core.commands import End, Extras
from taskpool.core.events import TaskRow, WorkerDied
from taskpool.core.lifecycle import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    MOVES,
    PENDING,
    QUEUED,
    RETRYING,
    RUNNING,
    SUCCEEDED,
    TERMINAL,
    WAITING,
)
from taskpool.core.retry import max_attempts
from taskpool.model import Options, RetryPolicy, TaskError
from taskpool.wire import jobs
from taskpool.wire.jobs import Report

NOW = Instant(1_700_000_000 * US, 1_000_000_000_000)
KILLED_FOR_LIMITS = ("timeout", "deadline", "heartbeat", "memory")
KILLED_BY_US = ("stop", "retire")

instants = st.none() | st.integers(NOW.wall - 100 * US, NOW.wall + 100 * US)
options = st.builds(
    Options,
    max_attempts=st.none() | st.integers(0, 4),
    retry=st.none()
    | st.builds(RetryPolicy, maximum_attempts=st.integers(0, 4), initial_interval=st.sampled_from([0.0, 1.0, 50.0])),
    deadline_at=instants,
    expires_at=instants,
    on_interrupt=st.sampled_from(["rerun", "hold", "fail"]),
    at_most_once=st.booleans(),
    crash_limit=st.integers(1, 3),
    max_interruptions=st.integers(1, 3),
)
errors = st.builds(
    TaskError, kind=st.sampled_from(["handler", "decode", "result", "panic"]), message=st.just("why"), retryable=st.booleans()
)


@st.composite
def rows(draw: st.DrawFn, status: str = RUNNING) -> TaskRow:
    """Return a task with any history that the rules allow."""
    opts = draw(options)
    limit = max_attempts(opts) or 9
    charged = draw(st.integers(0, limit - 1))
    return TaskRow(
        id=7,
        name="m:f",
        queue="q",
        rank=draw(st.integers(-3, 3)),
        status=status,
        version=draw(st.integers(1, 99)),
        attempt=charged + draw(st.integers(1, 9)),
        charged=charged,
        scheduled_at=NOW.wall - 5 * US,
        created_at=NOW.wall - 9 * US,
        options=opts,
        started_at=NOW.wall - US,
        round=draw(st.integers(0, 2)),
        crashes=draw(st.integers(0, min(charged, opts.crash_limit - 1))),
        interruptions=draw(st.integers(0, opts.max_interruptions - 1)),
        snoozes=draw(st.integers(0, 2)),
        cancel_requested_at=draw(st.none() | st.just(NOW.wall - 10)),
        cancel_reason="enough",
        worker=3,
        n=2,
        begun=draw(st.booleans()),
        upstream=draw(st.booleans()),
    )


reports = st.builds(
    Report,
    n=st.just(2),
    task_id=st.just(7),
    attempt=st.just(1),
    outcome=st.sampled_from([jobs.OK, jobs.ERROR, jobs.SNOOZED, jobs.CANCELLED, jobs.SOFT_TIMEOUT]),
    began_ns=st.just(NOW.mono - 1000),
    duration_ns=st.sampled_from([0, 1000]),
    error=errors,
    snooze_s=st.sampled_from([0.0, 1.0, 99.0]),
)
deaths = st.builds(
    WorkerDied,
    worker=st.just(3),
    pid=st.just(33),
    begun=st.just(2),
    began_ns=st.just(NOW.mono - 1000),
    why=st.sampled_from(["", "cancel", *KILLED_FOR_LIMITS, *KILLED_BY_US]),
    error=errors,
)


def the_end(row: TaskRow, how: Report | WorkerDied | str, *, stopping: bool) -> End:
    """End the attempt in one of the ways there are."""
    if isinstance(how, Report):
        how.attempt = row.attempt
        return settle.reported(row, how, 33, "", NOW, stopping=stopping)
    if isinstance(how, WorkerDied):
        return settle.died(row, how, NOW)
    return settle.returned(row, 33, NOW) if how == "returned" else settle.rescued(row, NOW)


ends = reports | deaths | st.sampled_from(["returned", "rescued"])


@given(rows(), ends, st.booleans())
def test_the_command_says_what_the_task_has_become(row: TaskRow, how: Report | WorkerDied | str, stopping: bool) -> None:
    """What is stored and what memory holds are one: status, version, counts, error, time; and the move is legal."""
    before = copy.copy(row)
    end = the_end(row, how, stopping=stopping)
    assert end.to in MOVES[RUNNING]
    assert (row.status, row.version, row.charged) == (end.to, before.version + 1, end.charged)
    assert (end.id, end.version, end.closed.attempt) == (before.id, before.version, before.attempt)
    extras = end.extras or Extras()
    counts = (extras.round, extras.crashes, extras.interruptions, extras.snoozes, extras.cancel_requested_at, extras.begun)
    assert counts == (row.round, row.crashes, row.interruptions, row.snoozes, row.cancel_requested_at, row.begun)
    assert extras.upstream == (end.extras is not None and row.upstream)
    assert row.scheduled_at == (before.scheduled_at if end.scheduled_at is None else end.scheduled_at)
    if end.error is not None:
        assert row.error == end.error
    assert (row.round, row.rank, row.attempt) == (before.round, before.rank, before.attempt)


@given(rows(), ends, st.booleans())
def test_only_successes_failures_timeouts_and_panics_are_charged(
    row: TaskRow, how: Report | WorkerDied | str, stopping: bool
) -> None:
    before = row.charged
    end = the_end(row, how, stopping=stopping)
    assert end.charged - before == (end.closed.outcome in ("succeeded", "failed", "retrying"))
    limit = max_attempts(row.options)
    assert limit == 0 or end.charged <= limit


@given(rows(), ends, st.booleans())
def test_after_a_cancel_a_task_succeeds_or_is_cancelled(row: TaskRow, how: Report | WorkerDied | str, stopping: bool) -> None:
    """A success that arrives after a committed cancel stays a success; anything else is cancelled, and never retried."""
    asked = row.cancel_requested_at is not None
    end = the_end(row, how, stopping=stopping)
    if asked:
        success = isinstance(how, Report) and how.outcome == jobs.OK
        assert end.to == (SUCCEEDED if success else CANCELLED)
        if not success:
            assert end.error is not None
            assert (end.error.kind, end.error.message) == ("upstream" if row.upstream else "cancelled", "enough")
            assert end.extras is not None
            assert end.extras.finish_reason == ("upstream" if row.upstream else "user")


@given(rows(), ends, st.booleans())
def test_an_at_most_once_task_whose_body_began_never_runs_again(
    row: TaskRow, how: Report | WorkerDied | str, stopping: bool
) -> None:
    end = the_end(row, how, stopping=stopping)
    if row.options.at_most_once and end.closed.outcome != "returned":
        assert end.to in TERMINAL


@given(rows(), ends, st.booleans())
def test_a_retry_is_due_in_time_and_within_its_limits(row: TaskRow, how: Report | WorkerDied | str, stopping: bool) -> None:
    end = the_end(row, how, stopping=stopping)
    if end.to == RETRYING:
        assert end.scheduled_at is not None
        assert end.scheduled_at >= NOW.wall
        assert row.options.deadline_at is None or end.scheduled_at < row.options.deadline_at
        limit = max_attempts(row.options)
        assert limit == 0 or row.charged < limit
        assert row.crashes < row.options.crash_limit or row.error is None or row.error.kind != "panic"


@given(rows(), st.sampled_from(KILLED_BY_US), st.booleans())
def test_whom_we_stopped_goes_on_by_its_policy(row: TaskRow, why: str, rescued: bool) -> None:
    """rerun: pending at its old place; hold: interrupted; fail: failed, kind interrupted. Never charged."""
    row.cancel_requested_at = None
    place = row.scheduled_at
    death = WorkerDied(3, 33, 2, NOW.mono - 1000, why, TaskError("panic"))
    end = settle.rescued(row, NOW) if rescued else settle.died(row, death, NOW)
    opts = row.options
    if opts.at_most_once or opts.on_interrupt == "hold":
        assert end.to == INTERRUPTED
    elif opts.on_interrupt == "fail":
        assert end.to == FAILED
        assert end.error is not None
        assert end.error.kind == "interrupted"
    else:
        assert end.to == (INTERRUPTED if row.interruptions >= opts.max_interruptions else PENDING)
        assert row.scheduled_at == place


@given(rows())
def test_what_never_began_goes_back_to_its_place(row: TaskRow) -> None:
    row.cancel_requested_at = None
    before = copy.copy(row)
    end = settle.returned(row, 33, NOW)
    assert (end.to, end.closed.outcome, end.scheduled_at) == (QUEUED, "returned", None)
    assert (row.charged, row.crashes, row.interruptions, row.snoozes, row.scheduled_at) == (
        before.charged,
        before.crashes,
        before.interruptions,
        before.snoozes,
        before.scheduled_at,
    )


@given(rows(), st.sampled_from(sorted(TERMINAL)))
def test_a_new_round_counts_from_zero_and_keeps_the_history(row: TaskRow, status: str) -> None:
    row.status = status
    before = copy.copy(row)
    move = settle.new_round(row, NOW)
    assert (move.status, move.to, row.status, move.clear_error) == (status, PENDING, PENDING, True)
    assert (row.round, row.attempt, row.snoozes) == (before.round + 1, before.attempt, before.snoozes)
    assert (row.charged, row.crashes, row.interruptions, row.cancel_requested_at, row.error) == (0, 0, 0, None, None)
    assert not row.upstream
    assert row.scheduled_at == move.scheduled_at == NOW.wall


@given(rows(), st.sampled_from(sorted(WAITING)))
def test_waiting_consumes_deadline_and_expiry_and_nothing_else(row: TaskRow, status: str) -> None:
    row.status = status
    begun = row.charged or row.snoozes or row.interruptions or row.begun
    deadline, expiry = row.options.deadline_at, row.options.expires_at
    move = settle.overdue(row, NOW)
    if deadline is not None and deadline <= NOW.wall:
        assert move is not None
        assert (move.to, move.error and move.error.kind) == (FAILED, "deadline")
    elif expiry is not None and expiry <= NOW.wall and not begun:
        assert move is not None
        assert (move.to, move.error and move.error.kind) == (CANCELLED, "expired")
        assert move.extras is not None
        assert move.extras.finish_reason == "expired"
    else:
        assert move is None
        assert row.status == status
