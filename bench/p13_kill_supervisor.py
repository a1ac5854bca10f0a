"""P13: SIGKILL of the supervisor again and again amid a thousand tasks, and a ledger that the bodies keep.

The ledger is a file to which every body appends a line as it begins and one as it ends: what happened, whatever a store says.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import facts, processes
from bench.contenders import POWER, scratch_directory
from bench.harness import Figure, Measured, Params, Row, Target
from bench.statistics import quantile

LEDGER_ENV = "TASKPOOL_BENCH_LEDGER"


def entry(index: int) -> int:
    """Note begin and end in the ledger; work some 4 ms between; return the index."""
    ledger = os.open(os.environ[LEDGER_ENV], os.O_WRONLY | os.O_APPEND)
    os.write(ledger, b"b %d %d %d\n" % (index, os.getpid(), time.monotonic_ns()))
    until = time.perf_counter() + 0.004
    while time.perf_counter() < until:
        pass
    os.write(ledger, b"e %d %d %d\n" % (index, os.getpid(), time.monotonic_ns()))
    os.close(ledger)
    return index


@dataclass
class Tally:
    """What all kills together did."""

    kills: int = 0
    lost: int = 0
    stuck: int = 0
    second_runs: int = 0
    excused: int = 0  # bodies begun whose result was not committed when the supervisor died
    gone_s: list[float] = field(default_factory=list)
    dispatch_s: list[float] = field(default_factory=list)


def begins(ledger: Path) -> list[tuple[int, int]]:
    """Return (index, monotonic ns) of every begin in the ledger, in order."""
    return [(int(part[1]), int(part[3])) for part in map(bytes.split, ledger.read_bytes().splitlines()) if part[0] == b"b"]


def campaign(directory: Path, tasks: int, kills: int, dice: random.Random, tally: Tally) -> None:
    """Store tasks, kill the supervisor up to `kills` times while they run, let them end, and compare with the ledger."""
    from taskpool import Pool

    store, ledger = directory / "bench.db", directory / "ledger"
    ledger.write_bytes(b"")
    os.environ[LEDGER_ENV] = str(ledger)
    killed = 0
    while True:
        from_ns, before = time.monotonic_ns(), len(begins(ledger))
        last = killed >= kills
        pool = Pool(store, workers=facts.workers(), durability="power")
        results: dict[int, Any] = {}
        try:
            futures = pool.submit_many(entry, range(tasks)) if not killed else []
            if not futures and not last:
                tally.dispatch_s += _first_begin(ledger, before, from_ns)
            if last:
                _wait_until_all_ended(pool, tasks)
                break
            time.sleep(dice.uniform(0.02, 0.3))
            stats = pool.stats()
            if stats.counts.get("running", 0) + stats.counts.get("queued", 0) == 0:
                break
            pids = [worker.pid for worker in stats.workers if worker.pid]
            os.kill(stats.pid, signal.SIGKILL)
            killed += 1
            tally.kills += 1
            tally.gone_s.append(processes.wait_gone(pids))
            tally.excused += facts.workers()
        finally:
            results.clear()
            _leave(pool)
    _compare(store, ledger, tasks, tally)


def _leave(pool: Any) -> None:
    """Close a pool whose supervisor may have been killed."""
    from taskpool.errors import TaskpoolError

    try:
        pool.stop()
    except TaskpoolError:
        pass


def _first_begin(ledger: Path, before: int, from_ns: int) -> list[float]:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = begins(ledger)
        if len(found) > before:
            return [(found[before][1] - from_ns) / 1e9]
        time.sleep(0.005)
    return [10.0]


def _wait_until_all_ended(pool: Any, tasks: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and pool.stats().counts.get("succeeded", 0) < tasks:
        time.sleep(0.05)


def _compare(store: Path, ledger: Path, tasks: int, tally: Tally) -> None:
    from taskpool.store.reading import Reader

    reader = Reader(store)
    try:
        counts = Counter(reader.counts())
    finally:
        reader.close()
    runs = Counter(index for index, _ in begins(ledger))
    tally.lost += sum(1 for index in range(tasks) if not runs[index])
    tally.stuck += tasks - counts["succeeded"]
    tally.second_runs += sum(count - 1 for count in runs.values())


def measure(contender: str, params: Params) -> Measured:
    """Return the sums over all campaigns of this round."""
    tally = Tally()
    dice = random.Random(time.time_ns())
    while tally.kills < params["kills"]:
        with scratch_directory() as directory:
            campaign(directory, params["tasks"], min(10, params["kills"] - tally.kills), dice, tally)
    return Measured(
        {
            "kills": float(tally.kills),
            "lost": float(tally.lost),
            "stuck": float(tally.stuck),
            "second_runs": float(tally.second_runs),
            "excess": float(tally.second_runs - tally.excused),
            "gone_max": max(tally.gone_s),
            "dispatch_p50": quantile(tally.dispatch_s or [0.0], 0.5),
            "dispatch_max": max(tally.dispatch_s or [0.0]),
        },
        {"durability": "power", "versions": facts.versions("taskpool")},
    )


ROW = Row(
    id="P13",
    title="SIGKILL of the supervisor",
    text="A thousand tasks of 4 ms; the supervisor is killed at random instants and a new pool opened on the same file; bodies "
    "keep a ledger. A second run is excused if its body had begun and its result was not committed: at most one a worker and kill.",
    contenders=(POWER,),
    figures=(
        Figure("kills", "kills", "kills in a round"),
        Figure("lost", "tasks", "tasks that never ran", "lower"),
        Figure("stuck", "tasks", "tasks that did not succeed in the end", "lower"),
        Figure("second_runs", "runs", "bodies begun once more", "lower"),
        Figure("gone_max", "s", "kill to the end of every worker, max", "lower"),
        Figure("dispatch_p50", "s", "new pool to its first body, p50", "lower"),
        Figure("dispatch_max", "s", "max", "lower"),
    ),
    measure=measure,
    params={"kills": 40, "tasks": 1_000},
    quick={"kills": 4, "tasks": 200},
    timeout_s=600,
    targets=(
        Target("lost", lambda at: at[POWER]["lost"], at_most=0, unit="tasks"),
        Target("stuck", lambda at: at[POWER]["stuck"], at_most=0, unit="tasks"),
        Target("second runs beyond the excused", lambda at: at[POWER]["excess"], at_most=0, unit="runs"),
        Target("kill to the end of every worker", lambda at: at[POWER]["gone_max"], at_most=2.0, unit="s"),
        Target("new pool to its first body", lambda at: at[POWER]["dispatch_max"], at_most=0.5, unit="s"),
    ),
)
