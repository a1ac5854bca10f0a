"""What can be asked of a store: the same verbs for its owner (`Store`) and for anybody else (`Reader`).

Each verb is one short read transaction, so a reader never keeps the log from being reset. Long results are asked for in pages: by
id, newest first, below `before`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.core import waiting
from taskpool.core.events import Holder, ScheduleRow, TaskRow
from taskpool.core.graph import HELD_AT
from taskpool.core.lifecycle import TERMINAL
from taskpool.errors import NotFound
from taskpool.model import Attempt, Codec, Explanation, Filter, FlowState, Occurrence, Queue, QueueState, Schedule, Task
from taskpool.store import graphs, queue_rows, records, replies, search, waits
from taskpool.store.children import ChildReading
from taskpool.store.conditions import in_our_words, in_words
from taskpool.store.connection import connect_reader, pragmas
from taskpool.store.places import Places
from taskpool.store.pruning import Rule, Walk
from taskpool.store.wanted import TASKS, WANTED, numbers
from taskpool.wire.jobs import Input
from taskpool.wire.messages import Outcome, Replied

LIVE: Final = "(status = 'running' OR status = 'queued' OR status = 'pending' OR status = 'retrying')"
_DELAYED: Final = "(status = 'pending' OR status = 'retrying')"
_QUEUES_WAITING: Final = (
    "WITH RECURSIVE waiting(queue) AS (SELECT MIN(queue) FROM task WHERE status = 'queued' UNION ALL "
    "SELECT (SELECT MIN(task.queue) FROM task WHERE status = 'queued' AND task.queue > waiting.queue) FROM waiting "
    "WHERE waiting.queue IS NOT NULL) SELECT queue FROM waiting WHERE queue IS NOT NULL"
)
_FIRST: Final = (-(1 << 63), -(1 << 63), 0)
META: Final = ("mark", "epoch", "turn", "clean", "boot_id", "durability", "opened_at")


class Reading(ChildReading):
    """The reading verbs over one connection."""

    _db: sqlite3.Connection
    path: str

    def _read(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        try:  # not `in_words`: some of these are asked for each task
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            known = in_our_words(error, self.path)
            if known is None:
                raise
            raise known from error

    # ---- one task ---------------------------------------------------------------------------------------------------

    def task(self, task_id: int) -> Task:
        """Return the whole record of a task; NotFound."""
        for row in self._read(f"SELECT {records.TASK} FROM {records.TASK_FROM} WHERE task.id = ?", (task_id,)):
            return self._with_rules([records.task(row)])[0]
        raise NotFound(f"there is no task {task_id} in {self.path}")

    def explain(self, task_id: int, now_wall: int) -> Explanation:
        """Return why a task stands where it stands, in words. NotFound."""
        task = self.task(task_id)
        with in_words(self.path):
            return waiting.explain(task, waits.place(self._db, task), now_wall)

    def id_of(self, uid: bytes) -> int:
        """Return the id of the task with that uid; NotFound."""
        found = self.find_uids([uid]).get(uid)
        if found is None:
            raise NotFound(f"there is no task {records.uid_text(uid)} in {self.path}")
        return found

    def attempts(self, task_id: int) -> list[Attempt]:
        """Return the ended attempts of a task, oldest first; none for a task that is not there."""
        return [
            records.attempt(row)
            for row in self._read(f"SELECT {records.ATTEMPT} FROM attempt WHERE task_id = ? ORDER BY attempt", (task_id,))
        ]

    def outcomes(self, ids: Sequence[int]) -> list[Outcome]:
        """Return how those of the tasks ended that have ended."""
        found = self._read(f"SELECT {records.OUTCOME} {TASKS} WHERE NOT {LIVE}", (numbers(ids),))
        return [records.outcome(row) for row in found]

    # ---- many tasks -------------------------------------------------------------------------------------------------

    def tasks(self, wanted: Filter | None = None, limit: int = 100, before: int | None = None, offset: int = 0) -> list[Task]:
        """Return up to `limit` tasks that match, newest first, with ids below `before`, the first `offset` passed over.

        Their payloads, results and pickled exceptions are left out: many together would fill the memory. `task` has them.
        """
        with in_words(self.path):
            ids = search.matching(self._db, wanted or Filter(), limit + offset, before)[offset:]
        return self._listed(ids)

    def ready(
        self,
        statuses: Sequence[str],
        as_of: int,
        after: tuple[int, int] | None = None,
        limit: int = 100,
        *,
        descending: bool = False,
        key: str | None = None,
    ) -> list[Task]:
        """Return up to `limit` tasks in these statuses scheduled for `as_of` (wall µs) or before, by (scheduled_at, id).

        after: the place of the last one of the page before; descending: the latest first; key: only those that have it.

        Payloads and results are left out.
        """
        for status in statuses:
            search.check_status(status)
        there = " OR ".join(f"status = '{status!s}'" for status in statuses) or "0"
        sign, order = ("<", "DESC") if descending else (">", "ASC")
        beyond = f"AND (scheduled_at, id) {sign} (:at, :id)" if after is not None else ""
        of_key = "AND key = :key" if key is not None else ""
        if key is not None and TERMINAL.isdisjoint(statuses):
            of_key += " AND finished_at IS NULL"  # as the index of keys says it
        ids = self._read(
            f"SELECT id FROM task WHERE ({there}) AND scheduled_at <= :as_of {of_key} {beyond} "
            f"ORDER BY scheduled_at {order}, id {order} LIMIT :limit",
            {"as_of": as_of, "limit": max(0, limit), "key": key} | ({} if after is None else {"at": after[0], "id": after[1]}),
        )
        return self._listed([task_id for (task_id,) in ids])

    def _listed(self, ids: Sequence[int]) -> list[Task]:
        found = self._read(f"SELECT {records.LISTED} {TASKS} {records.JOINED}", (numbers(ids),))
        return self._with_rules([records.listed(row) for row in found])

    def _with_rules(self, tasks: list[Task]) -> list[Task]:
        with in_words(self.path):
            return waits.with_rules(self._db, tasks)

    def match(self, wanted: Filter, limit: int = 1_000_000) -> list[int]:
        """Return the ids of up to `limit` tasks that match, newest first."""
        with in_words(self.path):
            return search.matching(self._db, wanted, limit)

    def counts(self) -> dict[str, int]:
        """Return the number of tasks by status, without the statuses that no task has."""
        with in_words(self.path):
            return search.counts(self._db)

    def counts_by_queue(self) -> dict[str, dict[str, int]]:
        """Return the number of tasks by queue and status."""
        with in_words(self.path):
            return queue_rows.counts(self._db)

    def recount(self) -> dict[str, dict[str, int]]:
        """Return what `counts_by_queue` should say, by looking at every row: for checks."""
        found: dict[str, dict[str, int]] = {}
        for queue, status, n in self._read("SELECT queue, status, COUNT(*) FROM task GROUP BY queue, status"):
            found.setdefault(queue, {})[status] = n
        return found

    def pruned(self) -> dict[str, int]:
        """Return how many tasks were pruned since the store began, by how they had ended."""
        return dict(self._read("SELECT status, SUM(n) FROM pruned GROUP BY status ORDER BY status"))

    def prunable(self, rule: Rule) -> dict[str, int]:
        """Return how many tasks can be pruned by a rule, by status: a walk through all that has ended, in short looks."""
        walk = Walk(rule, dry=True)
        while not walk.done:
            with in_words(self.path):
                walk.find(self._db)
        return dict(walk.gone)

    def meta(self) -> dict[str, Any]:
        """Return what the store says of itself: mark, epoch, turn, clean (0 while an owner has it open), boot_id and so on."""
        return dict(zip(META, self._read(f"SELECT {', '.join(META)} FROM meta")[0], strict=True))

    def pragmas(self) -> dict[str, object]:
        """Return the settings of this connection that are in force."""
        return pragmas(self._db)

    # ---- mailboxes --------------------------------------------------------------------------------------------------

    def replies(self, mailbox: str, after: int = 0, limit: int = 100) -> list[Replied]:
        """Return up to `limit` responses of a mailbox that nobody has acknowledged, oldest first, with numbers above `after`."""
        with in_words(self.path):
            return replies.lying(self._db, mailbox, after, limit)

    def mailboxes(self) -> dict[str, int]:
        """Return the mailboxes in which something lies, by name, and how much."""
        with in_words(self.path):
            return replies.counts(self._db)

    # ---- the log of transitions -------------------------------------------------------------------------------------

    def log_rows(self, turn: int, n: int) -> list[tuple[int, int, bytes]]:
        """Return up to n rows of the log, from that turn on: (turn, wall µs, what `eventlog.unpack` reads)."""
        return self._read("SELECT turn, at, data FROM event WHERE turn >= ? ORDER BY turn LIMIT ?", (turn, n))

    def last_logged(self) -> int:
        """Return the last turn that is in the log, 0 if it is empty."""
        return int(self._read("SELECT COALESCE(MAX(turn), 0) FROM event")[0][0])

    def logged_since(self, at: int) -> int:
        """Return the first turn of the log at or after a moment (wall µs), else one that is still to come.

        Turns are told in the order of time, so it is found by halving. Where the clock was set back meanwhile there may be
        several such places; one of them is returned.
        """
        ends = "SELECT COALESCE((SELECT MIN(turn) FROM event), 1), COALESCE((SELECT MAX(turn) FROM event), 0) + 1"
        first, end = self._read(ends)[0]
        while first < end:
            middle = (first + end) // 2
            told = self._read("SELECT turn, at FROM event WHERE turn >= ? ORDER BY turn LIMIT 1", (middle,))
            if not told or told[0][1] >= at:
                end = middle
            else:
                first = told[0][0] + 1
        found = self._read("SELECT turn FROM event WHERE turn >= ? ORDER BY turn LIMIT 1", (first,))
        return int(found[0][0]) if found else int(first)

    def names(self, ids: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Return id → (name, queue) of those of the tasks that are stored."""
        return {row[0]: (row[1], row[2]) for row in self._read(f"SELECT task.id, name, queue {TASKS}", (numbers(ids),))}

    # ---- queues -----------------------------------------------------------------------------------------------------

    def queues(self) -> list[QueueState]:
        """Return the queues that were registered or paused, or ever had a task, by name."""
        with in_words(self.path):
            rows = queue_rows.states(self._db)
            counts = queue_rows.counts(self._db)
            names = {*rows, *queue_rows.names(self._db)}
        states = {name: rows.get(name) or records.queue_state(name, None, {}) for name in names}
        return [msgspec.structs.replace(states[name], counts=counts.get(name, {})) for name in sorted(names)]

    def queue_rules(self) -> list[Queue]:
        """Return the queues that differ from one nobody registered, `paused` as it is now."""
        with in_words(self.path):
            return queue_rows.rules(self._db)

    def rates_full_at(self) -> dict[str, int]:
        """Return when (wall µs) the tokens of each queue's rate are all there again, of those that ever spent any."""
        with in_words(self.path):
            return queue_rows.rates_full_at(self._db)

    # ---- schedules --------------------------------------------------------------------------------------------------

    def schedules(self, name: str | None = None) -> list[Schedule]:
        """Return the cron schedules by name, or the one of that name (NotFound)."""
        sql = f"SELECT {records.SCHEDULE} FROM schedule"
        if name is None:
            return [records.schedule(row) for row in self._read(f"{sql} ORDER BY name")]
        for row in self._read(f"{sql} WHERE name = ?", (name,)):
            return [records.schedule(row)]
        raise NotFound(f"there is no schedule {name!r} in {self.path}")

    def occurrences(self, name: str, limit: int = 100) -> list[Occurrence]:
        """Return the latest occurrences of a schedule, latest first."""
        sql = f"SELECT {records.OCCURRENCE} FROM occurrence WHERE schedule = ? ORDER BY planned_at DESC LIMIT ?"
        return [records.occurrence(row) for row in self._read(sql, (name, limit))]

    def schedule_rows(self) -> list[ScheduleRow]:
        """Return what the scheduler needs of each schedule when the store is opened."""
        found = {
            schedule.name: ScheduleRow(schedule, [], [], last)
            for schedule in self.schedules()
            for ((last,),) in [
                self._read("SELECT COALESCE(MAX(planned_at), 0) FROM occurrence WHERE schedule = ?", (schedule.name,))
            ]
        }
        if found:
            of_live = f"SELECT schedule, task_id FROM task CROSS JOIN occurrence ON task_id = task.id WHERE {LIVE}"
            for name, task_id in self._read(of_live):
                found[name].live.append(task_id)
            for name, planned in self._read("SELECT schedule, planned_at FROM occurrence WHERE outcome = 'queued'"):
                found[name].queued.append(planned)
        return list(found.values())

    # ---- graphs -----------------------------------------------------------------------------------------------------

    def flows(self, limit: int = 100, before: int | None = None, flow_id: int | None = None) -> list[FlowState]:
        """Return up to `limit` flows, newest first, with ids below `before`; or the one of that id, if it is there."""
        with in_words(self.path):
            return graphs.flows(self._db, limit, before, flow_id)

    def edges(self, flow_id: int) -> list[tuple[int, int, int]]:
        """Return the edges of a flow's steps: (child, parent, condition), by child."""
        with in_words(self.path):
            return graphs.edges(self._db, flow_id)

    def dependent(self, ids: Sequence[int]) -> frozenset[int]:
        """Return those of the tasks that depend on others."""
        found = self._read(
            f"SELECT task_id {WANTED} step ON task_id = wanted.value AND parents != '[]'",
            (numbers(ids),),
        )
        return frozenset(task_id for (task_id,) in found)

    def is_held(self, task_id: int) -> bool:
        """Return whether a task waits for its parents."""
        return bool(self._read("SELECT 1 FROM step WHERE task_id = ? AND held", (task_id,)))

    def inputs(self, ids: Sequence[int]) -> dict[int, list[Input]]:
        """Return, for those of the tasks that take results of others as arguments, those results."""
        with in_words(self.path):
            return graphs.inputs(self._db, ids)

    # ---- what the scheduler asks for --------------------------------------------------------------------------------

    def next_id(self) -> int:
        """Return the first id that no task has had."""
        stored = "(SELECT COALESCE(MAX(id), 0) FROM task), (SELECT COALESCE(MAX(task_id), 0) FROM attempt)"
        return int(self._read(f"SELECT MAX({stored}, pruned_id) FROM meta")[0][0]) + 1

    def queues_waiting(self) -> list[str]:
        """Return the queues that have tasks in status queued: by the rows themselves, a look into the index per queue."""
        return [queue for (queue,) in self._read(_QUEUES_WAITING)]

    def rows(self, ids: Sequence[int]) -> list[TaskRow]:
        """Return the rows of those of the tasks that exist, in the order asked for."""
        return [records.task_row(row) for row in self._read(f"SELECT {records.ROW} {TASKS}", (numbers(ids),))]

    def running(self) -> list[TaskRow]:
        """Return the tasks in status running, by id."""
        return [
            records.task_row(row)
            for row in self._read(f"SELECT {records.ROW} FROM task INDEXED BY task_running WHERE status = 'running' ORDER BY id")
        ]

    def kept_keys(self) -> list[TaskRow]:
        """Return the waiting tasks with a key that failed before: they may keep it."""
        return [
            records.task_row(row)
            for row in self._read(f"SELECT {records.ROW} FROM task INDEXED BY task_key_kept WHERE {waits.KEPT}")
        ]

    def refill(
        self, queue: str | None, after: tuple[int, int, int] | None, n: int, key: str | None = None
    ) -> tuple[list[TaskRow], bool]:
        """Return up to n waiting rows of a line after a place in its order, and whether more follow.

        A queue's line is its rows in status queued by (rank, scheduled_at, id); None is the line of the delayed, pending and
        retrying, by (0, scheduled_at, id). after None: from the start. key: only those of a queue that have it.
        """
        rank, at, task_id = after or _FIRST
        if queue is None:
            found = self._read(
                f"SELECT {records.ROW} FROM task WHERE {_DELAYED} AND (scheduled_at, id) > (?, ?) "
                f"AND scheduled_at < {HELD_AT} ORDER BY scheduled_at, id LIMIT ?",
                (at, task_id, n + 1),
            )
        elif key is not None:
            found = self._read(
                f"SELECT {records.ROW} FROM task INDEXED BY task_key "
                "WHERE status = 'queued' AND finished_at IS NULL AND key = ? AND queue = ? "
                "AND (rank, scheduled_at, id) > (?, ?, ?) ORDER BY rank, scheduled_at, id LIMIT ?",
                (key, queue, rank, at, task_id, n + 1),
            )
        else:
            found = self._read(
                f"SELECT {records.ROW} FROM task WHERE status = 'queued' AND queue = ? AND (rank, scheduled_at, id) > (?, ?, ?) "
                "ORDER BY rank, scheduled_at, id LIMIT ?",
                (queue, rank, at, task_id, n + 1),
            )
        return [records.task_row(row) for row in found[:n]], len(found) > n

    def payloads(self, ids: Sequence[int]) -> dict[int, tuple[int, bytes, bytes, str, bytes | None]]:
        """Return id → (codec, payload, packed options, handler name, last checkpoint or None)."""
        found = self._read(
            f"SELECT task.id, codec, {records.PAYLOAD}, options, name, "
            f"(SELECT data FROM checkpoint WHERE checkpoint.task_id = task.id) {TASKS}",
            (numbers(ids),),
        )
        return {row[0]: row[1:] for row in found}

    def find_uids(self, uids: Sequence[bytes]) -> dict[bytes, int]:
        """Return uid → id of those that are stored."""
        found: dict[bytes, int] = {}
        for uid in uids:
            for (task_id,) in self._read("SELECT id FROM task WHERE uid = ?", (uid,)):
                found[uid] = task_id
        return found

    def unique_holders(self, keys: Iterable[str]) -> dict[str, Holder]:
        """Return unique key → the live task that has it, or the one that had it last and whose period may not be over."""
        asked = msgspec.json.encode(list(keys)).decode()
        found = {}
        wanted = f"{WANTED} unique_period AS had ON had.unique_key = wanted.value"
        for row in self._read(f"SELECT {records.ROW}, until {wanted} JOIN task ON task.id = had.task_id", (asked,)):
            holder = Holder(records.task_row(row), row[-1])
            found[holder.row.unique or ""] = holder
        wanted = f"{WANTED} task ON task.unique_key = wanted.value AND finished_at IS NULL"
        for row in self._read(f"SELECT {records.ROW} {wanted}", (asked,)):
            live = records.task_row(row)
            had = found.get(live.unique or "")
            found[live.unique or ""] = had if had is not None and had.row.id == live.id else Holder(live)
        return found

    def find_batch(self, batch: str, items: Iterable[int] | None = None) -> list[records.BatchItem]:
        """Return the stored items of a batch, by item (of those numbers, if given); payloads only where they can be compared."""
        wanted = None if items is None else set(items)
        found = self._read(
            f"SELECT {records.ROW}, item, codec, CASE codec WHEN {Codec.MSGPACK:d} THEN {records.PAYLOAD} ELSE x'' END "
            "FROM task WHERE batch = ? AND item BETWEEN ? AND ? ORDER BY item",
            (batch, min(wanted, default=0), max(wanted, default=-1)) if wanted is not None else (batch, -(1 << 63), (1 << 63) - 1),
        )
        return [
            records.BatchItem(row[-3], row[0], row[1], row[4], row[-2], row[-1], records.task_row(row))
            for row in found
            if wanted is None or row[-3] in wanted
        ]


class Reader(Reading):
    """Reads a store that may be live, or left by a crash; never writes, and needs no supervisor. Use it as a context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file read-only. StoreUnusable: not there, or unreadable; StoreCorrupt, StoreTooNew as for an owner."""
        self.places = Places(path)
        self.path = str(self.places.db)
        self._db = connect_reader(self.places.db)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
