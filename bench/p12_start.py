"""P12: a supervisor that was killed amid a million queued tasks; the next one's first body."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from bench import facts, processes
from bench.filling import filled
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p13_kill_supervisor import LEDGER_ENV, begins, entry
from bench.statistics import median

FEW, MANY = "taskpool, 1,000 queued", "taskpool, many queued"


def _one_queued(pool: Any) -> None:
    pool.pause("default")
    pool.submit(entry, 0)


def measure(contender: str, params: Params) -> Measured:
    """Return how long after its start a new pool begins its first body, when the one before was killed, several times."""
    with filled(params["few" if contender == FEW else "many"], _one_queued) as directory:
        store, ledger = directory / "bench.db", directory / "ledger"
        ledger.write_bytes(b"")
        os.environ[LEDGER_ENV] = str(ledger)
        _resume(store)
        took, rss = [], 0.0
        for number in range(params["kills"] + 1):
            seconds, rss = _start(store, ledger)
            if number:  # the first finds a store that was closed well
                took.append(seconds)
        about = {"durability": "power", "versions": facts.versions("taskpool")}
        return Measured({"dispatch": median(took), "dispatch_max": max(took), "rss": rss}, about)


def _resume(store: Path) -> None:
    from contextlib import closing

    from taskpool.store.store import Store

    with closing(Store.open(store)) as owned:
        owned.pause_queues(["default"], False)


def _start(store: Path, ledger: Path) -> tuple[float, float]:
    """Start a pool, wait for its first body, kill its supervisor. Return the seconds, and the supervisor's memory in MB."""
    from taskpool import Pool, PoolStopped

    before, began = len(begins(ledger)), time.monotonic_ns()
    pool = Pool(store, workers=facts.workers(), durability="power")
    until = time.monotonic() + 60
    while len(begins(ledger)) <= before and time.monotonic() < until:
        time.sleep(0.001)
    seconds = (begins(ledger)[before][1] - began) / 1e9
    rss = processes.rss_mb(pool.pid)
    workers = [worker.pid for worker in pool.stats().workers if worker.pid]
    os.kill(pool.pid, signal.SIGKILL)
    try:
        pool.stop()
    except PoolStopped:
        pass
    processes.wait_gone(workers)
    return seconds, rss


ROW = Row(
    id="P12",
    title="Start on a million queued tasks",
    text="1,000,000 tasks of 4 ms are queued and the supervisor is killed (SIGKILL) while the first of them run; from `Pool(…)` on "
    "that file to the begin of its first body, by the clock of the body. Beside it the same with 1,000.",
    contenders=(FEW, MANY),
    figures=(
        Figure("dispatch", "s", "new pool to its first body, median", "lower"),
        Figure("dispatch_max", "s", "max", "lower"),
        Figure("rss", "MB", "resident memory of the supervisor then", "lower"),
    ),
    measure=measure,
    params={"few": 1_000, "many": 1_000_000, "kills": 5},
    quick={"few": 1_000, "many": 50_000, "kills": 2},
    headline="dispatch",
    targets=(
        Target("new pool to its first body", lambda at: at[MANY]["dispatch_max"], at_most=1.0, unit="s"),
        Target("more memory with many", lambda at: at[MANY]["rss"] - at[FEW]["rss"], at_most=150, unit="MB"),
    ),
)
