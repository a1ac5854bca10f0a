"""The log of transitions as callers follow it, and hooks on it.

Whoever follows reads the file in its own process; the supervisor only says, on request, that there is more. So a slow reader costs
it nothing, and misses nothing.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from taskpool.doors.telling import tell
from taskpool.errors import InvalidTask, PoolStopped, TaskpoolError
from taskpool.model import Status
from taskpool.store import eventlog
from taskpool.store.eventlog import Place, TaskEvent
from taskpool.wire import messages as wire

if TYPE_CHECKING:
    from taskpool.doors.link import Call, Link
    from taskpool.store.reading import Reader

PAUSE_S = 0.02  # between two looks at most, so that following a busy pool costs little; the first news comes at once
LEAVE_S = 10.0  # how long the end of a pool waits for hooks that have transitions before them

Several = str | int | Iterable[str] | Iterable[int] | None


class EventFields(TypedDict, total=False):
    """Which transitions are meant; one or several of each. status: what the task has become."""

    id: int | Iterable[int]
    name: str | Iterable[str]
    queue: str | Iterable[str]
    status: Status | str | Iterable[Status | str]


class Wanted:
    """Decides which transitions are meant."""

    def __init__(self, fields: EventFields) -> None:
        """InvalidTask for a field or a status that there is not."""
        unknown = set(fields) - EventFields.__annotations__.keys()
        if unknown:
            known = ", ".join(EventFields.__annotations__)
            raise InvalidTask(f"transitions have no {sorted(unknown)[0]!r} to choose by", hint=f"one of {known}")
        self._ids = _several(fields.get("id"))
        self._names = _several(fields.get("name"))
        self._queues = _several(fields.get("queue"))
        self._statuses = _several(fields.get("status"))
        for status in self._statuses or ():
            if status not in tuple(Status):
                raise InvalidTask(f"there is no status {status!r}", hint=f"one of {', '.join(Status)}")

    def fits(self, event: TaskEvent) -> bool:
        """Return whether a transition is meant."""
        return (
            (self._statuses is None or event.status in self._statuses)
            and (self._ids is None or event.id in self._ids)
            and (self._names is None or event.name in self._names)
            and (self._queues is None or event.queue in self._queues)
        )


def _several(value: object) -> frozenset[object] | None:
    if value is None:
        return None
    return frozenset(value) if isinstance(value, Iterable) and not isinstance(value, str) else frozenset((value,))


def stored_events(path: str | os.PathLike[str], since: object = None, **fields: object) -> Iterator[TaskEvent]:
    """Yield the transitions that a store's file holds behind a place, oldest first; nobody need serve it.

    since, fields: as for `Client.events`. Raises StoreUnusable, and what that raises.
    """
    from taskpool.store.reading import Reader

    wanted, place = Wanted(fields), eventlog.place_of(since)  # type: ignore[arg-type]  # checked there
    with Reader(path) as reader:
        yield from filter(wanted.fits, eventlog.walk(reader, place))


class Stopper:
    """Ends a `follow` from another thread, at once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._call: Call | None = None
        self.over = False

    def stop(self) -> None:
        """End it: also the wait for news that is under way, and one that is about to begin."""
        self.over = True
        call = self._call
        if call is not None:
            self._link.give_up(call)

    def heed(self, turn: int) -> None:
        """Wait until the log has a turn behind that one. PoolStopped when there is nothing to wait for any more."""
        from taskpool.doors.link import Call

        call = self._call = Call()
        if self.over:  # looked at after the call can be seen: whoever stops now finds it
            self._link.give_up(call)
        self._link.request(partial(wire.Heed, turn=turn), call=call)


def follow(link: Link, reader: Reader, place: Place, stopper: Stopper | None = None) -> Iterator[TaskEvent]:
    """Yield transitions behind a place, also those to come, until it is stopped, or the connection ends."""
    stopper = stopper or Stopper(link)
    turn = place[0]
    while True:
        ended = link.stopped
        looked_at = time.monotonic()
        for event in eventlog.walk(reader, place):
            place = event.seq
            yield event
        turn = max(turn, place[0])
        if ended or stopper.over:
            return
        try:
            stopper.heed(turn)
        except PoolStopped:
            continue  # and once more: what was stored last
        time.sleep(max(0.0, looked_at + PAUSE_S - time.monotonic()))


class Hook:
    """A callback on transitions, called in a thread of its own, in order. `stop` ends it."""

    def __init__(self, link: Link, path: str, callback: Callable[[TaskEvent], object], since: Place | None, wanted: Wanted) -> None:
        """since: None means from now on. Raises StoreUnusable if the file cannot be read from here."""
        self._link = link
        self._callback = callback
        self._wanted = wanted
        self._stopper = Stopper(link)
        self._opened = threading.Event()
        self._failure: TaskpoolError | None = None
        self._thread = threading.Thread(target=self._run, args=(path, since), name="taskpool-hook", daemon=True)
        self._thread.start()
        self._opened.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Call back no more; its thread ends at once. A call that is under way ends by itself."""
        self._stopper.stop()

    def finish(self, timeout: float) -> bool:
        """Wait until all that the log holds was called back, after the connection's end. Return whether it was."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, path: str, since: Place | None) -> None:
        from taskpool.store.reading import Reader

        try:
            try:
                reader = Reader(path)
                place = (reader.last_logged(), 1 << 62) if since is None else since
            except TaskpoolError as error:
                self._failure = error
                return
            finally:
                self._opened.set()
            with reader:
                for event in follow(self._link, reader, place, self._stopper):
                    if self._stopper.over:
                        return
                    if self._wanted.fits(event):
                        self._call(event)
        except TaskpoolError as error:
            tell(f"taskpool: a hook ends: {error}")

    def _call(self, event: TaskEvent) -> None:
        """Call back; what it raises is told, and the next transition comes all the same."""
        try:
            self._callback(event)
        except BaseException:  # SystemExit, too: it would end the hook without a word
            name = getattr(self._callback, "__qualname__", repr(self._callback))
            words = f"taskpool: hook {name} failed at {eventlog.text_of(event.seq)} (task {event.id} {event.status}):"
            tell(f"{words}\n{traceback.format_exc().rstrip()}")


def finish(hooks: list[Hook]) -> None:
    """Let hooks take what is left of the log; those that take too long are told of."""
    until = time.monotonic() + LEAVE_S
    late = sum(not hook.finish(max(0.0, until - time.monotonic())) for hook in hooks)
    if late:
        for hook in hooks:
            hook.stop()
        tell(f"taskpool: {late} hooks had not seen all transitions when the pool was left")
