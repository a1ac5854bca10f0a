"""The futures of a client whose tasks have not ended, and how they end: by an outcome, refused, or with the connection.

One that nobody watches just gets its end, under the lock; one with a condition is settled after that, for it wakes whoever waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from functools import partial
from typing import Any

from taskpool.doors.future import TaskFuture
from taskpool.doors.outbox import Bundle, Outbox
from taskpool.doors.refusals import error_of
from taskpool.errors import AlreadyExists, PoolStopped, TaskpoolError
from taskpool.wire.messages import Accepted, Outcome, Refused

Watched = list[tuple[TaskFuture[Any], str]]  # futures to be settled outside the lock, with the states they get


class OpenFutures:
    """The table of them. lock: the link's; due: calls for its io thread; by_id: those whose tasks are stored."""

    def __init__(self, lock: threading.Lock, outbox: Outbox, due: deque[tuple[Callable[..., object], tuple[Any, ...]]]) -> None:
        self._lock = lock
        self._outbox = outbox
        self._due = due
        self._joiners: list[threading.Lock] = []
        self.by_id: dict[int, TaskFuture[Any]] = {}
        self.lost = 0  # that the end of the connection has ended

    def join(self, waiter: threading.Lock) -> bool:
        """Have a lock released when no future is open. Return whether there is anything to wait for."""
        with self._lock:
            if self._busy():
                self._joiners.append(waiter)
                return True
        return False

    def accept(self, bundle: Bundle, accepted: Accepted) -> None:
        """The tasks of a bundle are stored: give their futures the ids."""
        with self._lock:
            tasks, bundle.tasks = bundle.tasks, []
            table = self.by_id
            watched = []
            for place, holder in accepted.taken:
                spec, future = tasks[place]
                future._is_taken = True
                watched += self._except([future], partial(_taken, spec.unique or "", holder))
            for (_, future), task_id in zip(tasks, accepted.ids, strict=True):
                if not task_id:
                    continue
                future._id = task_id
                if task_id in table:  # an item of a batch that this client waits for already
                    future._next = table[task_id]
                table[task_id] = future
            bundle.stored = True
            waiters = bundle.waiters
            joiners = self._take_joiners()
        self.settle_watched(watched)
        for waiter in [*waiters, *joiners]:
            waiter.release()

    def refuse(self, bundle: Bundle, refused: Refused) -> None:
        """A bundle was not stored: its futures end with the reason."""
        with self._lock:
            self._outbox.flights.pop(bundle.seq, None)
            futures = [future for _, future in bundle.tasks]
            bundle.tasks, bundle.stored = [], True
            watched = self._except(futures, lambda: error_of(refused))
            joiners = self._take_joiners()
        self.settle_watched(watched)
        for waiter in [*bundle.waiters, *joiners]:
            waiter.release()

    def settle(self, outcomes: list[Outcome]) -> None:
        """Tasks ended: let their futures end."""
        watched: Watched = []
        due = self._due
        with self._lock:
            take = self.by_id.pop
            for outcome in outcomes:
                future = take(outcome.id, None)
                while future is not None:
                    future._outcome = outcome
                    state = FINISHED if outcome.status != "cancelled" else CANCELLED_AND_NOTIFIED
                    if future._made_condition is None:
                        future._state = state
                        if future._made_callbacks is not None:
                            due.append((future._invoke_callbacks, ()))
                    else:
                        watched.append((future, state))
                    future = future._next
            joiners = self._take_joiners()
        self.settle_watched(watched)
        for joiner in joiners:
            joiner.release()

    def lose(self, bundles: list[Bundle], reason: str) -> tuple[Watched, list[threading.Lock]]:
        """End them all with PoolStopped, under the lock. bundles: that will never be stored.

        Return those that are to be settled, and what is to be released then.
        """
        futures = [future for bundle in bundles for _, future in bundle.tasks]
        for first in self.by_id.values():
            future: TaskFuture[Any] | None = first
            while future is not None:
                futures.append(future)
                future = future._next
        waiters = [waiter for bundle in bundles for waiter in bundle.waiters] + self._joiners
        self.by_id, self._joiners = {}, []
        for bundle in bundles:
            bundle.tasks, bundle.stored = [], True
        pending = [future for future in futures if future._state == PENDING]
        self.lost = len(pending)
        return self._except(pending, lambda: PoolStopped(reason)), waiters

    def settle_watched(self, watched: Watched) -> None:
        """Settle futures whose conditions somebody may wait on; without the lock."""
        for future, state in watched:
            future._settle(state)
            with self._lock:
                if future._made_callbacks is not None:
                    self._due.append((future._invoke_callbacks, ()))

    def _busy(self) -> bool:
        return bool(self.by_id) or self._outbox.busy

    def _take_joiners(self) -> list[threading.Lock]:
        if not self._joiners or self._busy():
            return []
        joiners, self._joiners = self._joiners, []
        return joiners

    def _except(self, futures: list[TaskFuture[Any]], make: Callable[[], TaskpoolError]) -> Watched:
        """End futures with an exception, under the lock; return those that somebody watches."""
        watched = []
        for future in futures:
            future._exception = make()
            if future._made_condition is None:
                future._state = FINISHED
                if future._made_callbacks is not None:
                    self._due.append((future._invoke_callbacks, ()))
            else:
                watched.append((future, FINISHED))
        return watched


def _taken(unique: str, holder: int) -> TaskpoolError:
    """Return why a task is not stored."""
    words = f"task {holder} has the unique key {unique!r}"
    return AlreadyExists(words, hint="wait for it or cancel it; on_conflict='existing' gives its future")
