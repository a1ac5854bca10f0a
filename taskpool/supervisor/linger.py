"""Whether to wait a moment for clients before a turn that only workers asked for.

Who submits tasks one by one, each durable before the next, meets the commit of the task before: its worker is done a little
sooner than its client, and its end takes a commit of its own, which the next submit has to wait for. One commit for both halves
that. When a submit was found waiting behind such a turn, the next of that kind waits a moment for the next submit; when none
comes, that was all.

Who waits for each result before the next submit is found behind such a turn just as often, for the answer reached it while the
turn came to its end; but it is waited for in vain. So each further vain wait doubles how often a client must be found before
the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from taskpool.wire.poller import Poller

LINGER_NS = 200_000  # between a client and a worker that were both answered by one turn lie some tens of microseconds
VAIN_MAX = 9  # in a row: of those who are never met, one turn in 256 waits in vain


class Linger:
    """How the loop waits. asked: whether a client wants something of the next turn."""

    def __init__(self, poller: Poller, asked: Callable[[], bool]) -> None:
        self._poller = poller
        self._asked = asked
        self.on = False
        self._vain = 0  # waits in a row that nobody came in
        self._let_pass = 0  # how often a client will be found before one is waited for

    def wait(self, timeout_s: Callable[[], float | None], *, alone: bool) -> None:
        """Wait for the next turn's reasons. alone: the last turn stored something, and no client had asked for any of it."""
        poller, asked = self._poller, self._asked
        if alone and poller.wait(0.0):
            if not self.on and asked():
                if self._let_pass:
                    self._let_pass -= 1
                else:
                    self.on = True
        else:
            poller.wait(timeout_s())
        if self.on and not asked():
            until = time.monotonic_ns() + LINGER_NS
            while not asked() and time.monotonic_ns() < until:
                poller.wait(0.0)
            self.on = asked()
            self._vain = 0 if self.on else min(self._vain + 1, VAIN_MAX)
            self._let_pass = 2 ** max(0, self._vain - 1) - 1
