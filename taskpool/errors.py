"""Every exception a caller can meet, and the two that pass through a handler.

Exception
├── TaskpoolError                  base of all that is ours
│   ├── NotFound                   no such task
│   │   └── QueueNotRegistered     no such queue
│   ├── AlreadyExists              that id is taken
│   ├── StaleVersion               somebody wrote the task first
│   ├── IllegalTransition          the table of moves forbids it
│   ├── NotCancellable             the task had ended already
│   ├── PoolStopped                the supervisor is gone, or going
│   ├── NoServer                   nobody owns the store to connect to
│   ├── HandlerNotFound            no handler of that name
│   ├── DuplicateHandler           that name is taken by another function
│   ├── InvalidSettings            a setting of the pool makes no sense
│   ├── MissingGuard               a pool is opened while workers import its script
│   ├── InvalidTask                an option of the task makes no sense
│   │   ├── InvalidQueueName       not a name that a queue can have
│   │   └── InvalidTaskType        not a name that a type of tasks can have
│   ├── InvalidPayload             an argument or result cannot be encoded
│   ├── InvalidHandler             not something that can run as a task
│   ├── BatchConflict              the batch was begun with other work
│   ├── QueueFull                  no more may wait
│   ├── QueueConfigConflict        that queue is registered with other settings
│   ├── ArgCountError              arguments missing or too many
│   ├── ArgTypeError               an argument of the wrong type
│   ├── InternalError              a bug of ours, with what is known of it
│   ├── StoreError                 the file cannot serve
│   │   ├── StoreLocked            another supervisor owns it
│   │   ├── StoreTooNew            written by a newer taskpool
│   │   ├── StoreCorrupt           damaged, or not ours
│   │   ├── StoreUnusable          read-only, full, or on a network file system
│   └── TaskFailed                 a task ended badly, raised by `result()`
│       ├── TaskPanicked           … its process died      (a BrokenProcessPool)
│       ├── TaskTimeout            … its time ran out      (a TimeoutError)
│       ├── TaskMemory             … its memory ran out    (a MemoryError)
│       ├── TaskInterrupted        … something above it died
│       └── TaskCancelled          … on request, or as it expired (a CancelledError)
├── RetryableError                 raised by a handler: try again
├── NonRetryableError              raised by a handler: never again
└── Snooze                         raised by a handler: later, not counted
BaseException
├── Cancelled                      raised inside a handler that is cancelled
└── SoftTimeout                    raised inside a handler whose soft timeout ran out
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import CancelledError as _CancelledError
    from concurrent.futures.process import BrokenProcessPool as _BrokenProcessPool

    from taskpool.model import TaskError


class TaskpoolError(Exception):
    """Base of every error that taskpool raises to its callers."""

    code = "error"

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class NotFound(TaskpoolError):
    """No task has that id. Check the id, and that this is the store you mean."""

    code = "not_found"


class AlreadyExists(TaskpoolError):
    """A task with that uid is stored already; read it instead of storing it again."""

    code = "already_exists"


class StaleVersion(TaskpoolError):
    """The task changed since it was read. Read it again and decide anew."""

    code = "stale_version"


class IllegalTransition(TaskpoolError):
    """The task's status does not allow that move (the table is in `taskpool.core.lifecycle`)."""

    code = "illegal_transition"


class NotCancellable(TaskpoolError):
    """The task had ended before the cancel could be recorded."""

    code = "not_cancellable"


class PoolStopped(TaskpoolError):
    """The supervisor stopped or died; the tasks are in the store, and a new pool goes on with them."""

    code = "pool_stopped"


class NoServer(TaskpoolError):
    """Nobody owns that store. Start `python -m taskpool serve` on it, or open a Pool."""

    code = "no_server"


class HandlerNotFound(TaskpoolError):
    """No handler of that name is known here."""

    code = "handler_not_found"


class DuplicateHandler(TaskpoolError):
    """That name belongs to another function; give one of them `name=`."""

    code = "duplicate_handler"


class InvalidSettings(TaskpoolError, ValueError):
    """A setting of the pool makes no sense, as the message says."""

    code = "invalid_settings"


class MissingGuard(TaskpoolError, RuntimeError):
    """A worker imports the script's functions; what starts a pool belongs under `if __name__ == "__main__":`."""

    code = "missing_guard"


class InvalidTask(TaskpoolError):
    """An option of the task makes no sense, as the message says."""

    code = "invalid_task"


class InvalidQueueName(InvalidTask):
    """A queue's name is 1 to 100 printable characters, without space at either end."""

    code = "invalid_queue_name"


class InvalidTaskType(InvalidTask):
    """A type of tasks is printable text without a slash, as its queue is then; the two make the handler's name, `queue/type`."""

    code = "invalid_task_type"


class InvalidPayload(TaskpoolError):
    """An argument or a result cannot be encoded; the message names it."""

    code = "invalid_payload"


class InvalidHandler(TaskpoolError):
    """That object cannot run as a task: pass a function, or something callable."""

    code = "invalid_handler"


class BatchConflict(TaskpoolError):
    """The batch was begun with other work. Use another name, or `fresh=True` to start it anew."""

    code = "batch_conflict"


class QueueFull(TaskpoolError):
    """The backlog is at its limit; wait, or raise `max_backlog`."""

    code = "queue_full"


class QueueConfigConflict(TaskpoolError):
    """The queue is registered with other settings, shown beside yours; `replace=True` changes them."""

    code = "queue_config_conflict"


class QueueNotRegistered(NotFound):
    """There is no such queue: nobody registered it, and it never had a task."""

    code = "queue_not_registered"


class ArgCountError(TaskpoolError, TypeError):
    """Arguments are missing, unknown or too many for the handler's signature."""

    code = "arg_count"


class ArgTypeError(TaskpoolError, TypeError):
    """An argument does not fit the handler's annotation."""

    code = "arg_type"


class InternalError(TaskpoolError):
    """A bug in taskpool. Please report it with the text."""

    code = "internal"


class StoreError(TaskpoolError):
    """The store's file cannot serve; nothing was changed or deleted."""

    code = "store"


class StoreLocked(StoreError):
    """Another live supervisor owns the store; use `taskpool.connect()` to work with it. ending: it is about to let go."""

    code = "store_locked"

    def __init__(self, message: str = "", *, hint: str = "", ending: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.ending = ending


class StoreTooNew(StoreError):
    """The store was written by a newer taskpool. Upgrade this one."""

    code = "store_too_new"


class StoreCorrupt(StoreError):
    """The store is damaged or is no taskpool store. Keep the file; the message says how to recover."""

    code = "store_corrupt"


class StoreUnusable(StoreError):
    """The store's place cannot serve: read-only, full, or a network file system."""

    code = "store_unusable"


class TaskFailed(TaskpoolError):
    """A task ended badly. `error` holds all that is known: kind, message, traceback, how it died."""

    code = "task_failed"

    def __init__(self, message: str = "", *, error: TaskError | None = None, task_id: int | None = None) -> None:
        super().__init__(message)
        self.error = error
        self.task_id = task_id


class TaskInterrupted(TaskFailed):
    """The supervisor or host died while the task ran, and its policy was not to run it again."""

    code = "task_interrupted"


class TaskTimeout(TaskFailed, TimeoutError):
    """The task was killed at its timeout, deadline or missed heartbeat."""

    code = "task_timeout"


class TaskMemory(TaskFailed, MemoryError):
    """The task was killed over its memory limit."""

    code = "task_memory"


class RetryableError(Exception):
    """Raise it in a handler: the failure is transient, try again if attempts remain.

    Args: cause, the error behind it; backoff, seconds to wait (None: by policy).
    """

    def __init__(self, cause: object = "", *, backoff: float | None = None) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.backoff = backoff
        if isinstance(cause, BaseException):
            self.__cause__ = cause


class NonRetryableError(Exception):
    """Raise it in a handler: no further attempt can help."""

    def __init__(self, cause: object = "") -> None:
        super().__init__(str(cause))
        self.cause = cause
        if isinstance(cause, BaseException):
            self.__cause__ = cause


class Snooze(Exception):
    """Raise it in a handler: put the task back for `seconds`, without counting the attempt."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"snoozed for {seconds:g} s")
        self.seconds = float(seconds)


class Cancelled(BaseException):
    """Raised inside a handler whose task is cancelled; let it pass after cleaning up."""


class SoftTimeout(BaseException):
    """Raised inside a handler at its soft timeout; catch it to end in good order before the kill."""


def of_code(code: str, message: str, hint: str = "") -> TaskpoolError:
    """Return the error of that code, as another process has raised it."""
    if not _by_code:
        _by_code.update({leaf.code: leaf for leaf in _leaves(TaskpoolError)})
    return _by_code.get(code, TaskpoolError)(message, hint=hint)


def _leaves(base: type[TaskpoolError]) -> Iterator[type[TaskpoolError]]:
    for leaf in base.__subclasses__():
        yield from _leaves(leaf)
    yield base


_by_code: dict[str, type[TaskpoolError]] = {}


def __getattr__(name: str) -> Any:
    """Define the two leaves that descend from concurrent.futures only when somebody asks for them."""
    if name == "TaskPanicked":
        from concurrent.futures.process import BrokenProcessPool

        class TaskPanicked(TaskFailed, BrokenProcessPool):
            """The task's process died; only this task is charged with it."""

            code = "task_panicked"

        leaf: type[Exception] = TaskPanicked
    elif name == "TaskCancelled":
        from concurrent.futures import CancelledError

        class TaskCancelled(TaskFailed, CancelledError):
            """The task was cancelled, expired, or lost what it depended on."""

            code = "task_cancelled"

        leaf = TaskCancelled
    else:
        raise AttributeError(name)
    leaf.__module__, leaf.__qualname__ = __name__, name
    globals()[name] = leaf
    return leaf


if TYPE_CHECKING:

    class TaskPanicked(TaskFailed, _BrokenProcessPool):
        """The task's process died; only this task is charged with it."""

    class TaskCancelled(TaskFailed, _CancelledError):
        """The task was cancelled, expired, or lost what it depended on."""
