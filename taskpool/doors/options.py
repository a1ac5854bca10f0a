"""What a caller may say of a task, checked where it is said, and packed once for all tasks of a call.

Options come from three places, the later wins: the handler's decorator, `pool.options(…)`, `handler.options(…)`. Durations are
seconds or timedeltas, instants are datetimes with a time zone; where an instant is meant a duration counts from the submit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypedDict

from taskpool.clock import US
from taskpool.doors.naming import Names, computed_elsewhere
from taskpool.doors.option_checks import check_together, checked
from taskpool.errors import InvalidTask
from taskpool.model import KeyOnRetry, OnConflict, OnInterrupt, Options, RetryPolicy, encode
from taskpool.wire.zygote import HandlerOptions

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
        return _merged(self._values, {name: checked(name, value) for name, value in given.items()})

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
    check_together(values)
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


def _instant(moment: datetime | timedelta, now: int) -> int:
    """Return wall µs."""
    if isinstance(moment, timedelta):
        return now + round(moment.total_seconds() * US)
    return round(moment.timestamp() * US)


NOTHING_SAID = Said({})
