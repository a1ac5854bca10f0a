"""Pruning: which ended tasks need not be kept any longer, found and deleted a slice at a time.

A walk goes down the ids, so that children come before their parents, and reads a page at each step. There is no index by the time
of the end: it would cost every task at its end what is needed once a minute here. Instead the walk begins at the newest task that
was stored long enough ago; what has a period of its own, which may be shorter, is listed in `retain`, and walked first.

Kept, however old they are: what has not ended; a task that another depends on which is still stored (its result may be an argument,
now or in a retry); the steps of a flow and the items of a batch until all of them can go. A flow or batch is looked through a page
at a time, too. Responses in mailboxes are copies, and stay.
"""

from __future__ import annotations

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from taskpool.clock import US
from taskpool.retention import ENDED, Retention, retention_for
from taskpool.store.wanted import numbers

PAGE: Final = 1_000  # rows read in one step …
ROWS: Final = 250  # … of which so many tasks are deleted at most
SCHEDULES: Final = 50  # schedules of which old occurrences are deleted in one step, of a page of those that ever fired
GROUPS_MAX: Final = 10_000  # flows and batches that a walk remembers
_MAX: Final = (1 << 63) - 1

_WANTED: Final = "FROM json_each(:ids) AS wanted CROSS JOIN"
_JOINED: Final = "LEFT JOIN retain ON retain.task_id = task.id"
_OWN, _ALL = "retain CROSS JOIN task ON task.id = retain.task_id", f"task {_JOINED}"
# From one name to the next by the index, however many occurrences each has; old: the first of several lies behind the horizon.
_SCHEDULES: Final = (
    "WITH RECURSIVE seen(name) AS (SELECT MIN(schedule) FROM occurrence WHERE schedule > :last UNION ALL "
    "SELECT (SELECT MIN(schedule) FROM occurrence WHERE schedule > seen.name) FROM seen WHERE seen.name IS NOT NULL) "
    "SELECT name, (SELECT old.at <= :horizon AND old.planned_at < (SELECT MAX(planned_at) FROM occurrence WHERE schedule = name) "
    "FROM occurrence AS old WHERE old.schedule = name ORDER BY old.planned_at LIMIT 1) "
    "FROM seen WHERE name IS NOT NULL LIMIT :page"
)
_PERIOD_OVER: Final = (  # of its unique key: until then it is what a further one is answered with
    "(task.unique_key IS NULL OR NOT EXISTS (SELECT 1 FROM unique_period AS had "
    "WHERE had.unique_key = task.unique_key AND had.task_id = task.id AND had.until > :now))"
)
_DELETES: Final = tuple(
    f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))"
    for table, column in (
        ("attempt", "task_id"),
        ("payload", "id"),
        ("checkpoint", "task_id"),
        ("progress", "task_id"),
        ("retain", "task_id"),
        ("task", "id"),
    )
)


class Rule(msgspec.Struct, frozen=True):
    """What a walk is to find: tasks that ended so, long enough before a moment (wall µs). A task's own period comes first.

    least_s: nothing that ended later than so many seconds ago, whatever is said of it; schedules: at its end, old occurrences too.
    """

    retention: Retention
    now: int
    statuses: tuple[str, ...] = ENDED
    least_s: float = 0.0
    schedules: bool = False

    def horizons(self) -> dict[str, int | None]:
        """Return the moment by which a task must have ended, by status; None: it stays."""
        kept = self.retention.at_least(self.least_s)
        return {
            status: None if math.isinf(getattr(kept, status)) else self.now - round(getattr(kept, status) * US)
            for status in self.statuses
        }


def by_hand(older: Any, statuses: Sequence[str], now: int) -> Rule:
    """Return the rule for what somebody wants pruned: ended so, longer than `older` seconds ago (None: as is the default).

    InvalidTask for a status that none ends in, InvalidSettings for what is no time.
    """
    wanted = tuple(dict.fromkeys(map(str, statuses)))
    return Rule(retention_for(older, statuses), now, wanted, schedules=set(wanted) == set(ENDED))


class Walk:
    """One walk through a store, which may take many steps. done: it has seen all; gone: for its owner to count what was deleted.

    dry: nothing is deleted, gone is what would be.
    """

    def __init__(self, rule: Rule, *, dry: bool = False) -> None:
        self.rule = rule
        self.gone: Counter[str] = Counter()
        self.done = False
        self.schedules: list[str] = []  # of which old occurrences are to be deleted after this step
        self._schedule = ""  # the last that was looked at
        self._seen = False  # all tasks
        self._own = True  # the tasks with a period of their own come first
        self._below = _MAX
        self._from = (True, _MAX, False)  # where the last page began
        self._over: dict[tuple[str, Any], bool] = {}  # flow or batch → whether all of it can go
        self._group: tuple[str, Any] | None = None  # that is being looked through …
        self._place = -_MAX  # … up to here
        self.is_dry = dry
        self._dry: set[int] | None = set() if dry else None  # of what would be gone, that which may be met or asked after again
        self._horizons = self.rule.horizons()
        ended = " OR ".join(f"task.status = '{status}'" for status in ENDED if status in self._horizons) or "0"
        own = f":now - MAX(retain.seconds, {rule.least_s!r}) * {US}.0"
        all_others = " ".join(f"WHEN '{status}' THEN :{status}" for status in self._horizons) or "WHEN '' THEN 0"
        self._expired = (
            f"COALESCE(({ended}) AND task.finished_at <= CASE WHEN retain.seconds IS NULL "
            f"THEN CASE task.status {all_others} END ELSE {own} END AND {_PERIOD_OVER}, 0)"
        )
        self._values: dict[str, Any] = self._horizons | {"now": rule.now}

    @property
    def horizon(self) -> int | None:
        """Return the moment before which occurrences of schedules are deleted, as old as the oldest tasks; None: they stay."""
        moments = [at for at in self._horizons.values() if at is not None]
        return min(moments, default=None) if self.rule.schedules else None

    # ---- finding --------------------------------------------------------------------------------------------------------

    def repeat(self) -> None:
        """What the last call of `find` returned could not be deleted: look at that page once more."""
        self._own, self._below, self._seen = self._from
        self.schedules, self._schedule = [], ""
        self.done = False

    def find(self, db: sqlite3.Connection, rows: int = ROWS) -> list[int]:
        """Return up to so many tasks that can go, and move on; `remove` them before the next call. Reads a few pages at most."""
        self._from = (self._own, self._below, self._seen)
        if self._seen:
            self._find_schedules(db)
            return []
        if self._below == _MAX and not self._own:
            self._below = self._first(db)
        source = _OWN if self._own else _ALL
        page = db.execute(
            f"SELECT task.id, task.batch, {self._expired} FROM {source} WHERE task.id < :below ORDER BY task.id DESC LIMIT :page",
            self._values | {"below": self._below, "page": PAGE},
        ).fetchall()
        found = self._choose(db, [row for row in page if row[2]], page, rows)
        if len(page) < PAGE and (not page or self._below <= page[-1][0]):
            self._seen = not self._own
            self._own, self._below = False, _MAX
            self.done = self._seen and (self.is_dry or self.horizon is None)
        return found if self._dry is None else self._count(db, found)

    def _count(self, db: sqlite3.Connection, ids: list[int]) -> list[int]:
        """A dry run: count what would be deleted, and remember of it what may be met again or asked after."""
        assert self._dry is not None
        ids = [task_id for task_id in ids if task_id not in self._dry]
        for table in ("step", "retain"):
            found = db.execute(f"SELECT {table}.task_id {_WANTED} {table} ON {table}.task_id = wanted.value", _ids(ids))
            self._dry.update(task_id for (task_id,) in found)
        self.gone += Counter(
            dict(
                db.execute(
                    f"SELECT task.status, COUNT(*) {_WANTED} task ON task.id = wanted.value GROUP BY 1", _ids(ids)
                ).fetchall()
            )
        )
        return ids

    def _find_schedules(self, db: sqlite3.Connection) -> None:
        self.schedules = []
        seen = 0
        for name, is_old in db.execute(_SCHEDULES, {"last": self._schedule, "horizon": self.horizon, "page": PAGE}):
            self._schedule = name
            seen += 1
            if is_old:
                self.schedules.append(name)
                if len(self.schedules) == SCHEDULES:
                    return
        self.done = seen < PAGE

    def _first(self, db: sqlite3.Connection) -> int:
        """Return an id below which lie all tasks that can have ended long enough ago: those that were stored before."""
        latest = max((at for at in self._horizons.values() if at is not None), default=None)
        if latest is None:
            return 0
        low, high = 1, int(db.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM task").fetchone()[0])
        while low < high:
            middle = (low + high) // 2
            row = db.execute("SELECT id, created_at FROM task WHERE id >= ? ORDER BY id LIMIT 1", (middle,)).fetchone()
            if row is None or row[1] > latest:
                high = middle
            else:
                low = row[0] + 1
        return low

    def _choose(self, db: sqlite3.Connection, expired: list[Any], page: list[Any], rows: int) -> list[int]:
        """Return those that nothing keeps, and note where the next step goes on."""
        children = self._children(db, [row[0] for row in expired])
        flows = dict(
            db.execute(
                f"SELECT step.task_id, step.flow_id {_WANTED} step ON step.task_id = wanted.value WHERE step.flow_id IS NOT NULL",
                _ids([row[0] for row in expired]),
            )
        )
        gone: dict[int, None] = {}
        budget = PAGE
        for task_id, batch, _ in expired:
            if len(gone) >= rows:
                self._below = task_id + 1
                return list(gone)
            if not all(child in gone or (self._dry is not None and child in self._dry) for child in children.get(task_id, ())):
                continue
            verdict = True
            for group in (("batch", batch), ("flow", flows.get(task_id))):
                if group[1] is None or verdict is not True:
                    continue
                found, budget = self._is_over(db, group, budget)
                if found is None:  # to be looked through further in the next step
                    self._below = task_id + 1
                    return list(gone)
                verdict = found
            if verdict:
                gone[task_id] = None
        if page:
            self._below = page[-1][0]
        return list(gone)

    def _children(self, db: sqlite3.Connection, ids: Sequence[int]) -> dict[int, list[int]]:
        children: dict[int, list[int]] = {}
        for parent, child in db.execute(f"SELECT edge.parent, edge.child {_WANTED} edge ON edge.parent = wanted.value", _ids(ids)):
            children.setdefault(parent, []).append(child)
        return children

    def _is_over(self, db: sqlite3.Connection, group: tuple[str, Any], budget: int) -> tuple[bool | None, int]:
        """Return whether all of a flow or batch can go (None: not known yet), and how many rows may still be looked at."""
        known = self._over.get(group)
        if known is not None:
            return known, budget
        if budget <= 0:
            return None, 0
        kind, name = group
        place = self._place if self._group == group else -_MAX
        number, source = (
            ("task.item", f"task {_JOINED} WHERE task.batch = :name")
            if kind == "batch"
            else ("step.task_id", f"step CROSS JOIN task ON task.id = step.task_id {_JOINED} WHERE step.flow_id = :name")
        )
        looked = db.execute(
            f"SELECT {number}, {self._expired} FROM {source} AND {number} > :place ORDER BY {number} LIMIT :page",
            self._values | {"name": name, "place": place, "page": budget},
        ).fetchall()
        verdict: bool | None = None
        if not all(expired for _, expired in looked):
            verdict = False
        elif len(looked) < budget:
            verdict = True
        else:
            self._group, self._place = group, looked[-1][0]
            return None, 0
        if len(self._over) >= GROUPS_MAX:
            self._over.clear()
        self._over[group] = verdict
        return verdict, budget - len(looked)


# ---- deleting -----------------------------------------------------------------------------------------------------------


def remove(db: sqlite3.Connection, ids: Sequence[int]) -> tuple[int, Counter[str]]:
    """Delete ended tasks and all that belongs to them, inside a transaction. Return how many rows; how many tasks, by status."""
    gone: Counter[str] = Counter()
    counts = db.execute(
        f"SELECT task.queue, task.name, task.status, COUNT(*) {_WANTED} task ON task.id = wanted.value GROUP BY 1, 2, 3", _ids(ids)
    ).fetchall()
    wanted = _ids(ids)["ids"]
    rows = _remove_steps(db, wanted)
    for statement in _DELETES:
        rows += db.execute(statement, (wanted,)).rowcount
    for queue, name, status, n in counts:
        db.execute("UPDATE tally SET n = n - ? WHERE queue = ? AND status = ?", (n, queue, status))
        db.execute(
            "INSERT INTO pruned(queue, name, status, n) VALUES(?, ?, ?, ?) "
            "ON CONFLICT(queue, name, status) DO UPDATE SET n = n + excluded.n",
            (queue, name, status, n),
        )
        gone[status] += n
    db.execute("UPDATE meta SET pruned_id = MAX(pruned_id, ?)", (max(ids),))
    return rows + 2 * len(counts), gone


def _remove_steps(db: sqlite3.Connection, wanted: str) -> int:
    """Delete the edges to these tasks (those from them are gone with their children), their steps, and flows that are empty now."""
    steps = db.execute(f"SELECT step.flow_id {_WANTED} step ON step.task_id = wanted.value", {"ids": wanted}).fetchall()
    if not steps:
        return 0
    rows = db.execute(
        "DELETE FROM edge WHERE (parent, child) IN (SELECT json_extract(one.value, '$[0]'), step.task_id "
        f"{_WANTED} step ON step.task_id = wanted.value CROSS JOIN json_each(step.parents) AS one)",
        {"ids": wanted},
    ).rowcount
    rows += db.execute("DELETE FROM step WHERE task_id IN (SELECT value FROM json_each(?))", (wanted,)).rowcount
    flows = {flow for (flow,) in steps if flow is not None}
    rows += db.execute(
        "DELETE FROM flow WHERE id IN (SELECT value FROM json_each(?)) AND NOT EXISTS (SELECT 1 FROM step WHERE flow_id = flow.id)",
        (_ids(flows)["ids"],),
    ).rowcount
    return rows


def remove_occurrences(db: sqlite3.Connection, schedules: Iterable[str], horizon: int) -> int:
    """Delete old occurrences whose tasks are gone, some of each schedule; the latest of each stays, and what waits in its queue."""
    rows = 0
    for name in schedules:
        rows += db.execute(
            "DELETE FROM occurrence WHERE schedule = :name AND planned_at IN (SELECT planned_at FROM occurrence AS old "
            "WHERE old.schedule = :name AND old.at <= :horizon AND old.outcome <> 'queued' "
            "AND old.planned_at < (SELECT MAX(planned_at) FROM occurrence WHERE schedule = :name) "
            "AND NOT EXISTS (SELECT 1 FROM task WHERE task.id = old.task_id) ORDER BY old.planned_at LIMIT :limit)",
            {"name": name, "horizon": horizon, "limit": ROWS},
        ).rowcount
    return rows


def _ids(ids: Iterable[int]) -> dict[str, str]:
    return {"ids": numbers(ids)}
