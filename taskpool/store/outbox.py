"""The outbox: a table in another SQLite file, for tasks of transactions there, and their way from it into a store's inbox.

A row is deleted only after the store has it, and the inbox takes a uid once: so whatever dies in between, and however often it is
tried again, each task arrives exactly once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from taskpool.errors import InvalidTask, StoreUnusable
from taskpool.model import TaskSpec, encode
from taskpool.store import inbox

TABLE: Final = "taskpool_outbox"
ROWS_MAX: Final = 1_000  # moved at a time
PATIENCE_S: Final = 5.0  # for locks of others

_MAKE: Final = (
    f"CREATE TABLE IF NOT EXISTS main.{TABLE}(seq INTEGER PRIMARY KEY AUTOINCREMENT, uid BLOB NOT NULL, spec BLOB NOT NULL)"
)
_PUT: Final = f"INSERT INTO main.{TABLE}(uid, spec) VALUES(?, ?)"
_GET: Final = f"SELECT seq, uid, spec FROM {TABLE} ORDER BY seq LIMIT {ROWS_MAX}"
_DELETE: Final = f"DELETE FROM {TABLE} WHERE seq = ?"


def path_of(connection: sqlite3.Connection) -> str:
    """Return the path of the file that a connection is open on. InvalidTask if it is closed, or in memory only."""
    if not isinstance(connection, sqlite3.Connection):
        raise InvalidTask(f"an outbox lies behind a sqlite3.Connection, not a {type(connection).__name__}")
    try:
        path = inbox.main_file(connection)
    except sqlite3.ProgrammingError as error:
        raise InvalidTask(f"this connection cannot be used: {error}") from error
    if not path:
        raise InvalidTask("a database in memory can have no outbox: nothing of it would be left after a crash")
    return path


def put(connection: sqlite3.Connection, specs: Sequence[TaskSpec]) -> None:
    """Put tasks into the outbox in the transaction that is open: all, or none. Makes the table at the first."""
    connection.execute(_MAKE)
    inbox.write(connection, _PUT, [(spec.uid, encode(spec)) for spec in specs])


def move(path: str, store: str) -> list[bytes]:
    """Move what is committed in a file's outbox to the inbox of a store, durably; return the uids.

    Raises StoreUnusable if there is no such store, and what sqlite3 says.
    """
    moved: list[bytes] = []
    with closing(_open(path, "rw")) as source:
        if not source.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()[0]:
            return moved
        while rows := source.execute(_GET).fetchall():
            with closing(_open(store, "rw")) as target:
                inbox.check(target)
                target.execute("PRAGMA synchronous = FULL")
                target.execute("PRAGMA wal_autocheckpoint = 0")
                target.execute("BEGIN IMMEDIATE")
                target.executemany(inbox.INSERT, [(uid, spec) for _, uid, spec in rows])
                target.execute("COMMIT")
            source.execute("BEGIN IMMEDIATE")
            source.executemany(_DELETE, [(seq,) for seq, _, _ in rows])
            source.execute("COMMIT")
            moved += [uid for _, uid, _ in rows]
    return moved


def _open(path: str, mode: str) -> sqlite3.Connection:
    name = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        return sqlite3.connect(f"file:{name}?mode={mode}", uri=True, timeout=PATIENCE_S, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise StoreUnusable(f"{path} cannot be opened: {error}", hint="a store is made by its first pool or server") from error
