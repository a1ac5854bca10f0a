"""Watching live tasks: what they print, how far they are, how they end, as one stream of events."""

from __future__ import annotations

import codecs
import queue
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskpool.errors import PoolStopped
from taskpool.model import Progress, Task

if TYPE_CHECKING:
    from taskpool.doors.client import Client
    from taskpool.doors.future import TaskFuture
    from taskpool.wire.messages import News

LINE_CHARACTERS_MAX = 1 << 20  # of a line that does not end; then it is cut


class Line(NamedTuple):
    """One line that a task printed. at: wall µs."""

    task_id: int
    attempt: int | None
    text: str
    at: int | None


class Step(NamedTuple):
    """A task says how far it is."""

    task_id: int
    progress: Progress


class Ended(NamedTuple):
    """A task has ended."""

    task: Task


class LineSplitter:
    """Cuts what one task prints into lines, whatever the pieces it comes in."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Return the lines that are whole now; final: also the last, unfinished one."""
        *lines, self._rest = (self._rest + self._decoder.decode(data, final)).split("\n")
        if self._rest and (final or len(self._rest) > LINE_CHARACTERS_MAX):
            lines.append(self._rest)
            self._rest = ""
        return lines


def follow_live(client: Client, ids: Sequence[int]) -> Iterator[Line | Step | Ended]:
    """Yield what the tasks print and how far they are, and the end of each; return when all have ended.

    Raises PoolStopped when the server ends before them.
    """
    arrived: queue.SimpleQueue[News | TaskFuture[Any]] = queue.SimpleQueue()
    stop = client.follow(arrived.put, ids)
    splitters = {task_id: LineSplitter() for task_id in ids}
    try:
        for task_id in ids:
            client.future(task_id).add_done_callback(arrived.put)  # type: ignore[arg-type]  # it is a TaskFuture
        left = set(ids)
        while left:
            news: Any = arrived.get()
            now = time.time_ns() // 1000
            if hasattr(news, "done"):
                left.discard(news.id)
                for text in splitters[news.id].feed(b"", final=True):
                    yield Line(news.id, None, text, now)
                yield Ended(_ended(client, news))
                continue
            for task_id, data in news.output:
                if task_id in left:
                    for text in splitters[task_id].feed(data):
                        yield Line(task_id, None, text, now)
            for task_id, progress in news.progress.items():
                if task_id in left:
                    yield Step(task_id, progress)
    finally:
        stop()


def _ended(client: Client, future: TaskFuture[Any]) -> Task:
    if not future.cancelled():
        error = future.exception()
        if isinstance(error, PoolStopped):
            raise error
    return client.get(future.id)
