"""Which tasks match a filter: what SQL can see of it is asked for a page at a time, the rest is looked at in each row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from taskpool.core.lifecycle import MOVES, TERMINAL
from taskpool.errors import InvalidTask
from taskpool.model import Filter
from taskpool.store import children, records
from taskpool.store.wanted import numbers

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
FEW: Final = 20  # less than one task in so many is few
SCAN: Final = 1000  # rows looked at a time, where a filter needs more than SQL can see
_WORDS: Final = ("owner_type", "owner_id", "source", "reference_id", "parent_id")


def matching(db: sqlite3.Connection, wanted: Filter, limit: int, before: int | None = None) -> list[int]:
    """Return the ids of up to `limit` tasks that match, newest first, below `before`. Raises InvalidTask, and as sqlite3 does."""
    return list(islice(_scan(db, wanted, limit, before), limit)) if limit > 0 else []


def counts(db: sqlite3.Connection) -> dict[str, int]:
    """Return the number of tasks by status, without the statuses that no task has."""
    return dict(
        db.execute(
            "SELECT status, SUM(n) AS all_of FROM tally GROUP BY status HAVING all_of > 0 UNION ALL "
            "SELECT status, COUNT(*) AS all_of FROM task INDEXED BY task_running WHERE status = 'running' GROUP BY status"
        )
    )


def _scan(db: sqlite3.Connection, wanted: Filter, limit: int, before: int | None) -> Iterator[int]:
    """Walk down the ids that match, a page at a time; tags and error texts are looked at here."""
    step = SCAN if _looks_inside(wanted) else limit
    sql, parameters = _page(wanted, by_status=not _goes_by_key(wanted) and _are_few(db, wanted.statuses))
    place = (1 << 63) - 1 if before is None else before
    while True:
        page = db.execute(sql, parameters | {"place": place, "step": step}).fetchall()
        for task_id, options, error in page:
            if _fits(wanted, options, error):
                yield task_id
        if len(page) < step:
            return
        place = page[-1][0]


def _are_few(db: sqlite3.Connection, statuses: Sequence[str]) -> bool:
    """Whether the tasks in these statuses are better looked for by status than by walking down the ids."""
    if not statuses or not INDEXES.keys() >= set(statuses):
        return False
    known = counts(db)
    return sum(known.get(status, 0) for status in statuses) * FEW < sum(known.values())


def _goes_by_key(wanted: Filter) -> bool:
    """Whether one of the indexes of keys holds all that match: they have no tasks that have ended."""
    return (wanted.key or wanted.unique) is not None and bool(wanted.statuses) and TERMINAL.isdisjoint(wanted.statuses)


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
    if _goes_by_key(wanted):
        where += " AND finished_at IS NULL"  # as those indexes say it
    return f"SELECT id, options, error FROM task WHERE id < :place{where} ORDER BY id DESC LIMIT :step", values


def _where(wanted: Filter) -> tuple[str, dict[str, Any]]:
    """Return all conditions but those on status, to append, and their values."""
    parts: list[str] = []
    values: dict[str, Any] = {}
    if wanted.ids:
        parts.append("id IN (SELECT value FROM json_each(:ids))")
        values["ids"] = numbers(wanted.ids)
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
