"""P19: from the commit of a guest's transaction to the supervisor that has seen its task."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing

from bench import facts
from bench.contenders import POWER, PROCESS, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.statistics import quantile
from bench.tasks import noop


def measure(contender: str, params: Params) -> Measured:
    """Return how long after the commit the supervisor saw a task, told by `try_execute_now` or by the file system alone.

    Seen is when the turn that stores it was decided (`created_at`); stored, when `try_execute_now` has returned.
    """
    from taskpool import enqueue, try_execute_now

    with opened(contender) as found:
        assert found.directory is not None
        commits = facts.commit_us(found.directory, synchronous="NORMAL" if contender == PROCESS else "FULL")
        stored, told, alone = [], [], []
        with closing(sqlite3.connect(found.pool.store, isolation_level=None)) as guest:
            guest.execute(f"PRAGMA synchronous = {'NORMAL' if contender == PROCESS else 'FULL'}")
            for number in range(params["transactions"]):
                guest.execute("BEGIN IMMEDIATE")
                (task,) = enqueue(noop, connection=guest)
                guest.execute("COMMIT")
                at, wall = time.perf_counter_ns(), time.time_ns() // 1000
                if number % 2:
                    assert try_execute_now(task, timeout=10)
                    stored.append((time.perf_counter_ns() - at) / 1000)
                found.pool.future(task).result(60)
                seen = max(0, found.pool.get(task).created_at - wall)
                (told if number % 2 else alone).append(seen)
        figures = {
            "seen_p50": quantile(told, 0.5),
            "seen_p99": quantile(told, 0.99),
            "stored_p99": quantile(stored, 0.99),
            "alone_p50": quantile(alone, 0.5),
            "alone_p99": quantile(alone, 0.99),
            "commit": quantile(commits, 0.5),
        }
        return Measured(figures, found.facts)


ROW = Row(
    id="P19",
    title="Transactions of guests",
    text="A task in the caller's own transaction: how long after its commit a live supervisor has seen it.",
    contenders=(POWER, PROCESS),
    figures=(
        Figure("seen_p50", "µs", "seen after try_execute_now, p50", "lower"),
        Figure("seen_p99", "µs", "seen after try_execute_now, p99", "lower"),
        Figure("stored_p99", "µs", "stored, as try_execute_now returns, p99", "lower"),
        Figure("alone_p50", "µs", "seen without a word, p50", "lower"),
        Figure("alone_p99", "µs", "seen without a word, p99", "lower"),
        Figure("commit", "µs", "one bare commit in this run, p50"),
    ),
    measure=measure,
    params={"transactions": 1_000},
    quick={"transactions": 200},
    headline="seen_p99",
    targets=(
        Target("power: seen after try_execute_now, p99", lambda at: at[POWER]["seen_p99"], at_most=5_000, unit="µs"),
        Target("power: seen without a word, p99", lambda at: at[POWER]["alone_p99"], at_most=1_000_000, unit="µs"),
    ),
)
