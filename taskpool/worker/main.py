"""The worker process: receive jobs, run each, put its report into the ring, ring the bell.

It knows its page, its socket and its output pipe, and nothing else: no store, no lock, no other process. The order of its writes
is what recovery and take-back rest on: task and attempt, then `CURRENT`, then a look at `LIMIT`, then the body, then its record
whole in the ring, then `CURRENT` = 0.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import NoReturn

import msgspec

from taskpool import faults
from taskpool.core.registry import default_registry
from taskpool.model import TaskError
from taskpool.wire import description
from taskpool.wire.jobs import CANCELLED, ERROR, Job, Report, Skipped
from taskpool.wire.page import CANCEL, CURRENT, CURRENT_ATTEMPT, CURRENT_TASK, LIMIT, PID, SEEN_AT, STARTED, Page
from taskpool.worker import birth
from taskpool.worker.attempt import LONG_NS, Surroundings, run_attempt
from taskpool.worker.failure import final_error
from taskpool.worker.hygiene import Hygiene
from taskpool.worker.interrupt import Interrupter
from taskpool.worker.link import Link, high
from taskpool.worker.output import Output

BELL_NS_MAX = 4_000_000  # a report waits no longer than this for its bell
CLEAN_NS = 4_000_000  # after so much work, and when there is no more of it, the process is put back as it was: 20 to 40 µs
EXIT_DIRTY = 72


def main(worker_id: int, conn_fd: int, page_fd: int, stacks_fd: int, output_fd: int, supervisor_pid: int) -> NoReturn:
    """Be a worker until the supervisor is gone. The process must be single-threaded; it owns the descriptors from now on."""
    birth.leave_session()
    birth.reset_signals()
    birth.die_with(supervisor_pid)
    birth.offer_to_oom_killer()
    page = Page.open(page_fd)
    page.close_fd()
    link = Link(conn_fd, page, worker_id, supervisor_pid)
    birth.take_null_stdin()
    output = Output(page, high(output_fd))
    birth.tell_stacks(high(stacks_fd))
    birth.forget_the_parent()
    Interrupter(page).install()
    surroundings = Surroundings(default_registry, page, link.save, output.log, link.ask)
    worker = Worker(page, link, output, surroundings, Hygiene(output))
    birth.settle_memory()
    page.words[PID] = os.getpid()
    link.ring()
    worker.run()


def set_main_stem(stem: str) -> None:
    """Let functions of this process's `__main__` be found under the name that their script has."""
    description.set_main_stem(stem)


class Worker:
    """The loop."""

    def __init__(self, page: Page, link: Link, output: Output, surroundings: Surroundings, hygiene: Hygiene) -> None:
        self._words = page.words
        self._link = link
        self._output = output
        self._surroundings = surroundings
        self._hygiene = hygiene
        self._jobs: deque[Job] = deque()  # received, not begun
        self._silent = 0  # reports in the ring that the bell has not announced
        self._bell_at = 0  # monotonic ns of the last bell, or of the supervisor's last look into the ring
        self._clean_at = 0  # monotonic ns of the last look at what a body may leave behind
        self._thorough = True  # and whether that was at everything

    def run(self) -> NoReturn:
        """Serve for ever; the link ends the process."""
        jobs = self._jobs
        while True:
            self._rest()
            jobs += self._link.receive()
            self._surroundings.rest()
            self._bell_at = self._clean_at = time.monotonic_ns()
            while jobs:
                self._serve(jobs.popleft())

    def _rest(self) -> None:
        """Look, while nobody waits, at what the last look at short bodies left out; a process that cannot be put back ends here."""
        if not self._thorough:
            self._thorough = True
            if not self._hygiene.restore_rest():
                os._exit(EXIT_DIRTY)

    def _serve(self, job: Job) -> None:
        """Run a job, if it may begin."""
        words = self._words
        words[CURRENT_TASK] = job.task_id
        words[CURRENT_ATTEMPT] = job.attempt
        began = time.monotonic_ns()
        words[STARTED] = began
        words[CURRENT] = job.n
        if words[LIMIT] < job.n:
            words[CURRENT] = 0
            self._link.push(Skipped(job.n))
            self._announce(began)
            return
        if words[CANCEL] == job.n:
            error = TaskError("cancelled", "cancelled before it began", retryable=False)
            report = Report(job.n, job.task_id, job.attempt, CANCELLED, began, 0, error=error)
        else:
            report = run_attempt(job, self._surroundings, began)
        self._finish(report)

    def _finish(self, report: Report) -> None:
        """Hand a report over, leaving the process as it was before the body (before the last few, if they were short)."""
        ended = report.began_ns + report.duration_ns
        if not self._jobs:
            self._jobs += self._link.receive_more()
        if not self._jobs or ended - self._clean_at >= CLEAN_NS:
            self._thorough = ended - self._clean_at >= LONG_NS
            report.dirty = not self._hygiene.restore(self._thorough)
            self._clean_at = ended
        else:
            report.dirty = self._hygiene.has_threads()
        report.output_end = self._output.end_of_attempt()
        self._link.check()
        try:
            self._link.push(report, report.n)
        except (OSError, msgspec.MsgspecError, ValueError, OverflowError) as error:  # a disk that fails under a big one
            self._link.push(_without_value(report, error), report.n)
        faults.point("result.after")
        self._words[CURRENT] = 0
        if report.dirty:
            self._link.ring()
            self._link.wait_for_end()
        self._announce(ended)

    def _announce(self, now: int) -> None:
        """Ring if the mailbox is empty, half of it is done since the last bell, or that was too long ago.

        What another worker's bell has made the supervisor collect here as well needs no bell of its own.
        """
        seen_at = self._words[SEEN_AT]
        if seen_at > self._bell_at:
            self._bell_at, self._silent = seen_at, 0
        self._silent += 1
        if now - self._bell_at < BELL_NS_MAX:
            if self._silent < len(self._jobs):
                return
            if self._jobs:
                self._jobs += self._link.receive_more()  # the supervisor may have filled it up meanwhile
                if self._silent < len(self._jobs):
                    return
        self._link.ring()
        self._silent = 0
        self._bell_at = now


def _without_value(report: Report, error: Exception) -> Report:
    """Return the report of an attempt whose result or error could not be handed over."""
    return msgspec.structs.replace(
        report,
        outcome=ERROR,
        value=None,
        progress=None,
        effects=None,
        children=None,
        error=final_error("result", error, f"the outcome of this attempt could not be handed over: {error}"),
    )
