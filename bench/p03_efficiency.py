"""P3: short tasks that compute. How much of the machine reaches them."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Barrier

from bench import facts
from bench.contenders import MPP, PEBBLE, POWER, PPE, PROCESS, Opened, opened
from bench.harness import Figure, Measured, Params, Round, Row, Target
from bench.tasks import spin

PEERS = (PPE, MPP, PEBBLE)


def calibrate(params: Params) -> Params:
    """Return how many steps of `spin` take a millisecond here, so that every contender does the same work."""
    steps, best = 20_000, 1.0
    for _ in range(30):
        began = time.perf_counter()
        spin(steps)
        best = min(best, time.perf_counter() - began)
    return {"steps_1ms": int(steps * 1e-3 / best)}


def _bare(start: Barrier, tasks: int, steps: int) -> None:
    start.wait()
    for _ in range(tasks):
        spin(steps)


def ideal(workers: int, tasks: int, steps: int) -> float:
    """Return the seconds that processes need for the same tasks when nobody hands them out."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers + 1)
    processes = [context.Process(target=_bare, args=(start, tasks // workers, steps)) for _ in range(workers)]
    for process in processes:
        process.start()
    start.wait()
    began = time.perf_counter()
    for process in processes:
        process.join()
    return time.perf_counter() - began


def load(found: Opened, tasks: int, steps: int) -> float:
    """Submit all, collect all; return the seconds."""
    began = time.perf_counter()
    for handle in [found.submit(spin, steps) for _ in range(tasks)]:
        found.result(handle)
    return time.perf_counter() - began


def measure(contender: str, params: Params) -> Measured:
    """Return seconds and efficiency for tasks of 1 ms and of 10 ms; the ideal is the faster of two, before and after each."""
    tasks, steps, workers = params["tasks"], params["steps_1ms"], facts.workers()
    with opened(contender) as found:
        for handle in [found.submit(spin, steps) for _ in range(50)]:
            found.result(handle)
        figures: dict[str, float] = {}
        for name, count, each in (("1ms", tasks, steps), ("10ms", tasks // 10, steps * 10)):
            before = ideal(workers, count, each)
            seconds = load(found, count, each)
            after = ideal(workers, count, each)
            figures |= {f"s_{name}": seconds, f"of_ideal_{name}": min(before, after) / seconds}
        return Measured(figures, found.facts)


def _short(at: Round, contender: str) -> float:
    return at[contender]["of_ideal_1ms"]


def _best_peer(at: Round) -> float:
    return max(_short(at, peer) for peer in PEERS)


ROW = Row(
    id="P3",
    title="Efficiency at 1 ms",
    text="2,000 tasks that compute for 1 ms (a fixed number of steps), 2 workers, as a share of the speed at which two bare "
    "processes do the same work immediately before and after.",
    contenders=(POWER, PROCESS, PPE, MPP, PEBBLE),
    figures=(
        Figure("of_ideal_1ms", "×", "tasks of 1 ms, of the ideal", "higher"),
        Figure("of_ideal_10ms", "×", "tasks of 10 ms, of the ideal", "higher"),
        Figure("s_1ms", "s", "2,000 tasks of 1 ms", "lower"),
        Figure("s_10ms", "s", "200 tasks of 10 ms", "lower"),
    ),
    measure=measure,
    params={"tasks": 2_000},
    quick={"tasks": 600},
    prepare=calibrate,
    headline="of_ideal_1ms",
    targets=(
        Target("process at 1 ms", lambda at: _short(at, PROCESS), at_least=0.90),
        Target("power at 1 ms", lambda at: _short(at, POWER), at_least=0.87),
        Target("process at 1 ms ÷ the best peer", lambda at: _short(at, PROCESS) / _best_peer(at), at_least=1.0),
        Target("power at 1 ms ÷ the best peer", lambda at: _short(at, POWER) / _best_peer(at), at_least=1.0),
        Target("process at 10 ms", lambda at: at[PROCESS]["of_ideal_10ms"], at_least=0.98),
        Target("power at 10 ms", lambda at: at[POWER]["of_ideal_10ms"], at_least=0.98),
    ),
)
