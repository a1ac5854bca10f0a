"""P18: the caller's main thread computes in Python while its tasks run."""

from __future__ import annotations

import threading
import time
from typing import Any

from bench.contenders import MPP, PEBBLE, POWER, PPE, PROCESS, Opened, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.p01_noop import load
from bench.tasks import noop


class _Countdown:
    """Notes when the last of a number of futures was done; called in whatever thread resolves them."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()
        self.at = 0.0

    def one(self, _: Any = None) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                self.at = time.perf_counter()


def busy_load(contender: str, found: Opened, tasks: int) -> float:
    """Submit that many no-ops, then compute in this thread until all are done; return the seconds until the last was."""
    done = _Countdown(tasks)
    began = time.perf_counter()
    if contender == MPP:
        for _ in range(tasks):
            found.pool.apply_async(noop, callback=done.one, error_callback=done.one)
    else:
        for _ in range(tasks):
            found.submit(noop).add_done_callback(done.one)
    steps = 0
    while not done.at:
        steps += 1  # a busy loop: Python code that never waits
    return done.at - began


def measure(contender: str, params: Params) -> Measured:
    """Return the rate with a busy and with a waiting main thread, in the same process."""
    tasks = params["tasks"] if contender.startswith("taskpool") else params["peer_tasks"]
    with opened(contender) as found:
        free = load(found, tasks)
        busy = busy_load(contender, found, tasks)
        return Measured({"busy": tasks / busy, "free": tasks / free, "share": free / busy}, found.facts)


ROW = Row(
    id="P18",
    title="A busy caller",
    text="P1 while the main thread of the calling process runs a Python loop, beside P1 while it waits.",
    contenders=(POWER, PROCESS, PPE, MPP, PEBBLE),
    figures=(
        Figure("busy", "tasks/s", "main thread computes", "higher"),
        Figure("free", "tasks/s", "main thread waits", "higher"),
        Figure("share", "×", "what is left", "higher"),
    ),
    measure=measure,
    params={"tasks": 20_000, "peer_tasks": 3_000},
    quick={"tasks": 3_000, "peer_tasks": 500},
    headline="busy",
    targets=(
        Target("power: share of its own P1", lambda at: at[POWER]["share"], at_least=0.5),
        Target("process: share of its own P1", lambda at: at[PROCESS]["share"], at_least=0.5),
        Target("power ÷ PPE", lambda at: at[POWER]["busy"] / at[PPE]["busy"]),
        Target("power ÷ MPP", lambda at: at[POWER]["busy"] / at[MPP]["busy"]),
    ),
)
