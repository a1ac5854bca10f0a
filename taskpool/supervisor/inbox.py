"""The supervisor's look into the inbox: when, and what it makes of it.

It looks at its start, when a client says so, and when the kernel tells that somebody writes the log. Its own commits write the log
too: what those have told is forgotten after each, and SQLite's data_version, which they do not change, says whether somebody else
has committed before that. So no commit of a guest is missed, and none of its own wakes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from taskpool.clock import NS
from taskpool.core import events as ev
from taskpool.model import Options
from taskpool.store.inbox import Arrival
from taskpool.store.records import options as options_of

LOOK_NS_MIN = NS // 50  # between two looks because of the log: guests may write what is no task, and often
FULL_RETRY_NS = NS // 2  # until those are tried again for which there was no room
FALLBACK_S = 1.0  # between two looks where the kernel cannot tell


class Source(Protocol):
    """What is asked of the store."""

    def arrivals(self, but: Collection[int] = ()) -> tuple[list[Arrival], bool]:
        """Return rows of the inbox but those, and whether there are more."""

    def find_uids(self, uids: Sequence[bytes]) -> dict[bytes, int]:
        """Return uid → id of those that are stored."""

    def data_version(self) -> int:
        """Return a number that changes when another connection has committed."""


class Watch(Protocol):
    """What tells that the log is written."""

    def drain(self) -> None:
        """Forget what was told."""


class Inbox:
    """What a loop asks at each turn. `due`: it will look at the next."""

    def __init__(self, store: Source, log: Callable[[str], None], *, watch: Watch | None = None) -> None:
        """Take a store; watch None: nobody tells of its log."""
        self._store = store
        self._log = log
        self._watch = watch
        self._every_ns = 0  # look by itself so often
        self._version = store.data_version()
        self._unreadable: set[int] = set()  # rows that nobody can read
        self._look_at: int | None = None  # monotonic ns
        self._looked_at = 0
        self.due = True
        self.quiet: Callable[[bool], None] = lambda quiet: None  # stops the watch from calling, or lets it

    def knock(self) -> None:
        """Look at the next turn."""
        self.due = True

    def stirred(self, now_mono: int) -> None:
        """The log is written; by whom is not known yet."""
        self.quiet(True)
        self._look_at = max(now_mono, self._looked_at + LOOK_NS_MIN)

    def again(self, now_mono: int, after_ns: int = FULL_RETRY_NS) -> None:
        """Look again later, whatever happens meanwhile."""
        self._look_at = now_mono + after_ns
        self._version = -1

    def look_every(self, seconds: float, now_mono: int) -> None:
        """Look by itself, for nobody tells of the log."""
        self._every_ns = round(seconds * NS)
        self.again(now_mono, self._every_ns)

    def next_look(self, now_mono: int) -> float | None:
        """Return the seconds until it looks by itself (0: now), or None."""
        if self.due:
            return 0.0
        return None if self._look_at is None else max(0.0, (self._look_at - now_mono) / NS)

    def settle(self) -> None:
        """The loop has committed: forget that this was told, but not what a guest did before."""
        if self._watch is not None and self._look_at is None:
            self._watch.drain()
            self._compare()

    def _compare(self) -> None:
        version = self._store.data_version()
        if version != self._version:
            self._version = version
            self.due = True

    def take(self, now_mono: int) -> list[ev.Event]:
        """Return what there is to move, if it is time to look."""
        if self._look_at is not None and now_mono >= self._look_at:
            self._look_at = None
            self._looked_at = now_mono
            if self._watch is not None:
                self._watch.drain()
                self.quiet(False)
            if self._every_ns:
                self._look_at = now_mono + self._every_ns
            self._compare()
        if not self.due:
            return []
        found, self.due = self._store.arrivals(self._unreadable)
        if not found:
            return []
        known = self._store.find_uids([arrival.spec.uid for arrival in found if arrival.spec is not None])
        event = ev.Arrived([], [], [], [])
        for arrival in found:
            spec = arrival.spec
            options = None if spec is None else _options(spec.options)
            if spec is None or options is None:
                self._leave(arrival.seq)
            elif spec.uid in known:
                event.known.append(arrival.seq)
            else:
                spec.unique = None  # no door lets a guest say it: nobody is there to be told who has it
                event.seqs.append(arrival.seq)
                event.specs.append(spec)
                event.options.append(options)
        return [event] if event.seqs or event.known else []

    def _leave(self, seq: int) -> None:
        """Pass over a row that nobody can read; it stays, for people to look at."""
        self._log(f"row {seq} of the inbox cannot be read, and stays there: another version of taskpool wrote it, or somebody else")
        self._unreadable.add(seq)


def _options(packed: bytes) -> Options | None:
    """Return what a guest said of a task. It is not held against what the machine has: nobody is there to be told."""
    try:
        return options_of(packed)
    except (msgspec.MsgspecError, RecursionError):
        return None
