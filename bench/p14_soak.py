"""P14: ten thousand tasks, a thousand deaths, timeouts and cancels; then everything must be as it was."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

from bench import processes
from bench.contenders import POWER, Opened, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p01_noop import load
from bench.tasks import doze, hold_gil_quietly, noop


def panic() -> None:
    """Leave at once."""
    os._exit(3)


def soak(found: Opened, tasks: int) -> dict[str, int]:
    """Run `tasks` tasks, a tenth of them panics, a fiftieth timeouts, a fiftieth cancelled while they run; count how they ended."""
    hurried = found.pool.options(timeout=0.05)
    futures: list[Any] = []
    ended: dict[str, int] = {}
    for number in range(tasks):
        if number % 10 == 1:
            futures.append(found.submit(panic))
        elif number % 50 == 2:
            futures.append(hurried.submit_nowait(hold_gil_quietly))
        elif number % 50 == 3:
            futures.append(found.submit(doze, 30.0))
            futures[-1].cancel_soon = True
        else:
            futures.append(found.submit(noop))
        if len(futures) == 200:
            _settle(futures, ended)
    _settle(futures, ended)
    return ended


def _settle(futures: list[Any], ended: dict[str, int]) -> None:
    for future in futures:
        if hasattr(future, "cancel_soon"):
            while future.status in ("pending", "queued"):
                time.sleep(0.001)
            future.cancel()
        error = _error_of(future)
        name = type(error).__name__ if error is not None else "succeeded"
        ended[name] = ended.get(name, 0) + 1
    futures.clear()


def _error_of(future: Any) -> BaseException | None:
    from concurrent.futures import CancelledError

    try:
        error: BaseException | None = future.exception()
        return error
    except CancelledError as cancelled:
        return cancelled


def measure(contender: str, params: Params) -> Measured:
    """Return what supervisor and caller hold afterwards, as a share of what they held before, when all caches were full.

    SQLite's page cache alone grows to 16 MB, which takes some ten thousand rows.
    """
    with opened(contender) as found:
        pid = found.pool.stats().pid
        for _ in range(params["warm"] // 1_000):
            load(found, 1_000)
        soak(found, params["tasks"] // 10)
        base = _at_rest(pid)
        ended = soak(found, params["tasks"])
        after = _at_rest(pid)
        seconds_of_cpu = processes.cpu_ns(pid) / 1e9
    figures: dict[str, float] = {"cpu_s": seconds_of_cpu}
    figures |= {f"{who}_{name}": after[who][name] / max(1.0, base[who][name]) for who in after for name in after[who]}
    figures["wrong"] = float(
        abs(ended.get("TaskPanicked", 0) - params["tasks"] // 10)
        + abs(ended.get("TaskTimeout", 0) - params["tasks"] // 50)
        + abs(ended.get("TaskCancelled", 0) - params["tasks"] // 50)
    )
    return Measured(figures, {**found.facts, "base": base, "after": after, "ended": ended})


def _at_rest(pid: int) -> dict[str, dict[str, float]]:
    """Return the footprints of supervisor and caller once the pool has its workers again."""
    time.sleep(1.5)
    return {"supervisor": asdict(processes.footprint(pid)), "caller": asdict(processes.footprint(os.getpid()))}


_WHAT = {"descriptors": "descriptors", "threads": "threads", "processes": "processes", "rss_mb": "memory"}

ROW = Row(
    id="P14",
    title="Soak",
    text="10,000 tasks, of which 1,000 leave by `os._exit`, 200 run into a timeout in a C loop and 200 are cancelled while they "
    "run; what supervisor and caller hold afterwards, as a share of what they held before it, after 80,000 tasks of warm-up.",
    contenders=(POWER,),
    figures=(
        *(Figure(f"supervisor_{name}", "×", f"supervisor: {text}") for name, text in _WHAT.items()),
        *(Figure(f"caller_{name}", "×", f"caller: {text}") for name, text in _WHAT.items()),
        Figure("wrong", "tasks", "tasks that ended otherwise than meant", "lower"),
        Figure("cpu_s", "s", "CPU of the supervisor"),
    ),
    measure=measure,
    params={"tasks": 10_000, "warm": 80_000},
    quick={"tasks": 500, "warm": 10_000},
    timeout_s=900,
    targets=(
        *(
            Target(f"supervisor: {text}", lambda at, name=name: at[POWER][f"supervisor_{name}"], at_most=1.1)  # type: ignore[misc]
            for name, text in _WHAT.items()
        ),
        *(
            Target(f"caller: {text}", lambda at, name=name: at[POWER][f"caller_{name}"], at_most=1.1)  # type: ignore[misc]
            for name, text in _WHAT.items()
        ),
        Target("tasks that ended otherwise than meant", lambda at: at[POWER]["wrong"], at_most=0, unit="tasks"),
    ),
)
