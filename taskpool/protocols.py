"""What can be put in place of a part of ours, and what our parts can be asked for: protocols without a base class.

`Handler` is what an application writes; `Publisher` and `Consumer` are the two halves of a queue as others see it, which every
Pool and Client is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from taskpool.model import Controller, Queue, QueueState, Running, Task


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
