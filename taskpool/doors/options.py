"""What a caller may say of a task, checked where it is said, and packed once for all tasks of a call.

Options come from three places, the later wins: the handler's decorator, `pool.options(…)`, `handler.options(…)`. Durations are
seconds or timedeltas, instants are datetimes with a time zone; where an instant is meant a duration counts from the submit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypedDict

from taskpool.clock import US
from taskpool.core.queues import check_name
from taskpool.core.retry import RETRIED_IF_SAID
from taskpool.doors.naming import Names, computed_elsewhere, key_or_function
from taskpool.errors import InvalidSettings, InvalidTask
from taskpool.memory import size_of
from taskpool.model import KeyOnRetry, OnConflict, OnInterrupt, Options, RetryPolicy, encode
from taskpool.retention import period
from taskpool.wire.zygote import HandlerOptions

PRIORITY_MAX = 2**31 - 1  # of any whole number
TAGS_MAX = 64
TAG_LENGTH_MAX = 200
HEADER_BYTES_MAX = 16 << 10
DURATION_S_MAX = 100 * 366 * 86400.0  # instants stay within 64 bits and within datetime

Duration = float | timedelta
Moment = datetime | timedelta | float
ErrorClasses = type[BaseException] | str | Iterable[type[BaseException] | str]


class TaskOptions(TypedDict, total=False):
    """What `options(…)`, `@task(…)` and a Pool's views take.

    queue: its line; priority: higher first; delay: seconds before it may start, or at: the instant; timeout: seconds for one
    attempt; soft_timeout: seconds after which SoftTimeout is raised in it; deadline: instant for all attempts and waits together;
    expires: instant by which it must have started; heartbeat_timeout: seconds it may be silent; max_attempts, retry (a policy),
    retry_on and no_retry_on (exception classes): when it is tried again; on_interrupt: "rerun", "hold" or "fail" when the pool
    dies around it; at_most_once: one attempt, whatever happens; crash_limit: after so many deaths of its process it has failed;
    cpus: how many processors it keeps busy, memory: how many bytes it may use (or a text: "2G"), with all processes that it starts:
    it starts when the machine has room for it, and is killed when it uses more memory than that;
    tags, headers, trace_ctx: for search and tracing; label: its arguments in short, for people; owner_type and owner_id: whose it
    is; source: what handed it in; reference_id: what it belongs to elsewhere; parent_id: the task that made it; reply_to: the
    mailbox that gets its response; target: the worker that is to run it, by a label or its number; after: futures or ids of tasks
    that must succeed before it may start; retention: seconds for which it is kept after its end, or "forever" (None: as the pool
    says);
    key: of the tasks that have it, at most key_limit (1) run at the same time, in the order of their queue; key_on_retry: whether
    the others wait ("block") or pass ("yield") while one waits for its next attempt; unique: at most one task that has not ended
    has it; on_conflict: a further one is the "existing" one, or AlreadyExists ("raise"), or takes its place while it waits
    ("replace"); unique_period: seconds from the submit for which it keeps that, though it has ended. key and unique may be
    functions of the task's arguments.
    """

    queue: str
    priority: int
    delay: Duration
    at: datetime
    timeout: Duration | None
    soft_timeout: Duration | None
    deadline: Moment | None
    expires: Moment | None
    heartbeat_timeout: Duration | None
    max_attempts: int | None
    retry: RetryPolicy | None
    retry_on: ErrorClasses
    no_retry_on: ErrorClasses
    on_interrupt: OnInterrupt
    at_most_once: bool
    crash_limit: int
    max_interruptions: int
    tags: str | Iterable[str]
    headers: Mapping[str, str]
    trace_ctx: Mapping[str, str]
    label: str
    cpus: float | None
    memory: int | str | None
    owner_type: str
    owner_id: str
    source: str
    reference_id: str
    parent_id: int | None
    reply_to: str
    target: str | int
    after: Any
    retention: Duration | str | None
    key: str | Callable[..., str | None] | None
    key_limit: int
    key_on_retry: KeyOnRetry
    unique: str | Callable[..., str | None] | None
    on_conflict: OnConflict
    unique_period: Duration | None


class Said:
    """Checked options: a mapping that is never changed, and how it is packed. Raises InvalidTask, naming the option."""

    __slots__ = ("_moments", "_options", "_packed", "_values", "after", "fixed", "key", "names_of", "priority", "queue", "unique")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.queue: str = values.get("queue", "default")
        self.priority: int = values.get("priority", 0)
        self.after: tuple[Any, ...] = values.get("after", ())
        self.key: str | Callable[..., str | None] | None = values.get("key")
        self.unique: str | Callable[..., str | None] | None = values.get("unique")
        # (args, kwargs) → its key and unique key; None where neither was said
        self.names_of = Names(self.key, self.unique) if self.key is not None or self.unique is not None else None
        # What depends on the moment of the submit is packed anew each time; everything else once.
        self._moments = {name: values[name] for name in ("deadline", "expires", "delay", "at") if values.get(name) is not None}
        self._options = _options_of(values)
        self._packed = b"" if self._options == _DEFAULTS else encode(self._options)
        self.fixed = (self._packed, 0) if not self._moments else None  # what `packed` returns, if that is always the same

    def plus(self, given: Mapping[str, Any]) -> Said:
        """Return these options with others over them, which are checked now."""
        if not given:
            return self
        return _merged(self._values, {name: _checked(name, value) for name, value in given.items()})

    def over(self, below: Said) -> Said:
        """Return other, weaker options with these over them."""
        if not self._values or below is self:
            return below
        if not below._values:
            return self
        return _merged(below._values, self._values)

    @property
    def options(self) -> Options:
        """Return what does not depend on the moment of the submit."""
        return self._options

    @property
    def moments(self) -> dict[str, datetime | timedelta]:
        """Return what does: deadline, expires, delay and at, as far as they were said."""
        return self._moments

    def packed(self) -> tuple[bytes, int]:
        """Return (packed Options, scheduled_at in wall µs or 0 for now) for a task that is submitted now."""
        if self.fixed is not None:
            return self.fixed
        now = time.time_ns() // 1000
        moments = {name: _instant(moment, now) for name, moment in self._moments.items()}
        scheduled_at = moments.pop("at", moments.pop("delay", 0))
        if not moments:
            return self._packed, scheduled_at
        values = {f"{name}_at": moment for name, moment in moments.items()}
        import msgspec

        return encode(msgspec.structs.replace(self._options, **values)), scheduled_at

    def told(self) -> HandlerOptions | None:
        """Return these options for other processes, None if there are none."""
        if not self._values:
            return None
        moments = {
            name: moment.isoformat() if isinstance(moment, datetime) else moment.total_seconds()
            for name, moment in self._moments.items()
        }
        names = {name: value for name in ("key", "unique") if (value := self._values.get(name)) is not None}
        texts = {name: value if isinstance(value, str) else None for name, value in names.items()}
        return HandlerOptions(self._packed, self._values.get("queue"), self._values.get("priority"), moments, texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Said) and self._values == other._values

    __hash__ = None  # type: ignore[assignment]  # holds mappings

    def __repr__(self) -> str:
        return f"options({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


_DEFAULTS = Options()


def heard(told: HandlerOptions) -> Said:
    """Return what another process told of a handler."""
    import msgspec

    options = msgspec.msgpack.decode(told.options, type=Options) if told.options else _DEFAULTS
    said = {
        name: getattr(options, name) for name in Options.__struct_fields__ if getattr(options, name) != getattr(_DEFAULTS, name)
    }
    values: dict[str, Any] = {name.removesuffix("_s"): value for name, value in said.items()}
    values |= {name: value for name, value in (("queue", told.queue), ("priority", told.priority)) if value is not None}
    values |= {name: computed_elsewhere(name) if text is None else text for name, text in told.names.items()}
    values |= {name: datetime.fromisoformat(at) if isinstance(at, str) else at for name, at in told.moments.items()}
    return NOTHING_SAID.plus(values)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Said:
    """Return weaker options with stronger ones over them."""
    if "at" in above and "delay" in above and above["delay"] is not None:
        raise InvalidTask("delay and at exclude each other")
    replaced = {"at": "delay", "delay": "at"}
    if above.get("retry") is not None:
        replaced["max_attempts"] = "retry"  # a policy says how many attempts: what is said below it says that no more
    values = {name: value for name, value in below.items() if replaced.get(name) not in above}
    values.update(above)
    _check_together(values)
    return Said(values)


def _options_of(values: Mapping[str, Any]) -> Options:
    fields: dict[str, Any] = {name: values[name] for name in _PLAIN_FIELDS if name in values}
    fields |= {f"{name}_s": values[name] for name in _DURATIONS if name in values}
    if fields.get("at_most_once"):
        fields["on_interrupt"] = "hold"
    return Options(**fields)


_DURATIONS = ("timeout", "soft_timeout", "heartbeat_timeout", "retention", "unique_period")
_PLAIN_FIELDS = (
    "max_attempts", "retry", "retry_on", "no_retry_on", "on_interrupt", "at_most_once", "crash_limit", "max_interruptions",
    "tags", "headers", "trace_ctx", "label", "owner_type", "owner_id", "source", "reference_id", "parent_id", "reply_to", "target",
    "cpus", "memory", "key_limit", "key_on_retry", "on_conflict",
)  # fmt: skip


# ---- checks -----------------------------------------------------------------------------------------------------------


def _checked(name: str, value: Any) -> Any:
    """Return one option as it is kept. Raises InvalidTask."""
    check = _CHECKS.get(name)
    if check is None:
        import difflib

        near = difflib.get_close_matches(name, list(_CHECKS), n=1)
        raise InvalidTask(f"there is no option {name!r}", hint=f"did you mean {near[0]}?" if near else "")
    return check(name, value)


def _check_together(values: Mapping[str, Any]) -> None:
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
    return check_name(value)


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


def _instant(moment: datetime | timedelta, now: int) -> int:
    """Return wall µs."""
    if isinstance(moment, timedelta):
        return now + round(moment.total_seconds() * US)
    return round(moment.timestamp() * US)


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
    unknown = [kind for kind in value.retryable_error_kinds if kind not in RETRIED_IF_SAID]
    if unknown:
        kinds = ", ".join(sorted(RETRIED_IF_SAID))
        raise InvalidTask(
            f"{name}: retryable_error_kinds cannot name {unknown[0]!r}", hint=f"of {kinds}; others are retried anyway"
        )
    if value.jitter > 1 or value.maximum_attempts < 0:
        raise InvalidTask(f"{name}: jitter must be within 0..1 and maximum_attempts not negative: {value!r}")
    return value


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
        if isinstance(parent, bool) or not ((isinstance(parent, int) and parent > 0) or hasattr(parent, "_is_reference")):
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

NOTHING_SAID = Said({})
