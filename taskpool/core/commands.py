"""What the scheduler wants done. Saves are stored in one transaction; then the rest is acted upon, in order."""

from __future__ import annotations

import msgspec

from taskpool.model import FlowSpec, Occurrence, Schedule, TaskError, TaskSpec
from taskpool.wire.jobs import Report


class Extras(msgspec.Struct, array_like=True, gc=False):
    """The rarer counts and marks of a task: one packed column, NULL while all are at their defaults."""

    round: int = 0
    crashes: int = 0
    interruptions: int = 0
    snoozes: int = 0
    cancel_requested_at: int | None = None
    cancel_reason: str = ""
    finish_reason: str | None = None
    begun: bool = False  # a body of it began, though the counts of this round do not show it
    upstream: bool = False  # nobody asked for its cancel: it follows from how another task ended


# ---- saves ----------------------------------------------------------------------------------------------------------


class Place(msgspec.Struct, gc=False):
    """Where a new task stands among others. parents: (id, condition, is_argument); due_at: when it may start once they have ended.

    flow_id: the flow that it is a step of; opens: it is the first of that flow, which is stored with it.
    """

    label: str
    parents: list[tuple[int, int, bool]]
    due_at: int
    flow_id: int | None = None
    opens: FlowSpec | None = None


class Insert(msgspec.Struct, gc=False):
    """Store a new task under version 1. A Start of the same turn joins it.

    of: the task whose success it belongs to, which is stored before it: it is refused if that is, and not for want of room.
    """

    id: int
    spec: TaskSpec
    status: str
    scheduled_at: int
    created_at: int
    place: Place | None = None
    of: int = 0
    after: int = 0  # the task whose end in this turn leaves the unique key to this one; they are stored together
    until: int = 0  # so long (wall µs) it has its unique key, whatever becomes of it


class Start(msgspec.Struct, gc=False):
    """Record the start of an attempt (version → version+1, status → running), then send it to the worker as number n.

    caller: or to that client.
    """

    id: int
    version: int
    status: str
    attempt: int
    worker: int
    n: int
    at: int
    caller: tuple[int, int] | None = None  # the client that runs it itself, and the number of its request
    freed_at: int | None = None  # it waited for its parents until now: its scheduled_at from now on


class Closed(msgspec.Struct, gc=False):
    """The attempt's row: how it ended. Times wall µs; duration in ns; outcome as in model.Attempt."""

    attempt: int
    worker: int
    pid: int
    started_at: int
    outcome: str
    duration_ns: int = 0
    cpu_user_us: int = 0
    cpu_system_us: int = 0
    peak_rss_kib: int = 0
    error: TaskError | None = None
    stack: str = ""
    output: str = ""


class End(msgspec.Struct, gc=False):
    """An attempt ended: running → `to`, and its row. result and codec only for a success; scheduled_at for what will run again."""

    id: int
    version: int
    to: str
    at: int
    charged: int
    closed: Closed
    report: Report | None = None
    error: TaskError | None = None
    extras: Extras | None = None
    scheduled_at: int | None = None
    reply_to: str = ""  # the mailbox that gets the response of a task that ended


class Move(msgspec.Struct, gc=False):
    """Any other change of a task: status → to (the same for a mark such as cancel_requested_at). None leaves a field alone."""

    id: int
    version: int
    status: str
    to: str
    at: int
    charged: int | None = None
    extras: Extras | None = None
    error: TaskError | None = None
    clear_error: bool = False  # a new round: error, result and finished_at become NULL
    scheduled_at: int | None = None
    attempt: int = 0  # for those who wait; the move does not change it
    reply_to: str = ""  # as in End
    rank: int | None = None  # another priority …
    options: bytes | None = None  # … or other options, packed
    held: bool | None = None  # whether it waits for its parents from now on; None leaves that alone


class Checkpoint(msgspec.Struct, gc=False):
    """Store the state that a body saved."""

    id: int
    attempt: int
    data: bytes


Save = Insert | Start | End | Move | Checkpoint


class Keep(msgspec.Struct, gc=False):
    """Store a schedule as it is, new or in place of the one of that name."""

    schedule: Schedule


class Forget(msgspec.Struct, gc=False):
    """Delete a schedule and its occurrences; its tasks stay."""

    name: str


class Occur(msgspec.Struct, gc=False):
    """Store an occurrence, the first of its planned time or the one that was queued. Stored with the Insert of its task only."""

    occurrence: Occurrence


class Advance(msgspec.Struct, gc=False):
    """Store how far a schedule is. Refused together with the occurrences of a schedule one of whose tasks is refused."""

    name: str
    next_at: int | None
    total: int
    err_count: int


class Taken(msgspec.Struct, gc=False):
    """Take a row out of the inbox, in the transaction that stores its task (id; 0: that is stored already)."""

    seq: int
    id: int


class Spent(msgspec.Struct, gc=False):
    """Store when (wall µs) the tokens of a queue's rate will all be there again."""

    queue: str
    full_at: int


Plan = Keep | Forget | Occur | Advance | Taken | Spent  # stored in the same transaction as the saves

# ---- acts -----------------------------------------------------------------------------------------------------------


class Accept(msgspec.Struct, gc=False):
    """Tell the client that its tasks are stored.

    known: of the ids, those that others had made, and that have the unique keys of its tasks; taken: the positions of tasks that
    are not stored (id 0), and who has their keys; depends: what is stored all or none with its tasks (None: these alone);
    replaced: those that are cancelled because its tasks take their keys.
    """

    client: int
    seq: int
    ids: list[int]
    known: list[int] = []
    taken: list[tuple[int, int]] = []
    depends: list[int] | None = None
    replaced: list[int] = []

    @property
    def together(self) -> list[int]:
        """Return the tasks of this turn that are stored all or none."""
        return self.ids if self.depends is None else self.depends


class Respond(msgspec.Struct, gc=False):
    """Tell the client what a cancel or retry did."""

    client: int
    seq: int
    ids: list[int]
    refused: list[int]


class Agree(msgspec.Struct, gc=False):
    """Tell the client what became of its request. code: of an error, or ""; ids: the tasks that it made or changed."""

    client: int
    seq: int
    ids: list[int]
    code: str = ""
    message: str = ""
    hint: str = ""


class CancelLive(msgspec.Struct, gc=False):
    """Deliver a CancelAsked for these tasks, with the rows that memory lacks."""

    ids: list[int]
    reason: str


class TakeBack(msgspec.Struct, gc=False):
    """Ask the engine which tasks above n the worker has not begun, and forbid it to begin them.

    running_ns: only if its body has run for so long at least; a worker that gets on, unheard as yet, is left alone.
    """

    worker: int
    above: int
    running_ns: int = 0


class Signal(msgspec.Struct, gc=False):
    """Raise Cancelled in task n of the worker; kill after grace_s. why becomes WorkerDied.why then."""

    worker: int
    n: int
    grace_s: float
    why: str = "cancel"


class Tell(msgspec.Struct, gc=False):
    """Tell a client something about the attempt that it runs as that worker: what, in a word of `core.callers`."""

    client: int
    worker: int
    what: str


class Kill(msgspec.Struct, gc=False):
    """Kill the worker and its tree, if it still runs n (0: whatever it does). why becomes WorkerDied.why."""

    worker: int
    n: int
    why: str


class Spawn(msgspec.Struct, gc=False):
    """Start a worker under that id."""

    worker: int


class Refill(msgspec.Struct, gc=False):
    """Read up to n waiting rows of a line after that place in its order (None: from its start). key: only those that have it."""

    queue: str | None
    after: tuple[int, int, int] | None
    n: int
    key: str | None = None


class Halted(msgspec.Struct, gc=False):
    """Nothing runs any more after a StopAsked, or nothing can (reason): the shell ends."""

    reason: str = ""


Act = Accept | Respond | Agree | CancelLive | TakeBack | Signal | Tell | Kill | Spawn | Refill | Halted
Command = Save | Plan | Act
