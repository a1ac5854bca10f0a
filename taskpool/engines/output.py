"""What a worker prints: a pipe that is drained as it fills, and cut into what each body printed.

A worker cannot tell where its own text begins in a pipe that its children write to as well. It can tell how many bytes had been
written in all when a body ended: what was drained (a word of the page) plus what lies in the pipe. That number is in its report.
"""

from __future__ import annotations

import os

from taskpool.wire.page import OUTPUT_BUSY, OUTPUT_READ, Page

TAIL_BYTES = 16 * 1024  # of one body's output, kept with its attempt
HELD_BYTES = 1 << 20  # of output that no report has claimed yet
READ_BYTES = 1 << 16
READS_MAX = 16  # in one go: a flood does not hold the loop


class OutputPipe:
    """The reading end. total: bytes drained so far; `take` claims them for bodies, in order."""

    def __init__(self, fd: int, page: Page) -> None:
        """Own fd, which does not block."""
        self.fd = fd
        self._words = page.words
        self._held = bytearray()  # the last bytes before `total`
        self._claimed = 0  # up to here bodies have claimed
        self._told = 0  # up to here `news` has told
        self.total = 0
        self._ended = False

    @property
    def claimed(self) -> int:
        """Return how many bytes bodies have claimed."""
        return self._claimed

    def has_ended(self) -> bool:
        """Return whether nobody can write to the pipe any more."""
        return self._ended

    def drain(self, until: int | None = None) -> int:
        """Read what there is (at most READS_MAX times, but up to byte `until` at least); return how much that was."""
        before = self.total
        reads = 0
        while not self._ended and (reads < READS_MAX or (until is not None and self.total < until)):
            reads += 1
            if not self._read():
                break
        if len(self._held) > HELD_BYTES:
            del self._held[:-HELD_BYTES]
        return self.total - before

    def _read(self) -> bool:
        self._words[OUTPUT_READ] = self.total | OUTPUT_BUSY
        try:
            data = os.read(self.fd, READ_BYTES)
            self._ended = not data
            self._held += data
            self.total += len(data)
        except BlockingIOError:
            return False
        finally:
            self._words[OUTPUT_READ] = self.total
        return bool(data)

    def take(self, end: int | None = None) -> tuple[str, bytes]:
        """Claim the bytes up to `end` (None: all that was drained) for a body.

        Return the end of it as text, and what `news` has not told of it yet.
        """
        if end is None:
            end = self.total
        elif end > self.total:
            self.drain(end)
            end = min(end, self.total)
        if end <= self._claimed:
            return "", b""
        tail = self._between(max(self._claimed, end - TAIL_BYTES), end)
        untold = self._between(max(self._claimed, self._told), end)
        self._claimed = end
        self._told = max(self._told, end)
        if end == self.total:
            self._held.clear()
        return tail.decode("utf-8", "replace"), untold

    def news(self) -> bytes:
        """Return what was drained, but neither claimed nor told before."""
        data = self._between(max(self._claimed, self._told), self.total)
        self._told = self.total
        return data

    def unclaimed(self) -> str:
        """Return the end of what was printed and is not claimed yet: so far, by the body that runs."""
        self.drain()
        return self._between(max(self._claimed, self.total - TAIL_BYTES), self.total).decode("utf-8", "replace")

    def _between(self, start: int, end: int) -> bytes:
        base = self.total - len(self._held)
        return bytes(self._held[max(0, start - base) : max(0, end - base)])

    def close(self) -> None:
        """Close the descriptor. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
