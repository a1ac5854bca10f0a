"""What can be put in place of a part of ours, and what our parts can be asked for: protocols without a base class.

`Handler` is what an application writes; `Publisher` and `Consumer` are the two halves of a queue as others see it, which every
Pool and Client is. `Store` is what keeps records; `taskpool.testing.StoreConformance` says what is expected of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from taskpool.model import Controller, Filter, Queue, QueueState, Running, Task
from taskpool.records import Record, State
from taskpool.retention import ENDED


@runtime_checkable
class Handler(Protocol):
    """An object that runs tasks of one type. Register it at module level with `taskpool.register`, so that workers have it too.

    type: the name that its tasks are submitted under; a class attribute `payload_type` says what their payload is decoded to
    (without it: what JSON or pickle gives).
    """

    @property
    def type(self) -> str:
        """Return the name that its tasks are submitted under."""
        ...

    def run(self, task: Running, controller: Controller, /) -> Any:
        """Run one attempt and return its result. task.payload is what the task was submitted with."""
        ...


@runtime_checkable
class Publisher(Protocol):
    """Whoever hands in tasks by queue and type, without knowing the function behind them."""

    def publish(self, queue: str, type: str, payload: Any = None, /, **options: Any) -> Task:
        """Store a task and return it as it was stored. InvalidQueueName, InvalidTaskType, HandlerNotFound, InvalidPayload."""
        ...


@runtime_checkable
class Consumer(Protocol):
    """Whoever says which queues there are, and what runs the tasks of a type in them."""

    def register_queue(self, queue: Queue, /, *, replace: bool = False) -> QueueState:
        """Store a queue's settings; the same again changes nothing. QueueConfigConflict, InvalidQueueName."""
        ...

    def register_handler(self, queue: str, type: str, handler: Callable[..., Any] | str, /) -> None:
        """Let a handler run the tasks of that type in that queue. QueueNotRegistered, DuplicateHandler, InvalidHandler."""
        ...


@runtime_checkable
class Store(Protocol):
    """Keeps records. Ours are `taskpool.RecordStore` (a file or memory, of which it is the owner) and `PoolStore` (a live pool's).

    Times are wall µs. Whatever it returns is a copy: changing it changes nothing in the store.
    """

    def put_all(self, *records: Record) -> None:
        """Store new records, all or none, and fill in what a store knows. AlreadyExists if a task_id is taken; InvalidTask."""
        ...

    def get(self, task_id: str, /) -> Record:
        """Return a record. NotFound."""
        ...

    def update(self, record: Record, /) -> None:
        """Write what is mutable of a record that waits, if its version is still that, and raise its version.

        Mutable: next_attempt_at, priority, max_attempts, reference_id, owner_type, owner_id, source. Raises StaleVersion, NotFound,
        IllegalTransition for one that does not wait.
        """
        ...

    def update_status(self, task_id: str, status: str, /) -> Record:
        """Move a record to another status by hand, and return it: cancelled, queued (due now), pending (another round).

        IllegalTransition for every other move, NotFound.
        """
        ...

    def list(self, wanted: Filter | None = None, /, *, limit: int = 100, offset: int = 0) -> Sequence[Record]:
        """Return records that match, newest first."""
        ...

    def ready(
        self, state: State, as_of: int, /, *, after: Record | None = None, limit: int = 100, descending: bool = False
    ) -> Sequence[Record]:
        """Return records in a state whose next_attempt_at is `as_of` or before, the earliest first (descending: the latest).

        after: the last one of the page before.
        """
        ...

    def find_due(self, now: int, limit: int = 100, /) -> Sequence[Record]:
        """Return records that wait and are due, the earliest first."""
        ...

    def find_queued_for_key(self, key: str, /) -> Record | None:
        """Return the earliest queued record of a serialization key, None if there is none."""
        ...

    def count(self, state: State, /) -> int:
        """Return how many records are in a state."""
        ...

    def prune(self, older: float, statuses: Sequence[str] = ENDED, /) -> int:
        """Delete records that ended so, longer than `older` seconds ago; return how many.

        statuses: of succeeded, cancelled, failed, interrupted; InvalidTask for another. What others still need stays, and no id is
        given twice.
        """
        ...

    def mark_interrupted(self) -> int:
        """Settle what an owner before had running, by each one's on_interrupt; return how many (0 in a live one)."""
        ...
