"""An attempt in its caller's own process: the same run and the same report as on a worker, with a connection in place of a page.

Nothing of the caller is touched: no signal, no limit, no cleaning up after the body. What a supervisor would enforce on a worker it
can only ask for here, so the controller tells the body, and the body decides.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Set
from typing import Final, Protocol

import msgspec

from taskpool.core import callers
from taskpool.core.registry import Registry, default_registry
from taskpool.errors import Cancelled, SoftTimeout, StaleVersion
from taskpool.model import Controller, Options, Progress, TaskSpec
from taskpool.wire.jobs import OK, Checkpointed, Job, Report
from taskpool.wire.page import PROGRESS_TEXT_BYTES, finite
from taskpool.worker.controller import AttemptController, set_mine

PROGRESS_NS: Final = 100_000_000  # between two words of progress that leave the process; the last one comes with the report
_ENDS_US: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
_OVER: Final = frozenset({callers.CANCEL, callers.STOP, callers.OVER})


class Voice(Protocol):
    """What brings a caller's words to the supervisor."""

    def say(self, progress: Progress | None = None, extend_s: float = 0.0) -> None:
        """Send a word that nobody answers."""

    def save(self, checkpoint: Checkpointed) -> None:
        """Have a checkpoint stored, and return when it is. Raises StaleVersion if the attempt was given up."""

    def store(self, spec: TaskSpec) -> int:
        """Have a task stored, and return its id when it is. Raises why it is refused."""


class CallerController(AttemptController):
    """The Controller of an attempt that a caller runs. told: what its supervisor has said of it so far."""

    def __init__(self, job: Job, options: Options, voice: Voice, told: Set[str]) -> None:
        super().__init__(job, options, self._keep, print)
        self._voice = voice
        self._told = told
        self._progress: Progress | None = None
        self._said_at = 0
        self._is_soft = False

    def _keep(self, checkpoint: Checkpointed) -> None:
        try:
            self._voice.save(checkpoint)
        except StaleVersion as error:
            raise Cancelled(str(error)) from error

    def close(self) -> Progress | None:
        """End it with the attempt. Return the last progress, if any was told."""
        self._n = 0
        self.brood.close()
        return self._progress

    def _store(self, spec: TaskSpec) -> int:
        if callers.OVER in self._told:
            raise Cancelled("the attempt was given up")
        return self._voice.store(spec)

    @property
    def cancelled(self) -> bool:
        """Return whether this attempt shall end, or counts as ended already."""
        return not _OVER.isdisjoint(self._told)

    @property
    def stopping(self) -> bool:
        """Return whether the pool is about to stop."""
        return callers.STOPPING in self._told

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if this attempt shall end, SoftTimeout once if its soft timeout is over."""
        if self.cancelled:
            raise Cancelled("this task was cancelled, or its attempt given up")
        if callers.SOFT_TIMEOUT in self._told and not self._is_soft:
            self._is_soft = True
            raise SoftTimeout("the soft timeout of this attempt is over")

    def progress(self, done: float, total: float = 0.0, text: str = "") -> None:
        """Say how far the task is. What is no number (NaN, infinite) counts as 0."""
        if self._n == 0:
            return
        data = text.encode("utf-8", "replace")[:PROGRESS_TEXT_BYTES].decode("utf-8", "ignore")
        self._progress = Progress(finite(float(done)), finite(float(total)), data, time.time_ns() // 1000)
        now = time.monotonic_ns()
        if now - self._said_at >= PROGRESS_NS:
            self._said_at = now
            self._voice.say(progress=self._progress)

    def extend_timeout(self, seconds: float) -> None:
        """Let this attempt run that much longer than its timeout."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a timeout is extended by 0 or more seconds, not by {seconds}")
        if self._n:
            self._voice.say(extend_s=seconds)


class CallersOwn:
    """What one attempt has around it in its caller's process. ended_by: the Ctrl-C, or its like, that is not the task's affair."""

    def __init__(self, voice: Voice, told: Set[str], registry: Registry = default_registry) -> None:
        self.registry = registry
        self.pid = os.getpid()
        self.ended_by: BaseException | None = None
        self._voice = voice
        self._told = told
        self._controller: CallerController | None = None
        self._usage = resource.getrusage(resource.RUSAGE_THREAD)

    def begin(self, job: Job) -> None:
        """Make `controller.current` mean this job, in this thread."""
        self._controller = CallerController(job, self.options(job), self._voice, self._told)
        set_mine(self._controller)

    def end(self, report: Report) -> None:
        """Let no controller outlive its attempt, and put what it was told into the report."""
        set_mine(None)
        assert self._controller is not None
        report.progress = self._controller.close()
        if report.outcome == OK:
            report.effects = self._controller.effects or None
            report.children = self._controller.brood.specs or None

    def controller(self) -> Controller:
        """Return the controller of the running job."""
        assert self._controller is not None
        return self._controller

    def options(self, job: Job) -> Options:
        """Return a job's options."""
        return msgspec.msgpack.decode(job.options, type=Options) if job.options else Options()

    def measure(self, report: Report) -> None:
        """Write what this thread has used of the processor, and the peak memory of the process so far."""
        before, now = self._usage, resource.getrusage(resource.RUSAGE_THREAD)
        report.cpu_user_us = round((now.ru_utime - before.ru_utime) * 1e6)
        report.cpu_system_us = round((now.ru_stime - before.ru_stime) * 1e6)
        report.peak_rss_kib = now.ru_maxrss

    def caught(self, error: BaseException) -> None:
        """Keep what is meant for the caller's program, not for the task."""
        if issubclass(type(error), _ENDS_US):
            self.ended_by = error
