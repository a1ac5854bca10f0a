"""P10: the load of P1 on a store in which a million tasks wait."""

from __future__ import annotations

from typing import Any

from bench import processes
from bench.contenders import POWER, opened_on
from bench.filling import filled
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p01_noop import load
from bench.tasks import noop

FEW, MANY = "taskpool, 10,000 wait", "taskpool, many wait"


def _one_that_waits(pool: Any) -> None:
    pool.queue("later", paused=True).submit(noop)


def measure(contender: str, params: Params) -> Measured:
    """Return the rate beside so many waiting tasks, and what the supervisor holds in memory after it."""
    count = params["few" if contender == FEW else "many"]
    with filled(count, _one_that_waits) as directory, opened_on(directory, POWER) as found:
        seconds = load(found, params["tasks"])
        return Measured({"rate": params["tasks"] / seconds, "rss": processes.rss_mb(found.pool.pid)}, found.facts)


ROW = Row(
    id="P10",
    title="A million waiting tasks",
    text="The load of P1 (20,000 no-ops, power) on a store in which 1,000,000 tasks are queued in another, paused line, beside one "
    "in which 10,000 are.",
    contenders=(FEW, MANY),
    figures=(
        Figure("rate", "tasks/s", "tasks a second", "higher"),
        Figure("rss", "MB", "resident memory of the supervisor after it", "lower"),
    ),
    measure=measure,
    params={"tasks": 20_000, "few": 10_000, "many": 1_000_000},
    quick={"tasks": 3_000, "few": 10_000, "many": 100_000},
    headline="rate",
    targets=(
        Target("rate with many ÷ with few", lambda at: at[MANY]["rate"] / at[FEW]["rate"], at_least=0.9),
        Target("more memory with many", lambda at: at[MANY]["rss"] - at[FEW]["rss"], at_most=150, unit="MB"),
    ),
)
