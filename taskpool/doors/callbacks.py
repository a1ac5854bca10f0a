"""What the io thread calls for others: callbacks of futures and followers that are due, and what is to be called every so often."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures._base import LOGGER
from typing import Any


class _Tick:
    """Something to be called every so often. at: monotonic seconds of the next time."""

    __slots__ = ("at", "callback", "seconds")

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.at = time.monotonic() + seconds


class Callbacks:
    """They run one after the other, in order. due: calls to be made; any thread may append to it."""

    def __init__(self) -> None:
        self.due: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._ticks: list[_Tick] = []

    def run(self) -> None:
        """Call what is due."""
        due = self.due
        while due:
            call, args = due.popleft()
            _shielded(call, *args)

    def every(self, seconds: float, callback: Callable[[], object]) -> Callable[[], None]:
        """Have it called every so many seconds; return what stops that."""
        tick = _Tick(seconds, callback)
        self._ticks = [*self._ticks, tick]

        def stop() -> None:
            self._ticks = [other for other in self._ticks if other is not tick]

        return stop

    def next_tick(self) -> float | None:
        """Return the seconds until the next `tick` has something to call, None if it never has."""
        if not self._ticks:
            return None
        return max(0.0, min(tick.at for tick in self._ticks) - time.monotonic())

    def tick(self, now: float | None = None) -> None:
        """Call what its time has come for. now: monotonic seconds, infinity for all."""
        if not self._ticks:
            return
        now = time.monotonic() if now is None else now
        for tick in self._ticks:
            if now >= tick.at:
                tick.at = now + tick.seconds
                _shielded(tick.callback)


def _shielded(call: Callable[..., object], *args: Any) -> None:
    """Call what a user gave us; his mistakes are logged, and nobody else's trouble."""
    try:
        call(*args)
    except BaseException:
        LOGGER.exception("exception in a callback of a pool")
