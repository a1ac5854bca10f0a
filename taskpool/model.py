"""The nouns of taskpool: frozen Structs that travel, are stored, and are shown.

Times ending in `_at` are wall time in integer µs, UTC; names ending in `_s` are seconds. `Status` values are stored and sent as
plain strings.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, ParamSpec, Protocol, overload

import msgspec

from taskpool.errors import InvalidQueueName, InvalidTask

if TYPE_CHECKING:
    from typing import Unpack

    from taskpool.doors.options import TaskOptions

P = ParamSpec("P")

Params = Sequence[Any] | Mapping[str, Any]
OnInterrupt = Literal["rerun", "hold", "fail"]
OnConflict = Literal["existing", "raise", "replace"]
KeyOnRetry = Literal["block", "yield"]
Missed = Literal["last", "skip", "all"]
Overlap = Literal["skip", "allow", "queue", "cancel_previous"]

# What travels stays within these, so that a number from outside is never too large for the store, nor for a timer.
SECONDS_MAX: Final = 1e11
KEY_LENGTH_MAX: Final = 200
QUEUE_LENGTH_MAX: Final = 100
NUMBER_MAX: Final = 2**31 - 1  # of priorities and counts
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Seconds = Annotated[float, msgspec.Meta(ge=-SECONDS_MAX, le=SECONDS_MAX)]


class Status(enum.StrEnum):
    """Where a task stands. The legal moves are in `taskpool.core.lifecycle`."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more happens to the task by itself."""
        return self.value in ("succeeded", "failed", "cancelled", "interrupted")


class Codec(enum.IntEnum):
    """How a payload or a result is encoded."""

    MSGPACK = 0  # by the handler's annotations
    PICKLE = 1  # pickle protocol 5
    CALL = 2  # dill of (function, args, kwargs): a callable sent by value
    JSON = 3  # from the command line: {"args": […], "kwargs": {…}}, converted by the handler's annotations


class RetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """How often and when to try again. Intervals in seconds; maximum_attempts 0 means without limit.

    jitter is the fraction of a delay that is taken off by a hash of the task and attempt (0: none). Delays: `taskpool.core.retry`.
    retryable_error_kinds: of those that are never retried unless said so (effect, result, decode, unknown_handler, arg_count,
    arg_type) the ones that this policy retries.
    """

    initial_interval: float = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: float = 60.0
    maximum_attempts: Whole = 5
    non_retryable_error_kinds: tuple[str, ...] = ()
    jitter: float = 0.0
    retryable_error_kinds: tuple[str, ...] = ()

    def next_delay(self, attempt: int) -> float:
        """Return the seconds to wait after the attempt-th charged attempt (0 for attempt ≤ 0); pure, without jitter."""
        from taskpool.core.retry import next_delay

        return next_delay(self, attempt)

    def should_retry(self, error: TaskError, attempt: int) -> bool:
        """Return whether a failed attempt (the attempt-th charged one) warrants another."""
        from taskpool.core.retry import should_retry

        return should_retry(self, error, attempt)


def default_retry_policy() -> RetryPolicy:
    """Return 5 attempts, 1 s doubling, at most 60 s."""
    return RetryPolicy()


def no_retry() -> RetryPolicy:
    """Return a policy under which the first failure is final."""
    return RetryPolicy(maximum_attempts=1)


class TaskError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an attempt or a task failed. Kinds: SPEC in docs (handler, panic, timeout, …).

    exception holds the pickled exception where it can be rebuilt; only the caller that owns the task ever loads it.
    """

    kind: str
    message: str = ""
    retryable: bool = True
    type_name: str = ""
    traceback: str = ""
    exit_code: Whole | None = None
    signal: Whole | None = None
    peak_rss_bytes: Whole | None = None
    output_tail: str = ""
    exception: bytes | None = None
    cause: TaskError | None = None
    backoff_s: Seconds | None = None  # what RetryableError asked for

    def __str__(self) -> str:
        """Return one line for people."""
        name = f"{self.type_name}: " if self.type_name else ""
        return f"[{self.kind}] {name}{self.message}"


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a submit may say of a task beyond its handler and arguments; travels and is stored as one packed value.

    timeout_s and soft_timeout_s bound one attempt; deadline_at and expires_at are instants. max_attempts wins over retry's.
    """

    max_attempts: Whole | None = None
    retry: RetryPolicy | None = None
    timeout_s: Seconds | None = None
    soft_timeout_s: Seconds | None = None
    deadline_at: Whole | None = None
    expires_at: Whole | None = None
    heartbeat_timeout_s: Seconds | None = None
    on_interrupt: OnInterrupt = "rerun"
    at_most_once: bool = False
    crash_limit: Whole = 3
    max_interruptions: Whole = 20
    retry_on: tuple[str, ...] = ()  # qualified names of exception classes, base classes included in the match
    no_retry_on: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    trace_ctx: dict[str, str] = {}
    label: str = ""  # the arguments in short, for people
    owner_type: str = ""  # whose task it is: a kind of owner …
    owner_id: str = ""  # … and which of them
    source: str = ""  # what handed it in
    reference_id: str = ""  # what it belongs to outside of the pool, such as an order's number
    parent_id: Whole | None = None  # the task that made it
    reply_to: str = ""  # the mailbox that gets its response when it ends
    cpus: Seconds | None = None  # processors it keeps busy; None: one
    memory: Whole | None = None  # bytes it may use, together with all processes that it starts
    recurrence: str = ""  # the schedule that made the task
    retention_s: float | None = None  # how long it is kept after its end; None: as its pool says
    target: str = ""  # the worker that is to run it, by its number or a label
    key_limit: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 1  # so many of its key may run when it starts, itself included
    key_on_retry: KeyOnRetry = "block"  # whether others of its key wait while it waits for its next attempt
    on_conflict: OnConflict = "existing"  # what becomes of it when another task has its unique key
    unique_period_s: Seconds | None = None  # from its submit; so long it has its unique key, whatever becomes of it

    @property
    def has_worker_to_itself(self) -> bool:
        """Whether no other task is sent to its worker before it has ended."""
        return self.at_most_once or self.cpus is not None or self.memory is not None


class FlowSpec(msgspec.Struct, array_like=True, frozen=True):
    """A graph as a client submits it: the steps are the tasks of one submit. fail_fast: the first failure cancels all others."""

    name: str
    fail_fast: bool = False


class StepSpec(msgspec.Struct, array_like=True, gc=False):
    """How a submitted task depends on others.

    parents: (task, condition, is_argument) each; task is an id, or -1, -2, … for the first, second, … task of the same submit;
    condition as in `taskpool.core.graph`. Those whose results are arguments come first, as the payload numbers them.
    """

    label: str = ""
    parents: list[tuple[int, int, bool]] = []


def check_key(name: str, value: Any) -> str:
    """Return a serialization key (or a unique key, as `name` says); InvalidTask if it cannot be one."""
    if not isinstance(value, str) or not 0 < len(value) <= KEY_LENGTH_MAX or not value.isprintable():
        raise InvalidTask(f"{name} must be a text of 1 to {KEY_LENGTH_MAX} printable characters: {value!r:.120}")
    return value


def check_queue_name(name: Any) -> str:
    """Return a queue's name; InvalidQueueName if it cannot be one."""
    if not isinstance(name, str) or not 0 < len(name) <= QUEUE_LENGTH_MAX or not name.isprintable() or name != name.strip():
        raise InvalidQueueName(f"queue must be a name of 1 to {QUEUE_LENGTH_MAX} printable characters: {name!r:.120}")
    return name


class TaskSpec(msgspec.Struct, array_like=True, gc=False):
    """One task as a client submits it. options is a packed Options (the same bytes for all tasks of one call)."""

    uid: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    name: str
    codec: Annotated[int, msgspec.Meta(ge=0, le=3)]
    payload: bytes
    options: bytes = b""
    queue: str = "default"
    priority: Annotated[int, msgspec.Meta(ge=-(2**31 - 1), le=2**31 - 1)] = 0
    scheduled_at: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0  # 0: now
    batch: str | None = None
    item: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    step: StepSpec | None = None
    key: Word | None = None  # of those that have it, at most so many run as options.key_limit says
    unique: Word | None = None  # at most one live task has it


class Queue(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named line with limits of its own; None: no limit. Register it with `pool.register_queue`.

    concurrency: how many of its tasks may be with workers at once; max_retry: further attempts of tasks that say nothing of their
    own; retry_delay: seconds before each of those (None: doubling from 10 s); buffer_size: waiting tasks held in memory;
    max_backlog: tasks that may wait at all, beyond which a submit raises QueueFull; paused: it begins paused; rate: how many may
    start in a second, in the long run (0.1: one in ten seconds); burst: how many at once after a rest (None: those of a second).
    """

    name: str
    concurrency: int | None = None
    max_retry: int | None = None
    retry_delay: float | None = None
    buffer_size: int | None = None
    max_backlog: int | None = None
    paused: bool = False
    rate: float | None = None
    burst: int | None = None


class QueueState(msgspec.Struct, frozen=True):
    """A queue as it stands. registered: somebody said its config (else that has no limits); counts: its tasks by status."""

    name: str
    config: Queue
    registered: bool
    paused: bool
    counts: dict[str, int] = {}


class Reason(msgspec.Struct, frozen=True):
    """One thing that a task waits for (or why it does not): a code for programs, a detail in words."""

    code: str
    detail: str


class Explanation(msgspec.Struct, frozen=True):
    """Why a task stands where it stands: one sentence, and the facts behind it, the weightiest first."""

    id: int
    status: str
    sentence: str
    reasons: tuple[Reason, ...] = ()

    @property
    def is_live(self) -> bool:
        """Whether something may still happen to the task by itself."""
        return not Status(self.status).is_terminal

    def __str__(self) -> str:
        """Return the sentence."""
        return self.sentence


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """How far a handler says it is. done and total in units of its own; total 0 means unknown."""

    done: float = 0.0
    total: float = 0.0
    text: str = ""
    at: int = 0

    @property
    def fraction(self) -> float | None:
        """Return done/total within 0..1, or None while the total is unknown."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else None


class Attempt(msgspec.Struct, frozen=True):
    """One run of a task on one worker; never overwritten by the next.

    outcome: succeeded, failed, retrying, cancelled, returned (sent, never begun), snoozed, interrupted, stopped. CPU in seconds;
    CPU and peak memory are 0 for bodies shorter than a millisecond, which are not measured.
    """

    task_id: int
    attempt: int
    worker_id: int
    pid: int
    started_at: int
    finished_at: int
    outcome: str
    duration_s: float = 0.0
    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    peak_rss_bytes: int = 0
    error: TaskError | None = None
    exit_code: int | None = None
    signal: int | None = None
    stack: str = ""
    output: str = ""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands in the store: every field of it, decoded for people and programs."""

    id: int
    uid: str
    name: str
    queue: str
    priority: int
    status: Status
    version: int
    wait_reason: str | None = None
    attempt: int = 0
    charged: int = 0
    max_attempts: int = 1
    round: int = 0
    crashes: int = 0
    interruptions: int = 0
    snoozes: int = 0
    options: Options = Options()
    codec: Codec = Codec.PICKLE
    payload: bytes = b""
    result_codec: Codec = Codec.PICKLE
    result: bytes | None = None
    scheduled_at: int = 0
    created_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    cancel_requested_at: int | None = None
    updated_at: int = 0
    progress: Progress | None = None
    error: TaskError | None = None
    finish_reason: str | None = None
    worker_id: int | None = None
    epoch: int = 0
    batch: str | None = None
    item: int | None = None
    recurrence: str | None = None
    dag_id: int | None = None  # the flow that it is a step of
    step_id: str = ""  # … and its name there
    parents: tuple[int, ...] = ()  # the tasks whose ends it waits for, or waited for
    key: str | None = None
    unique: str | None = None

    @property
    def label(self) -> str:
        """Return the call as people read it: name(arguments)."""
        return f"{self.name}({self.options.label})"

    @property
    def failed_attempts(self) -> int:
        """Return how many attempts of this round have failed and counted."""
        return self.charged - (self.status is Status.SUCCEEDED)

    @property
    def next_attempt_at(self) -> int | None:
        """Return when it may next start (wall µs), None while it runs or waits for its parents, and when it has ended."""
        if self.wait_reason == "parents":
            return None
        return self.scheduled_at if self.status in ("pending", "queued", "retrying") else None

    @property
    def last_error(self) -> str:
        """Return in a line how the last attempt failed, nothing if none did."""
        return "" if self.error is None else str(self.error)

    @property
    def cancelled_at(self) -> int | None:
        """Return when it was cancelled (wall µs), None unless it was."""
        return self.finished_at if self.status is Status.CANCELLED else None


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A cron schedule: when to make which task. What it is called with is encoded like a task's payload.

    missed: of the times that passed while nobody was there, fire the last, none (skip), or all of the last catch_up_s seconds
    (which, if given, bounds "last" too); overlap: what a time means while a task of the schedule has not ended; jitter_s: fire up
    to so much later, by a hash; deadline_s, expires_s: of each task, from its making; total: tasks made; err_count: those that
    failed; next_at: the next planned time, None if there is none (or while paused).
    """

    name: str
    spec: str
    handler: str
    tz: str = "UTC"
    missed: Missed = "last"
    catch_up_s: Seconds | None = None
    overlap: Overlap = "skip"
    jitter_s: Seconds = 0.0
    codec: Whole = Codec.PICKLE
    payload: bytes = b""
    options: Options = Options()
    queue: str = "default"
    priority: Whole = 0
    deadline_s: Seconds | None = None
    expires_s: Seconds | None = None
    key: Word | None = None
    created_at: Whole = 0
    paused: bool = False
    next_at: Whole | None = None
    total: Whole = 0
    err_count: Whole = 0

    @property
    def call(self) -> str:
        """Return what it calls as people read it: handler(arguments)."""
        return f"{self.handler}({self.options.label})"

    @property
    def sentence(self) -> str:
        """Return when it comes due, as an English sentence."""
        from taskpool.timetable import explain

        return explain(self.spec) if self.spec.startswith("@every") else f"{explain(self.spec)} ({self.tz})"

    def next_times(self, count: int, after: int) -> list[int]:
        """Return the next planned times (wall µs) after an instant, without jitter."""
        from taskpool.timetable import next_after

        found: list[int] = []
        while len(found) < count:
            at = next_after(self.spec, self.tz, found[-1] if found else after, self.created_at)
            if at is None:
                break
            found.append(at)
        return found


class Occurrence(msgspec.Struct, frozen=True):
    """One planned time of a schedule. outcome: fired (task_id made it), queued (behind its forerunner) or skipped, and why."""

    schedule: str
    planned_at: int
    outcome: str
    reason: str = ""
    task_id: int | None = None
    at: int = 0


class Filter(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which tasks a listing or a bulk verb means; empty fields match all. since and until bound created_at."""

    ids: tuple[Whole, ...] = ()
    statuses: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    batch: str | None = None
    key: str | None = None
    unique: str | None = None
    since: Whole | None = None
    until: Whole | None = None
    error_contains: str | None = None
    owner_type: str | None = None
    owner_id: str | None = None
    source: str | None = None
    reference_id: str | None = None
    parent_id: Whole | None = None
    flow: Whole | None = None


class FlowState(msgspec.Struct, frozen=True):
    """A graph as it stands. id: that of its first step; counts: its steps by status; fallen: the step whose failure ended the rest.

    status: running while a step is live, else failed if one failed or was interrupted, cancelled if one was, else succeeded; steps
    that were cancelled because another ended otherwise than they need count as neither.
    """

    id: int
    name: str
    created_at: int
    status: Status
    counts: dict[str, int]
    fail_fast: bool = False
    fallen: int | None = None


class WorkerState(msgspec.Struct, frozen=True):
    """One worker as `status` shows it."""

    worker_id: int
    pid: int
    state: str
    task_id: int | None = None
    name: str = ""
    since_at: int | None = None
    done: int = 0
    labels: tuple[str, ...] = ()


class Stats(msgspec.Struct, frozen=True):
    """One screen of a pool's numbers. counts: tasks by status; durations in seconds."""

    pid: int
    epoch: int
    store: str
    counts: dict[str, int]
    workers: tuple[WorkerState, ...] = ()
    finished: int = 0
    attempts: int = 0
    restarts: int = 0
    uptime_s: float = 0.0
    turns: int = 0
    cpu_s: float = 0.0
    notices: tuple[str, ...] = ()


class Running(msgspec.Struct, frozen=True):
    """The task that a handler runs right now, as its controller knows it. deadline_at: wall µs."""

    id: int
    attempt: int
    name: str
    tags: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    trace_ctx: dict[str, str] = {}
    deadline_at: int | None = None
    timeout_s: float | None = None
    options: Options = Options()
    payload: Any = None  # of a handler object's task: the one argument that it was submitted with


class Spawned(msgspec.Struct, frozen=True):
    """A task that a running one has made.

    uid: its UUID, by which `pool.get(…)` and `pool.future(…)` find it; id: its number, 0 if it is stored with the success.
    """

    uid: str
    name: str
    id: int = 0


class Spawning(Protocol):
    """What makes tasks of a running one's: a controller, or the view of it that `options` returns."""

    @overload
    def spawn(self, fn: str, /, *args: Any, **kwargs: Any) -> Spawned: ...

    @overload
    def spawn(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Spawned: ...

    def spawn(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Let fn(*args, **kwargs) be a task from the moment on that this attempt's success is recorded, in that transaction.

        An attempt that does not succeed leaves none; so each success has its children exactly once, however often the body ran.
        fn: a function, or the name of a handler that this process has. Their `parent_id` is this task, whose `trace_ctx` they
        have too unless they have one of their own. Raises what `pool.submit` does for what cannot be sent, InvalidPayload for
        more than 10,000 tasks or 16 MiB.
        """
        ...

    @overload
    def spawn_now(self, fn: str, /, *args: Any, **kwargs: Any) -> Spawned: ...

    @overload
    def spawn_now(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Spawned: ...

    def spawn_now(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Let fn(*args, **kwargs) be a task now, durable when this returns, whatever becomes of this attempt.

        A later attempt makes it again. Raises what `spawn` does, QueueFull, PoolStopped while the pool stops.
        """
        ...

    def options(self, **options: Unpack[TaskOptions]) -> Spawning:
        """Return a view under which what is spawned has these options. Raises InvalidTask, naming the option."""
        ...


class Controller(Spawning, Protocol):
    """What a running handler talks to.

    A handler whose first parameter is annotated with it is given one; others call `taskpool.controller()`.
    """

    @property
    def task(self) -> Running:
        """Return the running task."""
        ...

    @property
    def attempt(self) -> int:
        """Return the number of this attempt, from 1; it rises for the whole life of the task."""
        ...

    @property
    def cancelled(self) -> bool:
        """Return whether somebody asked to cancel this attempt."""
        ...

    @property
    def stopping(self) -> bool:
        """Return whether the pool is about to stop: save what you have."""
        ...

    @property
    def last_checkpoint(self) -> Any:
        """Return the object that this task saved last, in this attempt or an earlier one; None if it never did."""
        ...

    def progress(self, done: float, total: float = 0.0, text: str = "") -> None:
        """Say how far the task is, in units of its own; total 0: unknown. Cheap enough to call a million times; a heartbeat."""
        ...

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if `cancelled`."""
        ...

    def checkpoint(self, obj: Any) -> None:
        """Save obj durably; a later attempt finds it as `last_checkpoint`. InvalidPayload if it cannot be encoded."""
        ...

    def on_success(self, sql: str, params: Params = (), /) -> None:
        """Let the store apply a statement to your own tables in the very transaction that records this attempt's success.

        So its rows are written exactly once, however often the body ran. All of an attempt's are applied, or none, in their order;
        if one fails the attempt does, kind `effect`. params: a sequence for `?`, a mapping for `:name`. InvalidPayload for what is
        no INSERT, UPDATE, DELETE or REPLACE, for values SQLite has no type for, and for more than 1,000 statements or 8 MiB.
        """
        ...

    def log(self, text: str) -> None:
        """Write a line to the task's output."""
        ...

    def extend_timeout(self, seconds: float) -> None:
        """Let this attempt run that much longer than its timeout (never past the deadline)."""
        ...

    def deadline_left(self) -> float | None:
        """Return the seconds until the task's deadline (negative when it is over), or None if it has none."""
        ...


def encode(value: Any) -> bytes:
    """Return a value of ours as msgpack."""
    return _encoder.encode(value)


_encoder = msgspec.msgpack.Encoder()
