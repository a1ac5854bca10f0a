"""What may be said of a cron schedule, checked where it is said."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from taskpool.doors.option_checks import DURATION_S_MAX, seconds_of
from taskpool.doors.options import Duration, Said, TaskOptions
from taskpool.errors import InvalidTask
from taskpool.model import Missed, Options, Overlap, Schedule
from taskpool.timetable import check

if TYPE_CHECKING:
    from taskpool.doors.submitter import Plan

NAME_LENGTH_MAX = 200


class CronOptions(TaskOptions, total=False):
    """What `cron` and `add_cron` take beside the options of the tasks they make.

    tz: IANA zone in which the fields are read (UTC); missed: of the times that passed while nobody served the pool, fire the
    "last", none ("skip"), or "all" of the last `catch_up` (a day; if given, it bounds "last" too); overlap: what a time means while
    a task of the schedule has not ended: "skip" it, "allow" both, "queue" it, or "cancel_previous"; jitter: fire up to so much
    later. deadline and expires count from the making of each task; delay and at make no sense here.
    """

    tz: str
    missed: Missed
    catch_up: Duration | None
    overlap: Overlap
    jitter: Duration


def schedule_of(plan: Plan, spec: str, args: Sequence[Any], name: str | None, given: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a call. Raises InvalidTask, naming what makes no sense."""
    if plan.after:
        raise InvalidTask("the tasks of a schedule cannot wait for others: after= makes no sense here")
    codec, payload = plan.encode(args, {})
    return schedule(plan.name, codec, payload, plan.said, spec, name, given, args)


def schedule(
    handler: str,
    codec: int,
    payload: bytes,
    said: Said,
    spec: str,
    name: str | None,
    given: Mapping[str, Any],
    args: Sequence[Any] = (),
) -> Schedule:
    """Return the schedule of an encoded call (of args). said: what the handler's decorator says. Raises InvalidTask."""
    own = {key: given[key] for key in CronOptions.__annotations__.keys() - TaskOptions.__annotations__.keys() if key in given}
    rest = {key: value for key, value in given.items() if key not in own}
    said = said.plus(rest)
    task_key, unique = (None, None) if said.names_of is None else said.names_of(args, {})
    if unique is not None:
        raise InvalidTask("the tasks of a schedule have no unique key", hint="overlap= says what becomes of one beside another")
    moments = {key: _from_now(key, value) for key, value in said.moments.items()}
    name = _generated(handler) if name is None else _name(name)
    tz = own.get("tz", "UTC")
    texts: tuple[Any, Any] = (spec, tz)
    if not all(isinstance(text, str) for text in texts):
        raise InvalidTask(f"spec and tz are texts: {spec!r:.100}, {tz!r:.100}")
    check(spec, tz, time.time_ns() // 1000)
    options: Options = said.options
    return Schedule(
        name=name,
        spec=spec.strip(),
        handler=handler,
        tz=tz,
        missed=_one_of("missed", own.get("missed", "last"), ("last", "skip", "all")),
        catch_up_s=None if own.get("catch_up") is None else _duration("catch_up", own["catch_up"]),
        overlap=_one_of("overlap", own.get("overlap", "skip"), ("skip", "allow", "queue", "cancel_previous")),
        jitter_s=_duration("jitter", own.get("jitter", 0.0)),
        codec=codec,
        payload=payload,
        options=_with_recurrence(options, name),
        queue=said.queue,
        priority=said.priority,
        key=task_key,
        deadline_s=moments.get("deadline"),
        expires_s=moments.get("expires"),
    )


def _with_recurrence(options: Options, name: str) -> Options:
    import msgspec

    return msgspec.structs.replace(options, recurrence=name)


def _generated(handler: str) -> str:
    return f"{handler[:100]}-{os.urandom(4).hex()}"


def _name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LENGTH_MAX or not name.isprintable() or name != name.strip():
        raise InvalidTask(f"name must be a text of 1 to {NAME_LENGTH_MAX} printable characters: {name!r:.120}")
    return name


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    if value not in choices:
        raise InvalidTask(f"{name} must be {' or '.join(map(repr, choices))}: {value!r:.120}")
    return value


def _duration(name: str, value: Any) -> float:
    seconds = seconds_of(value)
    if seconds is None or not 0 <= seconds <= DURATION_S_MAX:
        raise InvalidTask(f"{name} must be a number of seconds (or a timedelta), not negative: {value!r:.120}")
    return seconds


def _from_now(name: str, value: Any) -> float:
    """Return a moment of each task in seconds from its making."""
    if name in ("delay", "at"):
        raise InvalidTask(f"{name} makes no sense for a schedule: its times say when")
    if isinstance(value, datetime):
        raise InvalidTask(f"{name} of a schedule is a duration from the making of each task: {value!r}")
    seconds: float = value.total_seconds()
    return seconds
