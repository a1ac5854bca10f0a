"""A bar for a run of many tasks: done of total, rate, time left, failures, and what single tasks report of themselves.

On a terminal it is drawn by rich, ten times a second; elsewhere (a log, a pipe, TERM=dumb) a line is written every few seconds
while something changes. It goes to stderr, is drawn by the connection's own thread, and starts none. Where it cannot be written it
is left out: the work goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from taskpool.doors.future import TaskFuture
from taskpool.doors.telling import UNTOLD, on_terminal, tell
from taskpool.model import Progress
from taskpool.wire.messages import Follow, News

if TYPE_CHECKING:
    from rich.console import Console

    from taskpool.doors.link import Link

DRAW_S = 0.1
LINE_S = 5.0
NESTED_MAX = 8  # tasks whose own progress is shown at a time


class Bar:
    """Shows how many of its futures have ended. total None: unknown, so is the time left. `close` draws it a last time."""

    def __init__(self, title: str, total: int | None, link: Link) -> None:
        self._title = title
        self._total = total
        self._link = link
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._added = 0
        self.done = 0
        self.failed = 0
        self._began = time.monotonic()
        self._closed = False
        self._canvas: _Lines | _Rich = _Rich(title, total) if _on_terminal() else _Lines(title)
        self._stop_ticking = link.every(self._canvas.every_s, self._tick)
        if isinstance(self._canvas, _Rich):
            link.follow(self._canvas.tell)
            link.request_soon(lambda seq: Follow(seq, []))

    def add(self, future: Future[Any]) -> None:
        """Count a future from now on."""
        with self._lock:
            self._added += 1
            self._open.add(future)
        future.add_done_callback(self._ended)

    def close(self) -> None:
        """Draw it a last time. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = [future for future in self._open if future.done()]
        for future in ended:  # whose callbacks are still to come
            self._ended(future)
        self._stop_ticking()
        if isinstance(self._canvas, _Rich):
            self._link.unfollow(self._canvas.tell)
        self._canvas.draw(self.done, self._total or self._added, self.failed, self._elapsed(), last=True)

    def _ended(self, future: Future[Any]) -> None:
        # By the outcome alone: decoding values belongs to whoever takes them.
        outcome = future._outcome if isinstance(future, TaskFuture) else None
        with self._lock:
            if future not in self._open:
                return
            self._open.remove(future)
            self.done += 1
            self.failed += outcome is None or outcome.status != "succeeded"
        if outcome is not None:
            self._canvas.forget(outcome.id)

    def _tick(self) -> None:
        if self._link.stopped:
            self.close()
            return
        with self._lock:
            if not self._closed:
                self._canvas.draw(self.done, self._total, self.failed, self._elapsed(), last=False)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


class _Lines:
    """Writes a line now and then."""

    every_s = LINE_S

    def __init__(self, title: str) -> None:
        self._title = title
        self._told = -1

    def draw(self, done: int, total: int | None, failed: int, elapsed_s: float, *, last: bool) -> None:
        if done == self._told and not last:
            return
        self._told = done
        tell(f"{self._title}: {words(done, total, failed, elapsed_s)}")

    def forget(self, task_id: int) -> None:
        """Do nothing: single tasks are not shown."""


class _Rich:
    """Draws bars, until the terminal is gone."""

    every_s = DRAW_S
    _gone = False

    def __init__(self, title: str, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=_console(),
            auto_refresh=False,
        )
        self._main = self._bars.add_task(title, total=total, note="")
        self._nested: dict[int, Any] = {}
        self._reports: dict[int, Progress] = {}
        self._ended: set[int] = set()
        self._try(self._bars.start)

    def tell(self, news: News) -> None:
        """Take news of what running tasks report."""
        self._reports.update(news.progress)

    def forget(self, task_id: int) -> None:
        """A task has ended: its own bar goes with the next drawing."""
        if task_id in self._nested or task_id in self._reports:
            self._ended.add(task_id)

    def draw(self, done: int, total: int | None, failed: int, elapsed_s: float, *, last: bool) -> None:
        if self._gone:
            return
        note = f"{rate(done, elapsed_s)}{f', {failed} failed' if failed else ''}"
        self._bars.update(self._main, completed=done, total=total, note=note)
        self._draw_nested(last)
        self._try(self._bars.refresh)
        if last:
            self._try(self._bars.stop)

    def _try(self, draw: Callable[[], object]) -> None:
        """Draw; a terminal that takes nothing is not asked again, and has its streams back."""
        if self._gone:
            return
        try:
            draw()
        except UNTOLD:
            self._gone = True
            with suppress(*UNTOLD):
                self._bars.stop()

    def _draw_nested(self, last: bool) -> None:
        ended, self._ended = self._ended, set()
        for task_id in ended if not last else list(self._nested):
            self._reports.pop(task_id, None)
            bar = self._nested.pop(task_id, None)
            if bar is not None:
                self._bars.remove_task(bar)
        for task_id, report in list(self._reports.items()):
            if task_id not in self._nested and len(self._nested) < NESTED_MAX:
                self._nested[task_id] = self._bars.add_task(f"  task {task_id}", total=None, note="")
            if task_id in self._nested:
                self._bars.update(self._nested[task_id], completed=report.done, total=report.total or None, note=report.text)


def _console() -> Console:
    """Return stderr for rich, which otherwise ends whoever draws when the reader is gone, and takes stdout from the script."""
    from rich.console import Console

    class Stderr(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Stderr(stderr=True)


def words(done: int, total: int | None, failed: int, elapsed_s: float) -> str:
    """Return the state of a run in one line."""
    parts = [f"{done}/{total} done" if total is not None else f"{done} done"]
    if total:
        parts[0] += f" ({100 * done // total} %)"
    parts.append(rate(done, elapsed_s))
    if total is not None and 0 < done < total:
        parts.append(f"{duration((total - done) * elapsed_s / done)} left")
    if failed:
        parts.append(f"{failed} failed")
    return ", ".join(parts)


def rate(done: int, elapsed_s: float) -> str:
    """Return how many a second, or a minute, as people read it."""
    a_second = done / elapsed_s if elapsed_s > 0 else 0.0
    if a_second >= 1 or done == 0:
        return f"{a_second:,.0f}/s" if a_second >= 10 or done == 0 else f"{a_second:.1f}/s"
    return f"{a_second * 60:.1f}/min"


def duration(seconds: float) -> str:
    """Return seconds as people read them: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _on_terminal() -> bool:
    import os

    return on_terminal() and os.environ.get("TERM") not in ("dumb", "unknown")
