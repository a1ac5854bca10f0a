"""P11: the load of P1 on a store that remembers millions of tasks; and what pruning them costs."""

from __future__ import annotations

import time
from typing import Any

from bench import processes
from bench.contenders import POWER, Opened, opened_on
from bench.filling import filled
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p01_noop import load
from bench.statistics import quantile
from bench.tasks import noop

NONE, MANY, PRUNING = "taskpool, empty", "taskpool, many ended", "taskpool, while it prunes"


def _one_that_ended(pool: Any) -> None:
    pool.submit(noop).result()


def measure(contender: str, params: Params) -> Measured:
    """Return the rate on an empty store, beside millions of ended tasks, or while these are pruned.

    Pruning goes on beside the load, and after it alone for a while; its rate is that of the tasks it deleted meanwhile.
    """
    count = 1 if contender == NONE else params["finished"]
    with filled(count, _one_that_ended) as directory, opened_on(directory, POWER) as found:
        figures = _pruning(found, params) if contender == PRUNING else {"rate": params["tasks"] / load(found, params["tasks"])}
        figures["rss"] = processes.rss_mb(found.pool.pid)
        found.pool.stop()  # it has not pruned all
        return Measured(figures, found.facts)


def _pruning(found: Opened, params: Params) -> dict[str, float]:
    """Return the rate, and single round trips, while everything that has ended is deleted."""
    from threading import Thread

    from taskpool import PoolStopped
    from taskpool.store.reading import Reader

    def prune() -> None:
        try:
            found.pool.prune(0)
        except PoolStopped:
            pass  # before it was done

    Thread(target=prune, daemon=True).start()
    with Reader(found.pool.store) as reader:
        until = time.monotonic() + 30
        while not reader.pruned() and time.monotonic() < until:
            time.sleep(0.01)
        began, before = time.perf_counter(), sum(reader.pruned().values())
        rate = params["tasks"] / load(found, params["tasks"])
        busy = (sum(reader.pruned().values()) - before) / (time.perf_counter() - began)
        trips = []
        for _ in range(params["trips"]):
            at = time.perf_counter_ns()
            found.result(found.submit(noop))
            trips.append((time.perf_counter_ns() - at) / 1e6)
        began, before = time.perf_counter(), sum(reader.pruned().values())
        time.sleep(params["alone_s"])
        alone = (sum(reader.pruned().values()) - before) / (time.perf_counter() - began)
        wal = found.pool.store + "-wal"
    import os

    return {
        "rate": rate,
        "pruned_busy": busy,
        "pruned_alone": alone,
        "trip_p99": quantile(trips, 0.99),
        "wal": os.stat(wal).st_size / 2**20,
    }


ROW = Row(
    id="P11",
    title="Ten million ended tasks",
    text="The load of P1 (20,000 no-ops, power) on a store that holds 10,000,000 tasks that have succeeded, with their attempts "
    "(2.5 GB), beside an empty one; and while those are pruned.",
    contenders=(NONE, MANY, PRUNING),
    figures=(
        Figure("rate", "tasks/s", "tasks a second", "higher"),
        Figure("rss", "MB", "resident memory of the supervisor after it", "lower"),
        Figure("trip_p99", "ms", "round trip of one no-op while it prunes, p99", "lower"),
        Figure("pruned_busy", "tasks/s", "pruned beside the load", "higher"),
        Figure("pruned_alone", "tasks/s", "pruned by an idle supervisor", "higher"),
        Figure("wal", "MB", "log beside the file after it", "lower"),
    ),
    measure=measure,
    params={"tasks": 20_000, "finished": 10_000_000, "trips": 500, "alone_s": 5.0},
    quick={"tasks": 3_000, "finished": 200_000, "trips": 100, "alone_s": 0.5},
    timeout_s=600,
    headline="rate",
    targets=(
        Target("rate with many ÷ with none", lambda at: at[MANY]["rate"] / at[NONE]["rate"], at_least=0.9),
        Target("rate while it prunes ÷ with none", lambda at: at[PRUNING]["rate"] / at[NONE]["rate"]),
        Target("more memory with many", lambda at: at[MANY]["rss"] - at[NONE]["rss"], unit="MB"),
    ),
)
