"""What each option of a task may be, and how it is kept: one function for each kind of value, and the table of all options."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from taskpool.core.retry import KINDS, RETRIED_IF_SAID
from taskpool.doors.naming import key_or_function
from taskpool.errors import InvalidSettings, InvalidTask
from taskpool.memory import size_of
from taskpool.model import RetryPolicy, check_queue_name
from taskpool.retention import period

PRIORITY_MAX = 2**31 - 1  # of any whole number
TAGS_MAX = 64
TAG_LENGTH_MAX = 200
HEADER_BYTES_MAX = 16 << 10
DURATION_S_MAX = 100 * 366 * 86400.0  # instants stay within 64 bits and within datetime


def checked(name: str, value: Any) -> Any:
    """Return one option as it is kept. Raises InvalidTask."""
    check = _CHECKS.get(name)
    if check is None:
        import difflib

        near = difflib.get_close_matches(name, list(_CHECKS), n=1)
        raise InvalidTask(f"there is no option {name!r}", hint=f"did you mean {near[0]}?" if near else "")
    return check(name, value)


def check_together(values: Mapping[str, Any]) -> None:
    """Raise InvalidTask for checked options that contradict each other."""
    timeout, soft = values.get("timeout"), values.get("soft_timeout")
    if timeout is not None and soft is not None and soft >= timeout:
        raise InvalidTask(f"soft_timeout ({soft:g} s) must be shorter than timeout ({timeout:g} s)")
    if values.get("unique") is None and values.get("unique_period") is not None:
        raise InvalidTask("unique_period is the time of a unique key: say unique= too")
    if values.get("at_most_once"):
        policy = values.get("retry")
        if (values.get("max_attempts") or 1) > 1 or (policy is not None and policy.maximum_attempts != 1):
            raise InvalidTask("an at_most_once task has one attempt: it cannot be retried")
        if values.get("on_interrupt", "hold") == "rerun":
            raise InvalidTask("an at_most_once task cannot have on_interrupt='rerun'")


def _queue(name: str, value: Any) -> str:
    return check_queue_name(value)


def _whole(least: int, most: int) -> Any:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidTask(f"{name} must be a whole number from {least} to {most}: {value!r:.120}")
        return value

    return check


def _attempts(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value > PRIORITY_MAX:
        raise InvalidTask(
            f"{name} must be a whole number: {value!r:.120}", hint="RetryPolicy(maximum_attempts=0) means without limit"
        )
    return max(1, value)


def seconds_of(value: Any) -> float | None:
    """Return a duration in seconds, None for what is no duration."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds = seconds_of(value)
    if seconds is None or not 0 < seconds <= DURATION_S_MAX:
        raise InvalidTask(f"{name} must be a number of seconds (or a timedelta) above 0: {value!r:.120}")
    return seconds


def _delay(name: str, value: Any) -> timedelta | None:
    seconds = seconds_of(value)
    if seconds is None or not 0 <= seconds <= DURATION_S_MAX:
        raise InvalidTask(f"{name} must be a number of seconds (or a timedelta), not negative: {value!r:.120}")
    return timedelta(seconds=seconds) if seconds else None


def _moment(name: str, value: Any) -> datetime | timedelta | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return _zoned(name, value)
    seconds = seconds_of(value)
    if seconds is None or not 0 < seconds <= DURATION_S_MAX:
        raise InvalidTask(f"{name} must be a datetime, or seconds (or a timedelta) from now, above 0: {value!r:.120}")
    return timedelta(seconds=seconds)


def _zoned(name: str, value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidTask(f"{name} must be a datetime: {value!r:.120}")
    if value.utcoffset() is None:
        raise InvalidTask(f"{name} must know its time zone: {value!r}", hint="datetime(…, tzinfo=timezone.utc), or .astimezone()")
    return value


def _retry(name: str, value: Any) -> RetryPolicy | None:
    if value is None:
        return None
    if not isinstance(value, RetryPolicy):
        raise InvalidTask(f"{name} must be a RetryPolicy: {value!r:.120}", hint="max_attempts= is the short way")
    numbers: tuple[Any, ...] = (value.initial_interval, value.maximum_interval, value.backoff_coefficient, value.jitter)
    if not all(isinstance(number, int | float) and 0 <= number <= sys.float_info.max for number in numbers):
        raise InvalidTask(f"{name}: intervals, backoff_coefficient and jitter must be finite and not negative: {value!r:.200}")
    attempts: Any = value.maximum_attempts
    if not isinstance(attempts, int) or attempts > PRIORITY_MAX:
        raise InvalidTask(f"{name}: maximum_attempts must be a whole number: {attempts!r:.120}")
    _check_kinds(name, "retryable_error_kinds", value.retryable_error_kinds, RETRIED_IF_SAID, "; others are retried anyway")
    _check_kinds(name, "non_retryable_error_kinds", value.non_retryable_error_kinds, KINDS)
    if value.jitter > 1 or value.maximum_attempts < 0:
        raise InvalidTask(f"{name}: jitter must be within 0..1 and maximum_attempts not negative: {value!r}")
    return value


def _check_kinds(name: str, field: str, kinds: Any, known: Collection[str], more: str = "") -> None:
    if not isinstance(kinds, tuple | list):
        raise InvalidTask(f"{name}: {field} must be a tuple of kinds: {kinds!r:.120}")
    unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in known]
    if unknown:
        raise InvalidTask(f"{name}: {field} cannot name {unknown[0]!r:.80}", hint=f"of {', '.join(sorted(known))}{more}")


def _error_names(name: str, value: Any) -> tuple[str, ...]:
    """Return the names by which a worker recognises exception classes: `module.qualname`, bare for those of `__main__`."""
    return tuple(_error_name(name, each) for each in _several(name, value, (str, type)))


def _several(name: str, value: Any, single: type | tuple[type, ...]) -> tuple[Any, ...]:
    """Return one or many as a tuple."""
    if isinstance(value, single):
        return (value,)
    if not isinstance(value, Iterable):
        raise InvalidTask(f"{name} takes one or several: {value!r:.120}")
    return tuple(value)


def _error_name(name: str, value: Any) -> str:
    if isinstance(value, str) and value:
        _encodable(name, value)
        return value
    if not (isinstance(value, type) and issubclass(value, BaseException)):
        raise InvalidTask(f"{name} takes exception classes: {value!r:.120}")
    # A worker knows the script's classes as those of `__mp_main__`.
    bare = value.__module__ in ("__main__", "__mp_main__", "builtins")
    return value.__qualname__ if bare else f"{value.__module__}.{value.__qualname__}"


def _one_of(*choices: Any) -> Any:
    def check(name: str, value: Any) -> Any:
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise InvalidTask(f"{name} must be {' or '.join(map(repr, choices))}: {value!r:.120}")
        return value

    return check


def _encodable(name: str, *texts: str) -> None:
    """Raise InvalidTask for half of a surrogate pair, as in the name of a file that is no UTF-8."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InvalidTask(f"{name} must be texts that can be written as UTF-8: {text!r:.120} ({error.reason})") from error


def _tags(name: str, value: Any) -> tuple[str, ...]:
    tags = _several(name, value, str)
    if len(tags) > TAGS_MAX:
        raise InvalidTask(f"{name}: at most {TAGS_MAX}, not {len(tags)}")
    for tag in tags:
        if not isinstance(tag, str) or not 0 < len(tag) <= TAG_LENGTH_MAX:
            raise InvalidTask(f"{name} must be texts of 1 to {TAG_LENGTH_MAX} characters: {tag!r:.120}")
    _encodable(name, *tags)
    return tags


def _texts(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(part, str) for item in value.items() for part in item):
        raise InvalidTask(f"{name} must be a mapping of texts to texts: {value!r:.120}")
    if sum(len(part) for item in value.items() for part in item) > HEADER_BYTES_MAX:
        raise InvalidTask(f"{name} is over {HEADER_BYTES_MAX} characters")
    _encodable(name, *(part for item in value.items() for part in item))
    return dict(value)


def _label(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > TAG_LENGTH_MAX:
        raise InvalidTask(f"{name} must be a text of at most {TAG_LENGTH_MAX} characters: {value!r:.120}")
    _encodable(name, value)
    return value


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > TAG_LENGTH_MAX or not value.isprintable():
        raise InvalidTask(f"{name} must be a text of at most {TAG_LENGTH_MAX} printable characters: {value!r:.120}")
    return value


def _target(name: str, value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else _word(name, value)


def _task_id(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63):
        raise InvalidTask(f"{name} must be the id of a task: {value!r:.120}")
    return value


def _cpus(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= PRIORITY_MAX:
        raise InvalidTask(f"{name} must be a number above 0: {value!r:.120}")
    return float(value)


def _memory(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        return size_of(value)
    except ValueError as error:
        raise InvalidTask(f"{name}: {error}") from None


def _retention(name: str, value: Any) -> float | None:
    try:
        return None if value is None else period(name, value)
    except InvalidSettings as error:
        raise InvalidTask(error.message) from None


def _parents(name: str, value: Any) -> tuple[Any, ...]:
    parents = (value,) if hasattr(value, "_is_reference") else _several(name, value, int)
    for parent in parents:
        if isinstance(parent, bool) or not ((isinstance(parent, int) and 0 < parent < 2**63) or hasattr(parent, "_is_reference")):
            raise InvalidTask(f"{name} takes futures, or ids of tasks: {parent!r:.120}")
    return parents


_CHECKS: dict[str, Any] = {
    "after": _parents,
    "queue": _queue,
    "priority": _whole(-PRIORITY_MAX, PRIORITY_MAX),
    "delay": _delay,
    "at": _zoned,
    "timeout": _positive,
    "soft_timeout": _positive,
    "deadline": _moment,
    "expires": _moment,
    "heartbeat_timeout": _positive,
    "max_attempts": _attempts,
    "retry": _retry,
    "retry_on": _error_names,
    "no_retry_on": _error_names,
    "on_interrupt": _one_of("rerun", "hold", "fail"),
    "at_most_once": _one_of(True, False),
    "crash_limit": _whole(1, PRIORITY_MAX),
    "max_interruptions": _whole(1, PRIORITY_MAX),
    "tags": _tags,
    "headers": _texts,
    "trace_ctx": _texts,
    "label": _label,
    "cpus": _cpus,
    "memory": _memory,
    "owner_type": _word,
    "owner_id": _word,
    "source": _word,
    "reference_id": _word,
    "parent_id": _task_id,
    "reply_to": _word,
    "retention": _retention,
    "target": _target,
    "key": key_or_function,
    "key_limit": _whole(1, PRIORITY_MAX),
    "key_on_retry": _one_of("block", "yield"),
    "unique": key_or_function,
    "on_conflict": _one_of("existing", "raise", "replace"),
    "unique_period": _positive,
}
