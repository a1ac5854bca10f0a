"""Tasks, queues, flows and schedules as the documents that `--json` writes: `shapes` says what those look like."""

from __future__ import annotations

import msgspec

from taskpool.cli.labels import label
from taskpool.cli.quantity import rfc3339
from taskpool.cli.shapes import (
    AttemptDoc,
    EndDoc,
    ErrorDoc,
    FlowStateDoc,
    ProgressDoc,
    QueueDoc,
    ScheduleDoc,
    StatusDoc,
    TaskDoc,
    WorkerDoc,
)
from taskpool.model import Attempt, FlowState, Progress, QueueState, Schedule, Stats, Task, TaskError


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


def queue_doc(state: QueueState, *, new: bool = False) -> QueueDoc:
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
        new=new,
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
