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


SEEN_CHARACTERS = 4096  # of what was printed, to find the place in the stored output where it ends


class Printed:
    """What one task has printed while it was watched: whole lines out, and the rest when its attempt is stored."""

    def __init__(self) -> None:
        self._splitter = LineSplitter()
        self._seen = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are whole now."""
        self._seen = (self._seen + data.decode("utf-8", "replace"))[-SEEN_CHARACTERS:]
        return self._splitter.feed(data)

    def finish(self, stored: str) -> list[str]:
        """Return what is left: what came after the last look, as the stored output of the attempt has it."""
        place = stored.rfind(self._seen) if self._seen else 0
        missing = stored[place + len(self._seen) :] if place >= 0 else ""
        return self._splitter.feed(missing.encode("utf-8", "surrogatepass"), final=True)


def follow_live(client: Client, ids: Sequence[int]) -> Iterator[Line | Step | Ended]:
    """Yield what the tasks print and how far they are, and the end of each; return when all have ended.

    Raises PoolStopped when the server ends before them.
    """
    arrived: queue.SimpleQueue[News | TaskFuture[Any]] = queue.SimpleQueue()
    stop = client.follow(arrived.put, ids)
    printed = {task_id: Printed() for task_id in ids}
    try:
        for task_id in ids:
            client.future(task_id).add_done_callback(arrived.put)  # type: ignore[arg-type]  # it is a TaskFuture
        left = set(ids)
        while left:
            news: Any = arrived.get()
            now = time.time_ns() // 1000
            if hasattr(news, "done"):
                left.discard(news.id)
                task = _ended(client, news)
                attempts = client.attempts(news.id)
                for text in printed[news.id].finish(attempts[-1].output if attempts else ""):
                    yield Line(news.id, task.attempt, text, now)
                yield Ended(task)
                continue
            for task_id, data in news.output:
                if task_id in left:
                    for text in printed[task_id].feed(data):
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
