"""Which stores' write locks a thread holds by transactions of its own: there it would wait for its supervisor in vain.

The supervisor stores nothing before such a transaction has ended, and what the thread waits for comes only when it has stored it.

Of `with taskpool.transaction(…)` begin and end are known. Of a transaction that its user began, `enqueue` is the first to hear, and
nobody says when it ends: so it is noted weakly, and looked at when the thread comes to wait. It is over when its connection has no
transaction open. Where there is one it may be the next, which only reads, or the one that Python keeps open at all times: then the
lock itself is asked, and with patience, as another thread may be about to end it.
"""

from __future__ import annotations

import functools
import gc
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from taskpool.errors import InvalidTask

WAIT_S: Final = 2.0  # for what may come all the same, such as an answer that needs no write

_Cache = type(functools.cache(len))


class Held(NamedTuple):
    """A transaction. store: the path of its store; connection: returns it, or None if it is gone; by_hand: its user began it."""

    store: str
    connection: Callable[[], sqlite3.Connection | None]
    by_hand: bool

    @property
    def is_open(self) -> bool:
        """Return whether its connection has a transaction open."""
        connection = self.connection()
        try:
            return connection is not None and connection.in_transaction
        except sqlite3.ProgrammingError:  # it is closed
            return False


# Identity of a thread → its transactions. Empty nearly always, which is quick to see.
by_thread: dict[int, list[Held]] = {}


def hold(store: str, connection: sqlite3.Connection) -> None:
    """This thread has begun a transaction on a store."""
    by_thread.setdefault(threading.get_ident(), []).append(Held(store, lambda: connection, False))


def release(connection: sqlite3.Connection) -> None:
    """It has ended, in whatever thread."""
    for thread in list(by_thread):
        _keep(thread, lambda one: one.connection() is not connection)


def note(store: str, connection: sqlite3.Connection) -> None:
    """This thread has put tasks into a transaction on a store that its user began."""
    mine = threading.get_ident()
    living = {thread.ident for thread in threading.enumerate()}
    for thread in list(by_thread):
        if thread != mine and thread not in living:
            by_thread.pop(thread, None)
    _keep(mine, lambda one: not one.by_hand or one.is_open)
    weak = _weakly(connection)
    if weak is not None and not any(one.connection() is connection for one in by_thread.get(mine, ())):
        by_thread.setdefault(mine, []).append(Held(store, weak, True))


def is_mine(store: str) -> bool:
    """Return whether this thread may have a transaction open on a store."""
    return bool(_suspects(store))


def check(store: str) -> None:
    """Raise InvalidTask if this thread has a transaction open on a store, before it waits for what cannot come."""
    suspects = _suspects(store)
    if not suspects:
        return
    if all(one.by_hand for one in suspects):
        from taskpool.store.connection import stays_locked

        if not stays_locked(store, WAIT_S):
            _keep(threading.get_ident(), lambda one: one not in suspects)
            return
    raise InvalidTask(
        f"a transaction of this thread holds the write lock of {store}, and the pool can store nothing before it ends",
        hint="tx.submit and enqueue put tasks into it; ask the pool after its end",
    )


def _suspects(store: str) -> list[Held]:
    """Return this thread's transactions on a store; what its user began and ended is dropped from those noted."""
    mine = threading.get_ident()
    _keep(mine, lambda one: not one.by_hand or one.is_open)
    return [one for one in by_thread.get(mine, ()) if one.is_open and _same(store, one.store)]


def _keep(thread: int, stays: Callable[[Held], bool]) -> None:
    held = by_thread.get(thread)
    if held is not None:
        held[:] = [one for one in held if stays(one)]
        if not held:
            by_thread.pop(thread, None)


def _weakly(connection: sqlite3.Connection) -> Callable[[], sqlite3.Connection | None] | None:
    """Return what returns a connection while it lives, without keeping it alive; None if it can have no such thing.

    To keep it would keep its transaction open, and with it the lock, after its user has dropped both. Only those of subclasses have
    weak references; but each has a cache of statements, which has them, lives as long, and knows its connection.
    """
    try:
        return weakref.ref(connection)
    except TypeError:
        for part in gc.get_referents(connection):
            if type(part) is _Cache and getattr(part, "__wrapped__", None) is connection:
                cache = weakref.ref(part)
                return lambda: getattr(cache(), "__wrapped__", None)
    return None


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
