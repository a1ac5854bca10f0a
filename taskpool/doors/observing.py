"""What happens to tasks, one transition after the other: the part of a Client that reads the log and hooks callbacks on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, Unpack

from taskpool.doors.answering import Answering
from taskpool.errors import InvalidHandler

if TYPE_CHECKING:
    from taskpool.doors.eventstream import EventFields, Hook
    from taskpool.store.eventlog import Place, TaskEvent

F = TypeVar("F", bound="Callable[[TaskEvent], object]")


class Observing(Answering):
    """Reads the log of transitions of the store that this is connected to."""

    _hooks: tuple[Hook, ...] = ()

    def events(
        self, since: Place | str | int | None = None, *, follow: bool = False, **fields: Unpack[EventFields]
    ) -> Iterator[TaskEvent]:
        """Yield the transitions of tasks in the order of their commits, behind a place in the log (None: all that it still has).

        since: the `seq` of the last event that is known, also as text, or a turn. follow: go on with what happens from now on,
        until the pool ends. id, name, queue, status: only those. The file is read here, in short looks; the supervisor is only
        asked to tell of news. Raises InvalidTask, and StoreUnusable if the file cannot be read from here.
        """
        from taskpool.doors.eventstream import Wanted
        from taskpool.store.eventlog import place_of

        return self._events(place_of(since), Wanted(fields), live=follow)

    def _events(self, place: Place, wanted: object, *, live: bool) -> Iterator[TaskEvent]:
        from taskpool.doors import eventstream
        from taskpool.store.eventlog import walk
        from taskpool.store.reading import Reader

        assert isinstance(wanted, eventstream.Wanted)
        with Reader(self._store_path) as reader:
            found = eventstream.follow(self._link, reader, place) if live else walk(reader, place)
            yield from filter(wanted.fits, found)

    def on(
        self, callback: Callable[[TaskEvent], object], /, *, since: Place | str | int | None = None, **fields: Unpack[EventFields]
    ) -> Hook:
        """Call back with each transition from now on (since: with those behind a place), in order, in a thread of its own.

        However slow it is, it stalls nobody and misses nothing: it reads the log. What it raises is written on stderr, and the next
        transition comes. When the pool is closed, it is called with what the log still has; the pool cannot be asked any more then.
        Returns the hook; its `stop()` ends it. Raises as `events`, and InvalidHandler for what cannot be called.
        """
        if not callable(callback):
            raise InvalidHandler(f"a hook is called with each transition: {callback!r:.100} cannot be", hint="pool.on(print)")
        from taskpool.doors.eventstream import Hook, Wanted
        from taskpool.store.eventlog import place_of

        place = None if since is None else place_of(since)
        hook = Hook(self._link, self._store_path, callback, place, Wanted(fields))
        self._hooks = (*self._hooks, hook)
        return hook

    def hook(self, *, since: Place | str | int | None = None, **fields: Unpack[EventFields]) -> Callable[[F], F]:
        """Return a decorator that does as `on`, and leaves the function as it is."""

        def decorate(callback: F) -> F:
            self.on(callback, since=since, **fields)
            return callback

        return decorate

    @property
    def _store_path(self) -> str:
        """Return the path of the store's file."""
        return self._link.welcome.store

    def _finish_hooks(self) -> None:
        """Let hooks take what is left, now that the connection has ended."""
        if self._hooks:
            from taskpool.doors.eventstream import finish

            hooks, self._hooks = self._hooks, ()
            finish([*hooks])
