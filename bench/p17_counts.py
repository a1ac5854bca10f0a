"""P17: what a task costs the supervisor, by the number of workers, of queues, and of keys."""

from __future__ import annotations

from collections.abc import Callable

from bench import processes
from bench.contenders import POWER, Opened, opened
from bench.harness import Figure, Measured, Params, Round, Row, Target
from bench.tasks import doze, noop

WORKERS = ("1 worker", "64 workers")
QUEUES = ("1 queue", "1,000 queues")
KEYS = ("1 key", "100,000 keys")
DOZE_S = 0.01
QUEUES_MANY = 1_000


def has_keys() -> bool:
    """Return whether this taskpool has serialization keys."""
    from taskpool.doors.options import TaskOptions

    return "key" in TaskOptions.__annotations__


def measure(contender: str, params: Params) -> Measured:
    """Return the supervisor's processor time per task."""
    count = int(contender.partition(" ")[0].replace(",", ""))
    with opened(POWER, workers=count if contender in WORKERS else None) as found:
        before = processes.cpu_ns(found.pool.pid)
        if contender in WORKERS:
            tasks = params["dozes"] * count
            for handle in [found.submit(doze, DOZE_S) for _ in range(tasks)]:
                found.result(handle)
        else:
            tasks = params["tasks"]
            load(found, tasks, "queue" if contender in QUEUES else "key", min(count, tasks))
        cost = (processes.cpu_ns(found.pool.pid) - before) / 1000 / tasks
    return Measured({"cost": cost}, found.facts)


def load(found: Opened, tasks: int, option: str, count: int) -> None:
    """Run that many no-ops, in so many queues or with so many keys, in turn."""
    submits = [found.pool.options(**{option: f"{option}-{n}"}).submit_nowait for n in range(count)]
    for handle in [submits[n % count](noop) for n in range(tasks)]:
        found.result(handle)


def _ratio(pair: tuple[str, str]) -> Callable[[Round], float]:
    return lambda at: at[pair[1]]["cost"] / at[pair[0]]["cost"]


PAIRS = (WORKERS, QUEUES, *((KEYS,) if has_keys() else ()))

ROW = Row(
    id="P17",
    title="Cost by workers, queues and keys",
    text="Processor time of the supervisor per task (power): tasks that sleep 10 ms on 1 and 64 workers, 200 a worker; 20,000 "
    "no-ops in 1 and 1,000 queues" + (", with 1 and 20,000 (of 100,000) keys." if has_keys() else "."),
    contenders=tuple(name for pair in PAIRS for name in pair),
    figures=(Figure("cost", "µs", "supervisor, per task", "lower"),),
    measure=measure,
    params={"tasks": 20_000, "dozes": 200},
    quick={"tasks": 3_000, "dozes": 30},
    headline="cost",
    targets=tuple(Target(f"{pair[1]} ÷ {pair[0]}", _ratio(pair), at_most=1.3) for pair in PAIRS),
)
