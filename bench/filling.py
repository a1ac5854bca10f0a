"""Stores with a long past or a long line: rows as the supervisor writes them, copied by SQL from one true task."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bench.contenders import scratch_directory

COLUMNS = (
    "name, queue, rank, status, version, attempt, charged, scheduled_at, created_at, started_at, finished_at, worker, epoch, "
    "codec, result_codec, options, extras, payload, error, result"
)
CHUNK = 100_000  # rows of one transaction


@contextmanager
def filled(count: int, submit: Callable[[Any], object]) -> Iterator[Path]:
    """Make a directory with a store `bench.db` that holds `count` copies of one task, and remove it; submit: as `fill` takes it."""
    with scratch_directory() as directory:
        fill(directory / "bench.db", count, submit)
        yield directory


def fill(path: Path, count: int, submit: Callable[[Any], object]) -> None:
    """Make `count` copies of one task in the store at `path`, which nobody owns afterwards.

    submit(pool): hands in that one task, and waits for its end if it is to be copied as one that has ended.
    """
    from taskpool import Pool

    with Pool(path, workers=1, durability="process") as pool:
        submit(pool)
        pool.stop()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        first = int(db.execute("SELECT MAX(id) FROM task").fetchone()[0])
        attempt = db.execute("SELECT 1 FROM attempt WHERE task_id = ?", (first,)).fetchone()
        for begin in range(first + 1, first + count, CHUNK):
            end = min(begin + CHUNK, first + count)
            db.execute("BEGIN IMMEDIATE")
            numbers = f"WITH RECURSIVE numbers(n) AS (VALUES({begin}) UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {end}) "
            db.execute(  # uids rise as those of UUIDv7 do, and lie before today's
                f"INSERT INTO task(id, uid, {COLUMNS}) {numbers} SELECT n, CAST(char(1) || printf('%015d', n) AS BLOB), {COLUMNS} "
                "FROM numbers CROSS JOIN task WHERE task.id = ?",
                (first,),
            )
            if attempt:
                columns = [row[1] for row in db.execute("PRAGMA table_info(attempt)") if row[1] != "task_id"]
                names = ", ".join(columns)
                db.execute(
                    f"INSERT INTO attempt(task_id, {names}) {numbers} SELECT n, {names} FROM numbers CROSS JOIN attempt "
                    "WHERE attempt.task_id = ?",
                    (first,),
                )
            db.execute("COMMIT")
        db.execute(
            "UPDATE tally SET n = n + ? WHERE (queue, status) = (SELECT queue, status FROM task WHERE id = ?)", (count - 1, first)
        )
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.sync()  # else the disk is busy with it while something is measured
