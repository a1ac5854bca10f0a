"""When the supervisor prunes: in slices of a few milliseconds after a turn, a small part of its time, and mostly not at all.

A round walks once through the ended tasks, by the retention of the pool; then it rests, the longer the more the round took. What
somebody asks for by hand comes first. A slice is only taken when no event of a turn to come holds rows of ended tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from taskpool.clock import NS, Instant
from taskpool.retention import ENDED, LEAST_S, Retention, check_ended
from taskpool.store.conditions import StoreBusy, StoreFull
from taskpool.store.pruning import ROWS, Rule, Walk
from taskpool.wire.messages import Prune

FIRST_NS = 10 * NS  # from the start to the first round
REST_NS = 60 * NS  # between two rounds at least …
REST_TIMES = 100  # … and so many times what the last one took
BUSY_ROWS = 50  # tasks of a slice while there is other work
BUSY_TIMES = 5  # so many times what a slice took pass before the next while there is other work
AGAIN_NS = NS // 20  # after the store took no writes

Answer = Callable[[int, int, Mapping[str, int]], None]


class Source(Protocol):
    """What is asked of the store."""

    def prune(self, walk: Walk, rows: int = ROWS) -> list[int]:
        """Take one step of a walk, and return what was deleted."""


class Pruning:
    """What a loop does after its turns. answer: told (client, seq, deleted by status) when what a client asked for is done."""

    def __init__(self, store: Source, retention: Retention, now_mono: int) -> None:
        """Take a store, and what is kept in it for how long (seconds)."""
        self._store = store
        self._retention = retention
        self._asked: deque[tuple[int, Prune]] = deque()
        self._walk: Walk | None = None
        self._client: tuple[int, int] | None = None  # who asked for this walk, and under which number
        self._next_at = self._round_at = now_mono + FIRST_NS
        self._spent = 0  # ns of this round
        self.answer: Answer = lambda client, seq, gone: None

    def ask(self, client: int, request: Prune) -> None:
        """Prune by hand, as soon as what is being done is done. InvalidTask and InvalidSettings for what cannot be meant."""
        check_ended(request.statuses)
        if request.retention is not None:
            request.retention.check()
        self._asked.append((client, request))
        if self._walk is None:
            self._next_at = 0

    def next_look(self, now_mono: int) -> float:
        """Return the seconds until it has something to do."""
        return max(0.0, (self._next_at - now_mono) / NS)

    def work(self, now: Instant, clock: Callable[[], int], *, idle: bool) -> None:
        """Take a slice if it is time. clock: monotonic ns. idle: nobody else has asked for anything in this turn."""
        if now.mono < self._next_at:
            return
        walk = self._walk or self._begin(now)
        try:
            self._store.prune(walk, ROWS if idle else BUSY_ROWS)
        except (StoreBusy, StoreFull):
            walk.repeat()
            self._next_at = clock() + AGAIN_NS
            return
        ended = clock()
        took = ended - now.mono
        self._spent += took
        self._next_at = ended + took * (1 if idle else BUSY_TIMES)
        if walk.done:
            self._end(walk, ended)

    def _begin(self, now: Instant) -> Walk:
        if self._asked:
            client, asked = self._asked.popleft()
            self._client = (client, asked.seq)
            self._walk = Walk(_rule(asked, self._retention, now.wall), dry=asked.dry_run)
        else:
            self._walk = Walk(Rule(self._retention, now.wall, least_s=LEAST_S, schedules=True))
        return self._walk

    def _end(self, walk: Walk, now_mono: int) -> None:
        self._walk = None
        if self._client is not None:
            self.answer(*self._client, walk.gone)
            self._client = None
        else:
            self._round_at = now_mono + max(REST_NS, self._spent * REST_TIMES)
        self._spent = 0
        self._next_at = now_mono if self._asked else max(self._round_at, now_mono)


def _rule(asked: Prune, retention: Retention, now_wall: int) -> Rule:
    """Return what a client asks for."""
    statuses = tuple(asked.statuses)
    return Rule(asked.retention or retention, now_wall, statuses, schedules=set(statuses) == set(ENDED))
