"""The documents of `--json`: Structs whose `schema` names shape and version. Times RFC 3339 in UTC, durations in seconds.

A field is never renamed or given another meaning under the same version; new ones may come.
"""

from __future__ import annotations

from typing import Any

import msgspec


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
    """One queue; registered: its limits were said, else there are none. counts: tasks by status; new: `pause` has made it now."""

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
    new: bool = False


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
