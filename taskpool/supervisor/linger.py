"""Whether to wait a moment for clients before a turn that only workers asked for.

Who submits tasks one by one, each durable before the next, meets the commit of the task before: its worker is done a little
sooner than its client, and its end takes a commit of its own, which the next submit has to wait for. One commit for both halves
that. When a submit was found waiting behind such a turn, the next of that kind waits a moment for the next submit; when none
comes, that was all. Who waits for results, not for submits, never pays: it submits nothing while the end is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from taskpool.wire.poller import Poller

LINGER_NS = 200_000  # between a client and a worker that were both answered by one turn lie some tens of microseconds


class Linger:
    """How the loop waits. asked: whether a client wants something of the next turn."""

    def __init__(self, poller: Poller, asked: Callable[[], bool]) -> None:
        self._poller = poller
        self._asked = asked
        self.on = False

    def wait(self, timeout_s: Callable[[], float | None], *, alone: bool) -> None:
        """Wait for the next turn's reasons. alone: the last turn stored something, and no client had asked for any of it."""
        poller, asked = self._poller, self._asked
        if alone and poller.wait(0.0):
            self.on = self.on or asked()
        else:
            poller.wait(timeout_s())
        if self.on and not asked():
            until = time.monotonic_ns() + LINGER_NS
            while not asked() and time.monotonic_ns() < until:
                poller.wait(0.0)
            self.on = asked()
