"""P9: a hundred thousand tasks into the store at once, beside the bare insertion of the very same rows."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from bench.contenders import POWER, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.tasks import doze, echo


def raw_insert(store: Path, copy: Path, first_id: int) -> tuple[int, float]:
    """Insert the store's newest task rows into a new file of the same schema by one executemany; return how many, and the seconds.

    The same PRAGMAs as the store's: WAL, synchronous=FULL.
    """
    source = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        schema = [sql for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE tbl_name = 'task' AND sql IS NOT NULL")]
        rows = source.execute("SELECT * FROM task WHERE id >= ? ORDER BY id", (first_id,)).fetchall()
    finally:
        source.close()
    target = sqlite3.connect(copy, isolation_level=None)
    try:
        target.execute("PRAGMA journal_mode=WAL")
        target.execute("PRAGMA synchronous=FULL")
        for sql in schema:
            if not sql.upper().startswith("CREATE TRIGGER"):
                target.execute(sql)
        marks = ", ".join("?" * len(rows[0]))
        began = time.perf_counter()
        target.execute("BEGIN IMMEDIATE")
        target.executemany(f"INSERT INTO task VALUES ({marks})", rows)
        target.execute("COMMIT")
        return len(rows), time.perf_counter() - began
    finally:
        target.close()


def measure(contender: str, params: Params) -> Measured:
    """Return the rate of `submit_many`, which returns when all is on disk, while both workers are busy; and the bare rate."""
    tasks = params["tasks"]
    with opened(contender) as found:
        assert found.directory is not None
        busy = [found.pool.submit(doze, 600.0) for _ in range(found.pool.stats().workers.__len__())]
        began = time.perf_counter()
        futures = found.pool.submit_many(echo, range(tasks))
        seconds = time.perf_counter() - began
        count, raw = raw_insert(found.directory / "bench.db", found.directory / "raw.db", futures[0].id)
        assert count == tasks, f"{count} rows of {tasks} tasks"
        for future in busy:
            future.cancel(force=True)
        found.pool.stop()
    return Measured({"rate": tasks / seconds, "raw": tasks / raw}, found.facts)


ROW = Row(
    id="P9",
    title="Bulk enqueue",
    text="`submit_many` of 100,000 tasks with one small argument, durable when it returns; beside it one `executemany` of the very "
    "same rows into the same schema on the same disk.",
    contenders=(POWER,),
    figures=(
        Figure("rate", "tasks/s", "submit_many", "higher"),
        Figure("raw", "rows/s", "bare executemany of the same rows"),
    ),
    measure=measure,
    params={"tasks": 100_000},
    quick={"tasks": 20_000},
    headline="rate",
    targets=(
        Target("of the bare insertion", lambda at: at[POWER]["rate"] / at[POWER]["raw"], at_least=0.25),
        Target("tasks a second (aim: 100,000)", lambda at: at[POWER]["rate"], unit="1/s"),
    ),
)
