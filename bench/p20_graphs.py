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
LONE = "lone tasks"
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
    """Return ms until all is stored, the supervisor's processor time per task until then and until all has ended, and the time."""
    steps = params["chain"] if contender in (CHAIN, LONE) else params["steps"]
    with opened(POWER) as found:
        pool = found.pool
        flow = pool.flow("bench")
        building = time.perf_counter()
        if contender not in (PLAIN, LONE):
            graph(flow, contender, steps)
        built = (time.perf_counter() - building) * 1000
        before, began = processes.cpu_ns(pool.pid), time.perf_counter()
        if contender == LONE:
            for n in range(steps):
                pool.submit_nowait(echo, n).result()
            return Measured(_costs(pool.pid, before, began, steps), found.facts)
        if contender == PLAIN:
            futures = pool.submit_many(echo, range(steps))
            futures[-1].id  # noqa: B018  # waits until it is stored
        else:
            pool.submit_flow(flow)
        stored, storing = time.perf_counter() - began, processes.cpu_ns(pool.pid) - before
        if contender == PLAIN:
            for future in futures:
                future.result()
        else:
            assert flow.wait().status == "succeeded"
        figures = {
            "built": built,
            "stored": stored * 1000,
            "storing": storing / 1000 / steps,
            **_costs(pool.pid, before, began, steps),
        }
    return Measured(figures, found.facts)


def _costs(pid: int, before_ns: int, began_s: float, steps: int) -> dict[str, float]:
    took_s = time.perf_counter() - began_s
    return {"cost": (processes.cpu_ns(pid) - before_ns) / 1000 / steps, "each": took_s * 1e6 / steps}


def _ratio(shape: str, figure: str = "cost", to: str = PLAIN) -> Callable[[Round], float]:
    return lambda at: at[shape][figure] / at[to][figure]


ROW = Row(
    id="P20",
    title="Graphs",
    text="10,000 tasks that return their number (power), handed in at once: as plain tasks (which run meanwhile); all between a "
    "first and a last one; in layers of 100, each waiting for two; 1,000 in a chain, and 1,000 lone tasks, each submitted when the "
    "one before has returned. Stored: from the call that hands them in. Arguments of plain tasks are encoded in that call, those "
    "of steps as they are added, before. The supervisor's processor time per task.",
    contenders=(PLAIN, LONE, CHAIN, FAN, LAYERS),
    figures=(
        Figure("built", "ms", "until all steps are added, their arguments encoded", "lower"),
        Figure("stored", "ms", "until all are stored and acknowledged", "lower"),
        Figure("storing", "µs", "processor time of the supervisor until then, per task", "lower"),
        Figure("cost", "µs", "processor time of the supervisor per task", "lower"),
        Figure("each", "µs", "from the first submit to the last result, per task", "lower"),
    ),
    measure=measure,
    params={"steps": 10_000, "chain": 1_000},
    quick={"steps": 1_000, "chain": 200},
    headline="cost",
    targets=(
        Target("ms until the layers are stored", lambda at: at[LAYERS]["stored"], at_most=200, unit="ms"),
        Target("cost of a step in layers ÷ of a plain task", _ratio(LAYERS), at_most=1.0),
        Target("cost of a step in a fan ÷ of a plain task", _ratio(FAN), at_most=1.0),
        Target("time until the layers are stored ÷ as many plain tasks", _ratio(LAYERS, "stored")),
        Target("cost of storing a step in layers ÷ a plain task", _ratio(LAYERS, "storing")),
        Target("cost of a step in a chain ÷ of a lone task", _ratio(CHAIN, to=LONE), at_most=1.0),
        Target("time of a step in a chain ÷ of a lone task", _ratio(CHAIN, "each", LONE), at_most=1.0),
    ),
)
