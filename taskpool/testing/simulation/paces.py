"""The promise of a queue's rate, stated once more: of any span of time, no more starts than its burst and what drips meanwhile."""

from __future__ import annotations

from taskpool.clock import NS, US, Instant
from taskpool.core import commands as cmd
from taskpool.core.lifecycle import QUEUED
from taskpool.core.scheduler import Scheduler
from taskpool.model import Queue
from taskpool.testing.simulation.fates import LawBroken

SLACK_US = 2  # instants are whole µs; the model's wall clock loses less than one at each step of its time, too


class Paces:
    """The starts of queues with a rate, over all lives of the store. steady: the wall clock, which tells of starts, never jumps."""

    def __init__(self) -> None:
        self.steady = True
        self._starts: dict[str, dict[tuple[int, int], int]] = {}  # queue → (task, attempt) → wall µs

    def start(self, queue: Queue | None, task_id: int, save: cmd.Start) -> None:
        """A task starts: look at every span that ends now."""
        if queue is None or queue.rate is None or not self.steady:
            return
        starts = self._starts.setdefault(queue.name, {})
        starts[task_id, save.attempt] = save.at
        burst = queue.burst or max(1, int(queue.rate))
        for count, at in enumerate(sorted(starts.values(), reverse=True), 1):
            granted = burst + (save.at - at + SLACK_US + count) / US * queue.rate
            if count > granted:
                raise LawBroken(f"queue {queue.name} started {count} tasks in {(save.at - at) / US} s, {granted:.3f} may")

    def returned(self, queue: str, task_id: int, attempt: int) -> None:
        """It was never begun: that does not count."""
        self._starts.get(queue, {}).pop((task_id, attempt), None)

    def closed(self, scheduler: Scheduler, closed: set[str], now: Instant, keyed: set[int]) -> set[str]:
        """Return the queues that wait for a token; the next comes in the time that one takes, and somebody thinks of that.

        keyed: tasks that wait for their keys.
        """
        found = {name for name, bucket in scheduler.lines.rates.buckets.items() if not bucket.left(now.mono)}
        timer = scheduler.next_timer(now)
        for name in found - closed:
            queued = [row.id for row in scheduler.tasks.values() if row.queue == name and row.status == QUEUED]
            waiting = [task_id for task_id in queued if task_id not in keyed]
            interval_s = scheduler.lines.rates.buckets[name].interval / NS
            if waiting and not scheduler.stopping and (timer is None or timer > interval_s + 1e-6):
                raise LawBroken(f"tasks {waiting} wait for the rate of queue {name}, the timer says {timer}")
        return found
