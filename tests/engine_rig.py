"""Plays the supervisor's loop for an engine: sends calls, collects events, and sees to it that nothing is left in the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from taskpool.core import events as ev
from taskpool.engines.engine import Engine, Limits
from taskpool.engines.node import Node
from taskpool.engines.preparation import describe_main
from taskpool.wire.codec import decode_result, encode_call
from taskpool.wire.jobs import Job, Report
from taskpool.wire.poller import Poller
from taskpool.wire.zygote import Prepare, Prepared

PATIENCE_S = 30.0
E = TypeVar("E")


class Rig:
    """One engine and what it told. Task ids are 1000 times the worker plus the number; each call is attempt 1."""

    def __init__(self, directory: Path, *, epoch: int = 1, mark: str = "", prepare: Prepare | None = None, **options: Any) -> None:
        self.directory = directory
        self.mark = mark or f"test-{os.getpid()}-{directory.name}"
        self.events: list[Any] = []
        self.prepared: list[Prepared] = []
        self.numbers: dict[int, int] = {}
        self.commits = True
        self._before = _belongings()
        self.poller = Poller()
        self.node = Node(directory, epoch, self.mark, prepare=prepare or Prepare(main=describe_main()), **options)
        self.engine: Engine = self.node
        self.engine.start(self.poller, self.events.append, self.prepared.append)

    # ---- turns ------------------------------------------------------------------------------------------------------

    def turn(self, timeout_s: float | None = 0.0) -> None:
        self.poller.wait(timeout_s)
        mark = self.engine.collect()
        if self.commits:
            self.engine.committed(mark)

    def until(self, condition: Callable[[], Any], what: str = "") -> Any:
        """Turn until the condition gives something true, and return that."""
        end = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < end, f"waited in vain for {what or condition}; there were {self.events}"
            self.turn(0.02)
        return found

    def wait(self, kind: type[E], match: Callable[[E], Any] = lambda event: True) -> E:
        """Wait for an event, take it out and return it."""

        def find() -> E | None:
            return next((event for event in self.events if isinstance(event, kind) and match(event)), None)

        found: E = self.until(find, kind.__name__)
        self.events.remove(found)
        return found

    def until_file(self, path: str | os.PathLike[str]) -> str:
        """Wait until a body has written a file, and return what it wrote."""
        self.until(lambda: os.path.exists(path), f"the file {path}")
        return self.until(lambda: Path(path).read_text() or " ", "its text").strip()

    # ---- calls ------------------------------------------------------------------------------------------------------

    def ready(self, *workers: int) -> int:
        """Spawn workers and wait until they are ready; return the first."""
        for worker in workers:
            self.numbers[worker] = 0
            self.engine.spawn(worker)
        for worker in workers:
            self.wait(ev.WorkerReady, lambda event, worker=worker: event.worker == worker)
        return workers[0]

    def send(self, worker: int, *calls: tuple[Any, ...], limits: Iterable[Limits] = (), attempt: int = 1) -> list[int]:
        """Send calls (function, arguments…) as one mailbox; return their numbers."""
        jobs = []
        for fn, *args in calls:
            n = self.numbers[worker] = self.numbers[worker] + 1
            name, codec, payload = encode_call(fn, args, {})
            jobs.append(Job(n, worker * 1000 + n, attempt, name, codec, payload))
        self.engine.send(worker, jobs, list(limits))
        return [job.n for job in jobs]

    def report(self, worker: int, n: int) -> Report:
        """Wait for the report of a job."""

        def find() -> Report | None:
            for event in self.events:
                if isinstance(event, ev.Reported) and event.worker == worker:
                    for report in event.reports:
                        if report.n == n:
                            return report
            return None

        found: Report = self.until(find, f"report {n} of worker {worker}")
        return found

    def result(self, worker: int, n: int) -> Any:
        """Wait for the report of a job that succeeds, and return its result."""
        report = self.report(worker, n)
        assert report.outcome == 0, report
        return decode_result(report.codec, report.value)

    def call(self, worker: int, fn: Callable[..., Any], *args: Any) -> Any:
        """Run one call in a worker and return its result."""
        (n,) = self.send(worker, (fn, *args))
        return self.result(worker, n)

    def output(self, worker: int, n: int) -> str:
        """Return what job n printed, as its report said."""
        self.report(worker, n)
        for event in self.events:
            if isinstance(event, ev.Reported) and event.worker == worker and n in event.outputs:
                return event.outputs[n]
        return ""

    def begun(self, worker: int, n: int) -> None:
        """Wait until the body of job n has begun."""
        self.until(lambda: self.engine.current(worker)[0] == n, f"the begin of job {n}")

    def death(self, worker: int) -> ev.WorkerDied:
        """Wait for the death of a worker."""
        return self.wait(ev.WorkerDied, lambda event: event.worker == worker)

    def gone(self, pid: int) -> None:
        """Wait until a process is gone, reaped too."""
        self.until(lambda: not psutil.pid_exists(pid), f"the end of process {pid}")

    # ---- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop, and assert that nothing is left."""
        self.engine.stop()
        self.engine.stop()
        self.poller.close()
        before, left = self._before, _belongings()
        assert left[0] <= before[0], "processes are left"  # it may have reaped orphans that a killed owner had left to this process
        assert left[1:] == before[1:], "threads or descriptors are left"


def descriptors() -> dict[int, str]:
    """Return the open descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}").split(":")[0]
        except FileNotFoundError:
            continue
    return found


def _belongings() -> tuple[set[int], int, list[str]]:
    """Return this process's children, its number of threads, and what its descriptors are."""
    children = {child.pid for child in psutil.Process().children()}
    return children, threading.active_count(), sorted(descriptors().values())
