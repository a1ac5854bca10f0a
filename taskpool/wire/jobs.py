"""What travels between a supervisor and its workers: batches of jobs (over a socketpair), and the records in the ring of a page.

Tagged msgspec Structs, new fields last and with defaults.
"""

from __future__ import annotations

import msgspec

from taskpool.model import Progress, Seconds, TaskError, TaskSpec, Whole
from taskpool.wire.effects import Effect

# ---- supervisor → worker ------------------------------------------------------------------------------------------


class Input(msgspec.Struct, array_like=True, gc=False):
    """The result of a task that another takes as an argument. name: of its handler; value: encoded by codec."""

    id: int
    name: str
    status: str
    codec: int
    value: bytes | None


class Job(msgspec.Struct, array_like=True, gc=False):
    """One attempt to run. n: the worker's own sequence number; options: packed Options; timeouts are the supervisor's affair."""

    n: int
    task_id: int
    attempt: int
    name: str
    codec: int
    payload: bytes
    options: bytes = b""
    checkpoint: bytes | None = None
    inputs: list[Input] | None = None


class ChildAnswered(msgspec.Struct, tag=True):
    """Answer to ChildAsked: the task is durable under that id, or (id 0) refused, with the code of a TaskpoolError."""

    seq: int
    id: int = 0
    code: str = ""
    message: str = ""
    hint: str = ""


# ---- worker → supervisor: records of the ring -----------------------------------------------------------------------

OK, ERROR, SNOOZED, CANCELLED, SOFT_TIMEOUT = range(5)  # outcomes of a body


class Report(msgspec.Struct, array_like=True, tag=0, gc=False):
    """How a body ended. *_ns monotonic; value encoded by codec; output_end: bytes written to the worker's output stream so far."""

    n: Whole
    task_id: Whole
    attempt: Whole
    outcome: Whole
    began_ns: Whole
    duration_ns: Whole
    cpu_user_us: Whole = 0
    cpu_system_us: Whole = 0
    peak_rss_kib: Whole = 0
    output_end: Whole = 0
    codec: Whole = 1
    value: bytes | None = None
    error: TaskError | None = None
    snooze_s: Seconds = 0.0
    progress: Progress | None = None
    dirty: bool = False  # the worker cannot be trusted with another task (threads, descriptors, …): retire it
    effects: list[Effect] | None = None  # of a success
    children: list[TaskSpec] | None = None  # that are stored with a success


class Skipped(msgspec.Struct, array_like=True, tag=1, gc=False):
    """The worker passed over task n because it had been taken back."""

    n: Whole


class Checkpointed(msgspec.Struct, array_like=True, tag=2, gc=False):
    """A running body saved its state; the latest is given to the next attempt."""

    n: Whole
    task_id: Whole
    attempt: Whole
    data: bytes


class Spilled(msgspec.Struct, array_like=True, tag=3, gc=False):
    """A record too big for the ring: its bytes are in that file of the run directory."""

    name: str
    size: int


class ChildAsked(msgspec.Struct, array_like=True, tag=4, gc=False):
    """A running body wants a task stored now, and waits. seq: comes with the answer."""

    n: Whole
    task_id: Whole
    attempt: Whole
    seq: Whole
    spec: TaskSpec


Record = Report | Skipped | Checkpointed | Spilled | ChildAsked

encoder = msgspec.msgpack.Encoder()
jobs_decoder = msgspec.msgpack.Decoder(list[Job] | ChildAnswered)
record_decoder = msgspec.msgpack.Decoder(Record)
