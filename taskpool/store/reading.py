"""What can be asked of a store: the same verbs for its owner (`Store`) and for anybody else (`Reader`).

Each verb is one short read transaction, so a reader never keeps the log from being reset. Long results are asked for in pages: by
id, newest first, below `before`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from taskpool.core import waiting
from taskpool.core.events import Holder, ScheduleRow, TaskRow
from taskpool.core.graph import HELD_AT
from taskpool.core.keys import is_firm
from taskpool.core.lifecycle import MOVES
from taskpool.core.queues import has_rules
from taskpool.core.rate import free_at
from taskpool.core.retry import max_attempts
from taskpool.errors import InvalidTask, NotFound
from taskpool.model import Attempt, Codec, Explanation, Filter, FlowState, Occurrence, Queue, QueueState, Schedule, Task
from taskpool.store import children, graphs, records
from taskpool.store.children import ChildReading
from taskpool.store.conditions import in_our_words, in_words
from taskpool.store.connection import connect_reader, pragmas
from taskpool.store.places import Places
from taskpool.store.pruning import Rule, Walk
from taskpool.wire.jobs import Input
from taskpool.wire.messages import Outcome, Replied

INDEXES: Final = {  # the partial index that holds all tasks of a status
    "pending": "task_delayed",
    "retrying": "task_delayed",
    "queued": "task_ready",
    "running": "task_running",
    "failed": "task_bad",
    "cancelled": "task_bad",
    "interrupted": "task_bad",
}
STATUSES: Final = tuple(status for status in MOVES if status)
LIVE: Final = "(status = 'running' OR status = 'queued' OR status = 'pending' OR status = 'retrying')"
KEPT: Final = (  # as the index says it
    "key IS NOT NULL AND (status = 'running' OR status = 'retrying' OR (status = 'queued' AND charged > 0))"
)
_DELAYED: Final = "(status = 'pending' OR status = 'retrying')"
_WANTED: Final = "FROM json_each(?) AS wanted CROSS JOIN task ON task.id = wanted.value"
_QUEUES_WAITING: Final = (
    "WITH RECURSIVE waiting(queue) AS (SELECT MIN(queue) FROM task WHERE status = 'queued' UNION ALL "
    "SELECT (SELECT MIN(task.queue) FROM task WHERE status = 'queued' AND task.queue > waiting.queue) FROM waiting "
    "WHERE waiting.queue IS NOT NULL) SELECT queue FROM waiting WHERE queue IS NOT NULL"
)
_FIRST: Final = (-(1 << 63), -(1 << 63), 0)
META: Final = ("mark", "epoch", "turn", "clean", "boot_id", "durability", "opened_at")
FEW: Final = 20  # less than one task in so many is few
SCAN: Final = 1000  # rows looked at a time, where a filter needs more than SQL can see


class Reading(ChildReading):
    """The reading verbs over one connection."""

    _db: sqlite3.Connection
    path: str

    def _read(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        try:
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
        found = self._read(f"SELECT {records.OUTCOME} {_WANTED} WHERE NOT {LIVE}", (_json(ids),))
        return [records.outcome(row) for row in found]

    # ---- many tasks -------------------------------------------------------------------------------------------------

    def tasks(self, wanted: Filter | None = None, limit: int = 100, before: int | None = None, offset: int = 0) -> list[Task]:
        """Return up to `limit` tasks that match, newest first, with ids below `before`, the first `offset` passed over.

        Their payloads, results and pickled exceptions are left out: many together would fill the memory. `task` has them.
        """
        ids = self._matching(wanted or Filter(), limit + offset, before)[offset:]
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
            check_status(status)
        there = " OR ".join(f"status = '{status!s}'" for status in statuses) or "0"
        sign, order = ("<", "DESC") if descending else (">", "ASC")
        beyond = f"AND (scheduled_at, id) {sign} (:at, :id)" if after is not None else ""
        of_key = "AND key = :key" if key is not None else ""
        ids = self._read(
            f"SELECT id FROM task WHERE ({there}) AND scheduled_at <= :as_of {of_key} {beyond} "
            f"ORDER BY scheduled_at {order}, id {order} LIMIT :limit",
            {"as_of": as_of, "limit": max(0, limit), "key": key} | ({} if after is None else {"at": after[0], "id": after[1]}),
        )
        return self._listed([task_id for (task_id,) in ids])

    def _listed(self, ids: Sequence[int]) -> list[Task]:
        found = self._read(f"SELECT {records.LISTED} {_WANTED} {records.JOINED}", (_json(ids),))
        return self._with_rules([records.listed(row) for row in found])

    def match(self, wanted: Filter, limit: int = 1_000_000) -> list[int]:
        """Return the ids of up to `limit` tasks that match, newest first."""
        return self._matching(wanted, limit, None)

    def counts(self) -> dict[str, int]:
        """Return the number of tasks by status, without the statuses that no task has."""
        return dict(self._read("SELECT status, SUM(n) AS all_of FROM tally GROUP BY status HAVING all_of > 0"))

    def counts_by_queue(self) -> dict[str, dict[str, int]]:
        """Return the number of tasks by queue and status."""
        found: dict[str, dict[str, int]] = {}
        for queue, status, n in self._read("SELECT queue, status, n FROM tally WHERE n > 0"):
            found.setdefault(queue, {})[status] = n
        return found

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

    def _matching(self, wanted: Filter, limit: int, before: int | None) -> list[int]:
        found: list[int] = []
        for task_id in self._scan(wanted, limit, before):
            found.append(task_id)
            if len(found) >= limit:
                break
        return found

    def _scan(self, wanted: Filter, limit: int, before: int | None) -> Iterator[int]:
        """Walk down the ids that match, a page at a time; tags and error texts are looked at here."""
        if limit <= 0:
            return
        step = SCAN if _looks_inside(wanted) else limit
        sql, parameters = _page(wanted, by_status=self._are_few(wanted.statuses))
        place = (1 << 63) - 1 if before is None else before
        while True:
            page = self._read(sql, parameters | {"place": place, "step": step})
            for task_id, options, error in page:
                if _fits(wanted, options, error):
                    yield task_id
            if len(page) < step:
                return
            place = page[-1][0]

    def _are_few(self, statuses: Sequence[str]) -> bool:
        """Whether the tasks in these statuses are better looked for by status than by walking down the ids."""
        if not statuses or not INDEXES.keys() >= set(statuses):
            return False
        counts = self.counts()
        return sum(counts.get(status, 0) for status in statuses) * FEW < sum(counts.values())

    # ---- mailboxes --------------------------------------------------------------------------------------------------

    def replies(self, mailbox: str, after: int = 0, limit: int = 100) -> list[Replied]:
        """Return up to `limit` responses of a mailbox that nobody has acknowledged, oldest first, with numbers above `after`."""
        found = self._read(
            "SELECT seq, mailbox, task_id, name, status, attempts, codec, result, error, completed_at FROM reply "
            "WHERE mailbox = ? AND seq > ? ORDER BY seq LIMIT ?",
            (mailbox, after, limit),
        )
        return [
            Replied(seq, mailbox, task_id, name, status, attempts, codec, result, records.error(error), at)
            for seq, mailbox, task_id, name, status, attempts, codec, result, error, at in found
        ]

    def mailboxes(self) -> dict[str, int]:
        """Return the mailboxes in which something lies, by name, and how much."""
        return dict(self._read("SELECT mailbox, COUNT(*) FROM reply GROUP BY mailbox ORDER BY mailbox"))

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
        return {row[0]: (row[1], row[2]) for row in self._read(f"SELECT task.id, name, queue {_WANTED}", (_json(ids),))}

    # ---- queues -----------------------------------------------------------------------------------------------------

    def queues(self) -> list[QueueState]:
        """Return the queues that were registered or paused, or ever had a task, by name."""
        rows, counts = self._queue_rows(), self.counts_by_queue()
        names = {*rows, *(queue for (queue,) in self._read("SELECT DISTINCT queue FROM tally"))}
        states = {name: rows.get(name) or records.queue_state(name, None, {}) for name in names}
        return [msgspec.structs.replace(states[name], counts=counts.get(name, {})) for name in sorted(names)]

    def queue_rules(self) -> list[Queue]:
        """Return the queues that differ from one nobody registered, `paused` as it is now."""
        rules = [msgspec.structs.replace(state.config, paused=state.paused) for state in self._queue_rows().values()]
        return [queue for queue in rules if has_rules(queue)]

    def rates_full_at(self) -> dict[str, int]:
        """Return when (wall µs) the tokens of each queue's rate are all there again, of those that ever spent any."""
        return dict(self._read("SELECT name, full_at FROM queue WHERE full_at > 0"))

    def _free_at(self, rules: Iterable[Queue]) -> dict[str, int]:
        """Return when (wall µs) queues with a rate may start their next task."""
        rated = [queue for queue in rules if queue.rate is not None]
        spent = self.rates_full_at() if rated else {}
        return {queue.name: free_at(queue, spent.get(queue.name, 0)) for queue in rated}

    def _queue_rows(self) -> dict[str, QueueState]:
        """Return name → queue for those that have a row, without counts."""
        found = self._read("SELECT name, config, paused FROM queue")
        return {name: records.queue_state(name, row, {}) for name, *row in found}

    def _running_by_queue(self) -> dict[str, int]:
        return dict(self._read("SELECT queue, n FROM tally WHERE status = 'running'"))

    def _with_rules(self, tasks: list[Task]) -> list[Task]:
        """Say of tasks what lies in their queues: why they wait, and how often they are tried."""
        rules = {queue.name: queue for queue in self.queue_rules()}
        running = self._running_by_queue() if rules else {}
        free, now = self._free_at(rules.values()), time.time_ns() // 1000
        holders = self._key_holders({task.key for task in tasks if task.key is not None and task.status == "queued"})
        known = []
        for task in tasks:
            queue = rules.get(task.queue)
            taken = bool(holders) and bool(waiting.in_its_way(task, holders.get(task.key or "", ())))
            free_in, target = free.get(task.queue, 0) - now, task.options.target
            waits = waiting.reason(
                task.status, task.snoozes, queue, running.get(task.queue, 0), free_in, target=target, key_taken=taken
            )
            reason = task.wait_reason or waits
            limit = max_attempts(task.options, queue) if queue is not None else task.max_attempts
            changed = reason is not None or limit != task.max_attempts
            known.append(msgspec.structs.replace(task, wait_reason=reason, max_attempts=limit) if changed else task)
        return known

    def _key_holders(self, keys: Iterable[str]) -> dict[str, list[waiting.KeyHolder]]:
        """Return who has these serialization keys, by key."""
        asked = msgspec.json.encode(list(keys)).decode()
        if asked == "[]":
            return {}
        found: dict[str, list[waiting.KeyHolder]] = {}
        wanted = (
            f"FROM json_each(?) AS wanted CROSS JOIN task ON task.key = wanted.value AND {KEPT.replace('key IS', 'task.key IS')}"
        )
        for row in self._read(f"SELECT {records.ROW} {wanted} ORDER BY task.id", (asked,)):
            held = records.task_row(row)
            if held.status == "running" or is_firm(held):
                since = held.started_at if held.status == "running" else None
                found.setdefault(held.key or "", []).append(waiting.KeyHolder(held.id, since))
        return found

    def explain(self, task_id: int, now_wall: int) -> Explanation:
        """Return why a task stands where it stands, in words. NotFound."""
        task = self.task(task_id)
        queue = next((queue for queue in self.queue_rules() if queue.name == task.queue), Queue(task.queue))
        holders = self._read(
            "SELECT id FROM task INDEXED BY task_running WHERE status = 'running' AND queue = ? ORDER BY id LIMIT ?",
            (task.queue, waiting.HOLDERS_MAX),
        )
        ahead = self._read(
            "SELECT COUNT(*) FROM (SELECT 1 FROM task WHERE status = 'queued' AND queue = ? "
            "AND (rank, scheduled_at, id) < (?, ?, ?) LIMIT ?)",
            (task.queue, -task.priority, task.scheduled_at, task.id, waiting.AHEAD_MAX),
        )
        running = self._running_by_queue().get(task.queue, 0)
        parents = graphs.parents(self._db, task_id) if task.wait_reason == waiting.PARENTS else ()
        having_key = self._key_holders([task.key] if task.key is not None else []).get(task.key or "", [])
        place = waiting.Place(
            queue,
            running,
            tuple(task_id for (task_id,) in holders),
            ahead[0][0],
            tuple(parents),
            free_at=self._free_at([queue]).get(queue.name),
            key_holders=tuple(having_key),
        )
        return waiting.explain(task, place, now_wall)

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
            "SELECT task_id FROM json_each(?) AS wanted CROSS JOIN step ON task_id = wanted.value AND parents != '[]'",
            (_json(ids),),
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
        return [records.task_row(row) for row in self._read(f"SELECT {records.ROW} {_WANTED}", (_json(ids),))]

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
            for row in self._read(f"SELECT {records.ROW} FROM task INDEXED BY task_key_held WHERE {KEPT} AND status <> 'running'")
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
                f"SELECT {records.ROW} FROM task WHERE status = 'queued' AND key = ? AND queue = ? "
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
            f"(SELECT data FROM checkpoint WHERE checkpoint.task_id = task.id) {_WANTED}",
            (_json(ids),),
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
        wanted = "FROM json_each(?) AS wanted CROSS JOIN unique_period AS had ON had.unique_key = wanted.value"
        for row in self._read(f"SELECT {records.ROW}, until {wanted} JOIN task ON task.id = had.task_id", (asked,)):
            holder = Holder(records.task_row(row), row[-1])
            found[holder.row.unique or ""] = holder
        wanted = f"FROM json_each(?) AS wanted CROSS JOIN task ON task.unique_key = wanted.value AND {LIVE}"
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


def _json(ids: Iterable[int]) -> str:
    return f"[{','.join(map(str, ids))}]"


def check_status(status: str) -> None:
    """Raise InvalidTask unless there is such a status."""
    if status not in STATUSES:
        raise InvalidTask(f"there is no status {str(status)!r}", hint=f"one of {', '.join(STATUSES)}")


def _page(wanted: Filter, *, by_status: bool) -> tuple[str, dict[str, Any]]:
    """Return a statement for one page of (id, options, error), newest first, and the values that it binds.

    It takes what SQL can see of a filter. Statuses are from a fixed set and written out, not bound: only so can the planner see
    that a partial index covers them. by_status: look through those indexes, one status at a time, and sort what they give.
    """
    for status in wanted.statuses:
        check_status(status)
    where, values = _where(wanted)
    statuses = {str(status): f"status = '{status!s}'" for status in wanted.statuses}
    if by_status:
        one = "SELECT id, options, error FROM task INDEXED BY {} WHERE {} AND +id < :place{}"
        parts = [one.format(INDEXES[status], condition, where) for status, condition in statuses.items()]
        return f"SELECT * FROM ({' UNION ALL '.join(parts)}) ORDER BY id DESC LIMIT :step", values
    if statuses:
        where += f" AND ({' OR '.join(statuses.values())})"
    return f"SELECT id, options, error FROM task WHERE id < :place{where} ORDER BY id DESC LIMIT :step", values


def _where(wanted: Filter) -> tuple[str, dict[str, Any]]:
    """Return all conditions but those on status, to append, and their values."""
    parts: list[str] = []
    values: dict[str, Any] = {}
    if wanted.ids:
        parts.append("id IN (SELECT value FROM json_each(:ids))")
        values["ids"] = _json(wanted.ids)
    for column, names in (("name", wanted.names), ("queue", wanted.queues)):
        if names:
            bound = {f"{column}{number}": name for number, name in enumerate(names)}
            parts.append(f"{column} IN ({', '.join(f':{key}' for key in bound)})")
            values |= bound
    for key, condition in (
        ("batch", "batch = :batch"),
        ("key", "key = :key"),
        ("unique", "unique_key = :unique"),
        ("since", "created_at >= :since"),
        ("until", "created_at < :until"),
    ):
        value = getattr(wanted, key)
        if value is not None:
            parts.append(condition)
            values[key] = value
    if wanted.error_contains:
        parts.append("error IS NOT NULL")
    # A text in packed options lies there byte for byte: most rows need not be unpacked to see that they do not fit.
    words = [*wanted.tags, *(getattr(wanted, word) or "" for word in _WORDS if word != "parent_id")]
    packed = [text.encode("utf-8", "surrogatepass") for text in words if text]
    packed += [] if wanted.parent_id is None else [children.word(wanted.parent_id)]
    for number, part in enumerate(packed):
        parts.append(f"instr(options, :word{number}) > 0")
        values[f"word{number}"] = part
    if wanted.flow is not None:
        parts.append("id IN (SELECT task_id FROM step WHERE flow_id = :flow)")
        values["flow"] = wanted.flow
    return "".join(f" AND {part}" for part in parts), values


_WORDS: Final = ("owner_type", "owner_id", "source", "reference_id", "parent_id")


def _looks_inside(wanted: Filter) -> bool:
    """Whether a filter needs what lies in packed columns."""
    return bool(wanted.tags or wanted.error_contains) or any(getattr(wanted, word) is not None for word in _WORDS)


def _fits(wanted: Filter, options: bytes, error: bytes | None) -> bool:
    """Check the part of a filter that lies in packed columns: tags (all of them), words, and a text in the error as it is shown."""
    if wanted.tags and not set(wanted.tags) <= set(records.options(options).tags):
        return False
    for word in _WORDS:
        asked = getattr(wanted, word)
        if asked is not None and getattr(records.options(options), word) != asked:
            return False
    if wanted.error_contains:
        known = records.error(error)
        return known is not None and wanted.error_contains in str(known)
    return True
