"""What was delivered and is not stored yet: records in rings, spill files, pages of the dead. It stays until `committed`.

Everything read in one turn belongs to the mark that `set` gives at the end of `collect`; what is read later in the turn (by a
take-back) belongs to the next, for its events are not among those that this turn stores.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from taskpool.engines import records
from taskpool.engines.link import Link
from taskpool.wire.page import CURRENT, HEAD, TAIL


class _Mark(NamedTuple):
    number: int
    positions: list[tuple[Link, int]]  # how far rings were read
    spills: list[str]
    buried: list[Link]


class Marks:
    """The marks that are set and not committed. Add to `spills` the paths of spill files that were read."""

    def __init__(self) -> None:
        self.spills: list[str] = []
        self._read: dict[Link, None] = {}
        self._buried: list[Link] = []
        self._graves: list[Link] = []  # all of theirs is stored, but the page could not be removed yet
        self._count = 0
        self._set: deque[_Mark] = deque()

    def read(self, link: Link) -> None:
        """Its ring was read on."""
        self._read[link] = None

    def buried(self, link: Link) -> None:
        """Its death was delivered; its page is removed when that is stored."""
        self._buried.append(link)

    def set(self) -> int:
        """Return a mark for all since the last."""
        self._count += 1
        if self._read or self._buried or self.spills:
            positions = [(link, link.ring.position) for link in self._read]
            self._set.append(_Mark(self._count, positions, self.spills, self._buried))
            self.spills, self._read, self._buried = [], {}, []
        return self._count

    def committed(self, number: int | None) -> None:
        """Forget all up to that mark (None: all that are set)."""
        while self._set and (number is None or self._set[0].number <= number):
            mark = self._set.popleft()
            for link, position in mark.positions:
                if not link.page.map.closed:
                    link.page.words[TAIL] = position
            for path in mark.spills:
                records.unlink(path)
            self._graves += mark.buried
        while self._graves:
            try:
                self._graves[-1].remove_page()
            except OSError:  # no descriptor is left to look for its files with: after a later commit
                break
            self._graves.pop()

    def leave(self) -> None:
        """At the end: remove pages that hold nothing which is not stored, and leave the others to the next owner."""
        for link in [*self._graves, *self._buried, *(link for mark in self._set for link in mark.buried)]:
            words = link.page.words
            if words[CURRENT] or words[TAIL] != words[HEAD]:
                link.page.close()
                continue
            try:
                link.remove_page()
            except OSError:
                link.page.close()
        self._graves.clear()
        self._buried.clear()
        self._set.clear()
