"""P2: one no-op at a time, there and back."""

from __future__ import annotations

import time

from bench import facts
from bench.contenders import MPP, PEBBLE, POWER, PPE, PROCESS, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.statistics import quantile
from bench.tasks import noop


def measure(contender: str, params: Params) -> Measured:
    """Return p50 and p99 of the round trip, and for ours the time of a bare commit of the same durability on the same disk."""
    with opened(contender) as found:
        submit, result = found.submit, found.result
        synchronous = "NORMAL" if contender == PROCESS else "FULL"
        commits = facts.commit_us(found.directory, synchronous=synchronous) if found.directory else []
        took = []
        for _ in range(params["tasks"]):
            at = time.perf_counter_ns()
            result(submit(noop))
            took.append((time.perf_counter_ns() - at) / 1000)
        if found.directory:
            commits += facts.commit_us(found.directory, synchronous=synchronous)
        figures = {"p50": quantile(took, 0.5), "p99": quantile(took, 0.99)}
        if commits:
            figures["commit"] = quantile(commits, 0.5)
        return Measured(figures, found.facts)


ROW = Row(
    id="P2",
    title="Round trip",
    text="One no-op after the other, each awaited: what a caller waits at least.",
    contenders=(POWER, PROCESS, PPE, MPP, PEBBLE),
    figures=(
        Figure("p50", "µs", "round trip, p50", "lower"),
        Figure("p99", "µs", "round trip, p99", "lower"),
        Figure("commit", "µs", "one bare commit in this run, p50"),
    ),
    measure=measure,
    params={"tasks": 3_000},
    quick={"tasks": 500},
    headline="p50",
    targets=(
        Target(
            "power: p50 above PPE's and two commits",
            lambda at: at[POWER]["p50"] - at[PPE]["p50"] - 2 * at[POWER]["commit"],
            at_most=150,
            unit="µs",
        ),
        Target(
            "process: p50 above PPE's and two commits",
            lambda at: at[PROCESS]["p50"] - at[PPE]["p50"] - 2 * at[PROCESS]["commit"],
            at_most=150,
            unit="µs",
        ),
        Target("power: p99 ÷ p50", lambda at: at[POWER]["p99"] / at[POWER]["p50"], at_most=3.0),
        Target("process: p99 ÷ p50", lambda at: at[PROCESS]["p99"] / at[PROCESS]["p50"], at_most=3.0),
    ),
)
