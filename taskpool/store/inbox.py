"""The inbox: tasks that guests stored in transactions of their own, on connections of their own, for the owner to move.

A guest inserts, and nothing else: so a guest can wait for the write lock, or hold it, and never meets the rows of tasks. The owner
moves what it finds into `task` in a transaction of its own, by uid: a uid that is stored already is only taken out.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from taskpool.errors import AlreadyExists, InvalidTask, StoreTooNew, StoreUnusable
from taskpool.model import TaskSpec, encode
from taskpool.store import schema
from taskpool.store.wanted import numbers

ROWS_MAX = 2_000  # moved in one turn …
BYTES_MAX = 8 << 20  # … unless they are that long

INSERT: Final = "INSERT INTO main.inbox(uid, spec) VALUES(?, ?) ON CONFLICT(uid) DO NOTHING"

_decoder = msgspec.msgpack.Decoder(TaskSpec)


class Arrival(msgspec.Struct, gc=False):
    """A row of the inbox. spec: None if nobody can read it."""

    seq: int
    spec: TaskSpec | None


class InboxReading:
    """The owner's side: what there is."""

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        raise NotImplementedError

    def arrivals(self, but: Collection[int] = ()) -> tuple[list[Arrival], bool]:
        """Return the first rows of the inbox but those, and whether there are more."""
        found: list[Arrival] = []
        size = 0
        others = "seq NOT IN (SELECT value FROM json_each(?))" if but else "? = '[]'"
        sql = f"SELECT seq, length(spec) FROM inbox WHERE {others} ORDER BY seq LIMIT ?"
        for seq, length in self._read(sql, (numbers(but), ROWS_MAX + 1)):
            if len(found) == ROWS_MAX or (found and size + length > BYTES_MAX):
                return found, True
            size += length
            ((data,),) = self._read("SELECT spec FROM inbox WHERE seq = ?", (seq,))
            try:
                found.append(Arrival(seq, _decoder.decode(data)))
            except (msgspec.MsgspecError, RecursionError, TypeError):
                found.append(Arrival(seq, None))
        return found, False

    def data_version(self) -> int:
        """Return a number that changes when another connection has committed, and never by what this one does."""
        return int(self._read("PRAGMA data_version")[0][0])


# ---- the guest's side -----------------------------------------------------------------------------------------------


def check(connection: sqlite3.Connection) -> str:
    """Return the path of the store that a guest's connection is open on. Raises InvalidTask, StoreUnusable, StoreTooNew."""
    if not isinstance(connection, sqlite3.Connection):
        raise InvalidTask(f"tasks are stored over a sqlite3.Connection, not a {type(connection).__name__}")
    try:
        path = main_file(connection)
        application_id = _one(connection, "PRAGMA application_id")
        version = _one(connection, "PRAGMA user_version")
        readonly = _one(connection, "PRAGMA query_only")
    except sqlite3.ProgrammingError as error:
        raise InvalidTask(f"this connection cannot be used: {error}") from error
    shown = path or "a database in memory"
    if application_id != schema.APPLICATION_ID:
        raise StoreUnusable(f"{shown} is no store of taskpool", hint="connect to a store's file; for others there is Outbox")
    if version > schema.VERSION:
        raise StoreTooNew(f"{shown} has schema {version}, this taskpool knows {schema.VERSION}", hint="upgrade taskpool")
    if version < schema.VERSION or not _one(connection, "SELECT COUNT(*) FROM main.sqlite_master WHERE name = 'inbox'"):
        raise StoreUnusable(f"{shown} is of an older taskpool", hint="serve it once to migrate it")
    if readonly:
        raise StoreUnusable(f"this connection to {shown} is read-only (query_only)")
    return path


def lock(connection: sqlite3.Connection) -> None:
    """Take the write lock for a guest's transaction that is open, before anything here reads in it.

    In one that began by reading, even only what `check` reads, SQLite refuses to write once somebody else has committed meanwhile.
    Raises what it says if the lock cannot be had; of all else that is wrong with the connection `check` speaks.
    """
    try:
        if connection.in_transaction:
            connection.execute("DELETE FROM main.inbox WHERE 0")
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
            raise
    except (sqlite3.ProgrammingError, AttributeError):
        return


def main_file(connection: sqlite3.Connection) -> str:
    """Return the path of the file behind a connection, "" for none."""
    return _one(connection, "SELECT file FROM pragma_database_list WHERE name = 'main'") or ""


def check_transaction(connection: sqlite3.Connection) -> None:
    """Raise InvalidTask if what is written over a connection would be committed at once."""
    if connection.in_transaction:
        return
    if getattr(connection, "autocommit", -1) is True or connection.isolation_level is None:
        raise InvalidTask(
            "no transaction is open on this connection, so the tasks would stay whatever becomes of your rows",
            hint="execute BEGIN IMMEDIATE first, or use `with taskpool.transaction(connection)`",
        )


def insert(connection: sqlite3.Connection, specs: Sequence[TaskSpec], *, new: bool = False) -> None:
    """Put tasks into the inbox in the guest's transaction: all, or none and the transaction as it was.

    new: AlreadyExists if a uid of theirs is stored already, or comes twice; else such a task is the one that there is. Raises
    StoreUnusable for a connection that may only read; else what sqlite3 says, such as that the file is locked.
    """
    rows = [(spec.uid, encode(spec)) for spec in specs]
    write(connection, INSERT, rows, partial(_check_new, connection, [spec.uid for spec in specs]) if new else None)
    connection.execute("PRAGMA main.wal_autocheckpoint = 0")  # that is the owner's affair; here it would hold up the guest


def _check_new(connection: sqlite3.Connection, uids: Sequence[bytes], written: int) -> None:
    """Raise AlreadyExists unless so many of these uids were new to the inbox, and none is a task's. The write lock is held."""
    for uid in uids:
        if _one(connection, "SELECT EXISTS(SELECT 1 FROM main.task WHERE uid = ?)", uid):
            raise AlreadyExists(f"task {uuid.UUID(bytes=uid)} is stored already", hint="nothing was stored")
    if written < len(uids):
        raise AlreadyExists("a task with one of these uids is stored already", hint="nothing was stored")


def write(
    connection: sqlite3.Connection,
    statement: str,
    rows: Sequence[tuple[Any, ...]],
    check_written: Callable[[int], None] | None = None,
) -> None:
    """Execute a statement for many rows, all or none, in the transaction that is open (or that an INSERT would open).

    check_written: is told how many were; what it raises undoes them. A transaction that was begun here is left open only if they
    were written.
    """
    begun = not connection.in_transaction
    if begun:
        connection.execute(f"BEGIN {connection.isolation_level or ''}")
    try:
        _write(connection, statement, rows, check_written)
    except BaseException:
        if begun and connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _write(
    connection: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]], check_written: Callable[[int], None] | None
) -> None:
    try:
        connection.execute("SAVEPOINT taskpool")
        try:
            written = connection.executemany(statement, rows).rowcount
            if check_written is not None:
                check_written(written)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO taskpool")
                connection.execute("RELEASE taskpool")
            raise
        connection.execute("RELEASE taskpool")
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
            raise StoreUnusable("this connection may only read", hint="open it without mode=ro; is the file writable?") from error
        raise


def _one(connection: sqlite3.Connection, sql: str, *parameters: bytes) -> Any:
    """Return one value, whatever factories the connection has."""
    cursor = connection.cursor()
    cursor.row_factory = None
    try:
        row = cursor.execute(sql, parameters).fetchone()
    finally:
        cursor.close()
    value = row[0] if row is not None else None
    return value.decode() if isinstance(value, bytes) else value
