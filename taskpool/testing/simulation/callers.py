"""Clients of the model world that run attempts themselves: when they report, speak, leave, and when they must be given up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from random import Random

from taskpool.clock import NS, Instant, ManualClock
from taskpool.core import callers
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.model import Options, TaskError
from taskpool.testing.simulation import children, effects
from taskpool.testing.simulation.conditions import Conditions
from taskpool.testing.simulation.fates import GONE, REPORTED, Fates, LawBroken
from taskpool.testing.simulation.model_engine import ModelJob
from taskpool.wire import jobs
from taskpool.wire.jobs import Checkpointed, Report

GRACE_S = 0.2  # the pool's
SLACK_NS = 10_000  # instants are whole µs


class ModelLoan:
    """One attempt that a client runs. ends: (monotonic ns, why) of cancels and stops that it was told."""

    def __init__(self, job: ModelJob, client: int, since: int) -> None:
        self.job = job
        self.client = client
        self.since = self.heard_at = since
        self.extended = 0
        self.ends: list[tuple[int, str]] = []
        self.begun = False
        self.report: Report | None = None  # on its way
        self.gone = False

    def limits(self, now: Instant) -> Iterator[tuple[int, str]]:
        """Yield when (monotonic ns) it must be given up, and why."""
        options = self.job.options
        yield from self.ends
        if options.timeout_s is not None:
            yield self.since + round(options.timeout_s * NS) + self.extended, "timeout"
        if options.heartbeat_timeout_s is not None:
            yield self.heard_at + round(options.heartbeat_timeout_s * NS), "heartbeat"
        if options.deadline_at is not None:
            yield now.mono + (options.deadline_at - now.wall) * 1000, "deadline"


class ModelCallers:
    """All of them, in the life of one supervisor. workers: numbers under which they ever ran something."""

    def __init__(
        self, random: Random, clock: ManualClock, conditions: Conditions, fates: Fates, on_begin: Callable[[ModelJob], None]
    ) -> None:
        self._random = random
        self._conditions = conditions
        self._clock = clock
        self._fates = fates
        self._on_begin = on_begin
        self.loans: dict[int, ModelLoan] = {}
        self.workers: set[int] = set()
        self._stop_kills = False
        self._judged_at = 0  # monotonic ns of the last turn

    # ---- what the scheduler is told and says --------------------------------------------------------------------------

    def before(self, event: ev.Event, now: Instant) -> None:
        """The scheduler is about to hear of something: from now on that is what has happened."""
        match event:
            case ev.Reported(worker=worker):
                loan = self.loans.get(worker)
                if loan is not None and loan.report is not None:
                    fate = self._fates.of(loan.job.task_id, loan.job.attempt)
                    fate.report, fate.end = loan.report, REPORTED
            case ev.CallerGone(client=client, worker=worker):
                for number, loan in self.loans.items():
                    if loan.client == client and worker in (0, number):
                        loan.gone = True
            case ev.StopAsked(grace_s=grace_s):
                self._stop_kills = self._stop_kills or (grace_s is not None and grace_s <= 0)
            case ev.CallerSpoke(worker=worker, extend_ns=extend_ns):
                if worker in self.loans:
                    self.loans[worker].heard_at = now.mono
                    self.loans[worker].extended += extend_ns

    def after(self, event: ev.Event, commands: Iterable[cmd.Command], options: Callable[[int], Options], now: Instant) -> None:
        """Judge what the scheduler decided of them: nobody is given up before the time."""
        for command in commands:
            match command:
                case cmd.Start(caller=(client, _)):
                    job = ModelJob(command.n, command.id, command.attempt, "", options(command.id), None)
                    self.loans[command.worker] = ModelLoan(job, client, now.mono)
                    self.workers.add(command.worker)
                case cmd.End(closed=closed):
                    loan = self.loans.get(closed.worker)
                    if loan is not None and loan.report is not None and command.report is not None:
                        del self.loans[closed.worker]
                case cmd.Tell(worker=worker, what=what):
                    self._told(event, self.loans[worker], what, now)
                    if what == callers.OVER:
                        del self.loans[worker]

    def _told(self, event: ev.Event, loan: ModelLoan, what: str, now: Instant) -> None:
        fate = self._fates.of(loan.job.task_id, loan.job.attempt)
        if what == callers.CANCEL:
            grace_s = GRACE_S
            if isinstance(event, ev.CancelAsked):
                grace_s = 0.0 if event.force else GRACE_S if event.grace_s is None else event.grace_s
            loan.ends.append((now.mono + round(grace_s * NS), "cancel"))
        elif what == callers.STOP:
            fate.told_to_stop = True
            loan.ends.append((now.mono + round((0.0 if self._stop_kills else GRACE_S) * NS), "stop"))
        elif what == callers.OVER:
            over = [(at, why) for at, why in loan.limits(now) if at <= now.mono]
            if not over and not loan.gone:
                raise LawBroken(f"attempt {loan.job.attempt} of task {loan.job.task_id} was given up before its time")
            fate.end = GONE if loan.gone else min(over)[1]

    def judge(self, timer: float | None, now: Instant) -> None:
        """After a turn: whoever's time was over before it was given up, and somebody thinks of the others."""
        before, self._judged_at = self._judged_at, now.mono
        for loan in self.loans.values():
            due = list(loan.limits(now))
            if not due or loan.report is not None:
                continue
            at, why = min(due)
            who = f"attempt {loan.job.attempt} of task {loan.job.task_id}, which a caller runs,"
            if at < before:
                raise LawBroken(f"{who} goes on, though its {why} is over")
            if timer is None or timer * NS > max(0, at - now.mono) + SLACK_NS:
                raise LawBroken(f"{who} ends in {(at - now.mono) / NS} s by its {why}, the timer says {timer}")

    # ---- what they do -------------------------------------------------------------------------------------------------

    def begin(self, worker: int) -> None:
        """A caller has got what it asked for, and begins."""
        loan = self.loans[worker]
        self._on_begin(loan.job)
        self._fates.of(loan.job.task_id, loan.job.attempt).begun = True
        loan.begun = True

    def step(self, outcome: Callable[[], tuple[int, TaskError | None]], *, calm: bool) -> list[ev.Event]:
        """Return what one of them says."""
        able = [worker for worker, loan in self.loans.items() if loan.begun and loan.report is None and not loan.gone]
        if not able:
            return []
        random = self._random
        worker = random.choice(able)
        loan = self.loans[worker]
        job, chance = loan.job, random.random()
        if calm:
            return [self._report(worker, loan, jobs.OK, None)]
        if chance < 0.3:
            if loan.ends and random.random() < 0.6:
                return [self._report(worker, loan, jobs.CANCELLED, TaskError("cancelled", "", False))]
            return [self._report(worker, loan, *outcome())]
        if chance < 0.42:
            return [ev.CallerGone(loan.client, random.choice((0, worker)))]
        if chance < 0.6:
            return [ev.CallerSpoke(loan.client, worker, random.choice((0, 0, NS // 10)))]
        if chance < 0.7:
            return [ev.Saved(worker, Checkpointed(job.n, job.task_id, job.attempt, b"state"))]
        return []

    def _report(self, worker: int, loan: ModelLoan, outcome: int, error: TaskError | None) -> ev.Reported:
        job = loan.job
        snooze_s = self._random.choice((0.0, 0.5, 20.0)) if outcome == jobs.SNOOZED else 0.0
        report = Report(job.n, job.task_id, job.attempt, outcome, loan.since, 500_000, value=b"", error=error, snooze_s=snooze_s)
        if outcome == jobs.OK:
            report.effects = effects.drawn(self._random, job.task_id, job.attempt)
            report.children = children.drawn(self._conditions, job.task_id, job.attempt)
        loan.report = report
        return ev.Reported(worker, 20_000 + loan.client, [copy.copy(report)])

    def lose(self, task_id: int, attempt: int) -> None:
        """The supervisor died: nobody can know how far the caller came, and what it says of it comes to nobody."""
        fate = self._fates.of(task_id, attempt)
        fate.report, fate.end = None, ""
