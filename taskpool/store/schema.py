"""The tables, created by our own SQL in one transaction; `migrations` brings older files up to this.

A row of `task` is rewritten at each start and end, so it is narrow: what is ordered, filtered or versioned is a column, the rest is
packed (`options`, `extras`, `error`). Columns that can be long stand last, where a scan does not have to read past them, and a long
payload lies in `payload`, written once. Predicates of indexes are written with OR: an IN list of three builds a table each time a
row is written (measured: 8.8 µs instead of 3.3 µs per update). For the same reason there is no trigger on task (measured: + 10 µs);
every UPDATE of ours asserts the status and version that it moves from. The indexes of keys go by finished_at, which a task has from
its end on: SQLite deletes and inserts an entry anew whenever its condition mentions what an UPDATE sets, so by the status each
start would touch them, in as many pages as there are keys (measured: 2.4 µs a task).

    task        one row per task            payload     the payloads that do not fit a narrow row
    attempt     one row per ended attempt   checkpoint  the last state that a live task saved
    progress    the last progress of a task
    tally       tasks per (queue, status), but for those that run: their index counts them, and a start writes no row here
    queue       one row per queue that was registered (config) or paused
    event       one row per turn that moved tasks: which, from where to where (see `eventlog`)
    step        a task that depends on others, or is part of a flow: how many of its parents live, how many ended otherwise than
                it needs, whether it waits for them; parents: JSON of [task, condition, is_argument]
    edge        a parent's children         flow        one row per graph
    reply       one row per response that nobody has acknowledged; its numbers are never given twice
    schedule    one row per cron schedule   occurrence  one row per planned time of one, also of the skipped
    inbox       one row per task that a guest's transaction stored and that was not moved to task yet
    unique_period   one row per unique key that a task has for a time of its own, until that is over
    retain      how long a task wants to be kept that says so itself
    pruned      how many tasks were pruned, by (queue, name, status)
    meta        one row: mark, epoch, turns committed, whether the last owner closed the file, its boot and durability, and the
                highest id that was pruned: ids are never given twice
"""

from __future__ import annotations

import re
import sqlite3
from typing import Final

APPLICATION_ID: Final = 0x74706F6C  # "tpol", in the file's header: what `file` and other programs see
VERSION: Final = 1

_TABLES: Final = """
CREATE TABLE task(
    id INTEGER PRIMARY KEY,
    uid BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    queue TEXT NOT NULL,
    rank INTEGER NOT NULL,
    status TEXT NOT NULL CHECK(status = 'running' OR status = 'succeeded' OR status = 'queued' OR status = 'pending'
        OR status = 'retrying' OR status = 'failed' OR status = 'cancelled' OR status = 'interrupted'),
    version INTEGER NOT NULL CHECK(version > 0),
    attempt INTEGER NOT NULL DEFAULT 0,
    charged INTEGER NOT NULL DEFAULT 0 CHECK(charged >= 0 AND charged <= attempt),
    scheduled_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    worker INTEGER,
    epoch INTEGER,
    batch TEXT,
    item INTEGER,
    key TEXT,
    unique_key TEXT,
    codec INTEGER NOT NULL,
    result_codec INTEGER,
    options BLOB NOT NULL,
    extras BLOB,
    payload BLOB,
    error BLOB,
    result BLOB
);
CREATE INDEX task_ready ON task(queue, rank, scheduled_at) WHERE status = 'queued';
CREATE INDEX task_delayed ON task(scheduled_at) WHERE status = 'pending' OR status = 'retrying';
CREATE INDEX task_running ON task(worker) WHERE status = 'running';
CREATE INDEX task_bad ON task(status) WHERE status = 'failed' OR status = 'cancelled' OR status = 'interrupted';
CREATE UNIQUE INDEX task_batch ON task(batch, item) WHERE batch IS NOT NULL;
CREATE INDEX task_key ON task(key, queue, rank, scheduled_at) WHERE key IS NOT NULL AND finished_at IS NULL;
CREATE INDEX task_key_kept ON task(key) WHERE key IS NOT NULL AND (status = 'retrying' OR (status = 'queued' AND charged > 0));
CREATE UNIQUE INDEX task_unique ON task(unique_key) WHERE unique_key IS NOT NULL AND finished_at IS NULL;
CREATE TABLE payload(id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE attempt(
    task_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    duration_ns INTEGER NOT NULL,
    cpu_user_us INTEGER NOT NULL,
    cpu_system_us INTEGER NOT NULL,
    peak_rss_kib INTEGER NOT NULL,
    detail BLOB,
    PRIMARY KEY(task_id, attempt)
) WITHOUT ROWID;
CREATE TABLE tally(
    queue TEXT NOT NULL,
    status TEXT NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY(queue, status)
) WITHOUT ROWID;
CREATE TABLE reply(
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    mailbox TEXT NOT NULL,
    task_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    codec INTEGER NOT NULL,
    completed_at INTEGER NOT NULL,
    error BLOB,
    result BLOB
);
CREATE INDEX reply_mailbox ON reply(mailbox, seq);
CREATE TABLE event(turn INTEGER PRIMARY KEY, at INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE step(
    task_id INTEGER PRIMARY KEY,
    flow_id INTEGER,
    label TEXT NOT NULL,
    open INTEGER NOT NULL CHECK(open >= 0),
    broken INTEGER NOT NULL CHECK(broken >= 0),
    held INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    parents TEXT NOT NULL
);
CREATE INDEX step_due ON step(task_id) WHERE held AND (open = 0 OR broken > 0);
CREATE INDEX step_flow ON step(flow_id) WHERE flow_id IS NOT NULL;
CREATE TABLE edge(
    parent INTEGER NOT NULL,
    child INTEGER NOT NULL,
    condition INTEGER NOT NULL,
    PRIMARY KEY(parent, child)
) WITHOUT ROWID;
CREATE TABLE flow(
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    fail_fast INTEGER NOT NULL,
    fallen INTEGER,
    swept INTEGER NOT NULL
);
CREATE INDEX flow_fallen ON flow(id) WHERE fallen IS NOT NULL AND NOT swept;
CREATE TABLE queue(
    name TEXT PRIMARY KEY,
    config BLOB,
    paused INTEGER NOT NULL,
    full_at INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE checkpoint(task_id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE progress(
    task_id INTEGER PRIMARY KEY,
    done REAL NOT NULL,
    total REAL NOT NULL,
    text TEXT NOT NULL,
    at INTEGER NOT NULL
);
CREATE TABLE schedule(
    name TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    tz TEXT NOT NULL,
    paused INTEGER NOT NULL,
    next_at INTEGER,
    total INTEGER NOT NULL,
    err_count INTEGER NOT NULL,
    definition BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE occurrence(
    schedule TEXT NOT NULL,
    planned_at INTEGER NOT NULL,
    outcome TEXT NOT NULL CHECK(outcome = 'fired' OR outcome = 'skipped' OR outcome = 'queued'),
    reason TEXT NOT NULL,
    task_id INTEGER CHECK((task_id IS NOT NULL) = (outcome = 'fired')),
    at INTEGER NOT NULL,
    PRIMARY KEY(schedule, planned_at)
) WITHOUT ROWID;
CREATE UNIQUE INDEX occurrence_task ON occurrence(task_id) WHERE task_id IS NOT NULL;
CREATE INDEX occurrence_queued ON occurrence(schedule) WHERE outcome = 'queued';
CREATE TABLE retain(task_id INTEGER PRIMARY KEY, seconds REAL NOT NULL);
CREATE TABLE pruned(
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    n INTEGER NOT NULL,
    PRIMARY KEY(queue, name, status)
) WITHOUT ROWID;
CREATE TABLE inbox(seq INTEGER PRIMARY KEY AUTOINCREMENT, uid BLOB NOT NULL UNIQUE, spec BLOB NOT NULL);
CREATE TABLE unique_period(unique_key TEXT PRIMARY KEY, until INTEGER NOT NULL, task_id INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX unique_period_until ON unique_period(until);
CREATE TABLE meta(
    id INTEGER PRIMARY KEY CHECK(id = 1),
    mark TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    clean INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    durability TEXT NOT NULL,
    opened_at INTEGER NOT NULL,
    pruned_id INTEGER NOT NULL
);
"""


TABLES: Final = frozenset(re.findall(r"CREATE TABLE (\w+)", _TABLES))


def create(connection: sqlite3.Connection, mark: str) -> None:
    """Make the tables of an empty file, all or none. mark: the store's own name, by which its processes are known."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _TABLES.split(";")):
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES(1, ?, 0, 0, 1, '', '', 0, 0)", (mark,))
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
    # From now on the file itself says whose it is, whatever becomes of its log.
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
