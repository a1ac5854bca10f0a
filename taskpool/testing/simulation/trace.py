"""What a run leaves behind: a digest of all that went through the scheduler, and which statuses met which events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import msgspec

from taskpool.clock import Instant
from taskpool.core.commands import Command
from taskpool.core.events import Event
from taskpool.model import Status

NEW = "(new)"  # a task that is not stored yet
STATUSES = (NEW, *(status.value for status in Status))
_encode = msgspec.msgpack.Encoder().encode


class Trace:
    """A digest of (now, event, commands), and the text of it if it is kept."""

    def __init__(self, *, keep: bool = False) -> None:
        self._hash = blake2b(digest_size=16)
        self.lines: list[str] | None = [] if keep else None
        self.steps = 0

    def event(self, now: Instant, event: Event) -> None:
        """Take an event, before the scheduler does."""
        self.steps += 1
        self._hash.update(_encode((now.wall, now.mono, type(event).__name__, event)))
        if self.lines is not None:
            self.lines.append(f"{now.mono / 1e9:.6f} {event}")

    def commands(self, commands: Sequence[Command]) -> None:
        """Take what the scheduler made of it."""
        for command in commands:
            self._hash.update(_encode((type(command).__name__, command)))
        if self.lines is not None:
            self.lines += [f"    {command}" for command in commands]

    def note(self, words: str) -> None:
        """Add what happened beside the scheduler, where the text is kept."""
        if self.lines is not None:
            self.lines.append(f"-- {words}")

    @property
    def digest(self) -> str:
        """Return the digest so far."""
        return self._hash.hexdigest()


class Coverage:
    """How often a task in each status met an event of each type: an event meets the tasks it names, or all if it names none."""

    def __init__(self) -> None:
        self.met: Counter[tuple[str, str]] = Counter()

    def meet(self, statuses: Iterable[str], event: Event) -> None:
        """Count one meeting for each of the statuses."""
        name = type(event).__name__
        for status in statuses:
            self.met[status, name] += 1

    def table(self) -> str:
        """Return the counts for people."""
        names = [one.__name__ for one in Event.__args__]
        lines = [f"{'':12}" + "".join(f"{name[:11]:>12}" for name in names)]
        for status in STATUSES:
            counts = "".join(f"{self.met[status, name] or '·':>12}" for name in names)
            lines.append(f"{status:12}{counts}")
        return "\n".join(lines)
