"""Connections to a store's file. Nobody opens it except through here: a plain open and close would drop the owner's locks."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from taskpool.errors import StoreCorrupt, StoreTooNew, StoreUnusable
from taskpool.store import schema
from taskpool.store.conditions import damaged, in_our_words

DURABILITIES: Final = {"power": "FULL", "process": "NORMAL"}
PATIENCE_S: Final = 3.0  # for a lock, by readers and while opening: held by a recovery, a guest, or another opening, all short
SQLITE_MIN: Final = (3, 33, 0)  # UPDATE … FROM, VACUUM INTO, upserts, row values, JSON

# Read back by `pragmas`, and printed beside every figure that depends on them.
SHOWN: Final = (
    "journal_mode",
    "synchronous",
    "wal_autocheckpoint",
    "mmap_size",
    "page_size",
    "cache_size",
    "journal_size_limit",
    "locking_mode",
    "temp_store",
    "user_version",
    "application_id",
)


def connect_owner(path: Path | None, durability: str) -> sqlite3.Connection:
    """Open the one connection that writes (None: in memory). Its file exists; its tables may not.

    Transactions are written out (isolation_level None), and checkpoints are the store's own decision (wal_autocheckpoint 0):
    SQLite's would run beside writers, RESTART excludes them. While opening, locks are waited for; `be_impatient` ends that.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old", hint=f"{'.'.join(map(str, SQLITE_MIN))} is needed")
    connection = sqlite3.connect(
        ":memory:" if path is None else _uri(path, "rw"),
        uri=path is not None,
        timeout=PATIENCE_S,
        isolation_level=None,
        cached_statements=256,
    )
    try:
        if path is not None:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise StoreUnusable(f"{path}: this file system allows no write-ahead log (SQLite stays in mode {mode})")
        connection.execute(f"PRAGMA synchronous = {DURABILITIES[durability]}")
        for name, value in (
            ("mmap_size", 0),  # a write to a mapped file past its end kills the process instead of failing the statement
            ("wal_autocheckpoint", 0),
            ("journal_size_limit", 64 << 20),
            ("cache_size", -16384),
            ("temp_store", "MEMORY"),
            ("trusted_schema", "OFF"),
            ("cell_size_check", "ON"),
        ):
            connection.execute(f"PRAGMA {name} = {value}")
    except BaseException:
        connection.close()
        raise
    return connection


def be_impatient(connection: sqlite3.Connection) -> None:
    """From now on refuse at once where a lock is held: the loop has better to do than to wait."""
    connection.execute("PRAGMA busy_timeout = 0")


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open a file without any look at what it is. Such a connection leaves a log as it is, even as the last one to close."""
    connection = sqlite3.connect(_uri(path, "ro"), uri=True, timeout=PATIENCE_S, isolation_level=None, cached_statements=64)
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def stays_locked(path: str, patience_s: float) -> bool:
    """Return whether others hold a file's write lock, and go on to for so long. False where that cannot be seen."""
    try:
        with closing(sqlite3.connect(_uri(Path(path), "rw"), uri=True, timeout=patience_s, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return False


def close_leaving_log(connection: sqlite3.Connection, path: Path) -> None:
    """Close the owner's connection. The last one to close empties the log unless it is read-only: such a one is kept till then."""
    guard: sqlite3.Connection | None = None
    try:
        guard = connect_read_only(path)
        guard.execute("SELECT 1 FROM meta").fetchone()
    except sqlite3.Error:
        pass  # the file cannot be read any more: nor can its log be emptied into it
    finally:
        connection.close()
        if guard is not None:
            guard.close()


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection to a file that exists and is a store of this version, live or left by a crash."""
    if not path.exists():
        raise StoreUnusable(f"there is no store at {path}")
    if not os.access(path, os.R_OK):
        raise StoreUnusable(f"{path} may not be read by us")
    connection: sqlite3.Connection | None = None
    try:
        connection = connect_read_only(path)
        have = version(connection, path)
        if have is None:
            raise StoreUnusable(f"the store {path} is empty", hint="its first owner has not set it up")
        if have < schema.VERSION:
            words = f"the store {path} has schema {have}, this taskpool reads {schema.VERSION}"
            raise StoreUnusable(words, hint="serve it once to migrate it")
    except BaseException as error:
        if connection is not None:
            connection.close()
        known = in_our_words(error, path)
        if known is None:
            raise
        raise known from error
    return connection


def version(connection: sqlite3.Connection, path: object) -> int | None:
    """Return a file's schema version, None if it is empty. StoreCorrupt: not ours; StoreTooNew: not yet ours."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    have: int = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables and application_id == 0 and have == 0:
        return None
    if application_id != schema.APPLICATION_ID:
        raise StoreCorrupt(
            f"{path} is an SQLite file of another program (application id {application_id:#x}), not a taskpool store",
            hint="nothing was changed; choose another path",
        )
    if have > schema.VERSION:
        raise StoreTooNew(
            f"{path} has schema {have}, this taskpool knows {schema.VERSION}", hint="upgrade taskpool; nothing was changed"
        )
    wanted = schema.TABLES if have == schema.VERSION else {"task", "attempt", "meta"}
    if have < 1 or not wanted <= tables:
        missing = ", ".join(sorted(wanted - tables))
        raise damaged(path, f"it has no table {missing}" if missing else f"its schema is said to be {have}")
    return have


def pragmas(connection: sqlite3.Connection) -> dict[str, object]:
    """Return SQLite's version and the settings in force, by name."""
    found = {name: connection.execute(f"PRAGMA {name}").fetchone() for name in SHOWN}
    known = {name: row[0] for name, row in found.items() if row is not None}  # in memory some have no meaning
    return {"sqlite_version": sqlite3.sqlite_version, **known}


def _uri(path: Path, mode: str) -> str:
    name = str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")  # all that ends a file name in SQLite's URIs
    return f"file:{name}?mode={mode}"
