"""The killer: a thread that kills at the right moment, whatever the loop, the disk or the task is doing.

It sleeps on two timers of the kernel and an eventfd, without any timeout while nothing is watched. Arming a limit costs a system
call only if it is the nearest of all, and never wakes the thread. One lock guards all that the thread and the loop share; whoever
holds it makes no call that can block.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence

from taskpool.clock import NS, boottime_ns
from taskpool.engines import linux
from taskpool.engines.engine import Limits
from taskpool.engines.watch import STACK_LEAD_NS, Watch


class Killer:
    """Steps the watches when they want it. `lock` guards watches and whatever they touch."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        """failed: told, from the thread, of an error that ended it (a bug)."""
        self.lock = threading.Lock()
        self._failed = failed
        self._watches: set[Watch] = set()
        self._mono = linux.Timer(time.CLOCK_MONOTONIC)
        self._boot = linux.Timer(time.CLOCK_BOOTTIME)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its descriptors."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        self._mono.close()
        self._boot.close()
        os.close(self._stop_fd)

    def arm(self, watch: Watch, limits: Sequence[Limits]) -> None:
        """Watch jobs that are about to be sent."""
        with self.lock:
            mono, boot, wall = time.monotonic_ns(), boottime_ns(), time.time_ns() // 1000
            for one in limits:
                watch.arm(one, mono, boot, wall)
            self._keep(watch)

    def cancel(self, watch: Watch, n: int, grace_s: float, why: str) -> None:
        """Interrupt job n now and repeatedly; kill it after the grace."""
        with self.lock:
            mono, boot = time.monotonic_ns(), boottime_ns()
            watch.cancel(n, grace_s, why, mono)
            watch.step(mono, boot)
            self._keep(watch)

    def kill(self, watch: Watch, n: int, why: str) -> None:
        """Kill job n as soon as it has told its stack, or when it begins."""
        self.cancel(watch, n, STACK_LEAD_NS / NS, why)

    def disarm(self, watch: Watch, numbers: Sequence[int]) -> None:
        """Take note that jobs have ended."""
        with self.lock:
            for n in numbers:
                watch.disarm(n)
            if not watch.busy:
                self._watches.discard(watch)

    def forget(self, watch: Watch) -> None:
        """Watch that worker no more: it is reaped."""
        with self.lock:
            self._watches.discard(watch)

    def _keep(self, watch: Watch) -> None:
        if not watch.busy:
            return
        self._watches.add(watch)
        if watch.next_mono is not None:
            self._mono.sooner(watch.next_mono)
        if watch.next_boot is not None:
            self._boot.sooner(watch.next_boot)

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            poll = select.poll()
            for fd in (self._mono.fd, self._boot.fd, self._stop_fd):
                poll.register(fd, select.POLLIN)
            while not any(fd == self._stop_fd for fd, _ in poll.poll()):
                with self.lock:
                    self._step()
        except BaseException as error:
            self._failed(error)
            raise

    def _step(self) -> None:
        self._mono.clear()
        self._boot.clear()
        mono, boot = time.monotonic_ns(), boottime_ns()
        for watch in self._watches:
            if watch.is_due(mono, boot):
                watch.step(mono, boot)
        for timer, times in (
            (self._mono, [watch.next_mono for watch in self._watches]),
            (self._boot, [watch.next_boot for watch in self._watches]),
        ):
            known = [at for at in times if at is not None]
            if known:
                timer.set(min(known))
