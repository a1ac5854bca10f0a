"""Queues: what their settings may be, and how two registrations compare. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from taskpool.errors import InvalidTask, QueueConfigConflict, QueueFull, QueueNotRegistered
from taskpool.model import Queue, check_queue_name

NUMBER_MAX: Final = 2**31 - 1
RETRY_DELAY_S_MAX: Final = 10 * 366 * 86400.0
DEFAULT: Final = "default"  # the queue of tasks that name none

# Setting → the least whole number that makes sense.
_WHOLE: Final = {"concurrency": 1, "max_retry": 0, "buffer_size": 1, "max_backlog": 1, "burst": 1}
SETTINGS: Final = ("concurrency", "max_retry", "retry_delay", "buffer_size", "max_backlog", "rate", "burst")
RATE_MIN: Final = 1e-7  # a second: one in four months
RATE_MAX: Final = 1e6


def check(queue: Queue) -> Queue:
    """Return a queue whose settings make sense; InvalidQueueName, or InvalidTask naming the setting."""
    check_queue_name(queue.name)
    for setting, least in _WHOLE.items():
        value = getattr(queue, setting)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not least <= value <= NUMBER_MAX):
            raise InvalidTask(f"{setting} of a queue must be a whole number from {least} to {NUMBER_MAX}: {value!r:.120}")
    delay: Any = queue.retry_delay
    number = isinstance(delay, int | float) and not isinstance(delay, bool)
    if delay is not None and not (number and 0 <= delay <= RETRY_DELAY_S_MAX):
        raise InvalidTask(f"retry_delay of a queue must be a number of seconds, not negative: {delay!r:.120}")
    rate: Any = queue.rate
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if rate is not None and not (number and RATE_MIN <= rate <= RATE_MAX):
        raise InvalidTask(f"rate of a queue must be a number of tasks a second, {RATE_MIN:g} to {RATE_MAX:g}: {rate!r:.120}")
    if rate is None and queue.burst is not None:
        raise InvalidTask("burst of a queue says how a rate begins, and there is none", hint="Queue(…, rate=10, burst=20)")
    return queue


def check_pause(names: Iterable[str], known: Collection[str], *, paused: bool) -> None:
    """Raise QueueNotRegistered for queues that are to go on and that nobody knows, InvalidQueueName for what none can be."""
    for name in names:
        if name in known or name == DEFAULT:
            continue
        if not paused:
            raise QueueNotRegistered(f"there is no queue {name!r}", hint=f"there are {', '.join(known) or 'none yet'}")
        check_queue_name(name)


def has_rules(queue: Queue) -> bool:
    """Return whether anything distinguishes this queue from one that nobody registered."""
    return queue != Queue(queue.name)


def same(one: Queue, other: Queue) -> bool:
    """Return whether two registrations say the same; `paused` is where a queue begins, not what it is."""
    return all(getattr(one, setting) == getattr(other, setting) for setting in SETTINGS)


def conflict(stored: Queue, given: Queue) -> QueueConfigConflict:
    """Return the error that shows two registrations of one queue side by side."""
    pairs = [(setting, getattr(stored, setting), getattr(given, setting)) for setting in SETTINGS]
    words = ", ".join(f"{setting} {_word(was)} (now {_word(now)})" for setting, was, now in pairs if was != now)
    return QueueConfigConflict(
        f"queue {stored.name!r} is registered with {words}", hint="register it as it is, or say replace=True to change it"
    )


def full(queue: Queue, waiting: int, coming: int) -> QueueFull | None:
    """Return the error for a submit of so many tasks to a queue in which so many wait, None if they may come."""
    if queue.max_backlog is None or waiting + coming <= queue.max_backlog:
        return None
    words = f"{waiting} tasks wait in queue {queue.name!r}, {coming} more were to come; max_backlog is {queue.max_backlog}"
    return QueueFull(words, hint="nothing was stored; submit again when some have started")


def _word(value: Any) -> str:
    return "none" if value is None else f"{value:g}"
