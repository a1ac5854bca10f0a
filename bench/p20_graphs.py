"""P20: what a step of a graph costs beside a plain task, and how long a graph of 10,000 steps takes to be stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench import processes
from bench.contenders import POWER, opened
from bench.harness import Figure, Measured, Params, Round, Row, Target
from bench.tasks import echo

PLAIN, CHAIN, FAN, LAYERS = "plain tasks", "chain", "fan out, fan in", "layers of 100"
WIDTH = 100


def graph(flow: Any, shape: str, steps: int) -> None:
    """Add so many steps to a flow. In layers each step waits for two of the layer above."""
    if shape == FAN:
        first = flow.step(echo, 0)
        middle = [flow.step(echo, n, after=[first]) for n in range(steps - 2)]
        flow.step(echo, 0, after=middle)
        return
    made: list[Any] = []
    for n in range(steps):
        if shape == CHAIN:
            parents = made[-1:]
        else:
            above = n // WIDTH * WIDTH - WIDTH
            parents = [] if above < 0 else [made[above + n % WIDTH], made[above + (n + 1) % WIDTH]]
        made.append(flow.step(echo, n, after=parents))


def measure(contender: str, params: Params) -> Measured:
    """Return ms until all is stored, and the supervisor's processor time per task until all has ended."""
    steps = params["chain"] if contender == CHAIN else params["steps"]
    with opened(POWER) as found:
        pool = found.pool
        flow = pool.flow("bench")
        if contender != PLAIN:
            graph(flow, contender, steps)
        before, began = processes.cpu_ns(pool.pid), time.perf_counter()
        if contender == PLAIN:
            futures = pool.submit_many(echo, range(steps))
            futures[-1].id  # noqa: B018  # waits until it is stored
        else:
            pool.submit_flow(flow)
        stored = time.perf_counter() - began
        if contender == PLAIN:
            for future in futures:
                future.result()
        else:
            assert flow.wait().status == "succeeded"
        cost = (processes.cpu_ns(pool.pid) - before) / 1000 / steps
    return Measured({"stored": stored * 1000, "cost": cost}, found.facts)


def _ratio(shape: str) -> Callable[[Round], float]:
    return lambda at: at[shape]["cost"] / at[PLAIN]["cost"]


ROW = Row(
    id="P20",
    title="Graphs",
    text="10,000 tasks that return their number (power), handed in at once: as plain tasks; all between a first and a last one; in "
    "layers of 100, each waiting for two; 1,000 in a chain. Until they are stored; the supervisor's processor time per task.",
    contenders=(PLAIN, CHAIN, FAN, LAYERS),
    figures=(
        Figure("stored", "ms", "until all are stored and acknowledged", "lower"),
        Figure("cost", "µs", "processor time of the supervisor per task", "lower"),
    ),
    measure=measure,
    params={"steps": 10_000, "chain": 1_000},
    quick={"steps": 1_000, "chain": 200},
    headline="cost",
    targets=(
        Target("ms until the layers are stored", lambda at: at[LAYERS]["stored"], at_most=200, unit="ms"),
        Target("cost of a step in layers ÷ of a plain task", _ratio(LAYERS), at_most=1.0),
        Target("cost of a step in a fan ÷ of a plain task", _ratio(FAN), at_most=1.0),
        Target("cost of a step in a chain ÷ of a plain task", _ratio(CHAIN)),
    ),
)
