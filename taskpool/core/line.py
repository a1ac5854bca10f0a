"""A line of waiting tasks in one ascending order, of which memory holds only the beginning.

The order is a tuple (rank, scheduled_at, id). Memory holds exactly the rows at or before `mark`; a newer row before the mark
enters, one after it stays in the store alone. Over the cap the last leave and the mark falls; below half of it the scheduler asks
the store for more. `mark` None means that nothing waits beyond what is here. Deletion is lazy: an id that left is passed over.
"""

from __future__ import annotations

import heapq

Key = tuple[int, int, int]

LINE_MAX = 20_000  # rows of one line held in memory
BEFORE_ALL: Key = (-(1 << 62), 0, 0)


class Line:
    """One line: a queue's ready tasks, or the delayed tasks of all queues."""

    __slots__ = ("cap", "keys", "mark", "refilling")

    def __init__(self, *, cap: int = LINE_MAX, stored: bool = False) -> None:
        """stored: the store holds rows of this line that memory has not seen yet."""
        self.keys: list[Key] = []
        self.cap = cap
        self.mark: Key | None = BEFORE_ALL if stored else None
        self.refilling = False

    def __len__(self) -> int:
        return len(self.keys)

    def offer(self, key: Key) -> bool:
        """Take a key if it belongs to the part that memory holds. Return whether it does."""
        if self.mark is not None and key > self.mark:
            return False
        heapq.heappush(self.keys, key)
        return True

    def shed(self) -> list[Key]:
        """Over the cap: let the last quarter go, lower the mark, and return what left."""
        if len(self.keys) <= self.cap:
            return []
        self.keys.sort()
        kept = self.cap - self.cap // 4
        gone = self.keys[kept:]
        del self.keys[kept:]
        self.mark = self.keys[-1]
        return gone

    def wants_refill(self) -> bool:
        """Whether the store should be asked for rows after the mark now."""
        return self.mark is not None and not self.refilling and len(self.keys) <= self.cap // 2

    def refilled(self, keys: list[Key], more: bool) -> None:
        """Take the rows that the store returned, in order. more: it has further ones."""
        self.refilling = False
        for key in keys:
            heapq.heappush(self.keys, key)
        if not more:
            self.mark = None
        elif keys:
            self.mark = keys[-1]
