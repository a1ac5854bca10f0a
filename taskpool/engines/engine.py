"""The Protocol between the supervisor and whatever runs attempts.

Narrow on purpose: numbers, Jobs and events, nothing of sockets, pages or signals, so that a cluster engine can stand behind it.
Everything is called from one thread (the supervisor's loop), nothing blocks but `stop`, and what happens is told by events of
`taskpool.core.events` that `deliver` takes, in order, from within these calls. Numbers n count the jobs of one worker, from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from taskpool.core.events import Event
from taskpool.model import Progress
from taskpool.wire.jobs import ChildAnswered, ChildAsked, Job
from taskpool.wire.poller import Poller
from taskpool.wire.zygote import Prepared


class Wish(msgspec.Struct):
    """A body on that worker wants a task stored now, and waits for the answer."""

    worker: int
    asked: ChildAsked


Deliver = Callable[[Event | Wish], None]


class Limits(msgspec.Struct, gc=False):
    """What may end job n. Seconds count from the begin of its body; deadline_at is wall time in µs; None: without limit."""

    n: int
    timeout_s: float | None = None
    soft_timeout_s: float | None = None
    deadline_at: int | None = None
    heartbeat_s: float | None = None
    memory: int | None = None  # bytes, of its process and all that it starts

    def any(self) -> bool:
        """Return whether there is something to watch."""
        return any(
            one is not None for one in (self.timeout_s, self.soft_timeout_s, self.deadline_at, self.heartbeat_s, self.memory)
        )


class Engine(Protocol):
    """Something that runs attempts and reports."""

    mailbox_limit: int
    """How many jobs one worker may hold: 1 where jobs cannot be taken back."""

    prepared: Prepared | None
    """What became of preparing the handlers; None until that is known."""

    def start(self, poller: Poller, deliver: Deliver, on_prepared: Callable[[Prepared], None] | None = None) -> None:
        """Begin. Events go to `deliver` from now on."""

    def spawn(self, worker_id: int) -> None:
        """Start a worker: WorkerReady or WorkerFailed follows. An id is never used twice."""

    def send(self, worker_id: int, jobs: Sequence[Job], limits: Sequence[Limits] = ()) -> None:
        """Hand jobs to a worker, in order, and watch their limits. A worker that just died is passed over: its WorkerDied comes."""

    def answer(self, worker_id: int, answer: ChildAnswered) -> None:
        """Answer a Wish of a worker's. One that just died is passed over."""

    def take_back(self, worker_id: int, above: int, running_ns: int = 0) -> None:
        """Forbid the jobs above that number: TakenBack says which will not begin, then Passed when the worker takes work again.

        running_ns: nothing happens unless the worker's body has run for so long, or it has neither ended nor begun any.
        """

    def signal(self, worker_id: int, n: int, grace_s: float, why: str = "cancel") -> None:
        """Raise Cancelled in job n, again and again; kill after grace_s. Nothing happens if n has ended."""

    def kill(self, worker_id: int, n: int, why: str) -> None:
        """Kill the worker and all it started, if it runs job n (0: whatever it does). WorkerDied follows, with that `why`."""

    def stopping(self) -> None:
        """Let every handler see that the pool is going to stop."""

    def collect(self) -> int:
        """Deliver what has come, once after each wake-up of the poller. Return a mark for `committed`."""

    def committed(self, mark: int | None = None) -> None:
        """All delivered up to that mark (None: the latest) is stored: forget the records that it came from."""

    def progress(self) -> list[tuple[int, Progress]]:
        """Return (task id, progress) where it changed since the last call."""

    def output_news(self) -> list[tuple[int, bytes]]:
        """Return (task id, bytes printed) since the last call, in order per task."""

    def printed(self, task_id: int) -> str:
        """Return the end of what a task that runs has printed so far; "" if it does not run."""

    def pids(self) -> dict[int, int]:
        """Return worker id → pid of all that live."""

    def current(self, worker_id: int) -> tuple[int, int]:
        """Return (n, task id) of the body that runs, or (0, 0)."""

    def stop(self, grace_s: float = 0.0) -> None:
        """End all workers, giving idle ones grace_s to leave by themselves. Blocks; leaves no process, descriptor or thread."""
