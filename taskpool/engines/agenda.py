"""What an engine wants to look at later: one timer for all, that wakes the poller."""

from __future__ import annotations

import time

from taskpool.engines import linux
from taskpool.wire.poller import Poller


class Agenda:
    """Names of what is due at some time. The poller wakes then; `take` tells what for."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        self._due: dict[str, int] = {}  # monotonic ns
        self._timer = linux.Timer(time.CLOCK_MONOTONIC)
        poller.add(self._timer.fd, lambda events: None)  # whoever woke asks `take`

    def after(self, what: str, ns: int) -> None:
        """Let that be due after so many ns, unless it is due before."""
        at = time.monotonic_ns() + ns
        if what not in self._due or at < self._due[what]:
            self._due[what] = at
            self._timer.sooner(at)

    def take(self) -> set[str]:
        """Return what is due, and forget it."""
        now = time.monotonic_ns()
        if self._timer.at is None or self._timer.at > now:
            return set()
        self._timer.clear()
        due = {what for what, at in self._due.items() if at <= now}
        for what in due:
            del self._due[what]
        if self._due:
            self._timer.set(min(self._due.values()))
        return due

    def close(self) -> None:
        """Watch nothing more, and close the timer."""
        self._poller.remove(self._timer.fd)
        self._timer.close()
