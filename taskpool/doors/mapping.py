"""`map`: results of one function over many items, lazily, with a window of tasks under way.

The consumer's own thread pulls the input and hands it in, in bundles: as many items as come within a few milliseconds, so that a
fast input costs little per item and a slow one is not held back. Results come first: while one is ready and the window is more than
half full, no input is pulled.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskpool.doors.future import TaskFuture
from taskpool.doors.naming import names
from taskpool.doors.outbox import Bundle
from taskpool.errors import BatchConflict, InvalidTask, PoolStopped, TaskpoolError
from taskpool.model import Filter
from taskpool.wire.messages import Cancel, Count

if TYPE_CHECKING:
    from taskpool.doors.progress import Bar
    from taskpool.doors.submitter import Submitter

R = TypeVar("R")

WINDOW = 10_000  # items under way or waiting to be taken, unless buffersize says otherwise
PULL_TASKS = 256  # items of one bundle
PULL_BYTES = 8 << 20
PULL_S = 0.002  # a bundle leaves after so long, however few it holds
BATCH_LENGTH_MAX = 200
TOO_LATE = "the map did not end in time"


class MapRun(Generic[R]):
    """One call of `map`. Making it hands in the first items; `results` goes on from there."""

    def __init__(
        self,
        submitter: Submitter,
        fn: Callable[..., R],
        iterables: Sequence[Iterable[Any]],
        *,
        batch: str | None,
        fresh: bool,
        buffersize: int | None,
        ordered: bool,
        return_exceptions: bool,
        timeout: float | None,
        progress: bool | str,
    ) -> None:
        self._window = _window(buffersize)
        check_batch(batch, fresh)
        if not iterables:
            raise InvalidTask("map takes at least one iterable")
        self._link = submitter._link
        self._submitter = submitter
        self._plan = submitter._plan(fn)
        if batch is not None and self._plan.said.unique is not None:
            raise InvalidTask("the items of a batch have a name already, and no unique key", hint="leave out batch or unique")
        self._batch = batch
        self._fresh = fresh
        self._return_exceptions = return_exceptions
        self._until = None if timeout is None else time.monotonic() + timeout
        self._input = zip(*iterables, strict=False)
        self._numbers = count()
        self._pulled = 0
        self._exhausted = False
        self._futures: deque[Future[R]] = deque()  # ordered: those not yet taken
        self._ready: SimpleQueue[Future[R]] | None = None if ordered else SimpleQueue()
        self._under_way = 0  # of the window
        self._first: TaskFuture[R] | None = None
        self._last: Bundle | None = None
        length = _length(iterables)
        if batch is not None and not fresh and length is not None:
            self._check_length(length)
        self._bar = _bar(progress, self._plan.name, length, self)
        self._fill()
        if batch is not None:
            self._refuse_conflict()

    def results(self) -> Iterator[R]:
        """Yield the results, and pull and hand in more input meanwhile."""
        try:
            while True:
                self._fill()
                if not self._under_way:
                    break
                future = self._next()
                self._under_way -= 1
                yield self._result(future)
                del future
        except GeneratorExit:
            self._abandon()
            raise
        finally:
            if self._bar is not None:
                self._bar.close()

    # ---- results out --------------------------------------------------------------------------------------------------

    def _next(self) -> Future[R]:
        if self._ready is None:
            return self._futures.popleft()
        self._link.flush()
        try:
            return self._ready.get(timeout=self._left())
        except Empty:
            raise TimeoutError(TOO_LATE) from None

    def _result(self, future: Future[R]) -> R:
        try:
            return future.result(self._left())
        except PoolStopped:
            raise
        except TimeoutError as error:
            if not future.done():
                raise TimeoutError(TOO_LATE) from None
            if self._return_exceptions:
                return error  # type: ignore[return-value]  # the task's own
            raise
        except Exception as error:
            if self._return_exceptions:
                return error  # type: ignore[return-value]
            raise

    def _left(self) -> float | None:
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    # ---- input in -----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while not self._exhausted and self._under_way < self._window:
            if self._under_way > self._window // 2 and self._has_result():
                return
            self._pull()

    def _has_result(self) -> bool:
        return self._futures[0].done() if self._ready is None else not self._ready.empty()

    def _pull(self) -> None:
        """Pull some items and hand them in."""
        bundle = Bundle(self._link, fresh=self._fresh and not self._pulled)
        most = min(self._window - self._under_way, PULL_TASKS)
        until = time.monotonic() + PULL_S
        try:
            while len(bundle.tasks) < most and bundle.bytes < PULL_BYTES:
                args = next(self._input, None)
                if args is None:
                    self._exhausted = True
                    break
                self._add(bundle, args)
                if time.monotonic() > until:
                    break
        finally:  # also if the input raises: what came before it is handed in
            if bundle.tasks:
                self._last = bundle
                self._link.send(bundle)
        if self._exhausted and self._batch is not None and not self._fresh:
            self._check_length(self._pulled)

    def _add(self, bundle: Bundle, args: tuple[Any, ...]) -> None:
        plan = self._plan
        item = next(self._numbers)
        self._pulled += 1
        future: Future[R]
        try:
            codec, payload, step = plan.call(self._link, args)
            named = names(plan.names_of, args, {}, depends=step is not None)
        except TaskpoolError as error:  # in its place among the results
            future = Future()
            future.set_exception(error)
        else:
            options, at = plan.travel()
            number = None if self._batch is None else item
            call = (plan.name, codec, payload, options, plan.queue, plan.priority, at, plan.description)
            future = self._link.put(bundle, *call, self._batch, number, step, *named)
            if self._first is None:
                self._first = future
        self._under_way += 1
        if self._bar is not None:
            self._bar.add(future)
        if self._ready is None:
            self._futures.append(future)
        else:
            future.add_done_callback(self._ready.put)

    # ---- batches ------------------------------------------------------------------------------------------------------

    def _refuse_conflict(self) -> None:
        """Raise at once if the store has other work under the batch's name."""
        first = self._first
        if first is None:
            return
        first._bundle.wait()
        if not first._id and first._exception is not None:
            if self._bar is not None:
                self._bar.close()
            raise first._exception

    def _check_length(self, length: int) -> None:
        wanted = Filter(batch=self._batch)
        stored = self._link.request(lambda seq: Count(seq, wanted)).next or 0
        if stored > length:
            raise BatchConflict(
                f"batch {self._batch!r} was begun with {stored} items or more, and now there are {length}",
                hint="use another name, or fresh=True to begin it anew",
            )

    def _abandon(self) -> None:
        """Nobody takes the rest: cancel it, unless it belongs to a batch, which somebody may take up again."""
        if self._batch is not None or self._link.stopped or self._ready is not None:
            return
        if self._last is not None:
            self._last.wait()
        rest = tuple(f._id for f in self._futures if isinstance(f, TaskFuture) and f._id and not f.done())
        if rest:
            wanted = Filter(ids=rest)
            self._link.request_soon(lambda seq: Cancel(seq, wanted, "nobody took the rest of its map"))

    @property
    def link(self) -> Any:
        """Return the connection that this runs over."""
        return self._link


def _window(buffersize: object) -> int:
    if buffersize is None:
        return WINDOW
    if isinstance(buffersize, bool) or not isinstance(buffersize, int) or buffersize < 1:
        raise InvalidTask(f"buffersize must be a whole number above 0: {buffersize!r}")
    return buffersize


def check_batch(batch: object, fresh: bool) -> None:
    """Raise InvalidTask for what cannot be the name of a batch."""
    if batch is None:
        if fresh:
            raise InvalidTask("fresh=True needs a batch to begin anew")
    elif not isinstance(batch, str) or not 0 < len(batch) <= BATCH_LENGTH_MAX or not batch.isprintable():
        raise InvalidTask(f"batch must be a name of 1 to {BATCH_LENGTH_MAX} printable characters: {batch!r:.120}")


def _length(iterables: Sequence[Any]) -> int | None:
    """Return how many items there will be, if the inputs tell."""
    try:
        return min(len(iterable) for iterable in iterables)
    except TypeError:
        return None


def _bar(progress: bool | str, name: str, length: int | None, run: MapRun[Any]) -> Bar | None:
    if not progress:
        return None
    from taskpool.doors.progress import Bar

    title = progress if isinstance(progress, str) else name.rpartition(":")[2]
    return Bar(title, length, run.link)
