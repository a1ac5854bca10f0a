"""One epoll with a callback per descriptor: the only place where a process of ours waits."""

from __future__ import annotations

import math
import os
import select
from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
WAIT_S_MAX = 86400.0  # epoll counts milliseconds in 31 bits; who waits longer looks once a day
GONE = select.EPOLLHUP | select.EPOLLERR


class Poller:
    """Waits for descriptors and calls back with the epoll event bits. `wake` may be called from any thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add(self._wake_fd, self._woken)

    def add(self, fd: int, callback: Callable[[int], None], events: int = IN) -> None:
        """Watch a descriptor until `remove`."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        """Watch it for other events."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching; call it before the descriptor is closed. Unknown ones are passed over."""
        if self._callbacks.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # it was closed already, and epoll forgot it by itself

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for events (None: for ever), run their callbacks, and return whether there were any."""
        # Rounded up to epoll's milliseconds: waking early would only make one more turn that finds nothing due.
        timeout = -1 if timeout_s is None else max(0, math.ceil(min(timeout_s, WAIT_S_MAX) * 1000)) / 1000
        found = self._epoll.poll(timeout)
        for fd, events in found:
            callback = self._callbacks.get(fd)
            if callback is not None:  # removed by an earlier callback of this round
                callback(events)
        return bool(found)

    def wake(self) -> None:
        """Let the waiting thread return at once."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        """Close epoll and the wake descriptor; watched descriptors stay open. A second call does nothing."""
        if self._epoll.closed:
            return  # the number of the wake descriptor may be somebody else's by now
        self._callbacks.clear()
        self._epoll.close()
        os.close(self._wake_fd)

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake_fd)
