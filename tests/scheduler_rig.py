"""A scheduler, a clock, and words for what happens to it: values in, commands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from taskpool.clock import ManualClock
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.scheduler import Scheduler
from taskpool.model import Options, TaskError, TaskSpec
from taskpool.wire import jobs
from taskpool.wire.jobs import Checkpointed, Report

PLAIN = Options()
CLIENT = 5
MS = 1_000_000
T = TypeVar("T")


def of(commands: Sequence[cmd.Command], kind: type[T]) -> list[T]:
    """Return the commands of one kind, in order."""
    return [command for command in commands if isinstance(command, kind)]


def the(commands: Sequence[cmd.Command], kind: type[T]) -> T:
    """Return the one command of that kind."""
    (command,) = of(commands, kind)
    return command


class Rig:
    """One scheduler whose store is open and empty. `jobs`: task → (worker, n, attempt) of its latest start."""

    def __init__(self, size: int = 1, *, spares: int = 0, ready: bool = True, **how: Any) -> None:
        self.clock = ManualClock()
        self.scheduler = Scheduler(size, spares=spares, **how)
        self.jobs: dict[int, tuple[int, int, int]] = {}
        self.seq = 0
        self.turn(ev.Opened(1, []))
        self.turn(ev.Refilled(None, [], more=False))  # nothing waits in the store
        if ready:
            self.turn(*(ev.WorkerReady(worker, 100 + worker) for worker in self.scheduler.workers))

    @property
    def wall(self) -> int:
        """The wall clock, µs."""
        return self.clock.now().wall

    @property
    def mono(self) -> int:
        """The monotonic clock, ns."""
        return self.clock.now().mono

    def turn(self, *events: ev.Event) -> list[cmd.Command]:
        """Take events through one turn; return what it commands."""
        commands: list[cmd.Command] = []
        for event in (*events, ev.Dispatch()):
            commands += self.scheduler.handle(event, self.clock.now())
            self.scheduler.check()
        for start in of(commands, cmd.Start):
            self.jobs[start.id] = (start.worker, start.n, start.attempt)
        return commands

    def row(self, task_id: int) -> ev.TaskRow:
        """Return the row that the scheduler holds."""
        return self.scheduler.tasks[task_id]

    # ---- events -----------------------------------------------------------------------------------------------------

    def submitted(
        self,
        count: int = 1,
        options: Options = PLAIN,
        *,
        name: str = "f",
        queue: str = "default",
        priority: int = 0,
        at: int = 0,
        key: str | None = None,
        unique: str | None = None,
        holders: dict[str, ev.Holder] | None = None,
    ) -> ev.Submitted:
        """Return a submit of equal tasks. holders: of unique keys, as the store has them."""
        self.seq += 1
        specs = [
            TaskSpec(bytes([self.seq, item]), name, 1, b"", queue=queue, priority=priority, scheduled_at=at, key=key, unique=unique)
            for item in range(count)
        ]
        return ev.Submitted(CLIENT, self.seq, specs, [options] * count, holders=holders or {})

    def submit(self, count: int = 1, options: Options = PLAIN, **how: Any) -> list[int]:
        """Submit in a turn of its own; return the ids."""
        return the(self.turn(self.submitted(count, options, **how)), cmd.Accept).ids

    def report(self, task_id: int, outcome: int = jobs.OK, error: TaskError | None = None, **how: Any) -> ev.Reported:
        """Return the report that the task's latest attempt gives."""
        worker, n, attempt = self.jobs[task_id]
        how = {"began_ns": self.mono, "duration_ns": MS, "value": b"", **how}
        return ev.Reported(worker, 100 + worker, [Report(n, task_id, attempt, outcome, error=error, **how)])

    def failure(
        self, task_id: int, kind: str = "handler", *, retryable: bool = True, backoff_s: float | None = None
    ) -> ev.Reported:
        """Return the report of an error."""
        return self.report(task_id, jobs.ERROR, TaskError(kind, "why", retryable, backoff_s=backoff_s))

    def saved(self, task_id: int, data: bytes) -> ev.Saved:
        """Return a checkpoint of the task's latest attempt."""
        worker, n, attempt = self.jobs[task_id]
        return ev.Saved(worker, Checkpointed(n, task_id, attempt, data))

    def death(self, worker: int = 1, *, begun: int | None = None, why: str = "", kind: str = "panic") -> ev.WorkerDied:
        """Return a worker's death; begun: the task whose body ran."""
        n = self.jobs[begun][1] if begun is not None else 0
        error = TaskError(kind, f"it died: {why or 'by itself'}", retryable=kind != "deadline")
        return ev.WorkerDied(worker, 100 + worker, n, self.mono if n else 0, why, error)

    def cancel(
        self, *ids: int, rows: Sequence[ev.TaskRow] = (), grace_s: float | None = None, force: bool = False
    ) -> ev.CancelAsked:
        """Return a client's cancel."""
        return ev.CancelAsked(CLIENT, 1, list(ids), list(rows), "enough", grace_s, force)

    def retry(self, *rows: ev.TaskRow, force: bool = False) -> ev.RetryAsked:
        """Return a client's retry by hand."""
        return ev.RetryAsked(CLIENT, 2, list(rows), force)

    # ---- states -----------------------------------------------------------------------------------------------------

    def learn(self, name: str = "f", duration_ns: int = 100_000) -> None:
        """Let the scheduler know how long a handler takes, so that mailboxes fill."""
        (task_id,) = self.submit(name=name)
        self.turn(self.report(task_id, duration_ns=duration_ns))

    def filled(self, count: int, options: Options = PLAIN) -> list[int]:
        """Submit short tasks that all lie in the mailbox of one worker."""
        self.learn()
        ids = self.submit(count, options)
        assert [self.jobs[task_id][0] for task_id in ids] == [1] * count
        return ids
