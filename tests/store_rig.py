"""Saves as a scheduler would write them, in short."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from taskpool.core.commands import Closed, End, Insert, Move, Start
from taskpool.core.lifecycle import SUCCEEDED
from taskpool.model import Codec, Options, TaskError, TaskSpec, encode
from taskpool.wire.jobs import OK, Report

T0 = 1_700_000_000_000_000


def insert(
    task_id: int, status: str = "queued", *, uid: int | None = None, at: int = T0, options: Options | None = None, **spec: Any
) -> Insert:
    """A new task of that id; its uid is the id unless told otherwise."""
    values: dict[str, Any] = {"name": "jobs:price", "codec": Codec.PICKLE, "payload": b"payload %d" % task_id} | spec
    packed = encode(options) if options is not None else b""
    return Insert(task_id, TaskSpec((task_id if uid is None else uid).to_bytes(16), options=packed, **values), status, at, T0)


def start(task_id: int, version: int = 1, status: str = "queued", attempt: int = 1, worker: int = 1) -> Start:
    return Start(task_id, version, status, attempt, worker, task_id, T0 + 10)


def end(
    task_id: int, to: str = SUCCEEDED, version: int = 2, attempt: int = 1, charged: int = 1, value: bytes = b"result", **fields: Any
) -> End:
    """The end of an attempt, with what belongs to a success or a failure."""
    error = fields.pop("error", None if to in (SUCCEEDED, "queued", "pending") else TaskError("handler", "it raised"))
    report = Report(1, task_id, attempt, OK, 0, 5_000, codec=Codec.MSGPACK, value=value) if to == SUCCEEDED else None
    closed = Closed(attempt, 1, 4711, T0 + 10, to, 5_000, 4_000, 1_000, 2_048, error)
    return End(task_id, version, to, T0 + 20, charged, closed, fields.pop("report", report), error, **fields)


def move(task_id: int, status: str, to: str, version: int = 1, **fields: Any) -> Move:
    return Move(task_id, version, status, to, T0 + 30, **fields)


def rows(path: Path, sql: str, *parameters: Any) -> list[Any]:
    """Ask the file itself, through SQLite, beside its owner."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


def by_hand(path: Path, sql: str, *parameters: Any) -> int:
    """Write into the file as somebody with another SQLite would."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None)
    try:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection.execute(sql, parameters).rowcount
    finally:
        connection.close()
