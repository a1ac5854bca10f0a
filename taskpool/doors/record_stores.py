"""Two keepers of records: a store that nobody else owns (a file, or memory), and one that a live supervisor owns."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from taskpool.clock import Instant
from taskpool.core import amend, settle
from taskpool.core.commands import Insert, Move, Save
from taskpool.core.events import TaskRow, UpdateAsked
from taskpool.core.lifecycle import MOVES, PENDING, QUEUED, RETRYING, WAITING
from taskpool.doors import held
from taskpool.doors.putting import specs_of
from taskpool.errors import AlreadyExists, IllegalTransition, InvalidTask, StaleVersion
from taskpool.model import Filter, Options, Status, Task, TaskError
from taskpool.records import Record, State, options_of, record_of, uid_of
from taskpool.retention import ENDED
from taskpool.store.pruning import Walk, by_hand
from taskpool.store.store import Store as OwnedStore

if TYPE_CHECKING:
    from taskpool.doors.client import Client

NEVER = 2**63 - 1  # wall µs: later than every task


class RecordStore:
    """Records in a store that this process owns: a file, or (path None) memory. A context manager; it runs nothing.

    A pool that is opened on the file afterwards runs what waits in it. Raises StoreLocked while somebody else owns it, StoreError.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._directory: str | None = None
        if path is None:
            from tempfile import mkdtemp

            self._directory = mkdtemp(prefix="taskpool-")
            self._store = OwnedStore.open(os.path.join(self._directory, "records.db"), durability="process", memory=True)
        else:
            self._store = OwnedStore.open(path)

    def put_all(self, *records: Record) -> None:
        """Store new records, all or none. AlreadyExists, InvalidTask, InvalidPayload."""
        specs = specs_of(records)
        now, first = _now().wall, self._store.next_id()
        saves: list[Save] = []
        for task_id, spec in enumerate(specs, first):
            status = PENDING if spec.scheduled_at > now else QUEUED
            saves.append(Insert(task_id, spec, status, spec.scheduled_at or now, now))
        ids = list(range(first, first + len(specs)))
        if self._store.commit(saves, together=[ids]):
            raise AlreadyExists("a record with one of these task_ids is stored already", hint="nothing was stored")
        for record, task_id in zip(records, ids, strict=True):
            record_of(self._store.task(task_id)).copy_to(record)

    def get(self, task_id: str, /) -> Record:
        """Return a record. NotFound."""
        return record_of(self._store.task(self._store.id_of(uid_of(task_id))))

    def update(self, record: Record, /) -> None:
        """Write what is mutable of a record that waits. StaleVersion, NotFound, IllegalTransition, InvalidTask."""
        row = self._row(record.task_id)
        stored = self._store.task(row.id)
        _check_mutable(record, stored)
        options: Options | None = options_of(record, row.options)
        at, held = record.next_attempt_at, self._held(row)
        if held and (options, at) == (row.options, record_of(stored).next_attempt_at):
            options = at = None  # only what is changed can be refused: of a task that waits for its parents all but the priority
        asked = UpdateAsked(0, 0, row.id, record.version, row, record.priority, at, options, held)
        if self._store.commit([_amended(row, asked, _now())]):
            raise StaleVersion(f"task {row.id} was written meanwhile", hint="read it again")
        self.get(record.task_id).copy_to(record)

    def update_status(self, task_id: str, status: str, /) -> Record:
        """Move a record by hand: to cancelled, queued (due now), pending (another round). IllegalTransition, NotFound."""
        row, now = self._row(task_id), _now()
        check_by_hand(row.id, row.status, str(status))
        if status == Status.CANCELLED:
            error = TaskError("cancelled", "cancelled by hand", False)
            save = settle.move(row, str(status), now, error=error, finish_reason="user")
        elif row.status in WAITING:
            save = _amended(row, UpdateAsked(0, 0, row.id, row.version, row, scheduled_at=now.wall, held=self._held(row)), now)
        else:
            save = settle.new_round(row, now)
        if self._store.commit([save]):
            raise StaleVersion(f"task {row.id} was written meanwhile", hint="read it again")
        return self.get(task_id)

    # After all that return a list: below, its name hides the builtin's from annotations.
    def ready(
        self, state: State, as_of: int, /, *, after: Record | None = None, limit: int = 100, descending: bool = False
    ) -> Sequence[Record]:
        """Return records in a state whose time has come at `as_of` (wall µs), by that time."""
        place = None if after is None else (after.next_attempt_at or 0, after.id)
        return self._whole(self._store.ready(state.statuses, as_of, place, limit, descending=descending))

    def find_due(self, now: int, limit: int = 100, /) -> Sequence[Record]:
        """Return records that wait and are due, the earliest first."""
        return self._whole(self._store.ready(sorted(WAITING), now, None, limit))

    def find_queued_for_key(self, key: str, /) -> Record | None:
        """Return the earliest queued record of a serialization key, None if there is none."""
        return next(iter(self._whole(self._store.ready([QUEUED], NEVER, None, 1, key=key))), None)

    def count(self, state: State, /) -> int:
        """Return how many records are in a state."""
        counts = self._store.counts()
        return sum(counts.get(status, 0) for status in state.statuses)

    def mark_interrupted(self) -> int:
        """Settle what the last owner had running, by each one's on_interrupt. Return how many."""
        rows, now = self._store.running(), _now()
        self._store.commit([settle.rescued(row, now) for row in rows])
        return len(rows)

    def prune(self, older: float, statuses: Sequence[str] = ENDED, /) -> int:
        """Delete records that ended so, longer than so many seconds ago; return how many. InvalidTask, InvalidSettings."""
        walk = Walk(by_hand(older, statuses, _now().wall))
        while not walk.done:
            self._store.prune(walk)
        return walk.gone.total()

    def list(self, wanted: Filter | None = None, /, *, limit: int = 100, offset: int = 0) -> Sequence[Record]:
        """Return records that match, newest first."""
        return self._whole(self._store.tasks(wanted, limit, None, offset))

    def close(self) -> None:
        """Let go of the store. Safe to call twice."""
        self._store.close()
        if self._directory is not None:
            from shutil import rmtree

            rmtree(self._directory, ignore_errors=True)

    def _row(self, task_id: str) -> TaskRow:
        return self._store.rows([self._store.id_of(uid_of(task_id))])[0]

    def _held(self, row: TaskRow) -> bool:
        return self._store.is_held(row.id)

    def _whole(self, tasks: Sequence[Task]) -> Sequence[Record]:
        """Listings leave payloads out."""
        return [record_of(self._store.task(task.id)) for task in tasks]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class PoolStore:
    """The records of a live pool, written by its supervisor, which also runs them."""

    def __init__(self, pool: Client) -> None:
        self._pool = pool

    def put_all(self, *records: Record) -> None:
        """Store new records, all or none. AlreadyExists, InvalidTask, InvalidPayload."""
        from taskpool.doors.future import TaskFuture
        from taskpool.doors.outbox import Bundle

        link = self._pool._link
        held.check(link.welcome.store)
        bundle = Bundle(link)  # one message: the supervisor stores all of it or nothing
        futures: list[TaskFuture[object]] = []
        for spec in specs_of(records):
            futures.append(TaskFuture(bundle, spec.uid))
            bundle.tasks.append((spec, futures[-1]))
        if not records:
            return
        link.send(bundle)
        bundle.wait()
        for future in futures:
            if not future._id and future._exception is not None:
                raise future._exception
        for record, future in zip(records, futures, strict=True):
            record_of(self._pool.get(future.id)).copy_to(record)

    def get(self, task_id: str, /) -> Record:
        """Return a record. NotFound."""
        return record_of(self._pool.get(task_id))

    def update(self, record: Record, /) -> None:
        """Write what is mutable of a record that waits. StaleVersion, NotFound, IllegalTransition, InvalidTask."""
        import msgspec

        task = self._pool.get(record.task_id)
        _check_mutable(record, task)
        changed = msgspec.structs.replace(
            task,
            version=record.version,
            priority=record.priority,
            scheduled_at=task.scheduled_at if record.next_attempt_at is None else record.next_attempt_at,
            options=options_of(record, task.options),
        )
        record_of(self._pool.update(changed)).copy_to(record)

    def update_status(self, task_id: str, status: str, /) -> Record:
        """Move a record by hand: to cancelled, queued (due now), pending (another round). IllegalTransition, NotFound."""
        task = self._pool.get(task_id)
        check_by_hand(task.id, task.status, str(status))
        return record_of(self._pool.update_status(task.id, status))

    def ready(
        self, state: State, as_of: int, /, *, after: Record | None = None, limit: int = 100, descending: bool = False
    ) -> Sequence[Record]:
        """Return records in a state whose time has come at `as_of` (wall µs), by that time."""
        place = None if after is None else (after.next_attempt_at or 0, after.id)
        return self._whole(self._pool._ready(state.statuses, as_of, place, limit, descending))

    def find_due(self, now: int, limit: int = 100, /) -> Sequence[Record]:
        """Return records that wait and are due, the earliest first."""
        return self._whole(self._pool._ready(sorted(WAITING), now, None, limit))

    def find_queued_for_key(self, key: str, /) -> Record | None:
        """Return the earliest queued record of a serialization key, None if there is none."""
        return next(iter(self._whole(self._pool._ready([QUEUED], NEVER, None, 1, key=key))), None)

    def count(self, state: State, /) -> int:
        """Return how many records are in a state."""
        counts = self._pool.stats().counts
        return sum(counts.get(status, 0) for status in state.statuses)

    def mark_interrupted(self) -> int:
        """Return 0: the supervisor did it when it began."""
        return 0

    def prune(self, older: float, statuses: Sequence[str] = ENDED, /) -> int:
        """Delete records that ended so, longer than so many seconds ago; return how many. InvalidTask, InvalidSettings."""
        return sum(self._pool.prune(older, statuses=statuses).values())

    def list(self, wanted: Filter | None = None, /, *, limit: int = 100, offset: int = 0) -> Sequence[Record]:
        """Return records that match, newest first."""
        return self._whole(self._pool.list(wanted, limit=limit, offset=offset))

    def _whole(self, tasks: Sequence[Task]) -> Sequence[Record]:
        """Listings leave payloads out."""
        return [record_of(self._pool.get(task.id)) for task in tasks]


def check_by_hand(task_id: int, before: str, after: str) -> None:
    """Raise IllegalTransition, or InvalidTask for what is no status, unless people may move a task so."""
    if after not in MOVES or not after:
        raise InvalidTask(f"there is no status {after!r}", hint=f"there are {', '.join(status for status in MOVES if status)}")
    another_round = after == PENDING and before not in WAITING
    hastened = after == QUEUED and before in (PENDING, RETRYING)
    if after not in MOVES[before] or before == "succeeded" or not (after == "cancelled" or hastened or another_round):
        raise IllegalTransition(f"record {task_id} cannot be moved from {before} to {after} by hand")


def _amended(row: TaskRow, asked: UpdateAsked, now: Instant) -> Move:
    """Return the write that changes a waiting record, by the rules of the supervisor. Raises what it would refuse it with."""
    error = amend.refusal(row, asked, None)
    if error is not None:
        raise error
    return amend.amended(row, asked, now)


def _check_mutable(record: Record, stored: Task) -> None:
    """Refuse a record that says of itself what only attempts can make true."""
    record.validate()
    was = record_of(stored)
    if record.version == was.version and (record.status, record.failed_attempts) != (was.status, was.failed_attempts):
        raise IllegalTransition("status and failed_attempts are what attempts make them", hint="update_status moves by hand")


def _now() -> Instant:
    return Instant(time.time_ns() // 1000, time.monotonic_ns())
