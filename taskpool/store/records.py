"""Rows of the store as the rest of the house knows them: column lists, and functions from one tuple to one Struct."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from taskpool.core.commands import Extras
from taskpool.core.events import TaskRow
from taskpool.core.graph import HELD_AT
from taskpool.core.retry import max_attempts
from taskpool.core.waiting import PARENTS
from taskpool.errors import BatchConflict
from taskpool.model import (
    Attempt,
    Codec,
    Occurrence,
    Options,
    Progress,
    Queue,
    QueueState,
    Schedule,
    Status,
    Task,
    TaskError,
    TaskSpec,
)
from taskpool.wire.messages import Outcome


class Detail(msgspec.Struct, array_like=True):
    """What an attempt's row packs: NULL for a plain success."""

    error: TaskError | None = None
    stack: str = ""
    output: str = ""


class BatchItem(msgspec.Struct, gc=False):
    """A stored item of a batch: enough to attach to it, to give it a new round, or to see that it is other work."""

    item: int
    id: int
    name: str
    status: str
    codec: int
    payload: bytes
    row: TaskRow

    def check_same(self, spec: TaskSpec) -> None:
        """Raise BatchConflict if this item was stored for another handler or, where inputs are comparable, another input.

        Only msgpack is: the same arguments may pickle to other bytes in another process.
        """
        if self.name != spec.name:
            what = f"handler {self.name}, now it is {spec.name}"
        elif self.codec == spec.codec == Codec.MSGPACK and self.payload != spec.payload:
            what = "other arguments"
        else:
            return
        raise BatchConflict(
            f"item {self.item} of batch {spec.batch!r} was stored with {what}", hint="fresh=True starts the batch anew"
        )


_NO_OPTIONS: Final = Options()
_options_decoder = msgspec.msgpack.Decoder(Options)
_decode_extras: Callable[[bytes], Extras] = msgspec.msgpack.Decoder(Extras).decode
_decode_error: Callable[[bytes], TaskError] = msgspec.msgpack.Decoder(TaskError).decode
_decode_detail: Callable[[bytes], Detail] = msgspec.msgpack.Decoder(Detail).decode
_decode_queue: Callable[[bytes], Queue] = msgspec.msgpack.Decoder(Queue).decode
_NO_EXTRAS: Final = Extras()


@lru_cache(maxsize=1024)
def options(packed: bytes) -> Options:
    """Return Options from their bytes; the tasks of one call share both."""
    return _options_decoder.decode(packed) if packed else _NO_OPTIONS


def error(packed: bytes | None) -> TaskError | None:
    """Return a stored TaskError."""
    return None if packed is None else _decode_error(packed)


# A payload lies in its row, or beside it.
PAYLOAD: Final = "COALESCE(payload, (SELECT data FROM payload WHERE payload.id = task.id))"

ROW: Final = (
    "task.id, name, queue, rank, status, version, attempt, charged, scheduled_at, created_at, options, started_at, extras, error, "
    "CASE status WHEN 'running' THEN worker END, task.key, task.unique_key"
)


def task_row(row: Any) -> TaskRow:
    """Return what the scheduler needs from a row of ROW."""
    extras = _NO_EXTRAS if row[12] is None else _decode_extras(row[12])
    return TaskRow(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        row[6],
        row[7],
        row[8],
        row[9],
        options(row[10]),
        row[11],
        extras.round,
        extras.crashes,
        extras.interruptions,
        extras.snoozes,
        extras.cancel_requested_at,
        extras.cancel_reason,
        error(row[13]),
        row[14] or 0,
        begun=extras.begun,
        key=row[15],
        unique=row[16],
        upstream=extras.upstream,
    )


def queue_state(name: str, row: Any, counts: Mapping[str, int]) -> QueueState:
    """Return a queue from its row (config, paused), None if it has none, and its counts."""
    config, paused = row or (None, 0)
    found = Queue(name) if config is None else _decode_queue(config)
    return QueueState(name, found, config is not None, bool(paused), dict(counts))


_TASK: Final = (
    "task.id, uid, name, queue, rank, status, version, attempt, charged, scheduled_at, created_at, started_at, finished_at, "
    "worker, epoch, batch, item, codec, {}, result_codec, options, extras, error, {}, "
    "progress.done, progress.total, progress.text, progress.at, step.flow_id, step.label, step.held, step.parents, "
    "task.key, task.unique_key"
)
TASK: Final = _TASK.format(PAYLOAD, "result")
LISTED: Final = _TASK.format("x''", "NULL")  # without the values, each of which may be megabytes
JOINED: Final = "LEFT JOIN progress ON progress.task_id = task.id LEFT JOIN step ON step.task_id = task.id"
TASK_FROM: Final = f"task {JOINED}"


def task(row: Any) -> Task:
    """Return the whole record, for people and programs, from a row of TASK or LISTED."""
    opts = options(row[20])
    extras = _NO_EXTRAS if row[21] is None else _decode_extras(row[21])
    status = Status(row[5])
    return Task(
        id=row[0],
        uid=uid_text(row[1]),
        name=row[2],
        queue=row[3],
        priority=-row[4],
        status=status,
        version=row[6],
        attempt=row[7],
        charged=row[8],
        max_attempts=max_attempts(opts),
        round=extras.round,
        crashes=extras.crashes,
        interruptions=extras.interruptions,
        snoozes=extras.snoozes,
        options=opts,
        codec=Codec(row[17]),
        payload=row[18],
        result_codec=Codec.PICKLE if row[19] is None else Codec(row[19]),
        result=row[23],
        wait_reason=PARENTS if row[30] and status is Status.PENDING else None,
        scheduled_at=row[10] if row[30] or row[9] == HELD_AT else row[9],  # that of a task that waits for its parents is ours
        created_at=row[10],
        started_at=row[11],
        finished_at=row[12],
        cancel_requested_at=extras.cancel_requested_at,
        updated_at=max(row[10], row[11] or 0, row[12] or 0, extras.cancel_requested_at or 0),
        progress=None if row[24] is None else Progress(row[24], row[25], row[26], row[27]),
        error=error(row[22]),
        finish_reason=extras.finish_reason,
        worker_id=row[13],
        epoch=row[14] or 0,
        batch=row[15],
        item=row[16],
        recurrence=opts.recurrence or None,
        dag_id=row[28],
        step_id=row[29] or "",
        parents=tuple(parent for parent, _, _ in msgspec.json.decode(row[31])) if row[31] else (),
        key=row[32],
        unique=row[33],
    )


def listed(row: Any) -> Task:
    """Return a task from a row of LISTED, its error without the pickled exception."""
    found = task(row)
    if found.error is None or found.error.exception is None:
        return found
    return msgspec.structs.replace(found, error=msgspec.structs.replace(found.error, exception=None))


def uid_text(uid: bytes) -> str:
    """Return a uid as people write it."""
    import uuid

    return str(uuid.UUID(bytes=uid)) if len(uid) == 16 else uid.hex()


ATTEMPT: Final = (
    "task_id, attempt, worker, pid, started_at, finished_at, outcome, duration_ns, cpu_user_us, cpu_system_us, peak_rss_kib, detail"
)


def attempt(row: Any) -> Attempt:
    """Return an attempt from a row of ATTEMPT."""
    detail = Detail() if row[11] is None else _decode_detail(row[11])
    return Attempt(
        task_id=row[0],
        attempt=row[1],
        worker_id=row[2],
        pid=row[3],
        started_at=row[4],
        finished_at=row[5],
        outcome=row[6],
        duration_s=row[7] / 1e9,
        cpu_user_s=row[8] / 1e6,
        cpu_system_s=row[9] / 1e6,
        peak_rss_bytes=row[10] * 1024,
        error=detail.error,
        exit_code=detail.error.exit_code if detail.error else None,
        signal=detail.error.signal if detail.error else None,
        stack=detail.stack,
        output=detail.output,
    )


SCHEDULE: Final = "definition, paused, next_at, total, err_count"
OCCURRENCE: Final = "schedule, planned_at, outcome, reason, task_id, at"
_decode_schedule: Callable[[bytes], Schedule] = msgspec.msgpack.Decoder(Schedule).decode


def schedule(row: Any) -> Schedule:
    """Return a schedule from a row of SCHEDULE."""
    kept = _decode_schedule(row[0])
    return msgspec.structs.replace(kept, paused=bool(row[1]), next_at=row[2], total=row[3], err_count=row[4])


def occurrence(row: Any) -> Occurrence:
    """Return an occurrence from a row of OCCURRENCE."""
    return Occurrence(*row)


OUTCOME: Final = "task.id, status, attempt, result_codec, result, error, finished_at"


def outcome(row: Any) -> Outcome:
    """Return how a task ended from a row of OUTCOME."""
    return Outcome(row[0], row[1], row[2], row[3] if row[3] is not None else 1, row[4], error(row[5]), row[6])
