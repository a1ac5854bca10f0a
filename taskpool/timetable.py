"""When a schedule comes due: cron fields in a time zone, aliases, and `@every`; functions of the instant, no clock is read here.

cronsim walks the calendar, and here it walks local time alone, which knows no zones; what a local time means as an instant is
decided here, because cronsim's own answer differs between five fields and six, and may lie before the instant asked about.

A schedule whose hour, minute and second are all named (none begins with `*`) means the clock on the wall: in the hour that autumn
repeats it fires once, the first time; a time that spring leaves out fires at the first valid instant after it. Any other goes by
intervals: it goes on through the repeated hour, and what spring leaves out does not happen.

The core asks through `core.cron.NextAfter`, and is given `next_after` by the supervisor (docs/adr/0009).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from taskpool.clock import US
from taskpool.errors import InvalidTask

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from cronsim import CronSim

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
EVERY_S_MAX: Final = 10 * 366 * 86400
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_PART: Final = re.compile(r"(\d{1,12})(min|[smhdw])")
_FIELDS: Final = (
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day-of-month", "1 to 31, L for the last, LW for the last weekday"),
    ("month", "1 to 12 or JAN to DEC"),
    ("day-of-week", "0 to 7 or SUN to SAT, MON#2 for the second, 5L for the last of a month"),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


class _Timetable(Protocol):
    def next_after(self, after: int, anchor: int) -> int | None: ...


def next_after(spec: str, tz: str, after: int, anchor: int = 0) -> int | None:
    """Return the first time (wall µs, a whole second) after an instant, None if it never comes again.

    anchor: what `@every` counts from (wall µs, taken down to a second). Raises InvalidTask for a spec or zone there is not.
    """
    return _parsed(spec, tz).next_after(after, anchor)


def check(spec: str, tz: str, after: int) -> None:
    """Raise InvalidTask, naming the field or zone, unless the spec can be read and comes due some time after the instant."""
    if _parsed(spec, tz).next_after(after, after) is None:
        raise InvalidTask(f"{spec!r} never comes", hint="the days and months do not go together")


def explain(spec: str) -> str:
    """Return the sentence of a spec, in English, without its zone. Raises InvalidTask."""
    fields = _fields(spec)
    if fields is None:
        return f"Every {spec.split(maxsplit=1)[1].strip()}"
    sim = _sim(spec, fields)
    return sim.explain()


def zone(name: str) -> ZoneInfo:
    """Return an IANA time zone. Raises InvalidTask, naming near ones."""
    from zoneinfo import ZoneInfo, available_timezones

    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        import difflib

        known = sorted(available_timezones())
        near = difflib.get_close_matches(name, known, n=2) or [one for one in known if one.endswith(f"/{name}")][:2]
        hint = f"did you mean {' or '.join(near)}?" if near else "a name such as Europe/Paris or UTC"
        raise InvalidTask(f"there is no time zone {name!r:.100}", hint=hint) from error


# ---- reading ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _parsed(spec: str, tz: str) -> _Timetable:
    where = zone(tz)
    fields = _fields(spec)
    return _Every(_period_s(spec)) if fields is None else _Calendar(_sim(spec, fields), where, fields)


def _fields(spec: str) -> list[str] | None:
    """Return the fields of a spec, always six, or None for `@every`. Raises InvalidTask."""
    text = spec.strip()
    if text.lower().startswith("@every"):
        _period_s(spec)
        return None
    if text.startswith("@"):
        known = ALIASES.get(text.lower())
        if known is None:
            raise InvalidTask(f"there is no alias {text!r:.100}", hint=f"there are {', '.join(ALIASES)} and @every 90s")
        text = known
    fields = text.split()
    if len(fields) not in (5, 6):
        words = "minute hour day-of-month month day-of-week, with a second before them if wanted"
        raise InvalidTask(f"{spec!r:.200} has {len(fields)} fields; a schedule has 5 or 6", hint=words)
    return fields if len(fields) == 6 else ["0", *fields]


def _sim(spec: str, fields: list[str]) -> CronSim:
    from cronsim import CronSim, CronSimError

    start = datetime(2000, 1, 1)
    for number, (name, allowed) in enumerate(_FIELDS):
        alone = ["*"] * 6
        alone[number] = fields[number]
        try:
            CronSim(" ".join(alone), start)
        except (CronSimError, ValueError, TypeError, AssertionError) as error:
            raise InvalidTask(
                f"the {name} field {fields[number]!r:.60} of {spec!r:.200} cannot be read", hint=f"{name}: {allowed}"
            ) from error
    try:
        return CronSim(" ".join(fields), start)
    except CronSimError as error:
        raise InvalidTask(f"{spec!r:.200} never comes: no such month has such a day") from error


def _period_s(spec: str) -> int:
    """Return the seconds of `@every 1h30m`. Raises InvalidTask."""
    text = "".join(spec.lower().split())[len("@every") :]
    parts = _PART.findall(text)
    seconds = sum(int(count) * _UNITS[unit] for count, unit in parts)
    if not parts or "".join(map("".join, parts)) != text or not 1 <= seconds <= EVERY_S_MAX:
        raise InvalidTask(
            f"the period of {spec!r:.100} cannot be read", hint="whole seconds, at least one: @every 90s, @every 1h30m"
        )
    return seconds


# ---- walking ----------------------------------------------------------------------------------------------------------


class _Every:
    """Equal steps from the anchor, whatever the clocks on the walls do."""

    def __init__(self, period_s: int) -> None:
        self._period = period_s * US

    def next_after(self, after: int, anchor: int) -> int | None:
        start = anchor // US * US
        return start + max(1, (after - start) // self._period + 1) * self._period


class _Calendar:
    """Cron fields in a zone."""

    def __init__(self, sim: CronSim, where: ZoneInfo, fields: list[str]) -> None:
        self._sim = sim
        self._zone = where
        self._fixed = not any(field.startswith("*") for field in fields[:3])

    def next_after(self, after: int, anchor: int) -> int | None:
        now = _EPOCH + timedelta(seconds=after // US)
        here = now.astimezone(self._zone)
        local = here.replace(tzinfo=None, fold=0)
        again = None if self._fixed or here.fold else self._second_pass(local)
        for time in self._times(local):
            found = self._instant(time, now)
            if found is not None:
                return _wall(found if again is None else min(found, again))
        return None if again is None else _wall(again)

    def _times(self, local: datetime) -> CronSim:
        """Walk the local times after one."""
        walk = copy.copy(self._sim)
        walk.dt = local
        return walk

    def _offset(self, local: datetime, fold: int) -> timedelta:
        offset = local.replace(tzinfo=self._zone, fold=fold).utcoffset()
        assert offset is not None
        return offset

    def _instant(self, local: datetime, after: datetime) -> datetime | None:
        """Return the first instant after the given one at which the clocks show a local time, None if there is none."""
        before, later = self._offset(local, 0), self._offset(local, 1)
        first, second = (local - before).replace(tzinfo=UTC), (local - later).replace(tzinfo=UTC)
        if before < later:  # left out: the clocks go forward somewhere between the two
            return self._end_of_gap(second, first, after) if self._fixed else None
        if first > after:
            return first
        return second if second > after and not self._fixed else None

    def _end_of_gap(self, low: datetime, high: datetime, after: datetime) -> datetime | None:
        offset = high.astimezone(self._zone).utcoffset()
        seconds = int((high - low).total_seconds())
        end = low + _first(seconds, lambda n: (low + n * _SECOND).astimezone(self._zone).utcoffset() == offset) * _SECOND
        return end if end > after else None

    def _second_pass(self, local: datetime) -> datetime | None:
        """In an hour that is about to be repeated: return its first time in the repetition, if that was passed once already."""
        repeated = int((self._offset(local, 0) - self._offset(local, 1)).total_seconds())
        if repeated <= 0:
            return None
        back = local - repeated * _SECOND
        start = back + _first(repeated, lambda n: self._is_repeated(back + n * _SECOND)) * _SECOND
        time = next(self._times(start - _SECOND), None)
        if time is None or time > local:
            return None  # it comes first in the first pass
        return (time - self._offset(time, 1)).replace(tzinfo=UTC)

    def _is_repeated(self, local: datetime) -> bool:
        return self._offset(local, 0) > self._offset(local, 1)


def _first(last: int, holds: Callable[[int], bool]) -> int:
    """Return the least number up to `last`, for which it holds, for which it holds: once it does, it does from there on."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _wall(moment: datetime) -> int:
    return int((moment - _EPOCH).total_seconds()) * US
