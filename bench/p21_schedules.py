"""P21: the load of P1, and idleness, beside ten thousand schedules of which none is due."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import processes
from bench.contenders import POWER, opened_on, scratch_directory
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p01_noop import load
from bench.tasks import noop

NONE, MANY = "taskpool, no schedule", "taskpool, many schedules"


def measure(contender: str, params: Params) -> Measured:
    """Return the rate beside so many schedules, and what the supervisor costs while nothing is to be done."""
    with _scheduled(params["schedules"] if contender == MANY else 0) as directory, opened_on(directory, POWER) as found:
        pid = found.pool.pid
        seconds = load(found, params["tasks"])
        idle = processes.idle_cost(pid, params["idle_s"])
        figures = {
            "rate": params["tasks"] / seconds,
            "wakeups": idle.wakeups,
            "idle_cpu": idle.cpu_ms,
            "rss": processes.rss_mb(pid),
        }
        return Measured(figures, found.facts)


@contextmanager
def _scheduled(count: int) -> Iterator[Path]:
    """Make a directory with a store `bench.db` that holds so many schedules, and remove it."""
    from taskpool import Pool

    with scratch_directory() as directory:
        with Pool(directory / "bench.db", workers=1, durability="process") as pool:
            for number in range(count):
                _add(pool, number)
        yield directory


def _add(pool: Any, number: int) -> None:
    """Add a schedule of some minute of a month that is half a year away."""
    month = (datetime.datetime.now(datetime.UTC).month + 5) % 12 + 1
    pool.add_cron(f"{number % 60} {number // 60 % 24} {number // 1440 % 28 + 1} {month} *", noop, name=f"idle-{number}")


ROW = Row(
    id="P21",
    title="Ten thousand idle schedules",
    text="The load of P1 (20,000 no-ops, power), and an idle supervisor after it, on a store with 10,000 cron schedules of which "
    "none is due for months, beside one without any.",
    contenders=(NONE, MANY),
    figures=(
        Figure("rate", "tasks/s", "tasks a second", "higher"),
        Figure("wakeups", "1/s", "wake-ups of an idle supervisor", "lower"),
        Figure("idle_cpu", "ms/s", "CPU of an idle supervisor", "lower"),
        Figure("rss", "MB", "resident memory of the supervisor after it", "lower"),
    ),
    measure=measure,
    params={"tasks": 20_000, "schedules": 10_000, "idle_s": 10.0},
    quick={"tasks": 3_000, "schedules": 500, "idle_s": 2.0},
    headline="rate",
    targets=(
        Target("rate with many ÷ with none", lambda at: at[MANY]["rate"] / at[NONE]["rate"], at_least=0.95),
        Target("more wake-ups with many", lambda at: at[MANY]["wakeups"] - at[NONE]["wakeups"], at_most=0.2, unit="1/s"),
        Target("more CPU when idle", lambda at: at[MANY]["idle_cpu"] - at[NONE]["idle_cpu"], at_most=0.1, unit="ms/s"),
        Target("more memory with many", lambda at: at[MANY]["rss"] - at[NONE]["rss"], unit="MB"),
    ),
)
