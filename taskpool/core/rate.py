"""How fast queues may start tasks: a bucket each, into which tokens drip at the queue's rate, and from which a start takes one.

A bucket is one number: when it will be full again. A start moves that by the time that one token takes; so nothing drips, nothing
is rounded away, and what is stored of it says all. Times are monotonic here and wall time in the store: a new owner goes on where
the last one was, and a clock that was set back can hold a queue up no longer than its bucket takes to fill. Pure.
"""

from __future__ import annotations

from taskpool.clock import NS, Instant
from taskpool.core.commands import Spent
from taskpool.model import Queue


def interval_ns(queue: Queue) -> int:
    """Return the time that one token takes; the queue has a rate."""
    assert queue.rate is not None
    return max(1, round(NS / queue.rate))


def burst(queue: Queue) -> int:
    """Return how many tokens the bucket holds: what the queue says, else those of a second."""
    return queue.burst if queue.burst is not None else max(1, int(queue.rate or 0))


def free_at(queue: Queue, full_at: int) -> int:
    """Return when (wall µs) a queue may start its next task, if its bucket will be full at `full_at`."""
    return full_at - (burst(queue) - 1) * interval_ns(queue) // 1000


class Bucket:
    """The tokens of one queue. full_at: monotonic ns; in the past, it is full; since: it has not been full (wall µs)."""

    __slots__ = ("burst", "full_at", "interval", "since")

    def __init__(self, queue: Queue, full_at: int, now: Instant) -> None:
        self.interval = interval_ns(queue)
        self.burst = burst(queue)
        self.full_at = full_at
        # At the latest; what is stored was rounded up.
        self.since = now.wall - (now.mono - full_at + self.interval) // 1000 - 2

    def take(self, now: Instant) -> None:
        """Take a token out."""
        if self.full_at <= now.mono:
            self.full_at, self.since = now.mono, now.wall
        self.full_at += self.interval

    def give_back(self, taken_at: int) -> None:
        """Put a token back that was taken at a moment (wall µs): unless the bucket has run over since, when it was lost anyway."""
        if taken_at >= self.since:
            self.full_at -= self.interval

    def left(self, mono: int) -> int:
        """Return how many may start now."""
        lacks = self.full_at - mono
        return self.burst if lacks <= 0 else max(0, self.burst - -(-lacks // self.interval))

    def next_at(self) -> int:
        """Return when there is a token again, of a bucket that has none."""
        return self.full_at - (self.burst - 1) * self.interval


class Rates:
    """The buckets of all queues that have a rate."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._changed: set[str] = set()

    def set_rules(self, queue: Queue, full_at: int, now: Instant) -> None:
        """Take a queue's rate. full_at: as the store has it (wall µs), of a queue that this owner has not met."""
        known = self.buckets.pop(queue.name, None)
        if queue.rate is None:
            return
        at = known.full_at if known is not None else now.mono + (full_at - now.wall) * 1000
        most = now.mono + burst(queue) * interval_ns(queue)
        bucket = self.buckets[queue.name] = Bucket(queue, min(at, most), now)
        if known is not None:
            bucket.since = known.since

    def take(self, name: str, now: Instant) -> None:
        """A task of a queue starts."""
        bucket = self.buckets.get(name)
        if bucket is not None:
            bucket.take(now)
            self._changed.add(name)

    def give_back(self, name: str, started_at: int) -> None:
        """A task of a queue was started at a moment (wall µs), and has not begun."""
        bucket = self.buckets.get(name)
        if bucket is not None:
            bucket.give_back(started_at)
            self._changed.add(name)

    def spent(self, now: Instant) -> list[Spent]:
        """Return what is to be stored of the buckets that have changed."""
        if not self._changed:
            return []
        names, self._changed = sorted(self._changed & self.buckets.keys()), set()
        # Rounded up: a restart must not grant what was not yet there.
        return [Spent(name, now.wall - (now.mono - self.buckets[name].full_at) // 1000) for name in names]
