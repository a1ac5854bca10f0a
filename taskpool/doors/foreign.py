"""Outbox: tasks in transactions on an SQLite file that is no store."""

from __future__ import annotations

import os
import sqlite3
from typing import Any, Unpack

from taskpool.config import store_path
from taskpool.doors.knock import find
from taskpool.doors.options import NOTHING_SAID, Said, TaskOptions
from taskpool.doors.transaction import KNOCK_TIMEOUT_S, Call, Enqueued, Recorder, Transaction
from taskpool.errors import StoreError
from taskpool.model import TaskSpec
from taskpool.store import inbox, outbox


class Outbox:
    """Tasks that exist if, and only if, a transaction on your own connection to another SQLite file commits.

    connection: yours; store: the store that they are for, a path or a name. They lie in a table of your file, `taskpool_outbox`,
    until `deliver` moves them; leaving `with outbox.transaction()` does so by itself. Whoever dies in between, each arrives once.
    """

    locks = ""

    def __init__(self, connection: sqlite3.Connection, store: str | os.PathLike[str], *, _said: Said = NOTHING_SAID) -> None:
        self.path = outbox.path_of(connection)
        self.connection = connection
        self.store = os.fspath(store_path(store))
        self._said = _said
        self._recorder = Recorder(_said)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Enqueued:
        """Run fn(*args, **kwargs) as a task, once the open transaction has committed and was delivered. Raises as `enqueue`."""
        return self.put([self._recorder.spec(fn, args, kwargs)])[0]

    def enqueue(self, *calls: Call) -> list[Enqueued]:
        """Put tasks into the transaction that is open, as `taskpool.enqueue` does."""
        return self.put([self._recorder.spec_of(call) for call in calls])

    def options(self, **options: Unpack[TaskOptions]) -> Outbox:
        """Return a view of this outbox under which its tasks have these options. Raises InvalidTask, naming the option."""
        return Outbox(self.connection, self.store, _said=self._said.plus(options))

    def transaction(self) -> Transaction:
        """Return a transaction on the connection, for a `with`; when it has committed, it delivers."""
        return Transaction(self.connection, self, self._said)

    def deliver(self, timeout: float = KNOCK_TIMEOUT_S) -> int:
        """Move what is committed in the file's outbox into the store, tell its supervisor, and return how many that were.

        Raises StoreUnusable if the store is not there yet, and what sqlite3 says; then all is left for the next time.
        """
        moved = outbox.move(self.path, self.store)
        if moved:
            find(self.store, moved, timeout)
        return len(moved)

    # ---- as the place of a Transaction --------------------------------------------------------------------------------

    def put(self, specs: list[TaskSpec], *, new: bool = False) -> list[Enqueued]:
        """Put tasks into the transaction that is open. What the store has already is not known here: it takes a uid once."""
        inbox.check_transaction(self.connection)
        outbox.put(self.connection, specs)
        return [Enqueued(spec.uid, self.store, spec.name) for spec in specs]

    def committed(self, tasks: list[Enqueued]) -> None:
        """Deliver, if that can be done now: what is committed is safe, and the next delivery takes it along."""
        try:
            self.deliver()
        except (StoreError, sqlite3.Error):
            return
        for task, task_id in zip(tasks, find(self.store, [task._uid for task in tasks], KNOCK_TIMEOUT_S) or (), strict=False):
            task.id = task_id
