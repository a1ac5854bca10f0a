"""Callers who run an attempt themselves: who has which task, until when, and what ends it.

A caller counts as a worker of its own for the one attempt that it asked for: its mailbox stands among the others, gets nothing
more, and goes with the attempt. So starts, reports, cancels and counts are those of all attempts. What differs is force: nothing
of the caller can be killed. When its time is up, or the grace of a cancel, the attempt is given up: it has ended for the task, and
whatever the caller still says of it comes too late. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from taskpool.clock import NS, US, Instant
from taskpool.core.commands import Tell
from taskpool.core.events import ExecuteAsked, TaskRow, WorkerDied
from taskpool.core.lifecycle import PENDING, RETRYING, RUNNING, TERMINAL
from taskpool.core.mailbox import Mailbox
from taskpool.errors import IllegalTransition, NotFound, PoolStopped, TaskpoolError
from taskpool.model import TaskError

# What a caller is told.
CANCEL: Final = "cancel"
STOP: Final = "stop"
SOFT_TIMEOUT: Final = "soft_timeout"
STOPPING: Final = "stopping"
OVER: Final = "over"  # the attempt was given up

GONE: Final = "gone"
RETRYABLE: Final = ("timeout", "heartbeat")


class Loan:
    """One attempt that a caller runs. Times monotonic ns; end_at, end_why: when it is given up for a cancel or a stop."""

    __slots__ = ("box", "client", "end_at", "end_why", "extended_ns", "heard_at", "is_told_soft", "pid", "row", "seq", "since")

    def __init__(self, box: Mailbox, row: TaskRow, event: ExecuteAsked, now: Instant) -> None:
        self.box = box
        self.row = row
        self.client, self.seq, self.pid = event.client, event.seq, event.pid
        self.since = self.heard_at = now.mono
        self.extended_ns = 0
        self.is_told_soft = False
        self.end_at: int | None = None
        self.end_why = ""

    def limits(self, now: Instant) -> Iterator[tuple[int, str]]:
        """Yield when (monotonic ns) it will be given up, and why."""
        options = self.row.options
        if self.end_at is not None:
            yield self.end_at, self.end_why
        if options.timeout_s is not None:
            yield self.since + round(options.timeout_s * NS) + self.extended_ns, "timeout"
        if options.heartbeat_timeout_s is not None:
            yield self.heard_at + round(options.heartbeat_timeout_s * NS), "heartbeat"
        if options.deadline_at is not None:
            yield now.mono + (options.deadline_at - now.wall) * 1000, "deadline"

    def soft_at(self) -> int | None:
        """Return when it is to be told that its soft timeout is over; None: never, or it was."""
        seconds = self.row.options.soft_timeout_s
        return None if seconds is None or self.is_told_soft else self.since + round(seconds * NS)


class Callers:
    """All loans by their worker's number, and what was asked for in this turn."""

    def __init__(self, workers: dict[int, Mailbox]) -> None:
        """workers: the fleet's, among which the callers stand."""
        self._workers = workers
        self.loans: dict[int, Loan] = {}
        self.asked: list[ExecuteAsked] = []

    def open(self, worker: int, row: TaskRow, event: ExecuteAsked, now: Instant) -> Mailbox:
        """Give a caller a mailbox, for this one task."""
        box = self._workers[worker] = Mailbox(worker)
        box.pid = event.pid
        box.caller = (event.client, event.seq)
        box.leaving = True  # it gets nothing more, and is none of those that the pool's size is about
        self.loans[worker] = Loan(box, row, event, now)
        return box

    def close(self, worker: int) -> None:
        """The attempt has ended."""
        self._workers.pop(worker, None)
        self.loans.pop(worker, None)

    def ask(self, worker: int, why: str, grace_s: float, now: Instant) -> list[Tell]:
        """Ask a caller to end, and give its attempt up after the grace; a later call can only shorten that."""
        loan = self.loans[worker]
        at = now.mono + round(grace_s * NS)
        if loan.end_at is None or at < loan.end_at:
            loan.end_at, loan.end_why = at, loan.end_why or why
        return [Tell(loan.client, worker, why)]

    def all_told(self, what: str) -> list[Tell]:
        """Return the commands that tell all callers something."""
        return [Tell(loan.client, worker, what) for worker, loan in self.loans.items()]

    def spoke(self, worker: int, client: int, extend_ns: int, now: Instant) -> None:
        """A caller gives a sign of life, or wants more time for this attempt."""
        loan = self.loans.get(worker)
        if loan is not None and loan.client == client:
            loan.heard_at = now.mono
            loan.extended_ns += extend_ns

    def gone(self, client: int, worker: int) -> list[Loan]:
        """A client gives up what it runs as that worker (0: it is gone, and asks for nothing any more). Return that."""
        if worker == 0:
            self.asked = [event for event in self.asked if event.client != client]
        return [loan for number, loan in self.loans.items() if loan.client == client and worker in (0, number)]

    def soft(self, now: Instant) -> list[Tell]:
        """Return the commands for those whose soft timeout is over."""
        tells = []
        for worker, loan in self.loans.items():
            at = loan.soft_at()
            if at is not None and at <= now.mono:
                loan.is_told_soft = True
                tells.append(Tell(loan.client, worker, SOFT_TIMEOUT))
        return tells

    def due(self, now: Instant) -> list[tuple[Loan, str]]:
        """Return what is to be given up now, and why."""
        found = []
        for loan in self.loans.values():
            first = min(loan.limits(now), default=None)
            if first is not None and first[0] <= now.mono:
                found.append((loan, first[1]))
        return found

    def next_due(self, now: Instant) -> int | None:
        """Return when (monotonic ns) the first of them is to be told or given up, None if that is never."""
        ends = [at for loan in self.loans.values() for at, _ in loan.limits(now)]
        soft = [at for loan in self.loans.values() if (at := loan.soft_at()) is not None]
        return min(ends + soft, default=None)

    def check(self) -> None:
        """Assert the invariants; the simulation has it called after every step."""
        for worker, loan in self.loans.items():
            assert self._workers.get(worker) is loan.box, f"the caller {worker} is not among the workers"
            assert list(loan.box.sent.values()) == [loan.row], f"the caller {worker} has another task than it asked for"
        strays = {worker for worker, box in self._workers.items() if box.caller is not None} - set(self.loans)
        assert not strays, f"callers {strays} have no task"


def death(loan: Loan, why: str, now: Instant) -> WorkerDied:
    """Return what an attempt that is given up has come to, in the words of a worker's death."""
    lasted = f"given up {(now.mono - loan.since) / NS:.3f} s after it began, in process {loan.pid}"
    options = loan.row.options
    words = {
        "timeout": f"over its timeout of {options.timeout_s or 0:g} s: {lasted}",
        "heartbeat": f"no sign of life for {options.heartbeat_timeout_s or 0:g} s: {lasted}",
        "deadline": f"its deadline passed: {lasted}",
        CANCEL: f"cancelled: {lasted}",
        STOP: f"the pool was stopped: {lasted}",
        GONE: f"its caller was gone: {lasted}",
    }
    kind = {CANCEL: "cancelled", STOP: "interrupted", GONE: "interrupted"}.get(why, why)
    error = TaskError(kind, words[why], why in RETRYABLE)
    return WorkerDied(loan.box.worker, loan.pid, loan.row.n, loan.since, why, error)


def refusal(row: TaskRow | None, event: ExecuteAsked, obstacle: str, now: Instant, *, stopping: bool) -> TaskpoolError | None:
    """Return why a caller may not start a task now, None if it may. obstacle: what its queue or the machine says, or "".

    Nothing is granted that a worker might not start; only the place in the line is passed over.
    """
    if stopping:
        return PoolStopped("the pool is stopping")
    if row is None:
        return NotFound(f"there is no task {event.id}")
    if row.status in TERMINAL:
        return IllegalTransition(f"task {row.id} has ended {row.status}", hint="retry gives it another round")
    if row.status == RUNNING:
        return IllegalTransition(f"task {row.id} runs already, attempt {row.attempt} on worker {row.worker}")
    if event.held:
        return IllegalTransition(f"task {row.id} waits for its parents")
    if row.status in (PENDING, RETRYING) and row.scheduled_at > now.wall:
        words = f"task {row.id} is {row.status}, due in {(row.scheduled_at - now.wall) / US:.1f} s"
        return IllegalTransition(words, hint="update(…, delay=0) makes it due")
    if row.options.target and row.options.target not in event.labels:
        return IllegalTransition(f"task {row.id} is for {row.options.target!r}", hint="say labels=[…] to be that")
    return IllegalTransition(f"task {row.id} {obstacle}") if obstacle else None
