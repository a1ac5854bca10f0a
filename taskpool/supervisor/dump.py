"""What a server writes to its log when somebody sends SIGUSR1: where it stands, and where its threads are.

The signal's handler may meet the loop anywhere, in a transaction too. So it tells only where that was, at once, which is all there
is to know of a loop that goes on no more; the rest is told by the loop when it waits again, also while the store takes no writes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from taskpool.errors import TaskpoolError
from taskpool.model import Stats
from taskpool.wire.poller import Poller

FRAMES_MAX: Final = 50  # of one stack, the innermost


class Dump:
    """Answers SIGUSR1, and keeps SIGUSR2 from ending the process, as it would by default."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def listen(self) -> None:
        """Take both signals from now on. (They are not ignored: that, unlike a handler, the processes of workers would inherit.)"""
        signal.signal(signal.SIGUSR1, self._on_signal)
        signal.signal(signal.SIGUSR2, lambda *_: self._log("SIGUSR2 means nothing here; SIGUSR1 writes the state to this log"))

    def watch(self, poller: Poller, stats: Callable[[], Stats]) -> None:
        """Have the loop answer what was asked, and what will be."""
        poller.add(self._fd, lambda events: self._tell(stats))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._log(f"SIGUSR1: MainThread is at {stack(frame)}")
        os.eventfd_write(self._fd, 1)

    def _tell(self, stats: Callable[[], Stats]) -> None:
        os.eventfd_read(self._fd)
        try:
            lines = [*state_lines(stats(), time.time_ns() // 1000)]
        except TaskpoolError as error:
            lines = [f"state: it cannot be read: {error}"]
        for line in (*lines, *stack_lines()):
            self._log(line)


def state_lines(stats: Stats, now: int) -> Iterator[str]:
    """Yield what the numbers say, and a line for each worker. now: wall µs."""
    counts = ", ".join(f"{n:,} {status}" for status, n in stats.counts.items() if n) or "none"
    yield (
        f"state: pid {stats.pid}, epoch {stats.epoch}, up {stats.uptime_s:.0f} s, {stats.cpu_s:.1f} s of CPU, "
        f"{stats.turns:,} turns; tasks: {counts}; {stats.finished:,} finished, {stats.restarts:,} workers started anew"
    )
    for worker in stats.workers:
        doing = "" if worker.task_id is None else f", task {worker.task_id} {worker.name}"
        since = "" if worker.since_at is None else f", for {max(0, now - worker.since_at) / 1e6:.1f} s"
        yield f"worker {worker.worker_id}: pid {worker.pid}, {worker.state}{doing}{since}; {worker.done:,} done"
    for notice in stats.notices:
        yield f"note: {notice}"


def stack_lines() -> Iterator[str]:
    """Yield where each thread of this process is but the one that asks."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread.ident in frames and thread is not threading.current_thread():
            yield f"thread {thread.name} is at {stack(frames[thread.ident])}"


def stack(frame: FrameType | None) -> str:
    """Return the calls that led to a frame, the innermost first."""
    found: list[str] = []
    while frame is not None and len(found) < FRAMES_MAX:
        found.append(f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(found) or "nowhere"
