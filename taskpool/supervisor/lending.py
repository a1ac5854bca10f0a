"""Attempts that clients run themselves: what they ask for and say, made into events. The decisions are `core.callers`'."""

from __future__ import annotations

from typing import Final

from taskpool.core import events as ev
from taskpool.core.callers import Loan
from taskpool.core.scheduler import Scheduler
from taskpool.errors import InvalidTask, StaleVersion
from taskpool.model import Codec, Progress
from taskpool.store.store import Store
from taskpool.supervisor.server import Connection
from taskpool.wire import jobs
from taskpool.wire import messages as wire
from taskpool.wire.limits import CHECKPOINT_BYTES_MAX, RESULT_BYTES_MAX

FAILING: Final = (jobs.ERROR, jobs.SOFT_TIMEOUT)  # outcomes that say why

Asked = wire.Execute | wire.Executed | wire.Speak


class Lending:
    """Takes the requests of clients that run attempts."""

    def __init__(self, store: Store, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler
        self._progress: dict[int, Progress] = {}

    def on_request(self, connection: Connection, request: Asked, readings: list[tuple[int, wire.Request]]) -> list[ev.Event]:
        """Return the events of a request; what is to be answered after their commit is added to the readings.

        Raises StaleVersion for an attempt that is over, InvalidTask for a report that is none.
        """
        client = connection.number
        match request:
            case wire.Execute(seq=seq, id=task_id, labels=labels):
                rows = [] if self._scheduler.knows(task_id) else self._store.rows([task_id])
                row = rows[0] if rows else None
                return [ev.ExecuteAsked(client, seq, task_id, connection.pid, row, self._store.is_held(task_id), labels)]
            case wire.Executed(seq=seq, worker=worker, report=report):
                loan = self._loan(client, worker)
                readings.append((client, wire.Get(seq, loan.row.id)))
                return [ev.Reported(worker, loan.pid, [_checked(report, loan)])]
            case wire.Speak(seq=seq, worker=worker):
                return self._heard(client, request, readings)

    def _loan(self, client: int, worker: int) -> Loan:
        loan = self._scheduler.callers.loans.get(worker)
        if loan is None or loan.client != client:
            raise StaleVersion(
                "the attempt was given up before this came (its time ran out, or somebody ended it), and it changed nothing",
                hint="the task's history says why",
            )
        return loan

    def _heard(self, client: int, speak: wire.Speak, readings: list[tuple[int, wire.Request]]) -> list[ev.Event]:
        if not speak.seq and speak.worker not in self._scheduler.callers.loans:
            return []  # it came too late, and nobody waits for an answer
        row = self._loan(client, speak.worker).row
        if speak.progress is not None:
            self._progress[row.id] = speak.progress
        events: list[ev.Event] = [ev.CallerSpoke(client, speak.worker, round(speak.extend_s * 1e9))]
        if speak.checkpoint is not None:
            if len(speak.checkpoint) > CHECKPOINT_BYTES_MAX:
                raise InvalidTask(f"a checkpoint of {len(speak.checkpoint)} bytes is more than {CHECKPOINT_BYTES_MAX}")
            events.append(ev.Saved(speak.worker, jobs.Checkpointed(row.n, row.id, row.attempt, speak.checkpoint)))
        if speak.give_up:
            events.append(ev.CallerGone(client, speak.worker))
        if speak.seq:
            readings.append((client, wire.Find(speak.seq, [])))  # an answer that comes after the commit
        return events

    def take_progress(self) -> dict[int, Progress]:
        """Return what was told since the last call, by task."""
        progress, self._progress = self._progress, {}
        return progress


def _checked(report: jobs.Report, loan: Loan) -> jobs.Report:
    """Return a client's report as one of the attempt that it runs."""
    if report.outcome > jobs.SOFT_TIMEOUT or report.codec not in set(Codec):
        raise InvalidTask(f"no attempt ends with outcome {report.outcome} and codec {report.codec}")
    if report.outcome in FAILING and report.error is None:
        raise InvalidTask("an attempt that fails says why")
    if len(report.value or b"") > RESULT_BYTES_MAX:
        raise InvalidTask(f"a result of {len(report.value or b'')} bytes is more than {RESULT_BYTES_MAX}")
    report.n, report.task_id, report.attempt = loan.row.n, loan.row.id, loan.row.attempt
    report.dirty = False  # a caller is used for nothing else
    return report
