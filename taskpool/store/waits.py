"""Why tasks wait, and how often they are tried, as far as other rows say it: those of their queues and of who has their keys."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from typing import Final

import msgspec

from taskpool.core import waiting
from taskpool.core.keys import is_firm
from taskpool.core.retry import max_attempts
from taskpool.model import Queue, Task
from taskpool.store import graphs, queue_rows, records
from taskpool.store.wanted import WANTED

# As the index says it: of the tasks with a key, those that wait and failed before.
KEPT: Final = "key IS NOT NULL AND (status = 'retrying' OR (status = 'queued' AND charged > 0))"


def with_rules(db: sqlite3.Connection, tasks: list[Task]) -> list[Task]:
    """Say of tasks what lies in their queues: why they wait, and how often they are tried."""
    rules = {queue.name: queue for queue in queue_rows.rules(db)}
    running = queue_rows.running(db) if rules else {}
    free, now = queue_rows.rates_free_at(db, rules.values()), time.time_ns() // 1000
    holders = _key_holders(db, {task.key for task in tasks if task.key is not None and task.status == "queued"})
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


def place(db: sqlite3.Connection, task: Task) -> waiting.Place:
    """Return what stands before a task, as `waiting.explain` wants to know it."""
    queue = next((queue for queue in queue_rows.rules(db) if queue.name == task.queue), Queue(task.queue))
    holders = db.execute(
        "SELECT id FROM task INDEXED BY task_running WHERE status = 'running' AND queue = ? ORDER BY id LIMIT ?",
        (task.queue, waiting.HOLDERS_MAX),
    ).fetchall()
    ahead = db.execute(
        "SELECT COUNT(*) FROM (SELECT 1 FROM task WHERE status = 'queued' AND queue = ? "
        "AND (rank, scheduled_at, id) < (?, ?, ?) LIMIT ?)",
        (task.queue, -task.priority, task.scheduled_at, task.id, waiting.AHEAD_MAX),
    ).fetchone()
    parents = graphs.parents(db, task.id) if task.wait_reason == waiting.PARENTS else ()
    having_key = _key_holders(db, [task.key] if task.key is not None else []).get(task.key or "", [])
    return waiting.Place(
        queue,
        queue_rows.running(db).get(task.queue, 0),
        tuple(task_id for (task_id,) in holders),
        ahead[0],
        tuple(parents),
        free_at=queue_rows.rates_free_at(db, [queue]).get(queue.name),
        key_holders=tuple(having_key),
    )


def _key_holders(db: sqlite3.Connection, keys: Iterable[str]) -> dict[str, list[waiting.KeyHolder]]:
    """Return who has these serialization keys, by key."""
    asked = msgspec.json.encode(list(keys)).decode()
    if asked == "[]":
        return {}
    of_these = "key IN (SELECT value FROM json_each(?))"
    running = f"SELECT {records.ROW} FROM task INDEXED BY task_running WHERE status = 'running' AND {of_these}"
    kept = f"SELECT {records.ROW} {WANTED} task ON task.key = wanted.value AND {KEPT.replace('key IS', 'task.key IS')}"
    found: dict[str, list[waiting.KeyHolder]] = {}
    for row in db.execute(f"{running} UNION ALL {kept} ORDER BY 1", (asked, asked)).fetchall():
        held = records.task_row(row)
        if held.status == "running" or is_firm(held):
            since = held.started_at if held.status == "running" else None
            found.setdefault(held.key or "", []).append(waiting.KeyHolder(held.id, since))
    return found
