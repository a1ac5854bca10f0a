"""Durations, moments and sizes as people type them, and as tables show them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

import click

from taskpool.memory import parse_size

US = 1_000_000
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]+)")
_LONGEST_S = 100 * 365 * 86400.0


def parse_duration(text: str) -> float:
    """Return the seconds in `90s`, `5m`, `2h`, `3d`, `1h30m`, `250ms` or a bare number. Raises ValueError."""
    compact = text.strip().lower()
    try:
        seconds = float(compact) if re.fullmatch(r"\d+(\.\d+)?", compact) else _sum_parts(compact)
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is not a duration: write 90s, 5m, 2h, 3d or 1h30m") from None
    if seconds > _LONGEST_S:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return seconds


def _sum_parts(text: str) -> float:
    total, at = 0.0, 0
    for match in _PART.finditer(text):
        if text[at : match.start()].strip():
            raise ValueError(text)
        total += float(match[1]) * _SECONDS[match[2]]
        at = match.end()
    if not at or text[at:].strip():
        raise ValueError(text)
    return total


def parse_moment(text: str, now_us: int) -> int:
    """Return the wall time (µs, UTC) of `in 10m`, `now`, or an RFC 3339 time; without an offset it is local. Raises ValueError."""
    words = text.strip()
    if words == "now":
        return now_us
    if words.startswith("in "):
        return now_us + round(parse_duration(words[3:]) * US)
    try:
        moment = datetime.fromisoformat(words)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 2027-01-31T08:00:00Z or 'in 10m'") from None
    return round(moment.astimezone(UTC).timestamp() * US)


def parse_deadline(text: str, now_us: int) -> int:
    """Return the wall time (µs, UTC) of a duration from now or of a moment. Raises ValueError."""
    try:
        return now_us + round(parse_duration(text) * US)
    except ValueError:
        return parse_moment(text, now_us)


def parse_since(text: str, now_us: int) -> int:
    """Return the wall time (µs, UTC) of a duration ago or of a moment. Raises ValueError."""
    try:
        return now_us - round(parse_duration(text) * US)
    except ValueError:
        return parse_moment(text, now_us)


def show_duration(seconds: float | None) -> str:
    """Return a duration in at most two units: 250ms, 4.2s, 3m20s, 2h05m, 3d04h; an empty text for None."""
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{max(0.0, seconds) * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for size, small, unit, sub in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{sub}"
    return f"{whole}s"


def show_size(amount: float) -> str:
    """Return a number of bytes as 512 B, 3.4 MiB, …."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def rfc3339(at_us: int | None) -> str | None:
    """Return a stored moment as RFC 3339 in UTC with microseconds, None for None."""
    if at_us is None:
        return None
    seconds, micros = divmod(at_us, US)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


def local_time(at_us: int | None) -> str:
    """Return a stored moment as people of this machine read it."""
    return "" if at_us is None else f"{datetime.fromtimestamp(at_us / US).astimezone():%Y-%m-%d %H:%M:%S}"


def duration(text: str) -> float:
    """Convert an option's value to seconds; what cannot be is a usage error."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def size(text: str) -> int:
    """Convert an option's value to bytes; what cannot be is a usage error."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def deadline(text: str) -> int:
    """Convert an option's value, a duration from now or a time, to wall time in µs; what cannot be is a usage error."""
    try:
        return parse_deadline(text, time.time_ns() // 1000)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def seconds_between(start_us: int | None, end_us: int | None) -> float | None:
    """Return the seconds between two stored moments, None unless both are known."""
    return None if start_us is None or end_us is None else (end_us - start_us) / US
