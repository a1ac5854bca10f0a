"""What a running handler talks to, and how the handlers that were given none find it.

A controller writes words of the page; it makes no system call unless it has to store something. There is one per attempt, made
when the handler first asks for it, and deaf once the attempt has ended: a thread left behind cannot speak for the next task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from taskpool.errors import Cancelled, InvalidPayload
from taskpool.model import Controller, Options, Params, Progress, Running, Spawned, TaskSpec
from taskpool.wire import effects
from taskpool.wire.codec import dump_by_value, loads
from taskpool.wire.effects import Effect
from taskpool.wire.jobs import Checkpointed, ChildAsked, Job
from taskpool.wire.limits import CHECKPOINT_BYTES_MAX, MIB
from taskpool.wire.page import (
    CANCEL,
    CANCEL_KIND,
    CANCEL_REQUEST,
    EXTEND,
    EXTEND_N,
    PROGRESS_DONE,
    PROGRESS_N,
    PROGRESS_SEQ,
    PROGRESS_TEXT_BYTES,
    PROGRESS_TOTAL,
    STOPPING,
    Page,
    finite,
)
from taskpool.worker.children import Brood, View

Item = TypeVar("Item")
Ask = Callable[[ChildAsked], int]


def nobody(asked: ChildAsked) -> int:
    """Store nothing: there is no supervisor."""
    raise RuntimeError("nobody is there to store a task now")


class AttemptController:
    """What the controllers of attempts share. save: what stores a checkpoint; write: what prints a line."""

    def __init__(self, job: Job, options: Options, save: Callable[[Checkpointed], None], write: Callable[[str], None]) -> None:
        self._job = job
        self._options = options
        self._save = save
        self._write = write
        self._n = job.n  # 0: the attempt has ended
        self._checkpoint: Any = None
        self._saved: bytes | None = job.checkpoint
        self._loaded = job.checkpoint is None
        self.effects: list[Effect] = []
        self._effect_bytes = 0
        self.brood = Brood(lambda: self.task, self._store)

    def _store(self, spec: TaskSpec) -> int:
        """Store a task now and return its id."""
        raise NotImplementedError

    def spawn(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Let a call be a task if, and when, this attempt's success is recorded."""
        return self.brood.spawn(self.brood.recorder(), fn, args, kwargs)

    def spawn_now(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Let a call be a task now."""
        return self.brood.spawn_now(self.brood.recorder(), fn, args, kwargs)

    def options(self, **options: Any) -> View:
        """Return a view under which what is spawned has these options."""
        return View(self.brood, self.brood.recorder().under(options))

    @property
    def task(self) -> Running:
        """Return the running task."""
        job, options = self._job, self._options
        return Running(
            job.task_id,
            job.attempt,
            job.name,
            options.tags,
            options.headers,
            options.trace_ctx,
            options.deadline_at,
            options.timeout_s,
            options,
        )

    @property
    def attempt(self) -> int:
        """Return the number of this attempt."""
        return self._job.attempt

    @property
    def last_checkpoint(self) -> Any:
        """Return what this task saved last, or None."""
        if not self._loaded:
            self._checkpoint = loads(self._saved or b"")
            self._loaded = True
        return self._checkpoint

    def checkpoint(self, obj: Any) -> None:
        """Save obj for a later attempt."""
        if self._n == 0:
            raise RuntimeError("the attempt of this controller has ended")
        try:
            data = dump_by_value(obj)
        except Exception as error:
            raise InvalidPayload(f"the checkpoint, a {type(obj).__qualname__}, cannot be pickled: {error}") from error
        if len(data) > CHECKPOINT_BYTES_MAX:
            raise InvalidPayload(
                f"the checkpoint takes {len(data) / MIB:.1f} MiB, the limit is {CHECKPOINT_BYTES_MAX // MIB} MiB",
                hint="save it to a file and checkpoint the path",
            )
        self._save(Checkpointed(self._n, self._job.task_id, self._job.attempt, data))
        self._saved, self._loaded = data, False

    def on_success(self, sql: str, params: Params = (), /) -> None:
        """Hand over a statement that is applied if, and when, this attempt's success is recorded."""
        if self._n == 0:
            raise RuntimeError("the attempt of this controller has ended")
        effect, size = effects.checked(sql, params, self.effects, self._effect_bytes)
        self.effects.append(effect)
        self._effect_bytes += size

    def log(self, text: str) -> None:
        """Write a line to the task's output."""
        self._write(text)

    def deadline_left(self) -> float | None:
        """Return the seconds until the task's deadline, or None."""
        deadline = self._options.deadline_at
        return None if deadline is None else deadline / 1e6 - time.time()


class PageController(AttemptController):
    """The Controller of an attempt on a worker, which writes words of its page."""

    def __init__(
        self,
        page: Page,
        job: Job,
        options: Options,
        save: Callable[[Checkpointed], None],
        write: Callable[[str], None],
        ask: Ask = nobody,
    ) -> None:
        """ask: has a task stored, and returns its id."""
        super().__init__(job, options, save, write)
        self._ask = ask
        self._page = page
        self._words = page.words
        self._floats = page.floats
        self._text = ""
        self._told = False

    def close(self) -> Progress | None:
        """End it with the attempt. Return the last progress, if any was told."""
        last = None
        if self._told:
            done, total = finite(self._floats[PROGRESS_DONE]), finite(self._floats[PROGRESS_TOTAL])
            last = Progress(done, total, self._text, time.time_ns() // 1000)
        self._n = 0
        self.brood.close()
        return last

    def _store(self, spec: TaskSpec) -> int:
        return self._ask(ChildAsked(self._n, self._job.task_id, self._job.attempt, 0, spec))

    @property
    def cancelled(self) -> bool:
        """Return whether somebody asked to cancel this attempt."""
        words = self._words
        return words[CANCEL] == self._n != 0 and words[CANCEL_KIND] == CANCEL_REQUEST

    @property
    def stopping(self) -> bool:
        """Return whether the pool is about to stop."""
        return self._words[STOPPING] != 0

    def progress(self, done: float, total: float = 0.0, text: str = "") -> None:
        """Say how far the task is. What is no number (NaN, infinite) counts as 0."""
        done, total = finite(float(done)), finite(float(total))
        if self._n == 0:
            return
        words, floats = self._words, self._floats
        seq = words[PROGRESS_SEQ] | 1
        words[PROGRESS_SEQ] = seq
        floats[PROGRESS_DONE] = done
        floats[PROGRESS_TOTAL] = total
        if text != self._text or not self._told:
            self._text = text
            self._page.set_progress_text(_cut(text))
        self._told = True
        words[PROGRESS_N] = self._n
        words[PROGRESS_SEQ] = seq + 1

    def raise_if_cancelled(self) -> None:
        """Raise Cancelled if somebody asked for it."""
        if self.cancelled:
            raise Cancelled("this task was cancelled")

    def extend_timeout(self, seconds: float) -> None:
        """Let this attempt run that much longer than its timeout."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a timeout is extended by 0 or more seconds, not by {seconds}")
        words = self._words
        if self._n == 0:
            return
        if words[EXTEND_N] != self._n:
            words[EXTEND_N] = 0
            words[EXTEND] = 0
        words[EXTEND] += round(seconds * 1e9)
        words[EXTEND_N] = self._n


class Detached:
    """The controller outside of any task: it obliges, so that a handler can also be called as the function it is."""

    task = Running(0, 0, "")
    attempt = 0
    cancelled = False
    stopping = False

    def __init__(self) -> None:
        self.last_checkpoint: Any = None
        self.effects: list[Effect] = []
        self.brood = Brood(lambda: self.task, self._store)

    def _store(self, spec: TaskSpec) -> int:
        self.brood.specs.append(spec)
        return 0

    def spawn(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Check the call and keep it in `brood` of this object."""
        return self.brood.spawn(self.brood.recorder(), fn, args, kwargs)

    def spawn_now(self, fn: Any, /, *args: Any, **kwargs: Any) -> Spawned:
        """Check the call and keep it in `brood` of this object."""
        return self.brood.spawn_now(self.brood.recorder(), fn, args, kwargs)

    def options(self, **options: Any) -> View:
        """Return a view under which what is spawned has these options."""
        return View(self.brood, self.brood.recorder().under(options))

    def progress(self, done: float, total: float = 0.0, text: str = "") -> None:
        """Do nothing."""

    def raise_if_cancelled(self) -> None:
        """Do nothing."""

    def checkpoint(self, obj: Any) -> None:
        """Keep obj as last_checkpoint of this object."""
        self.last_checkpoint = obj

    def on_success(self, sql: str, params: Params = (), /) -> None:
        """Check the statement and keep it in `effects` of this object."""
        effect, _ = effects.checked(sql, params, self.effects, 0)
        self.effects.append(effect)

    def log(self, text: str) -> None:
        """Print a line."""
        print(text)

    def extend_timeout(self, seconds: float) -> None:
        """Do nothing."""

    def deadline_left(self) -> float | None:
        """Return None: there is no deadline."""
        return None


_make: Callable[[], Controller] | None = None
_mine: ContextVar[Controller | None] = ContextVar("taskpool_controller", default=None)  # of an attempt that this thread runs itself


def current() -> Controller:
    """Return the controller of the task that runs here; outside of a task, one that does nothing."""
    mine = _mine.get()
    if mine is not None:
        return mine
    return Detached() if _make is None else _make()


def set_mine(controller: Controller | None) -> None:
    """Let `current` return that one in this thread, or in this task of asyncio, until told otherwise."""
    _mine.set(controller)


def set_current(make: Callable[[], Controller] | None) -> None:
    """Let `current` ask `make` from now on (None: no task runs)."""
    global _make
    _make = make


def track(iterable: Iterable[Item], total: float | None = None) -> Iterator[Item]:
    """Yield the items and report how many are done; end with Cancelled when the task is. Outside of a task: just the items.

    total: their number, if the iterable does not know it itself.
    """
    if _make is None and _mine.get() is None:
        yield from iterable
        return
    controller = current()
    size = len(iterable) if total is None and isinstance(iterable, Sized) else total or 0
    controller.progress(0, size)
    for done, item in enumerate(iterable, 1):
        yield item
        controller.progress(done, size)
        controller.raise_if_cancelled()


def _cut(text: str) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) <= PROGRESS_TEXT_BYTES:
        return data
    return data[:PROGRESS_TEXT_BYTES].decode("utf-8", "ignore").encode()
