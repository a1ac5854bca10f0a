"""P1c: no-op tasks again, with keys, unique keys, priorities and queues in use. What the rules cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from typing import Any

from bench.contenders import POWER, Opened, opened
from bench.harness import Figure, Measured, Params, Round, Row, Target
from bench.tasks import noop

PLAIN, EVERY = "plain", "all of these"
KEYS_MANY = 1_000
QUEUES = tuple(f"queue-{n}" for n in range(8))

# What to say of the next task, task after task.
RULES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    PLAIN: lambda: cycle([{}]),
    "keys": lambda: cycle([{"key": f"key-{n}"} for n in range(KEYS_MANY)]),
    "unique keys": lambda: ({"unique": f"unique-{n}"} for n in count()),
    "priorities": lambda: cycle([{"priority": n} for n in (0, 3, -2, 1, 5)]),
    "queues": lambda: cycle([{"queue": name} for name in QUEUES]),
    EVERY: lambda: (
        {"key": f"key-{n % KEYS_MANY}", "unique": f"unique-{n}", "priority": n % 5, "queue": QUEUES[n % 8]} for n in count()
    ),
}


def load(found: Opened, name: str, tasks: int) -> float:
    """Submit that many no-ops one by one under these rules, collect every result, and return the seconds it took."""
    pool, rules = found.pool, RULES[name]()
    for queue in QUEUES if name in ("queues", EVERY) else ():
        pool.queue(queue, concurrency=1_000)
    # Options are prepared beforehand, as a program that calls @task functions does.
    submits = [pool.options(**next(rules)).submit_nowait for _ in range(tasks)]
    began = time.perf_counter()
    handles = [submit(noop) for submit in submits]
    for handle in handles:
        found.result(handle)
    return time.perf_counter() - began


def measure(contender: str, params: Params) -> Measured:
    """Return the rate under some rules, the pool being warm."""
    with opened(POWER) as found:
        seconds = load(found, contender, params["tasks"])
        return Measured({"rate": params["tasks"] / seconds}, found.facts)


def _of_plain(name: str) -> Callable[[Round], float]:
    return lambda at: at[name]["rate"] / at[PLAIN]["rate"]


ROW = Row(
    id="P1c",
    title="No-op tasks under rules",
    text="As P1 at power: 20,000 no-ops, submitted one by one, with 1,000 serialization keys in turn, each with a unique key of "
    "its own, with five priorities, in 8 queues with limits, and with all of these at once.",
    contenders=tuple(RULES),
    figures=(Figure("rate", "tasks/s", "tasks a second", "higher"),),
    measure=measure,
    params={"tasks": 20_000},
    quick={"tasks": 3_000},
    headline="rate",
    targets=tuple(Target(f"{name} ÷ plain", _of_plain(name), at_least=0.8) for name in RULES if name != PLAIN),
)
