"""What can happen to the scheduler. The shell turns all that arrives into these."""

from __future__ import annotations

import msgspec

from taskpool.model import FlowSpec, Options, Queue, Schedule, TaskError, TaskSpec
from taskpool.wire.jobs import Checkpointed, Report


class TaskRow(msgspec.Struct, gc=False):
    """What the scheduler needs of a stored task. rank is -priority; counts default to a task that never ran."""

    id: int
    name: str
    queue: str
    rank: int
    status: str
    version: int
    attempt: int
    charged: int
    scheduled_at: int
    created_at: int
    options: Options
    started_at: int | None = None
    round: int = 0
    crashes: int = 0
    interruptions: int = 0
    snoozes: int = 0
    cancel_requested_at: int | None = None
    cancel_reason: str = ""
    error: TaskError | None = None
    # The scheduler's own marks, never stored:
    worker: int = 0
    n: int = 0  # number in the worker's mailbox while running
    # Stored again:
    begun: bool = False  # a body of it began, though the counts of this round do not show it
    # A mark again:
    rules: Queue | None = None  # its queue's, while it runs; None if that has none
    # Stored again:
    key: str | None = None
    unique: str | None = None
    upstream: bool = False  # nobody asked for its cancel: it follows from how another task ended


class QueueSet(msgspec.Struct, tag=True):
    """A queue's limits, or whether it is paused, are stored; paused: as it is now. Comes before all else after a start.

    full_at: when (wall µs) the tokens of its rate are all there again, as the last owner has stored it.
    """

    queue: Queue
    full_at: int = 0


class ScheduleRow(msgspec.Struct):
    """What the store knows of a schedule. live: its tasks that have not ended; queued: planned times that wait for them."""

    schedule: Schedule
    live: list[int]
    queued: list[int]
    last_at: int = 0  # the latest planned time that has its row


class Scheduled(msgspec.Struct, tag=True):
    """The schedules as a store that is opened has them; comes before what its last owner left running."""

    rows: list[ScheduleRow]


class CronAsked(msgspec.Struct, tag=True):
    """Somebody does something to a schedule. verb: add, replace (with the schedule), cancel, pause, resume, run."""

    client: int
    seq: int
    verb: str
    name: str
    schedule: Schedule | None = None


class KeysKept(msgspec.Struct, tag=True):
    """What waits and may keep its key, as a store that is opened has it; comes before what its last owner left running."""

    rows: list[TaskRow]


class Opened(msgspec.Struct, tag=True):
    """The store is open. lines: queues that have waiting tasks."""

    next_id: int
    queues: list[str]


class Recovered(msgspec.Struct, tag=True):
    """A task that an older epoch had running. begun: its body had begun; report: its outcome, if it was in the ring."""

    row: TaskRow
    begun: bool
    report: Report | None = None


class Holder(msgspec.Struct, gc=False):
    """The task that has a unique key in the store: it has not ended, or its period has not (until: wall µs, 0: it has none)."""

    row: TaskRow
    until: int = 0


class Submitted(msgspec.Struct, tag=True):
    """A client submits tasks; options are those of specs, decoded; holders: of their unique keys, as the store has them."""

    client: int
    seq: int
    specs: list[TaskSpec]
    options: list[Options]
    flow: FlowSpec | None = None  # they are its steps
    holders: dict[str, Holder] = {}


class DueStep(msgspec.Struct):
    """A task that waits for its parents, and need not any longer. due_at: when it may start.

    culprit: the task whose end makes it impossible (0: none, it may start), with its name and how that ended; by_flow: it is none
    of those that it depends on, its failure ends the whole flow; size: bytes of the results that it is to be given.
    """

    row: TaskRow
    due_at: int
    culprit: int = 0
    culprit_name: str = ""
    culprit_status: str = ""
    by_flow: bool = False
    size: int = 0


class StepsDue(msgspec.Struct, tag=True):
    """Tasks whose parents have ended: as the store knows after a commit, first in the next turn; or foresees, last in this."""

    steps: list[DueStep]


class Arrived(msgspec.Struct, tag=True):
    """Tasks that guests' transactions stored, by their numbers in the inbox. known: numbers of those that are tasks already."""

    seqs: list[int]
    specs: list[TaskSpec]
    options: list[Options]
    known: list[int]


class Reported(msgspec.Struct, tag=True):
    """A worker ended bodies. outputs: n → tail of what it printed."""

    worker: int
    pid: int
    reports: list[Report]
    outputs: dict[int, str] = {}


class Saved(msgspec.Struct, tag=True):
    """A running body checkpointed."""

    worker: int
    checkpoint: Checkpointed


class Passed(msgspec.Struct, tag=True):
    """A worker passed over all it had been told to give back, up to n; it may be sent work again."""

    worker: int
    n: int


class TakenBack(msgspec.Struct, tag=True):
    """Tasks with a number above n will not be begun by that worker."""

    worker: int
    above: int


class WorkerReady(msgspec.Struct, tag=True):
    """A worker waits for its first task."""

    worker: int
    pid: int


class WorkerFailed(msgspec.Struct, tag=True):
    """A worker could not be started; try again later."""

    worker: int
    error: str


class WorkerDied(msgspec.Struct, tag=True):
    """A worker is reaped; all its records were delivered before.

    begun: number of the task whose body had begun and not ended (0: none); why: who killed it (timeout, deadline, heartbeat,
    memory, cancel, stop, retire) or "" if it died by itself; error: the panic in words. CPU in µs.
    """

    worker: int
    pid: int
    begun: int
    began_ns: int
    why: str
    error: TaskError
    stack: str = ""
    output: str = ""
    cpu_user_us: int = 0
    cpu_system_us: int = 0


class CancelAsked(msgspec.Struct, tag=True):
    """Somebody cancels tasks; rows are those that are not in memory. upstream: nobody does; it follows from how another ended."""

    client: int
    seq: int
    ids: list[int]
    rows: list[TaskRow]
    reason: str = ""
    grace_s: float | None = None
    force: bool = False
    upstream: bool = False


class RetryAsked(msgspec.Struct, tag=True):
    """Somebody gives ended tasks a new round; rows as the store has them, as the holders of their unique keys.

    client 0: nobody waits for the answer; absent: ids that were asked for, and that no task has.
    """

    client: int
    seq: int
    rows: list[TaskRow]
    force: bool = False
    steps: frozenset[int] = frozenset()  # those that depend on others
    holders: dict[str, Holder] = {}
    absent: list[int] = []


class UpdateAsked(msgspec.Struct, tag=True):
    """Somebody changes a waiting task of that version; None leaves a field alone.

    row: as the store has it, if memory has not; held: it waits for its parents.
    """

    client: int
    seq: int
    id: int
    version: int
    row: TaskRow | None = None
    priority: int | None = None
    scheduled_at: int | None = None
    options: Options | None = None
    held: bool = False


class ExecuteAsked(msgspec.Struct, tag=True):
    """A client wants to run a task's next attempt itself. pid: its process; row: as the store has it, if memory has not.

    held: it waits for its parents; labels: the targets that the client takes tasks of.
    """

    client: int
    seq: int
    id: int
    pid: int
    row: TaskRow | None = None
    held: bool = False
    labels: list[str] = []


class HandlersKnown(msgspec.Struct, tag=True):
    """These are the names of all handlers here: tasks of others wait, unless their names say where to import them from."""

    names: list[str]


class CallerSpoke(msgspec.Struct, tag=True):
    """Who runs an attempt itself gives a sign of life. extend_ns: so much longer than its timeout it wants to have."""

    client: int
    worker: int
    extend_ns: int = 0


class CallerGone(msgspec.Struct, tag=True):
    """Who runs an attempt itself will not end it: it has left, or given up. worker 0: all that the client has."""

    client: int
    worker: int = 0


class Refilled(msgspec.Struct, tag=True):
    """Waiting rows of a line (a queue, or None: the delayed) in its order; more: the store has further ones; key: only of that."""

    queue: str | None
    rows: list[TaskRow]
    more: bool
    key: str | None = None


class Dropped(msgspec.Struct, tag=True):
    """The store refused these tasks' writes (somebody wrote first, or the uid is taken): forget them.

    rows: those of them that are stored as they were, and wait: what was to replace them found no room; sent: those that were
    sent to their workers before, so that their bodies may run.
    """

    ids: list[int]
    rows: list[TaskRow] = []
    sent: list[int] = []


class Dispatch(msgspec.Struct, tag=True):
    """End of a turn's events: timers that are due, then start what can start."""


class StopAsked(msgspec.Struct, tag=True):
    """Begin no more. grace_s: how long bodies may go on (None: until they end, 0: not at all)."""

    grace_s: float | None


Event = (
    Opened
    | QueueSet
    | Scheduled
    | KeysKept
    | CronAsked
    | Recovered
    | Submitted
    | Arrived
    | StepsDue
    | Reported
    | Saved
    | Passed
    | TakenBack
    | WorkerReady
    | WorkerFailed
    | WorkerDied
    | CancelAsked
    | RetryAsked
    | UpdateAsked
    | ExecuteAsked
    | HandlersKnown
    | CallerSpoke
    | CallerGone
    | Refilled
    | Dropped
    | Dispatch
    | StopAsked
)
