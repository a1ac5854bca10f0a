"""How long ended tasks are kept: seconds since their end, by how they ended; `math.inf` is for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec

from taskpool.errors import InvalidSettings, InvalidTask

DAY_S: Final = 86_400.0
FOREVER: Final = "forever"
LONGEST_S: Final = 100 * 366 * DAY_S
ENDED: Final = ("succeeded", "cancelled", "failed", "interrupted")
LEAST_S: Final = 60.0  # nothing is pruned by itself sooner: whoever waits for it, or asks once more for a lost answer, finds it


class Retention(msgspec.Struct, frozen=True, omit_defaults=True):
    """Seconds for which tasks are kept that ended so, and say nothing of their own."""

    succeeded: float = 7 * DAY_S
    cancelled: float = 7 * DAY_S
    failed: float = 30 * DAY_S
    interrupted: float = math.inf

    def check(self) -> None:
        """Raise InvalidSettings for what is no time; whoever was sent one has not made it with `retention_of`."""
        for status in ENDED:
            period(f"retention of what is {status}", getattr(self, status))

    def at_least(self, seconds: float) -> Retention:
        """Return one that keeps nothing for less than that."""
        return Retention(*(max(seconds, getattr(self, status)) for status in ENDED))


def retention_of(value: Any) -> Retention:
    """Return what a caller means: None for the defaults, a period for all but what was interrupted, or a mapping by status.

    Raises InvalidSettings.
    """
    if value is None:
        return Retention()
    if isinstance(value, Retention):
        return value
    if isinstance(value, Mapping):
        unknown = [status for status in value if status not in ENDED]
        if unknown:
            raise InvalidSettings(f"retention: no task ends {unknown[0]!r}", hint=f"they end {', '.join(ENDED)}")
        return Retention(**{str(status): period("retention", seconds) for status, seconds in value.items()})
    seconds = period("retention", value)
    return Retention(seconds, seconds, seconds)


def retention_for(older: Any, statuses: Sequence[str]) -> Retention:
    """Return what is kept when all that ended so is pruned that is older than that (None: the defaults).

    Raises InvalidTask for a status that no task ends in, InvalidSettings for what is no time.
    """
    check_ended(statuses)
    if older is None:
        return Retention()
    seconds = period("older", older)
    return Retention(seconds, seconds, seconds, seconds)


def check_ended(statuses: Sequence[str]) -> None:
    """Raise InvalidTask unless tasks end in these statuses."""
    for status in statuses:
        if status not in ENDED:
            raise InvalidTask(f"a task that is {str(status)!r} has not ended", hint=f"what ended is {', '.join(ENDED)}")


def period(name: str, value: Any) -> float:
    """Return seconds from a number, a timedelta or "forever" (`math.inf`). Raises InvalidSettings, naming the value."""
    if value == FOREVER:
        return math.inf
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not (0 <= seconds <= LONGEST_S or seconds == math.inf):
        raise InvalidSettings(f"{name} must be a number of seconds (or a timedelta), not negative, or {FOREVER!r}: {value!r:.120}")
    return float(seconds)
