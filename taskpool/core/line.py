"""A line of waiting tasks in one ascending order, of which memory holds only the beginning.

The order is a tuple (rank, scheduled_at, id). Memory holds exactly the rows at or before `mark`; a newer row before the mark
enters, one after it stays in the store alone. Over the cap the last leave and the mark falls; below half of it the scheduler asks
the store for more. `mark` None means that nothing waits beyond what is here. Deletion is lazy: an id that left is passed over.

Most keys come in order, so they are kept as a plain row, and only those that come too late for it in a heap beside it: taking the
first costs no more with a long line than with a short one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

Key = tuple[int, int, int]

LINE_MAX = 20_000  # rows of one line held in memory
BEFORE_ALL: Key = (-(1 << 62), 0, 0)


class Line:
    """One line: a queue's ready tasks, or the delayed tasks of all queues."""

    __slots__ = ("_heap", "_row", "cap", "mark", "refilling")

    def __init__(self, *, cap: int = LINE_MAX, stored: bool = False) -> None:
        """stored: the store holds rows of this line that memory has not seen yet."""
        self._row: deque[Key] = deque()  # ascending
        self._heap: list[Key] = []
        self.cap = cap
        self.mark: Key | None = BEFORE_ALL if stored else None
        self.refilling = False

    def __len__(self) -> int:
        return len(self._row) + len(self._heap)

    def __iter__(self) -> Iterator[Key]:
        yield from self._row
        yield from self._heap

    def offer(self, key: Key) -> bool:
        """Take a key if it belongs to the part that memory holds. Return whether it does."""
        if self.mark is not None and key > self.mark:
            return False
        self._put(key)
        return True

    def first(self) -> Key | None:
        """Return the first key, None if there is none."""
        row, heap = self._row, self._heap
        if heap and (not row or heap[0] < row[0]):
            return heap[0]
        return row[0] if row else None

    def pop(self) -> Key | None:
        """Take the first key out and return it, None if there is none."""
        row, heap = self._row, self._heap
        if heap and (not row or heap[0] < row[0]):
            return heapq.heappop(heap)
        return row.popleft() if row else None

    def put_back(self, key: Key) -> None:
        """Put a key that was taken to the front again."""
        if self._row and key > self._row[0]:
            heapq.heappush(self._heap, key)
        else:
            self._row.appendleft(key)

    def discard(self, key: Key) -> None:
        """Take a key out wherever it stands, if it is here. Costs as much as the line is long: for what people change by hand."""
        try:
            self._row.remove(key)
        except ValueError:
            if key in self._heap:
                self._heap.remove(key)
                heapq.heapify(self._heap)

    def _put(self, key: Key) -> None:
        row = self._row
        if not row or key >= row[-1]:
            row.append(key)
        else:
            heapq.heappush(self._heap, key)

    def shed(self) -> list[Key]:
        """Over the cap: let the last quarter go, lower the mark, and return what left."""
        if len(self) <= self.cap:
            return []
        keys = sorted(self)
        kept = self.cap - self.cap // 4
        self._row = deque(keys[:kept])
        self._heap = []
        self.mark = keys[kept - 1]
        return keys[kept:]

    def cut(self, mark: Key) -> list[Key]:
        """Lower the mark, and return what stood behind it."""
        keys = sorted(self)
        kept = [key for key in keys if key <= mark]
        self._row, self._heap = deque(kept), []
        self.mark = mark if self.mark is None else min(mark, self.mark)
        return keys[len(kept) :]

    def wants_refill(self) -> bool:
        """Whether the store should be asked for rows after the mark now."""
        return self.mark is not None and not self.refilling and len(self) <= self.cap // 2

    def refilled(self, keys: list[Key], end: Key | None) -> None:
        """Take rows that the store returned, in order. end: of all that it returned; None: it has no further ones."""
        self.refilling = False
        for key in keys:
            self._put(key)
        self.mark = end
