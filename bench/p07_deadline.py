"""P7: how late a body is killed that no signal can reach: a C loop that holds the interpreter lock.

Two ways to say when. Deadlines: one thread per worker submits a task with an absolute deadline, waits for the exception, and goes
on; from it come the lateness of the death and of the exception. Timeouts: a full queue of such tasks; from it comes how soon after
a death the next body begins, that is, the pool is at full strength again. Deaths are seen by a process of its own (`watch`), and a
bare timer process beside it shows what this machine can do in that minute.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import facts
from bench.contenders import PEBBLE, POWER, Opened, opened
from bench.harness import Figure, Measured, Params, Row, Target
from bench.statistics import quantile
from bench.tasks import hold_gil
from bench.watch import BareTimer, Watcher

SLOW, BUSY = "taskpool power, slow disk", "taskpool power, busy caller"
SLOW_DISK_MS = 200

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>
static void slow(void) { struct timespec t = {0, %d * 1000000L}; nanosleep(&t, 0); }
int fsync(int fd) { slow(); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { slow(); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


@contextmanager
def slow_disk(milliseconds: int) -> Iterator[None]:
    """Delay every fsync and fdatasync of processes that are started inside, by a library that is preloaded into them. Needs cc."""
    with tempfile.TemporaryDirectory(prefix="bench-slow-") as place:
        source, library = Path(place, "slow.c"), Path(place, "slow.so")
        source.write_text(_SHIM % milliseconds)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
        os.environ["LD_PRELOAD"] = str(library)
        try:
            yield
        finally:
            del os.environ["LD_PRELOAD"]


class _Slot(threading.Thread):
    """Submits one task after the other, each with a deadline; notes index → (deadline, exception), in monotonic ns."""

    def __init__(self, found: Opened, indices: range, ahead_ms: tuple[float, float]) -> None:
        super().__init__(daemon=True)
        self._found = found
        self._indices = indices
        self._ahead_ms = ahead_ms
        self.noted: dict[int, tuple[int, int]] = {}
        self.failed: BaseException | None = None

    def run(self) -> None:
        """Do that."""
        try:
            self._run()
        except BaseException as error:
            self.failed = error

    def _run(self) -> None:
        from taskpool.errors import TaskTimeout

        dice = random.Random(self._indices.start)
        for index in self._indices:
            wall, mono = time.time_ns() // 1000, time.monotonic_ns()
            ahead_us = round(dice.uniform(*self._ahead_ms) * 1000)
            deadline = datetime.fromtimestamp((wall + ahead_us) / 1e6, UTC)
            future = self._found.pool.options(deadline=deadline).submit_nowait(hold_gil, index)
            try:
                future.result()
            except TaskTimeout:
                self.noted[index] = (mono + ahead_us * 1000, time.monotonic_ns())


def deadlines(found: Opened, count: int, ahead_ms: tuple[float, float], *, busy: bool) -> dict[int, tuple[int, int]]:
    """Let `count` tasks run into deadlines, as many at a time as there are workers. busy: this thread computes meanwhile."""
    workers = facts.workers()
    each = count // workers
    slots = [_Slot(found, range(number * each, (number + 1) * each), ahead_ms) for number in range(workers)]
    for slot in slots:
        slot.start()
    steps = 0
    while busy and any(slot.is_alive() for slot in slots):
        steps += 1
    noted: dict[int, tuple[int, int]] = {}
    for slot in slots:
        slot.join()
        if slot.failed is not None:
            raise slot.failed
        noted |= slot.noted
    return noted


def refills(found: Opened, first: int, count: int, ahead_ms: tuple[float, float]) -> None:
    """Let a full queue of `count` tasks run into timeouts, each its own."""
    dice = random.Random(first)
    views = [found.pool.options(timeout=dice.uniform(*ahead_ms) / 1000) for _ in range(count)]
    futures = [view.submit_nowait(hold_gil, first + number) for number, view in enumerate(views)]
    for future in futures:
        assert future.exception() is not None


def measure(contender: str, params: Params) -> Measured:
    """Return latenesses in ms: quantiles over all tasks of this round."""
    if contender == PEBBLE:
        return _measure_pebble(params["pebble"])
    slow = contender == SLOW
    count = params["slow" if slow else "deadlines"]
    ahead_ms = (900.0, 1300.0) if slow else (30.0, 60.0)
    watcher = Watcher()
    timer = BareTimer()
    guard: Any = slow_disk(SLOW_DISK_MS) if slow else _nothing()
    with guard, opened(POWER) as found:
        noted = deadlines(found, count, ahead_ms, busy=contender == BUSY)
        late = timer.stop()
        extra = 0 if slow else params["timeouts"]
        refills(found, count, extra, (30.0, 90.0))
        about = found.facts
    begun, died = watcher.stop()
    kills = [(died[index] - noted[index][0]) / 1e6 for index in noted if index in died]
    told = [(noted[index][1] - noted[index][0]) / 1e6 for index in noted]
    figures = {
        "kill_p50": quantile(kills, 0.5),
        "kill_p99": quantile(kills, 0.99),
        "kill_max": max(kills),
        "kills": float(len(kills)),
        "told_p50": quantile(told, 0.5),
        "told_p99": quantile(told, 0.99),
        "timer_p99": quantile(late, 0.99),
    }
    if extra:
        gaps = _gaps(begun, died, count, extra)
        figures |= {"strength_p50": quantile(gaps, 0.5), "strength_p99": quantile(gaps, 0.99)}
    return Measured(figures, about)


def _gaps(begun: dict[int, int], died: dict[int, int], first: int, count: int) -> list[float]:
    """Return for each death in the full queue the ms until as many bodies ran again as there are workers."""
    begins = sorted(begun[index] for index in range(first, first + count) if index in begun)
    deaths = sorted(died[index] for index in range(first, first + count) if index in died)
    workers = facts.workers()
    return [max(0.0, (again - death) / 1e6) for death, again in zip(deaths, begins[workers:], strict=False)]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _measure_pebble(count: int) -> Measured:
    """Return the lateness of pebble's timeout, of which there is no other kind; it counts from the begin of the task."""
    watcher = Watcher()
    timeout_s = 0.5
    with opened(PEBBLE) as found:
        told = []
        for index in range(count):
            began = time.monotonic_ns()
            future = found.pool.schedule(hold_gil, args=(index,), timeout=timeout_s)
            try:
                future.result()
            except TimeoutError:
                told.append((time.monotonic_ns() - began) / 1e6 - timeout_s * 1000)
    begun, died = watcher.stop()
    kills = [(died[index] - begun[index]) / 1e6 - timeout_s * 1000 for index in begun if index in died]
    return Measured(
        {"kill_p50": quantile(kills, 0.5), "kill_max": max(kills), "kills": float(len(kills)), "told_p50": quantile(told, 0.5)},
        found.facts,
    )


def _lateness(ours: str, text: str) -> tuple[Target, ...]:
    """Return the two forms of the demand on the kill: absolute, or against the bare timer of the same minutes."""
    return (
        Target(
            f"{text}: deadline to death, p99, above 3 × the bare timer's p99 or 10 ms",
            lambda at: at[ours]["kill_p99"] - max(10.0, 3 * at[ours]["timer_p99"]),
            at_most=0,
            unit="ms",
        ),
    )


ROW = Row(
    id="P7",
    title="Deadlines of deaf bodies",
    text="Every body is a C loop that holds the interpreter lock. Time from the deadline to the death of its process (seen by a "
    "third process) and to the caller's exception; time until the pool is at full strength again. *Slow disk*: every fsync takes "
    "200 ms more. *Busy caller*: the caller's main thread runs a Python loop meanwhile.",
    contenders=(POWER, SLOW, BUSY, PEBBLE),
    figures=(
        Figure("kill_p50", "ms", "deadline to death, p50", "lower"),
        Figure("kill_p99", "ms", "p99", "lower"),
        Figure("kill_max", "ms", "max", "lower"),
        Figure("told_p50", "ms", "deadline to the caller's exception, p50", "lower"),
        Figure("told_p99", "ms", "p99", "lower"),
        Figure("strength_p50", "ms", "death to full strength, p50", "lower"),
        Figure("strength_p99", "ms", "p99", "lower"),
        Figure("timer_p99", "ms", "lateness of a bare timer, p99"),
        Figure("kills", "kills", "kills seen in a round"),
    ),
    measure=measure,
    params={"deadlines": 1_000, "timeouts": 200, "slow": 100, "pebble": 3},
    quick={"deadlines": 100, "timeouts": 40, "slow": 8, "pebble": 1},
    headline="kill_p50",
    targets=(
        *_lateness(POWER, "power"),
        *_lateness(SLOW, "slow disk"),
        *_lateness(BUSY, "busy caller"),
        Target("deadline to exception, p99", lambda at: at[POWER]["told_p99"], at_most=20, unit="ms"),
        Target("full strength after a death, p99", lambda at: at[POWER]["strength_p99"], at_most=20, unit="ms"),
    ),
)
