"""Drains what workers print, without waking for every line, and keeps it for whoever follows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from taskpool.clock import NS
from taskpool.engines.agenda import Agenda
from taskpool.engines.link import Link
from taskpool.wire.poller import IN, Poller

PAUSE_NS = NS // 50  # between two looks at a worker that prints little and often
FLOOD_BYTES = 32 * 1024  # more than that in one look: no pause
NEWS_BYTES_MAX = 4 << 20  # of output that nobody has asked for yet


class Listener:
    """The outputs of all workers. `DUE` is its name on the agenda."""

    DUE = "output"

    def __init__(self, poller: Poller, agenda: Agenda) -> None:
        self._poller = poller
        self._agenda = agenda
        self._printed: list[Link] = []
        self._paused: list[Link] = []
        self._news: deque[tuple[int, bytes]] = deque()
        self._news_bytes = 0

    def printed(self, link: Link) -> None:
        """There is something in its pipe, or nobody can write to it any more."""
        self._printed.append(link)

    def drain(self, *, resume: bool) -> None:
        """Read what was printed; resume: look at those again that were paused."""
        if resume:
            for link in self._paused:
                if _is_open(link):
                    self._printed.append(link)
                    self._poller.modify(link.output.fd, IN)
            self._paused = []
        printed, self._printed = self._printed, []
        for link in printed:
            if _is_open(link):
                self._drain(link)

    def _drain(self, link: Link) -> None:
        size = link.output.drain()
        if link.output.has_ended():
            self._poller.remove(link.output.fd)
        elif 0 < size < FLOOD_BYTES:
            self._poller.modify(link.output.fd, 0)
            self._paused.append(link)
            self._agenda.after(self.DUE, PAUSE_NS)

    def claim(self, link: Link, task_id: int, end: int | None) -> str:
        """Return the tail of what a body printed: all that was printed up to byte `end` (None: so far) and is not claimed yet."""
        text, untold = link.output.take(end)
        self._tell(task_id, untold)
        return text

    def _tell(self, task_id: int, data: bytes) -> None:
        if data:
            self._news.append((task_id, data))
            self._news_bytes += len(data)
            while self._news_bytes > NEWS_BYTES_MAX:
                self._news_bytes -= len(self._news.popleft()[1])

    def news(self, links: Iterable[Link]) -> list[tuple[int, bytes]]:
        """Return (task id, bytes) of all that was printed since the last call, by bodies that run as well."""
        for link in links:
            _, task_id, _ = link.page.current()
            if task_id:
                self._tell(task_id, link.output.news())
        found = list(self._news)
        self._news.clear()
        self._news_bytes = 0
        return found


def _is_open(link: Link) -> bool:
    return link.output.fd >= 0 and not link.output.has_ended()
