"""Which stores' write locks a thread holds by transactions of its own: there it would wait for its supervisor in vain.

The supervisor stores nothing before such a transaction has ended, and what the thread waits for comes only when it has stored it.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from taskpool.errors import InvalidTask

if TYPE_CHECKING:
    import sqlite3

WAIT_S: Final = 2.0  # for what may come all the same, such as an answer that needs no write

# Identity of a thread → its transactions: the path of a store, and the connection. Empty nearly always, which is quick to see.
by_thread: dict[int, list[tuple[str, sqlite3.Connection]]] = {}


def hold(store: str, connection: sqlite3.Connection) -> None:
    """This thread has begun a transaction on a store."""
    by_thread.setdefault(threading.get_ident(), []).append((store, connection))


def release(connection: sqlite3.Connection) -> None:
    """It has ended, in whatever thread."""
    for thread, held in list(by_thread.items()):
        held[:] = [one for one in held if one[1] is not connection]
        if not held:
            by_thread.pop(thread, None)


def is_mine(store: str) -> bool:
    """Return whether this thread has a transaction open on a store."""
    return any(_same(store, held) and connection.in_transaction for held, connection in by_thread.get(threading.get_ident(), ()))


def check(store: str) -> None:
    """Raise InvalidTask if this thread has a transaction open on a store, before it waits for what cannot come."""
    if is_mine(store):
        raise InvalidTask(
            f"a transaction of this thread holds the write lock of {store}, and the pool can store nothing before it ends",
            hint="tx.submit puts tasks into it; ask the pool after the block",
        )


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
