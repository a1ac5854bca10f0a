"""What travels between clients and a supervisor, over a stream socket: msgspec Structs, new fields last and with defaults."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from taskpool.model import (
    Explanation,
    Filter,
    FlowSpec,
    FlowState,
    Natural,
    Occurrence,
    Progress,
    Queue,
    QueueState,
    Schedule,
    Seconds,
    Stats,
    Task,
    TaskError,
    TaskSpec,
    Whole,
)
from taskpool.retention import Retention
from taskpool.wire.jobs import Job, Report
from taskpool.wire.zygote import HandlerInfo, HandlerOptions

PROTOCOL = 1

# ---- client → supervisor --------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, array_like=True, tag="hello"):
    """First message of a client."""

    protocol: Whole
    pid: Whole
    name: str = ""


class Submit(msgspec.Struct, array_like=True, tag="submit", gc=False):
    """Store these tasks. watch: send their outcomes; resend: the uids may be stored already; fresh: forget the batch's items."""

    seq: Whole
    specs: list[TaskSpec]
    watch: bool = True
    resend: bool = False
    fresh: bool = False
    flow: FlowSpec | None = None


class Watch(msgspec.Struct, array_like=True, tag="watch"):
    """Send the outcomes of these tasks when they end (now, if they have)."""

    seq: Whole
    ids: list[Whole]


class Get(msgspec.Struct, array_like=True, tag="get"):
    """Read one task: by its id, or (id 0) by its uid."""

    seq: Whole
    id: Whole
    uid: bytes = b""


class List(msgspec.Struct, array_like=True, tag="list"):
    """Read tasks, newest first, with ids below `before`, the first `offset` of them passed over."""

    seq: Whole
    filter: Filter
    limit: Natural = 100
    before: Whole | None = None
    offset: Natural = 0


class Count(msgspec.Struct, array_like=True, tag="count"):
    """Count the tasks that match."""

    seq: Whole
    filter: Filter


class Cancel(msgspec.Struct, array_like=True, tag="cancel"):
    """Cancel the tasks that match. grace_s None: the pool's; force: kill at once; dry_run: only count."""

    seq: Whole
    filter: Filter
    reason: str = ""
    grace_s: Seconds | None = None
    force: bool = False
    dry_run: bool = False


class Retry(msgspec.Struct, array_like=True, tag="retry"):
    """Give the ended tasks that match a new round. force: succeeded ones too."""

    seq: Whole
    filter: Filter
    force: bool = False
    dry_run: bool = False


class GetStats(msgspec.Struct, array_like=True, tag="stats"):
    """Read the pool's numbers."""

    seq: Whole


class GetAttempts(msgspec.Struct, array_like=True, tag="attempts"):
    """Read the attempts of one task."""

    seq: Whole
    id: Whole


class RegisterQueue(msgspec.Struct, array_like=True, tag="register_queue"):
    """Store a queue's settings. replace: also over other ones."""

    seq: Whole
    queue: Queue
    replace: bool = False


class PauseQueues(msgspec.Struct, array_like=True, tag="pause_queues"):
    """Pause these queues (none named: all there are), or let them go on."""

    seq: Whole
    names: list[str]
    paused: bool = True


class GetQueues(msgspec.Struct, array_like=True, tag="queues"):
    """Read all queues."""

    seq: Whole


class Explain(msgspec.Struct, array_like=True, tag="explain"):
    """Say why a task stands where it stands."""

    seq: Whole
    id: Whole


class Find(msgspec.Struct, array_like=True, tag="find"):
    """Look into the inbox, then say under which ids these uids are stored (0: none). Needs no Hello before."""

    seq: int
    uids: list[bytes]


class GetFlows(msgspec.Struct, array_like=True, tag="flows"):
    """Read flows, newest first, with ids below `before`; or the one of that id."""

    seq: int
    limit: Natural = 100
    before: Whole | None = None
    id: Whole | None = None


class Follow(msgspec.Struct, array_like=True, tag="follow"):
    """Send progress and output of these tasks as they come (all of this client's watched tasks if empty)."""

    seq: Whole
    ids: list[Whole]


class Stop(msgspec.Struct, array_like=True, tag="stop"):
    """End the pool. grace_s: how long running tasks may go on (None: until they end)."""

    seq: Whole
    grace_s: Seconds | None = 0.0


class Update(msgspec.Struct, array_like=True, tag="update"):
    """Change a waiting task of that version; None leaves a field alone. options: packed Options."""

    seq: Whole
    id: Whole
    version: Whole
    priority: Annotated[int, msgspec.Meta(ge=-(2**31 - 1), le=2**31 - 1)] | None = None
    scheduled_at: Annotated[int, msgspec.Meta(ge=0, le=2**62)] | None = None
    options: bytes | None = None


class Execute(msgspec.Struct, array_like=True, tag="execute"):
    """Start the next attempt of a task, to be run by this client. labels: the targets that it is. The answer has `lent`."""

    seq: Whole
    id: Whole
    labels: list[str] = []


class Executed(msgspec.Struct, array_like=True, tag="executed", gc=False):
    """How that attempt ended. Answered by the task, once that is stored."""

    seq: Whole
    worker: Whole
    report: Report


class Speak(msgspec.Struct, array_like=True, tag="speak", gc=False):
    """A word from an attempt that this client runs; seq 0: no answer is wanted.

    extend_s: that much more time; checkpoint: to be stored, which is answered; give_up: it will not be ended.
    """

    seq: Whole
    worker: Whole
    progress: Progress | None = None
    extend_s: Seconds = 0.0
    checkpoint: bytes | None = None
    give_up: bool = False


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """Read tasks in these statuses, and with this key, scheduled for `as_of` (wall µs) or before; after: (scheduled_at, id)."""

    seq: Whole
    statuses: list[str]
    as_of: Whole
    after: tuple[Whole, Whole] | None = None
    limit: Natural = 100
    descending: bool = False
    key: str | None = None


class GetHandlers(msgspec.Struct, array_like=True, tag="handlers"):
    """Read what is known of the handlers, or of the one that is meant by a name."""

    seq: Whole
    name: str | None = None


class BindHandler(msgspec.Struct, array_like=True, tag="bind_handler"):
    """Let a handler run the tasks of a type in a queue too, until the pool ends."""

    seq: Whole
    queue: str
    task_type: str
    name: str


class GetReplies(msgspec.Struct, array_like=True, tag="replies"):
    """Read a mailbox, oldest first. wait: answer when there is something to answer; mailbox None: only tell which there are."""

    seq: Whole
    mailbox: str | None
    after: Whole = 0
    limit: Natural = 100
    wait: bool = False


class Heed(msgspec.Struct, array_like=True, tag="heed"):
    """Answer as soon as the log of transitions has a turn behind this one. Who asks reads the log in the file."""

    seq: Whole
    turn: Whole


class Acknowledge(msgspec.Struct, array_like=True, tag="acknowledge"):
    """Take replies out of a mailbox."""

    seq: Whole
    mailbox: str
    seqs: list[Whole]


class AddSchedule(msgspec.Struct, array_like=True, tag="add_schedule"):
    """Store a schedule. replace: also in place of another one of that name."""

    seq: int
    schedule: Schedule
    replace: bool = False


class ChangeSchedule(msgspec.Struct, array_like=True, tag="change_schedule"):
    """Do something to a schedule. verb: cancel, pause, resume, run."""

    seq: int
    verb: str
    name: str


class Prune(msgspec.Struct, array_like=True, tag="prune"):
    """Delete ended tasks of these statuses that need not be kept; retention None: as the pool keeps them."""

    seq: int
    statuses: list[str]
    retention: Retention | None = None
    dry_run: bool = False


class GetSchedules(msgspec.Struct, array_like=True, tag="schedules"):
    """Read the schedules, or the one of that name with its latest occurrences."""

    seq: int
    name: str | None = None
    occurrences: int = 0


Request = (
    Hello
    | Submit
    | Watch
    | Get
    | List
    | Count
    | Cancel
    | Retry
    | GetStats
    | GetAttempts
    | RegisterQueue
    | PauseQueues
    | GetQueues
    | Explain
    | GetFlows
    | Follow
    | Find
    | Stop
    | Update
    | Ready
    | GetHandlers
    | BindHandler
    | GetReplies
    | Acknowledge
    | AddSchedule
    | ChangeSchedule
    | GetSchedules
    | Prune
    | Heed
    | Execute
    | Executed
    | Speak
)

# ---- supervisor → client --------------------------------------------------------------------------------------------


class Welcome(msgspec.Struct, array_like=True, tag="welcome"):
    """Answer to Hello once the store is open and workers are coming. said: as in Prepared."""

    protocol: int
    pid: int
    store: str
    epoch: int
    workers: int
    notices: list[str] = []
    said: dict[str, HandlerOptions] = {}


class Accepted(msgspec.Struct, array_like=True, tag="accepted"):
    """The tasks of that Submit are durable under these ids, in order; 0 for those whose unique keys others have.

    taken: of these, the positions and the tasks that have the keys.
    """

    seq: int
    ids: list[int]
    taken: list[tuple[int, int]] = []


class Outcome(msgspec.Struct, array_like=True, gc=False):
    """How a task ended."""

    id: int
    status: str
    attempts: int
    codec: int
    value: bytes | None
    error: TaskError | None
    finished_at: int


class Replied(msgspec.Struct, array_like=True, gc=False):
    """A response in a mailbox. seq: its number there; value encoded by codec."""

    seq: int
    mailbox: str
    task_id: int
    name: str
    status: str
    attempts: int
    codec: int
    value: bytes | None
    error: TaskError | None
    completed_at: int


class Settled(msgspec.Struct, array_like=True, tag="settled", gc=False):
    """Watched tasks that ended in one turn."""

    outcomes: list[Outcome]


class Reply(msgspec.Struct, array_like=True, tag="reply"):
    """Answer to a request: one of the values is set."""

    seq: int
    tasks: list[Task] | None = None
    stats: Stats | None = None
    attempts: list[Any] | None = None  # list[Attempt]
    printed: str | None = None  # by the attempt that runs, so far
    ids: list[int] | None = None  # those a bulk verb changed
    refused: list[int] | None = None  # those it could not
    next: int | None = None
    queues: list[QueueState] | None = None
    explanation: Explanation | None = None
    handlers: list[tuple[str, HandlerInfo]] | None = None
    replies: list[Replied] | None = None
    mailboxes: dict[str, int] | None = None
    schedules: list[Schedule] | None = None
    occurrences: list[Occurrence] | None = None
    flows: list[FlowState] | None = None
    pruned: dict[str, int] | None = None  # how many were deleted, by status
    lent: tuple[int, Job] | None = None  # the attempt to run, and as which worker


class Told(msgspec.Struct, array_like=True, tag="told"):
    """Something about the attempt that this client runs as that worker: a word of `core.callers`."""

    worker: int
    what: str


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """A request failed; code is that of a TaskpoolError."""

    seq: int
    code: str
    message: str
    hint: str = ""


class News(msgspec.Struct, array_like=True, tag="news"):
    """Progress and output of followed tasks: id → Progress; (id, bytes) in order; begun: id → worker's pid."""

    progress: dict[int, Progress]
    output: list[tuple[int, bytes]]
    begun: dict[int, int] = {}


class Goodbye(msgspec.Struct, array_like=True, tag="goodbye"):
    """The supervisor ends; nothing follows."""

    reason: str


Answer = Welcome | Accepted | Settled | Reply | Refused | News | Told | Goodbye

encoder = msgspec.msgpack.Encoder()
