"""Tasks that bodies want stored at once: each is a submit, by the worker in place of a client, under the negative of its number.

So it is held, checked, stored and refused as any other. A wish of an attempt that was given up changes nothing; what is stored
stays, whatever becomes of the attempt.
"""

from __future__ import annotations

from collections.abc import Callable

from taskpool.core.scheduler import Scheduler
from taskpool.engines.engine import Wish
from taskpool.supervisor.server import Connection
from taskpool.wire import messages as wire
from taskpool.wire.jobs import ChildAnswered


class Applicant(Connection):
    """A worker among the clients. It has no socket of theirs."""

    def __init__(self, worker: int, pid: int) -> None:
        self.number = -worker
        self.owner = False
        self.follows = None
        self.greeted = True
        self.pid = pid


class Spawning:
    """Brings wishes to the desk, and its answers to the workers."""

    def __init__(
        self,
        scheduler: Scheduler,
        submit: Callable[[Connection, wire.Request], None],
        answer: Callable[[int, ChildAnswered], None],
    ) -> None:
        """submit: the desk's; answer: the engine's."""
        self._scheduler = scheduler
        self._submit = submit
        self._answer = answer

    def take(self, wish: Wish) -> None:
        """Submit what a body asks for, if it is that of the attempt which runs."""
        asked = wish.asked
        box = self._scheduler.workers.get(wish.worker)
        row = box.sent.get(asked.n) if box is not None else None
        if box is not None and row is not None and (row.id, row.attempt) == (asked.task_id, asked.attempt):
            self._submit(Applicant(wish.worker, box.pid), wire.Submit(asked.seq, [asked.spec], watch=False, resend=True))

    def answered(self, worker: int, answer: wire.Answer) -> None:
        """Tell a worker what became of its wish."""
        match answer:
            case wire.Accepted(seq=seq, ids=[task_id]):
                self._answer(worker, ChildAnswered(seq, task_id))
            case wire.Refused(seq=seq):
                self._answer(worker, ChildAnswered(seq, 0, answer.code, answer.message, answer.hint))
