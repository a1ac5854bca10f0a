"""Queues as the store keeps them: their rules, whether they are paused, and when the tokens of their rates are there again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

import msgspec

from taskpool.core.queues import has_rules
from taskpool.core.rate import free_at
from taskpool.model import Queue, QueueState, encode
from taskpool.store import records

_RUNNING: Final = "FROM task INDEXED BY task_running WHERE status = 'running'"


def states(db: sqlite3.Connection) -> dict[str, QueueState]:
    """Return name → queue for those that have a row, without counts."""
    found = db.execute("SELECT name, config, paused FROM queue").fetchall()
    return {name: records.queue_state(name, row, {}) for name, *row in found}


def rules(db: sqlite3.Connection) -> list[Queue]:
    """Return the queues that differ from one nobody registered, `paused` as it is now."""
    found = [msgspec.structs.replace(state.config, paused=state.paused) for state in states(db).values()]
    return [queue for queue in found if has_rules(queue)]


def rates_full_at(db: sqlite3.Connection) -> dict[str, int]:
    """Return when (wall µs) the tokens of each queue's rate are all there again, of those that ever spent any."""
    return dict(db.execute("SELECT name, full_at FROM queue WHERE full_at > 0"))


def rates_free_at(db: sqlite3.Connection, queues: Iterable[Queue]) -> dict[str, int]:
    """Return when (wall µs) those of the queues that have a rate may start their next task."""
    rated = [queue for queue in queues if queue.rate is not None]
    spent = rates_full_at(db) if rated else {}
    return {queue.name: free_at(queue, spent.get(queue.name, 0)) for queue in rated}


def running(db: sqlite3.Connection) -> dict[str, int]:
    """Return how many tasks of each queue run, of those of which any does."""
    return dict(db.execute(f"SELECT queue, COUNT(*) {_RUNNING} GROUP BY queue"))


def counts(db: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Return the number of tasks by queue and status. What runs is little, and counted by its index: a start costs no tally."""
    found: dict[str, dict[str, int]] = {}
    for queue, status, n in db.execute(
        f"SELECT queue, status, n FROM tally WHERE n > 0 UNION ALL SELECT queue, 'running', COUNT(*) {_RUNNING} GROUP BY queue"
    ):
        found.setdefault(queue, {})[status] = n
    return found


def names(db: sqlite3.Connection) -> set[str]:
    """Return the queues that ever had a task."""
    return {queue for (queue,) in db.execute(f"SELECT queue FROM tally UNION SELECT queue {_RUNNING}")}


def write(db: sqlite3.Connection, queue: Queue, paused: bool) -> None:
    """Write a queue's settings, and whether it is paused now."""
    db.execute(
        "INSERT INTO queue(name, config, paused) VALUES(?, ?, ?) "
        "ON CONFLICT(name) DO UPDATE SET config = excluded.config, paused = excluded.paused",
        (queue.name, encode(msgspec.structs.replace(queue, paused=False)), paused),
    )


def pause(db: sqlite3.Connection, names: Iterable[str], paused: bool) -> None:
    """Write whether queues are paused; one that has no row gets one."""
    db.executemany(
        "INSERT INTO queue(name, paused) VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET paused = excluded.paused",
        [(name, paused) for name in names],
    )
