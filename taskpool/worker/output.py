"""What bodies print: standard output and error are one pipe to the supervisor, and each byte belongs to an attempt.

The pipe is one stream of bytes; the place where an attempt's part ends is the number of bytes written until then, which is what
the supervisor has drained plus what the pipe still holds. Both are read without talking to anybody.
"""

from __future__ import annotations

import fcntl
import io
import os
import sys
import termios
import time

from taskpool.wire.page import OUTPUT_BUSY, OUTPUT_READ, Page

DRAINING_S_MAX = 0.01  # so long a drain in progress is waited for; then the count may be early by what it takes


class Output:
    """The worker's end of its output pipe, as descriptors 1 and 2 and as sys.stdout and sys.stderr."""

    def __init__(self, page: Page, fd: int) -> None:
        """Write to the pipe `fd`, which is kept open under that number to restore 1 and 2 from."""
        self._words = page.words
        self.fd = fd
        self.identity = identity_of(fd)
        self._waiting = bytearray(4)
        self._end = 0
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        self.stdout, self.stderr = _stream(1), _stream(2)
        self._take_over()

    def _take_over(self) -> None:
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.stderr  # type: ignore[misc]

    def end_of_attempt(self) -> int:
        """Flush, put sys.stdout and sys.stderr back, and return the number of bytes written to the pipe so far."""
        if sys.stdout is not self.stdout or sys.stderr is not self.stderr:
            _flush_quietly(sys.stdout, sys.stderr)
            self._take_over()
        try:
            self.stdout.flush()
            self.stderr.flush()
        except (OSError, ValueError):
            self._renew_streams()
        return self.written()

    def written(self) -> int:
        """Return the number of bytes that were ever written to the pipe."""
        words = self._words
        give_up = 0.0
        while True:
            read = words[OUTPUT_READ]
            try:
                fcntl.ioctl(self.fd, termios.FIONREAD, self._waiting)
            except OSError:  # the body closed it; what is known is all there is
                return self._end
            if words[OUTPUT_READ] == read and not read & OUTPUT_BUSY:
                break
            now = time.monotonic()
            give_up = give_up or now + DRAINING_S_MAX
            if now > give_up:
                read &= ~OUTPUT_BUSY
                break
            os.sched_yield()
        self._end = max(self._end, read + int.from_bytes(self._waiting, sys.byteorder))
        return self._end

    def restore(self, thorough: bool = True) -> bool:
        """Make 1 and 2 the pipe again if they are not. Return False if the pipe itself is gone."""
        changed = [fd for fd in (1, 2) if identity_of(fd) != self.identity]
        if (changed or thorough) and identity_of(self.fd) != self.identity:
            return False
        for fd in changed:
            os.dup2(self.fd, fd)
        if self.stdout.closed or self.stderr.closed:
            self._renew_streams()
        return True

    def log(self, text: str) -> None:
        """Write a line, whatever sys.stdout is at the moment."""
        self.stdout.write(text + "\n")

    def _renew_streams(self) -> None:
        self.stdout, self.stderr = _stream(1), _stream(2)
        self._take_over()


def identity_of(fd: int) -> tuple[int, int] | None:
    """Return (device, inode) of what an open descriptor means, None if it is closed."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _stream(fd: int) -> io.TextIOWrapper:
    """Return a text stream over a descriptor that writes whole lines at once, so that whoever follows sees them."""
    raw = open(fd, "wb", closefd=False)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _flush_quietly(*streams: object) -> None:
    for stream in streams:
        try:
            stream.flush()  # type: ignore[attr-defined]
        except BaseException:
            pass  # whatever a body put there
