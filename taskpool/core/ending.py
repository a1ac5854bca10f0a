"""The end of a pool: begin no more, let what runs end or be ended, and say when nothing runs. Pure."""

from __future__ import annotations

from taskpool.clock import NS, Instant
from taskpool.core import callers
from taskpool.core.callers import Callers
from taskpool.core.commands import Command, Halted, Kill, Signal, TakeBack
from taskpool.core.mailbox import Mailbox


class Ending:
    """Whether, and how, a pool ends. began: it has begun to; halted: it was said that it is over; at: when the grace is over.

    told: what ran was sent Cancelled because of it. Times monotonic ns.
    """

    def __init__(self, workers: dict[int, Mailbox], loans: Callers, grace_s: float) -> None:
        """grace_s: from Cancelled to the kill."""
        self._workers = workers
        self._loans = loans
        self._grace_s = grace_s
        self.began = self.halted = self.told = False
        self.at: int | None = None
        self._kills = False  # no time for Cancelled
        self._grace_is_over = False

    def ask(self, grace_s: float | None, now: Instant) -> list[Command]:
        """Begin no more; grace_s: that running tasks may go on (None: until they end). A second call may only shorten it."""
        out: list[Command] = []
        self._kills = self._kills or (grace_s is not None and grace_s <= 0)
        for box in self._workers.values():
            box.told = 0
            if not self.began and len(box.sent) > 1:
                out.append(TakeBack(box.worker, next(iter(box.sent))))
        if not self.began:
            out += self._loans.all_told(callers.STOPPING)
        self.began = True
        if grace_s is not None:
            at = now.mono + round(grace_s * NS)
            self.at = at if self.at is None else min(at, self.at)
        return out

    def go_on(self, now: Instant) -> list[Command]:
        """Say that all is over when nothing runs; end what runs when the grace is over."""
        busy = [box for box in self._workers.values() if box.sent]
        out: list[Command] = []
        if not busy and not self.halted:
            self.halted = True
            out.append(Halted())
        if self.at is not None and now.mono >= self.at:
            self.at = None
            self._grace_is_over = True
        if self._grace_is_over:
            for box in busy:
                out += self._end_body(box, now)
        return out

    def _end_body(self, box: Mailbox, now: Instant) -> list[Command]:
        """End what runs: the first of a mailbox, once; what stood behind it was taken back when the stop began."""
        n, row = next(iter(box.sent.items()))
        if box.told == n:
            return []
        box.told = n
        if box.caller is not None:
            self.told = True
            return list(self._loans.ask(box.worker, callers.STOP, 0.0 if self._kills else self._grace_s, now))
        if self._kills:
            return [Kill(box.worker, 0, "stop")]
        if row.cancel_requested_at is None:  # else it was told, and given its grace, before
            self.told = True
            return [Signal(box.worker, n, self._grace_s, "stop")]
        return []
