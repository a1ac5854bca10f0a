"""A durable multiprocess task pool: the interface of a process pool with the promises of a queue, in one SQLite file.

Importing it costs next to nothing: each name is loaded when somebody asks for it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; importing `typing` for it would cost more than all else here
if TYPE_CHECKING:
    from concurrent.futures import as_completed as as_completed
    from concurrent.futures import wait as wait
    from typing import Any

    from taskpool.config import Settings as Settings
    from taskpool.core.registry import Registry as Registry
    from taskpool.core.retry import backoff_for as backoff_for
    from taskpool.core.retry import is_retryable as is_retryable
    from taskpool.doors.client import Client as Client
    from taskpool.doors.client import connect as connect
    from taskpool.doors.client import current_pool as current_pool
    from taskpool.doors.eventstream import Hook as Hook
    from taskpool.doors.eventstream import stored_events as stored_events
    from taskpool.doors.executing import arguments as arguments
    from taskpool.doors.flow import Flow as Flow
    from taskpool.doors.flow import Step as Step
    from taskpool.doors.foreign import Outbox as Outbox
    from taskpool.doors.future import TaskFuture as TaskFuture
    from taskpool.doors.mailbox import Response as Response
    from taskpool.doors.named import marshal_payload as marshal_payload
    from taskpool.doors.named import unmarshal_payload as unmarshal_payload
    from taskpool.doors.pool import Pool as Pool
    from taskpool.doors.record_stores import PoolStore as PoolStore
    from taskpool.doors.record_stores import RecordStore as RecordStore
    from taskpool.doors.task import TaskFunction as TaskFunction
    from taskpool.doors.task import register as register
    from taskpool.doors.task import task as task
    from taskpool.doors.transaction import Enqueued as Enqueued
    from taskpool.doors.transaction import Transaction as Transaction
    from taskpool.doors.transaction import enqueue as enqueue
    from taskpool.doors.transaction import transaction as transaction
    from taskpool.doors.transaction import try_execute_now as try_execute_now
    from taskpool.errors import *  # noqa: F403
    from taskpool.errors import TaskCancelled as TaskCancelled
    from taskpool.errors import TaskPanicked as TaskPanicked
    from taskpool.model import Attempt as Attempt
    from taskpool.model import Controller as Controller
    from taskpool.model import Explanation as Explanation
    from taskpool.model import Filter as Filter
    from taskpool.model import FlowState as FlowState
    from taskpool.model import Occurrence as Occurrence
    from taskpool.model import Progress as Progress
    from taskpool.model import Queue as Queue
    from taskpool.model import QueueState as QueueState
    from taskpool.model import Reason as Reason
    from taskpool.model import RetryPolicy as RetryPolicy
    from taskpool.model import Schedule as Schedule
    from taskpool.model import Spawned as Spawned
    from taskpool.model import Stats as Stats
    from taskpool.model import Status as Status
    from taskpool.model import Task as Task
    from taskpool.model import TaskError as TaskError
    from taskpool.model import default_retry_policy as default_retry_policy
    from taskpool.model import no_retry as no_retry
    from taskpool.protocols import Consumer as Consumer
    from taskpool.protocols import Handler as Handler
    from taskpool.protocols import Publisher as Publisher
    from taskpool.protocols import Store as Store
    from taskpool.records import Record as Record
    from taskpool.records import State as State
    from taskpool.store.eventlog import TaskEvent as TaskEvent
    from taskpool.wire.description import Description as Description
    from taskpool.wire.description import canonical_name as canonical_name
    from taskpool.wire.description import describe as describe
    from taskpool.wire.zygote import HandlerInfo as HandlerInfo
    from taskpool.worker.controller import current as controller  # noqa: F401  # in __all__, which is computed
    from taskpool.worker.controller import track as track

__version__ = "0.1.0"

# name → the module that has it, and its name there if that is another.
_PLACES = {
    "Attempt": "taskpool.model",
    "Client": "taskpool.doors.client",
    "Consumer": "taskpool.protocols",
    "Controller": "taskpool.model",
    "Description": "taskpool.wire.description",
    "Enqueued": "taskpool.doors.transaction",
    "Explanation": "taskpool.model",
    "Filter": "taskpool.model",
    "Flow": "taskpool.doors.flow",
    "FlowState": "taskpool.model",
    "Handler": "taskpool.protocols",
    "Hook": "taskpool.doors.eventstream",
    "HandlerInfo": "taskpool.wire.messages",
    "Occurrence": "taskpool.model",
    "Outbox": "taskpool.doors.foreign",
    "Pool": "taskpool.doors.pool",
    "PoolStore": "taskpool.doors.record_stores",
    "Progress": "taskpool.model",
    "Publisher": "taskpool.protocols",
    "Queue": "taskpool.model",
    "QueueState": "taskpool.model",
    "Reason": "taskpool.model",
    "Record": "taskpool.records",
    "RecordStore": "taskpool.doors.record_stores",
    "Registry": "taskpool.core.registry",
    "Response": "taskpool.doors.mailbox",
    "RetryPolicy": "taskpool.model",
    "Schedule": "taskpool.model",
    "Settings": "taskpool.config",
    "State": "taskpool.records",
    "Spawned": "taskpool.model",
    "Stats": "taskpool.model",
    "Status": "taskpool.model",
    "Store": "taskpool.protocols",
    "Step": "taskpool.doors.flow",
    "Task": "taskpool.model",
    "TaskEvent": "taskpool.store.eventlog",
    "TaskError": "taskpool.model",
    "TaskFunction": "taskpool.doors.task",
    "TaskFuture": "taskpool.doors.future",
    "Transaction": "taskpool.doors.transaction",
    "arguments": "taskpool.doors.executing",
    "as_completed": "concurrent.futures",
    "backoff_for": "taskpool.core.retry",
    "canonical_name": "taskpool.wire.description",
    "connect": "taskpool.doors.client",
    "controller": "taskpool.worker.controller:current",
    "current_pool": "taskpool.doors.client",
    "default_retry_policy": "taskpool.model",
    "describe": "taskpool.wire.description",
    "is_retryable": "taskpool.core.retry",
    "marshal_payload": "taskpool.doors.named",
    "enqueue": "taskpool.doors.transaction",
    "no_retry": "taskpool.model",
    "register": "taskpool.doors.task",
    "stored_events": "taskpool.doors.eventstream",
    "task": "taskpool.doors.task",
    "track": "taskpool.worker.controller",
    "transaction": "taskpool.doors.transaction",
    "try_execute_now": "taskpool.doors.transaction",
    "unmarshal_payload": "taskpool.doors.named",
    "wait": "concurrent.futures",
} | dict.fromkeys(
    (
        "AlreadyExists", "ArgCountError", "ArgTypeError", "BatchConflict", "Cancelled", "DuplicateHandler", "HandlerNotFound",
        "IllegalTransition", "InternalError", "InvalidHandler", "InvalidPayload", "InvalidQueueName", "InvalidSettings",
        "InvalidTask", "InvalidTaskType", "MissingGuard", "NoServer", "NonRetryableError", "NotCancellable", "NotFound",
        "PoolStopped",
        "QueueConfigConflict", "QueueFull", "QueueNotRegistered", "RetryableError", "Snooze", "SoftTimeout", "StaleVersion",
        "StoreCorrupt", "StoreError", "StoreLocked", "StoreTooNew", "StoreUnusable", "TaskCancelled", "TaskFailed",
        "TaskInterrupted", "TaskMemory", "TaskPanicked", "TaskTimeout", "TaskpoolError",
    ),
    "taskpool.errors",
)  # fmt: skip

__all__ = sorted(_PLACES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, other = place.partition(":")
    found = getattr(import_module(module), other or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
