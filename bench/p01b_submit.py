"""P1b: `submit`, which returns when the task is on disk: its latency from one thread, its rate from sixteen."""

from __future__ import annotations

import threading
import time

from bench import facts
from bench.contenders import POWER, Opened, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.statistics import quantile
from bench.tasks import noop

THREADS = 16


def one_thread(found: Opened, tasks: int) -> tuple[float, list[float]]:
    """Submit durably one after the other; return the seconds in all and the µs of each call."""
    took = []
    futures = []
    began = time.perf_counter()
    for _ in range(tasks):
        at = time.perf_counter_ns()
        futures.append(found.pool.submit(noop))
        took.append((time.perf_counter_ns() - at) / 1000)
    seconds = time.perf_counter() - began
    for future in futures:
        future.result()
    return seconds, took


def many_threads(found: Opened, tasks: int) -> float:
    """Submit durably from all threads at once, `tasks` in all; return the seconds it took."""
    start = threading.Barrier(THREADS + 1)
    futures: list[list[object]] = [[] for _ in range(THREADS)]

    def run(mine: list[object]) -> None:
        start.wait()
        for _ in range(tasks // THREADS):
            mine.append(found.pool.submit(noop))

    threads = [threading.Thread(target=run, args=(mine,)) for mine in futures]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    for mine in futures:
        for future in mine:
            found.result(future)
    return seconds


def measure(contender: str, params: Params) -> Measured:
    """Return latency and rates, and the time of a bare commit on the same disk, taken before and after."""
    tasks = params["tasks"]
    with opened(contender) as found:
        assert found.directory is not None
        commits = facts.commit_us(found.directory)
        seconds, took = one_thread(found, tasks)
        commits += facts.commit_us(found.directory)
        together = many_threads(found, tasks * 4)
        return Measured(
            {
                "p50": quantile(took, 0.5),
                "p99": quantile(took, 0.99),
                "commit": quantile(commits, 0.5),
                "rate_1": tasks / seconds,
                "rate_16": (tasks * 4 // THREADS * THREADS) / together,
            },
            found.facts,
        )


ROW = Row(
    id="P1b",
    title="Durable submit",
    text="`submit` of a no-op returns when the task would survive a power cut: latency of one thread, rate of one and of sixteen.",
    contenders=(POWER,),
    figures=(
        Figure("p50", "µs", "submit, one thread, p50", "lower"),
        Figure("p99", "µs", "submit, one thread, p99", "lower"),
        Figure("commit", "µs", "one bare commit in this run, p50"),
        Figure("rate_1", "submits/s", "one thread", "higher"),
        Figure("rate_16", "submits/s", "sixteen threads", "higher"),
    ),
    measure=measure,
    params={"tasks": 2_000},
    quick={"tasks": 300},
    targets=(
        Target("p50 above one commit", lambda at: at[POWER]["p50"] - at[POWER]["commit"], at_most=500, unit="µs"),
        Target("sixteen threads ÷ one", lambda at: at[POWER]["rate_16"] / at[POWER]["rate_1"], at_least=2.0),
    ),
)
