"""P16: what the supervisor's processor time is, per no-op at full load, and per second of a long task."""

from __future__ import annotations

import os
import time

from bench import facts, processes
from bench.contenders import POWER, PROCESS, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p01_noop import load
from bench.tasks import doze


def measure(contender: str, params: Params) -> Measured:
    """Return CPU times by process under the load of P1, and the supervisor's while its workers sleep in long tasks."""
    tasks, seconds = params["tasks"], params["long_s"]
    with opened(contender) as found:
        stats = found.pool.stats()
        pids = [worker.pid for worker in stats.workers if worker.pid]
        before = _times(stats.pid, pids)
        load(found, tasks)
        after = _times(stats.pid, pids)
        ours, client, theirs = ((b - a) / 1000 / tasks for a, b in zip(before, after, strict=True))
        long = [found.submit(doze, seconds + 1.5) for _ in range(facts.workers())]
        time.sleep(1.0)
        began = processes.cpu_ns(stats.pid)
        time.sleep(seconds)
        per_long = (processes.cpu_ns(stats.pid) - began) / 1e6 / seconds / len(long)
        for handle in long:
            found.result(handle)
    return Measured({"supervisor": ours, "client": client, "workers": theirs, "long": per_long}, found.facts)


def _times(supervisor: int, workers: list[int]) -> tuple[int, int, int]:
    return processes.cpu_ns(supervisor), processes.cpu_ns(os.getpid()), sum(map(processes.cpu_ns, workers))


ROW = Row(
    id="P16",
    title="CPU of the supervisor",
    text="Processor time per no-op under the load of P1, by process, from the kernel's scheduler statistics; and of the "
    "supervisor per second of a running long task.",
    contenders=(POWER, PROCESS),
    figures=(
        Figure("supervisor", "µs", "supervisor, per no-op", "lower"),
        Figure("client", "µs", "calling process, per no-op", "lower"),
        Figure("workers", "µs", "workers, per no-op", "lower"),
        Figure("long", "ms/s", "supervisor, per long task and second", "lower"),
    ),
    measure=measure,
    params={"tasks": 20_000, "long_s": 30.0},
    quick={"tasks": 3_000, "long_s": 2.0},
    headline="supervisor",
    targets=(
        Target("power: per no-op", lambda at: at[POWER]["supervisor"], at_most=25, unit="µs"),
        Target("process: per no-op", lambda at: at[PROCESS]["supervisor"], at_most=25, unit="µs"),
        Target("per long task and second", lambda at: at[POWER]["long"], at_most=0.1, unit="ms"),
    ),
)
