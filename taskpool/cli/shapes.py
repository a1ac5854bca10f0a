"""The documents of `--json`: Structs whose `schema` names shape and version. Times RFC 3339 in UTC, durations in seconds.

A field is never renamed or given another meaning under the same version; new ones may come.
"""

from __future__ import annotations

from typing import Any

import msgspec

from taskpool.cli.labels import label
from taskpool.cli.quantity import US, rfc3339
from taskpool.model import Attempt, FlowState, Progress, QueueState, Schedule, Stats, Task, TaskError


class ErrorDoc(msgspec.Struct):
    """Why an attempt or a task failed."""

    kind: str
    message: str
    retryable: bool
    type_name: str | None
    traceback: str | None
    exit_code: int | None
    signal: int | None
    peak_rss_bytes: int | None
    output_tail: str | None
    cause: ErrorDoc | None


class ProgressDoc(msgspec.Struct):
    """How far a task says it is; fraction 0..1, null while its total is unknown."""

    done: float
    total: float | None
    fraction: float | None
    text: str


class AttemptDoc(msgspec.Struct):
    """One attempt."""

    attempt: int
    outcome: str
    worker_id: int
    pid: int
    started_at: str | None
    finished_at: str | None
    duration_s: float
    cpu_user_s: float
    cpu_system_s: float
    peak_rss_bytes: int | None
    exit_code: int | None
    signal: int | None
    error: ErrorDoc | None
    stack: str | None
    output: str


class TaskDoc(msgspec.Struct):
    """One task; in a list of tasks `schema` is that of the list, and not said again for each."""

    schema: str | msgspec.UnsetType
    id: int
    uid: str
    name: str
    label: str
    queue: str
    priority: int
    status: str
    wait_reason: str | None
    version: int
    attempt: int
    charged: int
    max_attempts: int
    round: int
    crashes: int
    interruptions: int
    snoozes: int
    timeout_s: float | None
    soft_timeout_s: float | None
    deadline_at: str | None
    expires_at: str | None
    scheduled_at: str | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    cancel_requested_at: str | None
    updated_at: str | None
    progress: ProgressDoc | None
    error: ErrorDoc | None
    finish_reason: str | None
    worker_id: int | None
    batch: str | None
    item: int | None
    tags: tuple[str, ...]
    recurrence: str | None = None
    owner_type: str | None = None
    owner_id: str | None = None
    source: str | None = None
    reference_id: str | None = None
    parent_id: int | None = None
    reply_to: str | None = None
    target: str | None = None
    headers: dict[str, str] = {}
    failed_attempts: int = 0
    next_attempt_at: str | None = None
    dag_id: int | None = None
    step_id: str | None = None
    parents: tuple[int, ...] = ()
    key: str | None = None
    key_limit: int = 1
    key_on_retry: str = "block"
    unique: str | None = None


class TasksDoc(msgspec.Struct):
    """A page of tasks, newest first; next: pass it as --before for the following page, null at the end."""

    items: list[TaskDoc]
    next: int | None
    schema: str = "taskpool.tasks/1"


class ShowDoc(msgspec.Struct):
    """One task with all its attempts, and the ids of the first tasks that it has made."""

    task: TaskDoc
    attempts: list[AttemptDoc]
    children: list[int] = []
    schema: str = "taskpool.show/1"


class WorkerDoc(msgspec.Struct):
    """One worker."""

    worker_id: int
    pid: int
    state: str
    task_id: int | None
    name: str
    since: str | None
    done: int


class StatusDoc(msgspec.Struct):
    """A pool's numbers; live: a server was asked, else the file alone was read."""

    live: bool
    store: str
    counts: dict[str, int]
    pid: int | None = None
    epoch: int | None = None
    uptime_s: float | None = None
    finished: int | None = None
    attempts: int | None = None
    restarts: int | None = None
    rate: float | None = None
    eta_s: float | None = None
    workers: list[WorkerDoc] = []
    notices: tuple[str, ...] = ()
    schema: str = "taskpool.status/1"


class ResultDoc(msgspec.Struct):
    """What a task returned.

    value: as JSON where that is exact, else null; text: of bytes that are UTF-8; repr: the same for people; type: its Python type.
    """

    id: int
    uid: str
    status: str
    type: str | None
    value: Any
    repr: str | None
    error: ErrorDoc | None
    text: str | None = None
    schema: str = "taskpool.result/1"


class LogDoc(msgspec.Struct):
    """What one attempt printed, one per line of output."""

    id: int
    attempt: int | None
    text: str
    at: str | None = None
    schema: str = "taskpool.log/1"


class EndDoc(msgspec.Struct):
    """How one task ended, or stands: a line of wait, follow and run."""

    id: int
    uid: str
    label: str
    status: str
    attempts: int
    error: ErrorDoc | None
    schema: str = "taskpool.end/1"


class WaitDoc(msgspec.Struct):
    """How awaited tasks ended. complete: all of them did, before --timeout."""

    items: list[EndDoc]
    complete: bool
    schema: str = "taskpool.wait/1"


class BulkDoc(msgspec.Struct):
    """What a bulk verb changed, and what it could not. dry_run: nothing was changed, changed would be."""

    verb: str
    changed: list[int]
    refused: list[int]
    dry_run: bool = False
    schema: str = "taskpool.bulk/1"


class PruneDoc(msgspec.Struct):
    """How many ended tasks were deleted, by status. dry_run: none was, so many would be."""

    pruned: dict[str, int]
    dry_run: bool = False
    schema: str = "taskpool.prune/1"


class QueueDoc(msgspec.Struct):
    """One queue; registered: its limits were said, else there are none. counts: tasks by status."""

    name: str
    registered: bool
    paused: bool
    counts: dict[str, int]
    concurrency: int | None
    max_retry: int | None
    retry_delay_s: float | None
    buffer_size: int | None
    max_backlog: int | None
    rate: float | None = None
    burst: int | None = None


class QueuesDoc(msgspec.Struct):
    """Queues, by name."""

    items: list[QueueDoc]
    schema: str = "taskpool.queues/1"


class FlowStateDoc(msgspec.Struct):
    """A graph of tasks; id: of its first step; counts: its steps by status; fallen: the step whose failure ended the others."""

    id: int
    name: str
    status: str
    counts: dict[str, int]
    created_at: str | None
    fail_fast: bool
    fallen: int | None


class FlowsDoc(msgspec.Struct):
    """Graphs, newest first."""

    items: list[FlowStateDoc]
    schema: str = "taskpool.flows/1"


class EdgeDoc(msgspec.Struct):
    """A step waits for another. on: what it needs of it: success, any, failed."""

    parent: int
    child: int
    on: str


class FlowDoc(msgspec.Struct):
    """One graph with its steps, parents before their children, and its edges."""

    flow: FlowStateDoc
    steps: list[TaskDoc]
    edges: list[EdgeDoc]
    schema: str = "taskpool.flow/1"


class ReasonDoc(msgspec.Struct):
    """One thing that a task waits for. code: parents, time, retry, paused, queue limit, key, worker, deadline, expires, …"""

    code: str
    detail: str


class ExplainDoc(msgspec.Struct):
    """Why a task stands where it stands."""

    id: int
    status: str
    sentence: str
    reasons: list[ReasonDoc]
    schema: str = "taskpool.explain/1"


class ProgressLine(msgspec.Struct):
    """A running task's progress, a line of follow."""

    id: int
    progress: ProgressDoc
    schema: str = "taskpool.progress/1"


class RunLine(msgspec.Struct):
    """One finished input of `run`. seq from 1, in the order of inputs; value, repr and text as in taskpool.result/1."""

    seq: int
    id: int
    input: Any
    status: str
    attempts: int
    value: Any
    repr: str | None
    error: ErrorDoc | None
    text: str | None = None
    schema: str = "taskpool.run/1"


class RunSummary(msgspec.Struct):
    """The last line of `run`. reused: results of an earlier run of the batch."""

    batch: str | None
    total: int
    succeeded: int
    failed: int
    cancelled: int
    not_finished: int
    reused: int
    duration_s: float
    schema: str = "taskpool.run.summary/1"


class ScheduleDoc(msgspec.Struct):
    """One cron schedule. sentence: its spec in words; call: handler(arguments); latest: outcomes of its last times."""

    name: str
    spec: str
    tz: str
    sentence: str
    handler: str
    call: str
    queue: str
    missed: str
    catch_up_s: float | None
    overlap: str
    jitter_s: float
    paused: bool
    created_at: str | None
    next_at: str | None
    total: int
    err_count: int
    latest: list[str]


class CronDoc(msgspec.Struct):
    """The schedules, by name."""

    items: list[ScheduleDoc]
    schema: str = "taskpool.cron/1"


class PlannedDoc(msgspec.Struct):
    """One planned time of a schedule."""

    name: str
    at: str


class CronNextDoc(msgspec.Struct):
    """The next planned times, in order, without jitter."""

    items: list[PlannedDoc]
    schema: str = "taskpool.cron.next/1"


class CronDoneDoc(msgspec.Struct):
    """What was done to a schedule, one per line. task_id: of the task that a run made."""

    action: str
    name: str
    task_id: int | None = None
    schema: str = "taskpool.cron.done/1"


def schedule_doc(schedule: Schedule, latest: list[str]) -> ScheduleDoc:
    """Return a schedule for programs."""
    return ScheduleDoc(
        name=schedule.name,
        spec=schedule.spec,
        tz=schedule.tz,
        sentence=schedule.sentence,
        handler=schedule.handler,
        call=schedule.call,
        queue=schedule.queue,
        missed=schedule.missed,
        catch_up_s=schedule.catch_up_s,
        overlap=schedule.overlap,
        jitter_s=schedule.jitter_s,
        paused=schedule.paused,
        created_at=rfc3339(schedule.created_at or None),
        next_at=rfc3339(schedule.next_at),
        total=schedule.total,
        err_count=schedule.err_count,
        latest=latest,
    )


def flow_doc(flow: FlowState) -> FlowStateDoc:
    """Return a graph for programs."""
    return FlowStateDoc(flow.id, flow.name, flow.status.value, flow.counts, rfc3339(flow.created_at), flow.fail_fast, flow.fallen)


def error_doc(error: TaskError | None) -> ErrorDoc | None:
    """Return an error for programs; the pickled exception stays in the store."""
    if error is None:
        return None
    return ErrorDoc(
        kind=error.kind,
        message=error.message,
        retryable=error.retryable,
        type_name=error.type_name or None,
        traceback=error.traceback or None,
        exit_code=error.exit_code,
        signal=error.signal,
        peak_rss_bytes=error.peak_rss_bytes,
        output_tail=error.output_tail or None,
        cause=error_doc(error.cause),
    )


def progress_doc(progress: Progress | None) -> ProgressDoc | None:
    """Return a progress for programs."""
    if progress is None:
        return None
    return ProgressDoc(progress.done, progress.total or None, progress.fraction, progress.text)


def attempt_doc(attempt: Attempt) -> AttemptDoc:
    """Return an attempt for programs."""
    return AttemptDoc(
        attempt=attempt.attempt,
        outcome=attempt.outcome,
        worker_id=attempt.worker_id,
        pid=attempt.pid,
        started_at=rfc3339(attempt.started_at or None),
        finished_at=rfc3339(attempt.finished_at or None),
        duration_s=attempt.duration_s,
        cpu_user_s=attempt.cpu_user_s,
        cpu_system_s=attempt.cpu_system_s,
        peak_rss_bytes=attempt.peak_rss_bytes or None,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        error=error_doc(attempt.error),
        stack=attempt.stack or None,
        output=attempt.output,
    )


def task_doc(task: Task, *, nested: bool = False) -> TaskDoc:
    """Return a task for programs; nested: inside another document."""
    options = task.options
    return TaskDoc(
        schema=msgspec.UNSET if nested else "taskpool.task/1",
        id=task.id,
        uid=task.uid,
        name=task.name,
        label=label(task),
        queue=task.queue,
        priority=task.priority,
        status=task.status.value,
        wait_reason=task.wait_reason,
        version=task.version,
        attempt=task.attempt,
        charged=task.charged,
        max_attempts=task.max_attempts,
        round=task.round,
        crashes=task.crashes,
        interruptions=task.interruptions,
        snoozes=task.snoozes,
        timeout_s=options.timeout_s,
        soft_timeout_s=options.soft_timeout_s,
        deadline_at=rfc3339(options.deadline_at),
        expires_at=rfc3339(options.expires_at),
        progress=progress_doc(task.progress),
        error=error_doc(task.error),
        finish_reason=task.finish_reason,
        worker_id=task.worker_id,
        batch=task.batch,
        item=task.item,
        tags=options.tags,
        recurrence=task.recurrence,
        owner_type=options.owner_type or None,
        owner_id=options.owner_id or None,
        source=options.source or None,
        reference_id=options.reference_id or None,
        parent_id=options.parent_id,
        reply_to=options.reply_to or None,
        target=options.target or None,
        headers=dict(options.headers),
        failed_attempts=task.failed_attempts,
        next_attempt_at=rfc3339(task.next_attempt_at),
        dag_id=task.dag_id,
        step_id=task.step_id or None,
        parents=task.parents,
        key=task.key,
        key_limit=options.key_limit,
        key_on_retry=options.key_on_retry,
        unique=task.unique,
        scheduled_at=rfc3339(task.scheduled_at),
        created_at=rfc3339(task.created_at),
        started_at=rfc3339(task.started_at),
        finished_at=rfc3339(task.finished_at),
        cancel_requested_at=rfc3339(task.cancel_requested_at),
        updated_at=rfc3339(task.updated_at),
    )


def queue_doc(state: QueueState) -> QueueDoc:
    """Return a queue for programs."""
    config = state.config
    return QueueDoc(
        name=state.name,
        registered=state.registered,
        paused=state.paused,
        counts=state.counts,
        concurrency=config.concurrency,
        max_retry=config.max_retry,
        retry_delay_s=config.retry_delay,
        buffer_size=config.buffer_size,
        max_backlog=config.max_backlog,
        rate=config.rate,
        burst=config.burst,
    )


def end_doc(task: Task) -> EndDoc:
    """Return how a task stands."""
    return EndDoc(task.id, task.uid, label(task), task.status.value, task.attempt, error_doc(task.error))


def status_doc(stats: Stats, waiting: int) -> StatusDoc:
    """Return a live pool's numbers. waiting: tasks that are neither ended nor running; rate in tasks per second since the start."""
    rate = stats.finished / stats.uptime_s if stats.uptime_s > 0 and stats.finished else None
    return StatusDoc(
        live=True,
        store=stats.store,
        counts=stats.counts,
        pid=stats.pid,
        epoch=stats.epoch,
        uptime_s=stats.uptime_s,
        finished=stats.finished,
        attempts=stats.attempts,
        restarts=stats.restarts,
        rate=rate,
        eta_s=waiting / rate if rate and waiting else None,
        workers=[WorkerDoc(w.worker_id, w.pid, w.state, w.task_id, w.name, rfc3339(w.since_at), w.done) for w in stats.workers],
        notices=stats.notices,
    )


def seconds_between(start_us: int | None, end_us: int | None) -> float | None:
    """Return the seconds between two stored moments, None unless both are known."""
    return None if start_us is None or end_us is None else (end_us - start_us) / US
