"""When schedules come due: fields, aliases, errors that name the field, and real zones on both sides of each change of clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taskpool.clock import US
from taskpool.errors import InvalidTask
from taskpool.timetable import check, explain, next_after

ZONES = ("Europe/Paris", "America/New_York", "Australia/Lord_Howe", "UTC")


def wall(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * US)


def local(at: int, tz: str) -> str:
    return datetime.fromtimestamp(at / US, ZoneInfo(tz)).isoformat()


def times(spec: str, tz: str, after: str, count: int) -> list[str]:
    """Return so many times after an instant, as the clocks of the zone show them."""
    at: int | None = wall(after)
    found = []
    for _ in range(count):
        assert at is not None
        at = next_after(spec, tz, at)
        assert at is not None
        found.append(local(at, tz))
    return found


# ---- what is understood -------------------------------------------------------------------------------------------------


def test_five_fields_six_fields_and_aliases() -> None:
    start = "2026-07-01T00:00:00Z"
    assert times("0 3 * * MON-FRI", "UTC", start, 3)[1:] == ["2026-07-02T03:00:00+00:00", "2026-07-03T03:00:00+00:00"]
    assert times("*/20 * * * * *", "UTC", start, 2) == ["2026-07-01T00:00:20+00:00", "2026-07-01T00:00:40+00:00"]
    assert times("@daily", "Europe/Paris", start, 1) == ["2026-07-02T00:00:00+02:00"]
    assert times("@hourly", "UTC", start, 1) == ["2026-07-01T01:00:00+00:00"]
    assert times("0 0 L * *", "UTC", start, 1) == ["2026-07-31T00:00:00+00:00"]


def test_every_counts_from_its_anchor() -> None:
    anchor = wall("2026-07-01T00:00:07.400Z")
    first = next_after("@every 90s", "UTC", anchor, anchor)
    assert first == wall("2026-07-01T00:01:37Z")
    assert next_after("@every 1m30s", "UTC", first, anchor) == wall("2026-07-01T00:03:07Z")
    assert next_after("@every 90s", "UTC", anchor - 10**12, anchor) == first, "nothing is due before it was added"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("61 * * * *", "minute field '61'"),
        ("* 24 * * *", "hour field '24'"),
        ("* * 0 * *", "day-of-month field '0'"),
        ("* * * JANUARY *", "month field 'JANUARY'"),
        ("* * * * MON#9", "day-of-week field 'MON#9'"),
        ("* * * * MON#1/2", "day-of-week field"),
        ("70 * * * * *", "second field '70'"),
        (f"{'9' * 5000} * * * *", "minute field"),
        ("* * * *", "4 fields"),
        ("", "0 fields"),
        ("@sometimes", "no alias '@sometimes'"),
        ("@every", "period"),
        ("@every 0s", "period"),
        ("@every 5 minutes", "period"),
        ("@every 1.5s", "period"),
        ("0 0 30 2 *", "never comes"),
    ],
)
def test_what_cannot_be_read_is_named(spec: str, words: str) -> None:
    with pytest.raises(InvalidTask) as caught:
        check(spec, "UTC", 0)
    assert words in str(caught.value)


@pytest.mark.parametrize("tz", ["Europe/Pariss", "Paris", "", "../etc/passwd", "Europe", "\0"])
def test_a_zone_that_does_not_exist_is_named(tz: str) -> None:
    with pytest.raises(InvalidTask, match="no time zone"):
        check("@daily", tz, 0)


def test_a_near_zone_is_proposed() -> None:
    with pytest.raises(InvalidTask, match="Europe/Paris"):
        check("@daily", "Europe/Pariss", 0)
    with pytest.raises(InvalidTask, match="Europe/Paris"):
        check("@daily", "Paris", 0)


def test_sentences() -> None:
    assert explain("0 3 * * MON-FRI") == "At 03:00 on Monday through Friday"
    assert explain("@every 90s") == "Every 90s"
    assert "every day" in explain("@daily")


# ---- the hour that is repeated, and the one that is left out ---------------------------------------------------------------


@pytest.mark.parametrize("spec", ["30 2 * * *", "0 30 2 * * *"])
def test_a_fixed_time_in_the_repeated_hour_fires_once(spec: str) -> None:
    assert times(spec, "Europe/Paris", "2026-10-24T12:00:00Z", 2) == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
    # Asked in the repetition, before the clocks show 02:30 the second time.
    assert times(spec, "Europe/Paris", "2026-10-25T01:10:00Z", 1) == ["2026-10-26T02:30:00+01:00"]


@pytest.mark.parametrize("spec", ["30 2 * * *", "0 30 2 * * *"])
def test_a_time_that_is_left_out_fires_at_the_first_valid_instant(spec: str) -> None:
    assert times(spec, "Europe/Paris", "2026-03-28T12:00:00Z", 2) == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    assert times("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00:00Z", 1) == ["2026-10-04T02:30:00+11:00"]
    assert times("0,30 2 29 3 *", "Europe/Paris", "2026-03-28T12:00:00Z", 2)[0] == "2026-03-29T03:00:00+02:00"
    assert times("0,30 2 29 3 *", "Europe/Paris", "2026-03-28T12:00:00Z", 2)[1].startswith("2027"), "once, not once for each"


def test_intervals_go_on_through_the_repeated_hour() -> None:
    found = times("*/30 * * * *", "America/New_York", "2026-11-01T04:45:00Z", 6)
    assert found == [
        "2026-11-01T01:00:00-04:00",
        "2026-11-01T01:30:00-04:00",
        "2026-11-01T01:00:00-05:00",
        "2026-11-01T01:30:00-05:00",
        "2026-11-01T02:00:00-05:00",
        "2026-11-01T02:30:00-05:00",
    ]
    assert times("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:40:00Z", 4) == [
        "2026-04-05T01:45:00+11:00",
        "2026-04-05T01:30:00+10:30",
        "2026-04-05T01:45:00+10:30",
        "2026-04-05T02:00:00+10:30",
    ]


def test_midnight_that_is_left_out() -> None:
    """Some zones change their clocks at midnight."""
    (found,) = times("@daily", "America/Havana", "2026-03-07T12:00:00-05:00", 1)
    assert found == "2026-03-08T01:00:00-04:00"


# ---- properties ---------------------------------------------------------------------------------------------------------

instants = st.integers(wall("1995-01-01T00:00:00Z") // US, wall("2036-01-01T00:00:00Z") // US)
hours, minutes = st.integers(0, 23), st.integers(0, 59)


def changes(tz: str, year: int) -> list[int]:
    """Return the instants (s) at which a zone's clocks change in a year."""
    zone, found = ZoneInfo(tz), []
    at = datetime(year, 1, 1, tzinfo=UTC)
    while at.year == year:
        if at.astimezone(zone).utcoffset() != (at + timedelta(minutes=30)).astimezone(zone).utcoffset():
            found.append(int(at.timestamp()) + 1800)
        at += timedelta(minutes=30)
    return found


CHANGES = {tz: [change for year in (2008, 2026) for change in changes(tz, year)] for tz in ZONES}


@st.composite
def moments(draw: st.DrawFn) -> tuple[str, int]:
    """Return a zone and an instant (µs), half of them near a change of clocks."""
    tz = draw(st.sampled_from(ZONES))
    if CHANGES[tz] and draw(st.booleans()):
        return tz, (draw(st.sampled_from(CHANGES[tz])) + draw(st.integers(-90_000, 90_000))) * US
    return tz, draw(instants) * US


@settings(max_examples=150, deadline=None)
@given(moments(), hours, minutes, st.booleans())
def test_a_fixed_time_fires_once_on_every_day(moment: tuple[str, int], hour: int, minute: int, six: bool) -> None:
    """On each of the following days exactly once: as the clocks show it, or at the end of the gap that left it out."""
    tz, at = moment
    spec = f"0 {minute} {hour} * * *" if six else f"{minute} {hour} * * *"
    zone, days, before = ZoneInfo(tz), [], at
    for _ in range(4):
        found = next_after(spec, tz, before)
        assert found is not None
        assert found > before
        shown = datetime.fromtimestamp(found / US, zone)
        days.append(shown.date())
        if (shown.hour, shown.minute, shown.second) != (hour, minute, 0):
            asked = shown.replace(hour=hour, minute=minute, second=0, fold=0)
            imaginary = asked.astimezone(UTC).astimezone(zone) != asked or asked.utcoffset() != asked.replace(fold=1).utcoffset()
            assert imaginary, f"{shown} is not {hour}:{minute}"
            earlier = datetime.fromtimestamp(found / US - 1, zone)
            assert earlier.utcoffset() != shown.utcoffset(), "the first valid instant is the one of the change"
        else:
            assert shown.fold == 0, "the first of the two"
        before = found
    assert all(later - day == timedelta(days=1) for day, later in pairwise(days))


@settings(max_examples=150, deadline=None)
@given(moments(), st.sampled_from([1, 5, 15, 30]))
def test_intervals_are_even(moment: tuple[str, int], step: int) -> None:
    """Every n minutes means every n minutes, also while clocks change (all their changes are multiples of 30 minutes)."""
    tz, at = moment
    spec = f"*/{step} * * * *"
    first = next_after(spec, tz, at)
    assert first is not None
    assert 0 < first - at <= step * 60 * US
    for _ in range(8):
        then = next_after(spec, tz, first)
        assert then == first + step * 60 * US
        first = then


@settings(max_examples=100, deadline=None)
@given(moments(), st.sampled_from(["0 * * * *", "30 2 * * *", "*/7 1-3 * * *", "10,50 1,2 * * *", "@every 45m", "0 0 * * 0"]))
def test_the_next_time_does_not_depend_on_when_it_is_asked(moment: tuple[str, int], spec: str) -> None:
    """Nothing lies between an instant and its next time: asked at any instant between, the answer is the same."""
    tz, at = moment
    found = next_after(spec, tz, at)
    assert found is not None
    assume(found - at > US)
    for part in range(1, 6):
        between = at + (found - at - US) * part // 5
        assert next_after(spec, tz, between) == found
    assert next_after(spec, tz, found - US) == found
