"""P1: no-op tasks, submitted one by one, all results collected. What one task costs."""

from __future__ import annotations

import time

from bench.contenders import EXECUTOR, MPP, PEBBLE, POWER, PPE, PROCESS, Opened, opened
from bench.harness import Figure, Measured, Params, Round, Row, Target
from bench.tasks import noop


def load(found: Opened, tasks: int) -> float:
    """Submit that many no-ops one by one, collect every result, and return the seconds it took."""
    submit, result = found.submit, found.result
    began = time.perf_counter()
    handles = [submit(noop) for _ in range(tasks)]
    for handle in handles:
        result(handle)
    return time.perf_counter() - began


def measure(contender: str, params: Params) -> Measured:
    """Return the rate of one contender, its pool being warm."""
    with opened(contender) as found:
        seconds = load(found, params["tasks"])
        return Measured({"rate": params["tasks"] / seconds}, found.facts)


def has_executor() -> bool:
    """Return whether this taskpool has its drop-in for ProcessPoolExecutor."""
    import taskpool

    return hasattr(taskpool, "Executor")


def ratio(ours: str, peer: str) -> Target:
    """Return an open target: our rate over a peer's."""
    return Target(f"{ours} ÷ {peer}", lambda at: _rate(at, ours) / _rate(at, peer))


def _rate(at: Round, contender: str) -> float:
    return at[contender]["rate"]


ROW = Row(
    id="P1",
    title="No-op tasks",
    text="20,000 calls of a function that does nothing, submitted one by one (`submit_nowait`), all results collected; 2 workers.",
    contenders=(POWER, PROCESS, *((EXECUTOR,) if has_executor() else ()), PPE, MPP, PEBBLE),
    figures=(Figure("rate", "tasks/s", "tasks a second", "higher"),),
    measure=measure,
    params={"tasks": 20_000},
    quick={"tasks": 3_000},
    headline="rate",
    targets=(
        Target("power ÷ PPE", lambda at: _rate(at, POWER) / _rate(at, PPE), at_least=3.0),
        Target("power ÷ MPP", lambda at: _rate(at, POWER) / _rate(at, MPP), at_least=0.9),
        Target("process ÷ PPE", lambda at: _rate(at, PROCESS) / _rate(at, PPE), at_least=4.0),
        Target("process ÷ MPP", lambda at: _rate(at, PROCESS) / _rate(at, MPP), at_least=1.0),
        ratio(EXECUTOR, PPE),
    ),
)
