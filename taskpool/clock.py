"""Time as the shell reads it: one Instant holds the wall, the monotonic and the boot-time reading.

Only a shell holds a clock. The core is given an Instant and compares: wall time for what is stored and
scheduled, monotonic for timeouts (a sleeping laptop costs nothing), boot time for deadlines (it does).
"""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

US = 1_000_000
NS = 1_000_000_000


class Instant(NamedTuple):
    """One moment. wall: µs since 1970, UTC; mono: ns of CLOCK_MONOTONIC."""

    wall: int
    mono: int

    def after(self, seconds: float) -> Instant:
        """Return the moment `seconds` later on both clocks."""
        return Instant(self.wall + round(seconds * US), self.mono + round(seconds * NS))


class Clock(Protocol):
    """Something that tells the time."""

    def now(self) -> Instant:
        """Return the present moment."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> Instant:
        """Return the present moment by the machine's clocks."""
        return Instant(time.time_ns() // 1000, time.monotonic_ns())


class ManualClock:
    """A clock for tests: it moves only when told."""

    def __init__(self, wall: int = 1_700_000_000 * US, mono: int = 1_000 * NS) -> None:
        self._now = Instant(wall, mono)

    def now(self) -> Instant:
        """Return the moment it was last set to."""
        return self._now

    def advance(self, seconds: float) -> Instant:
        """Move both readings forward and return the new moment."""
        self._now = self._now.after(seconds)
        return self._now

    def jump_wall(self, seconds: float) -> Instant:
        """Move the wall reading alone, as a clock that is set by hand does."""
        self._now = Instant(self._now.wall + round(seconds * US), self._now.mono)
        return self._now


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME in ns: monotonic, and running while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
