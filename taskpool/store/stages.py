"""From the saves of a turn to lists of parameters: a turn's fixed costs are per statement, so rows of one kind go in together.

A stage holds each task at most once, so the order of the statements inside it does not matter; a task that is touched again
begins the next stage. An Insert that is followed by a Start or Move of the same task joins it: one row, written once. All moves
are checked against the table of legal ones before anything is written. Pure: no connection here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

import msgspec

from taskpool.core.commands import Checkpoint, End, Extras, Insert, Move, Save, Start
from taskpool.core.lifecycle import FAILED, MOVES, PENDING, QUEUED, RETRYING, RUNNING, SUCCEEDED, TERMINAL, check
from taskpool.model import TaskError
from taskpool.store.records import Detail, options

PAYLOAD_INLINE_MAX: Final = 1024  # bytes; a longer payload would be rewritten with its row at each start and end

# The statements of a stage. Inserts are written first, then updates, which must change exactly as many rows as they are given.
INSERT_WAITING: Final = (
    "INSERT INTO task(id, uid, name, queue, rank, status, version, scheduled_at, created_at, batch, item, key, unique_key, codec, "
    "options, payload) VALUES(?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_RUNNING: Final = (
    "INSERT INTO task(id, uid, name, queue, rank, status, version, scheduled_at, created_at, batch, item, key, unique_key, codec, "
    "options, payload, attempt, worker, epoch, started_at) "
    "VALUES(?, ?, ?, ?, ?, 'running', 2, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
INSERT_MOVED: Final = (
    "INSERT INTO task(id, uid, name, queue, rank, status, version, scheduled_at, created_at, batch, item, key, unique_key, codec, "
    "options, payload, charged, extras, error, finished_at) VALUES(?, ?, ?, ?, ?, ?, 2, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
START: Final = (
    "UPDATE task SET status = 'running', version = version + 1, attempt = ?, worker = ?, epoch = ?, started_at = ? "
    "WHERE version = ? AND status = ? AND id = ?"
)
START_FREED: Final = (  # of what waited for its parents
    "UPDATE task SET status = 'running', version = version + 1, attempt = ?, worker = ?, epoch = ?, started_at = ?, "
    "scheduled_at = ? WHERE version = ? AND status = ? AND id = ?"
)
SUCCEED: Final = (
    "UPDATE task SET status = 'succeeded', version = version + 1, charged = ?, finished_at = ?, result_codec = ?, result = ?, "
    "error = NULL WHERE version = ? AND status = 'running' AND attempt = ? AND id = ?"
)
END: Final = (
    "UPDATE task SET status = ?, version = version + 1, charged = ?, finished_at = ?, scheduled_at = COALESCE(?, scheduled_at), "
    "extras = COALESCE(?, extras), error = COALESCE(?, error) WHERE id = ? AND version = ? AND status = 'running' AND attempt = ?"
)
MARK: Final = "UPDATE task SET extras = ? WHERE id = ?"  # the extras of a success: rare, and asserted by the SUCCEED before it
MOVE: Final = (
    "UPDATE task SET status = ?, version = version + 1, charged = COALESCE(?, charged), finished_at = ?, "
    "scheduled_at = COALESCE(?, scheduled_at), extras = COALESCE(?, extras), error = COALESCE(?, error) "
    "WHERE id = ? AND version = ? AND status = ?"
)
QUEUE: Final = (  # nothing else changes: what became due, or need not wait for its parents any longer
    "UPDATE task SET status = 'queued', version = version + 1, scheduled_at = COALESCE(?, scheduled_at) "
    "WHERE version = ? AND status = ? AND id = ?"
)
RENEW: Final = (
    "UPDATE task SET status = ?, version = version + 1, charged = COALESCE(?, charged), finished_at = NULL, "
    "scheduled_at = COALESCE(?, scheduled_at), extras = COALESCE(?, extras), error = NULL, result = NULL, result_codec = NULL "
    "WHERE id = ? AND version = ? AND status = ?"
)
UPDATES: Final = (START, START_FREED, SUCCEED, END, MOVE, QUEUE, RENEW)
# Rows that differ in nothing but the id, which stands last, can be updated by one execution; from so many on that is cheaper
# (µs a row, of 64 rows: START 3.2 so 2.4, SUCCEED 3.1 so 1.4).
ALIKE_MIN: Final = {START: 32, START_FREED: 32, SUCCEED: 8, QUEUE: 8}

PAYLOAD: Final = "INSERT INTO payload(id, data) VALUES(?, ?)"
ATTEMPT: Final = (
    "INSERT INTO attempt(task_id, attempt, worker, pid, started_at, finished_at, outcome, duration_ns, cpu_user_us, cpu_system_us, "
    "peak_rss_kib, detail) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# A state saved by an attempt that is over changes nothing, and is nobody's error.
CHECKPOINT: Final = (
    "INSERT INTO checkpoint(task_id, attempt, data) "
    "SELECT id, attempt, ? FROM task WHERE id = ? AND attempt = ? AND status = 'running' "
    "ON CONFLICT(task_id) DO UPDATE SET attempt = excluded.attempt, data = excluded.data"
)
FORGET: Final = "DELETE FROM checkpoint WHERE task_id = ?"
PROGRESS: Final = (
    "INSERT INTO progress(task_id, done, total, text, at) VALUES(?, ?, ?, ?, ?) "
    "ON CONFLICT(task_id) DO UPDATE SET done = excluded.done, total = excluded.total, text = excluded.text, at = excluded.at"
)
REPLY: Final = (  # after the statement that ends the task, of which it is a copy
    "INSERT INTO reply(mailbox, task_id, name, status, attempts, codec, completed_at, error, result) "
    "SELECT ?, id, name, status, attempt, COALESCE(result_codec, 1), finished_at, error, result FROM task WHERE id = ?"
)
RETAIN: Final = "INSERT INTO retain(task_id, seconds) VALUES(?, ?) ON CONFLICT(task_id) DO UPDATE SET seconds = excluded.seconds"
RETAIN_AS_ALL: Final = "DELETE FROM retain WHERE task_id = ?"
_RETENTION: Final = b"retention_s"  # found in packed options that say it, and seldom in others
# Schedules. An occurrence that was queued becomes one that fired, or none; any other must be the first of its planned time.
KEEP: Final = (
    "INSERT INTO schedule(name, spec, tz, paused, next_at, total, err_count, definition) VALUES(?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(name) DO UPDATE SET spec = excluded.spec, tz = excluded.tz, paused = excluded.paused, "
    "next_at = excluded.next_at, total = excluded.total, err_count = excluded.err_count, definition = excluded.definition"
)
OCCUR: Final = (
    "INSERT INTO occurrence(schedule, planned_at, outcome, reason, task_id, at) VALUES(?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(schedule, planned_at) DO UPDATE SET outcome = excluded.outcome, reason = excluded.reason, "
    "task_id = excluded.task_id, at = excluded.at WHERE occurrence.outcome = 'queued'"
)
# The period of a unique key begins anew with each task that takes it; those that are over go with the next.
PERIOD: Final = (
    "INSERT INTO unique_period(unique_key, until, task_id) VALUES(?, ?, ?) "
    "ON CONFLICT(unique_key) DO UPDATE SET until = excluded.until, task_id = excluded.task_id"
)
PERIODS_OVER: Final = "DELETE FROM unique_period WHERE until <= ?"
TAKE: Final = "DELETE FROM inbox WHERE seq = ?"
ADVANCE: Final = "UPDATE schedule SET next_at = ?, total = ?, err_count = ? WHERE name = ?"
SPENT: Final = "UPDATE queue SET full_at = ? WHERE name = ?"
FORGET_OCCURRENCES: Final = "DELETE FROM occurrence WHERE schedule = ?"
FORGET_SCHEDULE: Final = "DELETE FROM schedule WHERE name = ?"

# Asserted by the MOVE before it.
AMEND: Final = "UPDATE task SET rank = COALESCE(?, rank), options = COALESCE(?, options) WHERE id = ?"
INSERTS: Final = (INSERT_WAITING, INSERT_RUNNING, INSERT_MOVED, PAYLOAD, ATTEMPT)
OTHERS: Final = (CHECKPOINT, MARK, AMEND, PROGRESS, FORGET, REPLY, RETAIN, RETAIN_AS_ALL, PERIODS_OVER, PERIOD)


@cache
def for_many(statement: str) -> str:
    """Return an UPDATE of ALIKE_MIN for a JSON list of ids in place of one."""
    return statement.removesuffix("= ?") + "IN (SELECT value FROM json_each(?))"


_pack = msgspec.msgpack.Encoder().encode


class Stage:
    """Parameter lists of one round of statements: tasks appear at most once in it (a checkpoint of a task counts)."""

    __slots__ = ("attempts", "changes", "freed", "held", "ids", "params", "places", "queues")

    def __init__(self) -> None:
        self.ids: set[int] = set()
        self.params: dict[str, list[tuple[Any, ...]]] = {}  # statement → its rows
        self.changes: dict[tuple[str, str], list[int]] = {}  # (from, to) → tasks; from "" is a new one
        self.queues: dict[int, str] = {}  # of the new tasks
        self.attempts: dict[int, int] = {}  # of changes: 1 where something runs, else 0, unless it is said here
        self.places: list[Insert] = []  # new tasks that have one
        self.held: list[int] = []  # tasks that wait for their parents from now on …
        self.freed: list[int] = []  # … and that need not any longer

    def add(self, statement: str, row: tuple[Any, ...]) -> None:
        """Add one row to a statement."""
        rows = self.params.get(statement)
        if rows is None:
            self.params[statement] = [row]
        else:
            rows.append(row)

    def has_failures(self) -> bool:
        """Return whether a task fails in this stage."""
        return any(after == FAILED for _, after in self.changes)

    def change(self, task_id: int, before: str, after: str) -> None:
        """Note a change of status, for the tally."""
        key = (before, after)
        ids = self.changes.get(key)
        if ids is None:
            self.changes[key] = [task_id]
        else:
            ids.append(task_id)


class Grouping:
    """Builds the stages of one turn."""

    def __init__(self, epoch: int, saved: set[int]) -> None:
        """Take the epoch that starts are recorded under and the tasks that have a checkpoint stored (never changed here)."""
        self._epoch = epoch
        self._saved = saved
        self._states: dict[int, Checkpoint] = {}  # of this stage: the latest of each task wins
        self.saving: set[int] = set()  # tasks whose state these stages store
        self._fresh: dict[int, Insert] = {}  # inserts of this stage that nothing has joined yet
        self._stage = Stage()
        self.stages = [self._stage]

    def group(self, saves: Iterable[Save]) -> list[Stage]:
        """Return the stages of the saves, in order. Raises IllegalTransition, which only a bug of the scheduler can cause."""
        stage = self._stage
        for save in saves:
            kind = type(save)
            task_id = save.id
            if task_id in stage.ids:
                if kind is Checkpoint and task_id in self._states:
                    self._states[task_id] = save  # type: ignore[assignment]
                    continue
                insert = self._fresh.pop(task_id, None)
                if insert is not None and self._join(insert, save):
                    continue
                if insert is not None:
                    self._fresh[task_id] = insert
                stage = self._next_stage()
            elif kind is Insert and save.after in stage.ids:  # type: ignore[union-attr]  # mypy does not narrow by `type(x) is`
                stage = self._next_stage()  # after the end of the one whose unique key it takes
            elif kind is Move and save.status in TERMINAL and stage.has_failures():  # type: ignore[union-attr]
                stage = self._next_stage()  # its flow goes on, whatever failed of it before; of a stage, failures count last
            stage.ids.add(task_id)
            if kind is End:
                self._end(stage, save)  # type: ignore[arg-type]
            elif kind is Start:
                self._start(stage, save)  # type: ignore[arg-type]
            elif kind is Insert:
                self._fresh[task_id] = save  # type: ignore[assignment]
            elif kind is Move:
                self._move(stage, save)  # type: ignore[arg-type]
            else:
                self._states[task_id] = save  # type: ignore[assignment]
        self._finish_stage()
        return self.stages

    def _next_stage(self) -> Stage:
        self._finish_stage()
        self._stage = Stage()
        self.stages.append(self._stage)
        return self._stage

    def _finish_stage(self) -> None:
        self._insert_fresh()
        for task_id, state in self._states.items():
            self._stage.add(CHECKPOINT, (state.data, task_id, state.attempt))
        self.saving.update(self._states)
        self._states = {}

    # ---- new tasks --------------------------------------------------------------------------------------------------

    def _insert_fresh(self) -> None:
        if not self._fresh:
            return
        stage = self._stage
        waiting = stage.params.setdefault(INSERT_WAITING, [])
        for save in self._fresh.values():
            status = save.status
            check(save.id, "", status)
            waiting.append(_columns(stage, save, status))
            stage.change(save.id, "", status)
        self._fresh = {}

    def _join(self, insert: Insert, save: Save) -> bool:
        """Write an insert together with the first change of its task, where one row can say both."""
        if type(save) is Start:
            if (save.version, save.status) != (1, insert.status):
                return False
            check(save.id, "", insert.status)
            check(save.id, insert.status, RUNNING)
            stage = self._stage
            row = _columns(stage, insert, None)
            stage.add(INSERT_RUNNING, (*row, save.attempt, save.worker, self._epoch, save.at))
            stage.change(save.id, "", RUNNING)
            if save.attempt != 1:
                stage.attempts[save.id] = save.attempt
            return True
        if type(save) is Move:
            if (save.version, save.status) != (1, insert.status):
                return False
            check(save.id, "", insert.status)
            _check_move(save)
            stage = self._stage
            if save.rank is not None or save.options is not None:
                return False
            if save.scheduled_at is not None:
                insert = msgspec.structs.replace(insert, scheduled_at=save.scheduled_at)
            ended = save.at if save.to in TERMINAL else None
            row = _columns(stage, insert, save.to)
            stage.add(INSERT_MOVED, (*row, save.charged or 0, _packed(save.extras), _packed(save.error), ended))
            stage.change(save.id, "", save.to)
            if save.reply_to:
                stage.add(REPLY, (save.reply_to, save.id))
            return True
        return False

    # ---- stored tasks -----------------------------------------------------------------------------------------------

    def _start(self, stage: Stage, save: Start) -> None:
        status = save.status
        if RUNNING not in MOVES[status]:
            check(save.id, status, RUNNING)
        if save.freed_at is None:
            stage.add(START, (save.attempt, save.worker, self._epoch, save.at, save.version, status, save.id))
        else:
            stage.add(START_FREED, (save.attempt, save.worker, self._epoch, save.at, save.freed_at, save.version, status, save.id))
            stage.freed.append(save.id)
        stage.change(save.id, status, RUNNING)
        if save.attempt != 1:
            stage.attempts[save.id] = save.attempt

    def _end(self, stage: Stage, save: End) -> None:
        task_id, to, closed, report = save.id, save.to, save.closed, save.report
        if to not in MOVES[RUNNING]:
            check(task_id, RUNNING, to)
        attempt = closed.attempt
        if to == SUCCEEDED:
            assert report is not None, f"task {task_id} succeeded without a report"
            stage.add(SUCCEED, (save.charged, save.at, report.codec, report.value, save.version, attempt, task_id))
            if save.extras is not None:
                stage.add(MARK, (_pack(save.extras), task_id))
            if task_id in self._saved or task_id in self.saving:
                stage.add(FORGET, (task_id,))
        else:
            ended = save.at if to in TERMINAL else None
            extras, error = _packed(save.extras), _packed(save.error)
            stage.add(END, (to, save.charged, ended, save.scheduled_at, extras, error, task_id, save.version, attempt))
        stage.change(task_id, RUNNING, to)
        if attempt != 1:
            stage.attempts[task_id] = attempt
        if save.reply_to:
            stage.add(REPLY, (save.reply_to, task_id))
        detail = None
        if closed.error is not None or closed.output or closed.stack:
            detail = _pack(Detail(closed.error, closed.stack, closed.output))
        stage.add(
            ATTEMPT,
            (
                task_id,
                attempt,
                closed.worker,
                closed.pid,
                closed.started_at,
                save.at,
                closed.outcome,
                closed.duration_ns,
                closed.cpu_user_us,
                closed.cpu_system_us,
                closed.peak_rss_kib,
                detail,
            ),
        )
        if report is not None and report.progress is not None:
            at = report.progress
            stage.add(PROGRESS, (task_id, at.done, at.total, at.text, at.at))

    def _move(self, stage: Stage, save: Move) -> None:
        _check_move(save)
        task_id, to = save.id, save.to
        if save.held:
            stage.held.append(task_id)
        elif save.held is not None and to not in TERMINAL:
            stage.freed.append(task_id)
        extras = _packed(save.extras)
        if save.clear_error:
            stage.add(RENEW, (to, save.charged, save.scheduled_at, extras, task_id, save.version, save.status))
        elif to == QUEUED and save.status in (PENDING, RETRYING) and extras is None and save.error is None:
            stage.add(QUEUE, (save.scheduled_at, save.version, save.status, task_id))
        else:
            ended = save.at if to in TERMINAL else None
            error = _packed(save.error)
            stage.add(MOVE, (to, save.charged, ended, save.scheduled_at, extras, error, task_id, save.version, save.status))
        if to != save.status:
            stage.change(task_id, save.status, to)
            if save.attempt:
                stage.attempts[task_id] = save.attempt
        if save.rank is not None or save.options is not None:
            stage.add(AMEND, (save.rank, save.options, task_id))
            if save.options is not None and not _retain(stage, task_id, save.options):
                stage.add(RETAIN_AS_ALL, (task_id,))
        if save.reply_to:
            stage.add(REPLY, (save.reply_to, task_id))


def _check_move(save: Move) -> None:
    """A move by the table, or a mark: a write that leaves a live task's status as it is."""
    if save.to == save.status and save.status not in TERMINAL:
        return
    check(save.id, save.status, save.to)


def _columns(stage: Stage, save: Insert, status: str | None) -> tuple[Any, ...]:
    """Return the first parameters of an insert; without a status where the statement says it."""
    spec = save.spec
    stage.queues[save.id] = spec.queue
    if save.place is not None:
        stage.places.append(save)
    if spec.options:
        _retain(stage, save.id, spec.options)
    payload: bytes | None = spec.payload
    if len(spec.payload) > PAYLOAD_INLINE_MAX:
        stage.add(PAYLOAD, (save.id, spec.payload))
        payload = None
    if save.until:
        stage.params[PERIODS_OVER] = [(save.created_at,)]
        stage.add(PERIOD, (spec.unique, save.until, save.id))
    if status is None:
        return (
            save.id,
            spec.uid,
            spec.name,
            spec.queue,
            -spec.priority,
            save.scheduled_at,
            save.created_at,
            spec.batch,
            spec.item,
            spec.key,
            spec.unique,
            int(spec.codec),
            spec.options,
            payload,
        )
    return (
        save.id,
        spec.uid,
        spec.name,
        spec.queue,
        -spec.priority,
        status,
        save.scheduled_at,
        save.created_at,
        spec.batch,
        spec.item,
        spec.key,
        spec.unique,
        int(spec.codec),
        spec.options,
        payload,
    )


def _retain(stage: Stage, task_id: int, packed: bytes) -> bool:
    """Note how long a task wants to be kept, if its options say so; return whether they do."""
    seconds = options(packed).retention_s if _RETENTION in packed else None
    if seconds is not None:
        stage.add(RETAIN, (task_id, seconds))
    return seconds is not None


def _packed(value: Extras | TaskError | None) -> bytes | None:
    return None if value is None else _pack(value)
