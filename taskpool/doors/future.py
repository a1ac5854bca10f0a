"""TaskFuture: a real concurrent.futures.Future that is cheap to make, decodes in the caller, and can stop what runs.

A stock Future costs a Condition, a lock and two lists before anybody waits; a pool makes tens of thousands a second. Here they come
into being when somebody asks: `_condition`, `_waiters` and `_done_callbacks`, which the standard library's `wait`, `as_completed`
and asyncio reach for, are properties. The connection settles a future that nobody watches by two plain assignments, under the lock
under which a condition is made; one with a condition is settled under that condition, as the standard library does.
(One condition shared by all futures was rejected: `wait` takes conditions in the order of ids, so two threads that wait for
overlapping sets, with other libraries' futures between them, could take them crosswise.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, LOGGER, PENDING
from typing import TYPE_CHECKING, Any, TypeVar

from taskpool import errors
from taskpool.errors import TaskFailed, TaskpoolError
from taskpool.model import Attempt, Codec, Explanation, Filter, Progress, Status, Task, TaskError
from taskpool.wire import references
from taskpool.wire.codec import DecodeError, decode_result, loads
from taskpool.wire.description import Description
from taskpool.wire.messages import Cancel, Explain, Get, GetAttempts, Outcome, Retry

if TYPE_CHECKING:
    from taskpool.doors.link import Link
    from taskpool.doors.outbox import Bundle

R = TypeVar("R")

_UNSET: Any = object()
_MSGPACK = int(Codec.MSGPACK)
KEPT_BYTES = 256  # an encoded value over this is dropped once it is decoded


class TaskFuture(Future[R]):
    """What becomes of one task. All of concurrent.futures.Future, `await`, and the task behind it.

    `result()` raises by the kind of failure: the handler's own exception where it can be rebuilt (its remote traceback as cause),
    else TaskFailed; TaskCancelled, TaskPanicked, TaskTimeout, TaskMemory, TaskInterrupted. Callbacks run in the connection's
    thread; what they call of the pool works, what they do otherwise delays all other futures.
    """

    _state = PENDING
    _id = 0
    _outcome: Outcome | None = None
    _result: Any = _UNSET
    _exception: BaseException | None = None
    _made_condition: threading.Condition | None = None
    _made_waiters: list[Any] | None = None
    _made_callbacks: list[Callable[[Any], object]] | None = None
    _next: TaskFuture[Any] | None = None  # another future of this client for the same task
    _description: Description | None = None

    _is_taken = False  # another task has its unique key, so that it alone was not stored
    _is_reference = True  # as an argument of submit it stands for its result

    def __init__(self, bundle: Bundle, uid: bytes) -> None:
        self._bundle = bundle
        self._uid = uid

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as an argument of a task: as a reference to the result. TypeError anywhere else: it is its process's."""
        return references.to(self)

    # ---- what the standard library reaches for ------------------------------------------------------------------------

    @property
    def _link(self) -> Link:
        return self._bundle.link

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # an attribute there
        made = self._made_condition
        if made is None:
            with self._bundle.link.lock:  # so that whoever settles this future sees it, or has settled it
                made = self._made_condition
                if made is None:
                    made = self._made_condition = threading.Condition()
        return made

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        """Return the list of concurrent.futures' waiters; only touched under `_condition`."""
        if self._made_waiters is None:
            self._made_waiters = []
        return self._made_waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Any], object]]:
        if self._made_callbacks is None:
            self._made_callbacks = []
        return self._made_callbacks

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Return (done, cancelled, result, exception), as newer versions of asyncio ask for it."""
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        failure = self.exception()
        return True, False, None if failure is not None else self.result(), failure

    # ---- the interface of Future --------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Return whether the task has ended, in whatever way."""
        return self._state != PENDING

    def cancelled(self) -> bool:
        """Return whether the task was cancelled and has come to rest: no process works on it any more."""
        return self._state == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Return whether an attempt runs right now; asks the pool."""
        return not self.done() and self.status == Status.RUNNING

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return the result, or raise why there is none.

        timeout in seconds; when it runs out: TimeoutError, and `done()` is False.
        """
        if self._state == PENDING:
            self._wait(timeout)
        if self._result is _UNSET and self._exception is None:
            self._decode()
        if self._exception is None:
            return self._result  # type: ignore[no-any-return]
        try:
            raise self._exception
        finally:
            del self  # no cycle through the traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end and return what `result()` would raise, or None. Raises TaskCancelled if the task was cancelled."""
        if self._state == PENDING:
            self._wait(timeout)
        if self._result is _UNSET and self._exception is None:
            self._decode()
        if self._state == CANCELLED_AND_NOTIFIED and self._exception is not None:
            try:
                raise self._exception
            finally:
                del self
        return self._exception

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """Call fn(future) in the connection's thread when the task ends; at once and here if it has.

        Inside a callback it is called after that: else a chain of them, each adding the next, would pile up on the stack.
        """
        link = self._bundle.link
        with link.lock:
            if self._state == PENDING:
                self._done_callbacks.append(fn)
                return
        if not link.call_later(self._call_back, fn):
            self._call_back(fn)

    def __await__(self) -> Generator[Any, None, R]:
        """Wait without blocking the event loop. Cancelling the waiting scope cancels the task and waits for its end."""
        from taskpool.doors.awaiting import wait_in_loop

        yield from wait_in_loop(self).__await__()
        return self.result()

    def __repr__(self) -> str:
        state = self._outcome.status if self._outcome is not None else "stopped" if self.done() else "pending"
        return f"<{type(self).__name__} {f'task {self._id}' if self._id else 'not yet stored'}: {state}>"

    # ---- the task behind it -------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Return the task's number; waits until the task is stored. Raises what kept it from being stored."""
        if not self._id:
            self._bundle.wait()
            if not self._id:
                self.result(0)
        return self._id

    @property
    def uid(self) -> str:
        """Return the task's UUID, which this client gave it."""
        import uuid

        return str(uuid.UUID(bytes=self._uid) if self._uid else self.task().uid)

    def task(self) -> Task:
        """Return the task as it stands in the store."""
        reply = self._link.request(lambda seq: Get(seq, self.id))
        assert reply.tasks
        return reply.tasks[0]

    @property
    def status(self) -> Status:
        """Return where the task stands; asks the pool unless it has ended."""
        return Status(self._outcome.status) if self._outcome is not None else self.task().status

    @property
    def progress(self) -> Progress | None:
        """Return how far the handler last said it is, if it ever did."""
        return self.task().progress

    @property
    def attempts(self) -> list[Attempt]:
        """Return the attempts so far, oldest first, with times, outcome, CPU, memory and what each printed."""
        import msgspec

        reply = self._link.request(lambda seq: GetAttempts(seq, self.id))
        return msgspec.convert(reply.attempts or [], list[Attempt])

    def logs(self) -> str:
        """Return the end of what each attempt printed, oldest first; of the one that runs, what it has printed so far."""
        import msgspec

        reply = self._link.request(lambda seq: GetAttempts(seq, self.id))
        return "".join(attempt.output for attempt in msgspec.convert(reply.attempts or [], list[Attempt])) + (reply.printed or "")

    def explain(self) -> Explanation:
        """Say why the task stands where it stands: what it waits for, in words."""
        reply = self._link.request(lambda seq: Explain(seq, self.id))
        assert reply.explanation is not None
        return reply.explanation

    def cancel(self, *, grace: float | None = None, force: bool = False, reason: str = "") -> bool:
        """Cancel the task, also while it runs. Return whether that was accepted: False if it had ended.

        grace: seconds from Cancelled being raised in the handler to the kill (None: the pool's); force: kill at once.
        """
        if self.done():
            return self.cancelled()
        try:
            request = self._cancel_request(grace, force, reason)
        except TaskpoolError:
            return False  # it was never stored
        return not self._link.request(request).refused

    def retry(self) -> TaskFuture[R]:
        """Give the ended task a new round and return a future for it. IllegalTransition, with the reason, if it cannot have one."""
        reply = self._link.request(lambda seq: Retry(seq, Filter(ids=(self.id,))))
        if reply.refused:
            from taskpool.doors.refusals import no_new_round

            raise no_new_round(self.task())
        again: TaskFuture[R] = self._link.watch(self.id)
        again._description = self._description
        return again

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _cancel_request(self, grace: float | None, force: bool, reason: str) -> Callable[[int], Cancel]:
        wanted = Filter(ids=(self.id,))
        return lambda seq: Cancel(seq, wanted, reason, grace, force)

    def _wait(self, timeout: float | None) -> None:
        self._link.wait_end(self, timeout)
        if self._state == PENDING:
            raise TimeoutError(f"{self!r} did not end within {timeout:g} s" if timeout else f"{self!r} has not ended")

    def _settle(self, state: str) -> None:
        """End while somebody may wait: outcome or exception is set already."""
        condition = self._made_condition
        assert condition is not None
        with condition:
            self._state = state
            for waiter in self._made_waiters or ():
                if state == CANCELLED_AND_NOTIFIED:
                    waiter.add_cancelled(self)
                elif self._exception is not None or (self._outcome is not None and self._outcome.error is not None):
                    waiter.add_exception(self)
                else:
                    waiter.add_result(self)
            condition.notify_all()

    def _invoke_callbacks(self) -> None:
        callbacks, self._made_callbacks = self._made_callbacks, None
        for callback in callbacks or ():
            self._call_back(callback)

    def _call_back(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    def _decode(self) -> None:
        """Turn the outcome into a value or an exception, once. Two threads may do it at a time; both get the same."""
        outcome = self._outcome
        assert outcome is not None
        value = outcome.value
        if self._result is not _UNSET:
            return  # another thread was faster
        if outcome.status != "succeeded":
            self._exception = exception_of(outcome)
            return
        try:
            description = self._description
            if description is None and outcome.codec == _MSGPACK:
                description = self._look_up()
            self._result = decode_result(outcome.codec, value, description)
        except TaskpoolError as error:
            words = f"task {outcome.id} succeeded, but what it returned cannot be rebuilt here: {error.message}"
            self._exception = DecodeError(words)
            self._exception.__cause__ = error.__cause__
        if value is not None and len(value) > KEPT_BYTES:  # it lives on as an object (the outcome may be another future's too)
            self._outcome = Outcome(outcome.id, outcome.status, outcome.attempts, outcome.codec, None, None, outcome.finished_at)

    def _look_up(self) -> Description | None:
        """Return what is known here of the handler of a task that was found by its id."""
        from taskpool.core.registry import default_registry

        try:
            return default_registry.resolve(self.task().name)
        except TaskpoolError:
            return None


# ---- from outcomes to exceptions ----------------------------------------------------------------------------------------


class RemoteTraceback(Exception):
    """The traceback of another process, as text: the cause of the exception that came from there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def exception_of(outcome: Outcome) -> BaseException:
    """Return the exception that stands for an outcome that is no success."""
    error = outcome.error or TaskError(outcome.status, f"it was {outcome.status}", retryable=False)
    return exception_for(error, outcome.id, outcome.status)


def exception_for(error: TaskError, task_id: int, status: str = "failed") -> BaseException:
    """Return the exception for a TaskError: the handler's own where it can be rebuilt, else the leaf of its kind."""
    if error.kind == "handler" and status == "failed" and error.exception is not None:
        own = _rebuilt(error.exception)
        if own is not None:
            own.__cause__ = RemoteTraceback(error.traceback)
            return own
    name = _LEAVES.get("cancelled" if status == "cancelled" else error.kind, "TaskFailed")
    leaf: type[TaskFailed] = getattr(errors, name)
    said = f"{error.type_name}: {error.message}" if error.type_name else error.message or error.kind
    failed = leaf(f"task {task_id}: {said}", error=error, task_id=task_id)
    remote = error.traceback
    if error.output_tail:
        remote += f"\nits last output:\n{error.output_tail}"
    if error.cause is not None:
        failed.__cause__ = exception_for(error.cause, task_id)
    elif remote:
        failed.__cause__ = RemoteTraceback(remote)
    return failed


_LEAVES = {
    "cancelled": "TaskCancelled",
    "upstream": "TaskCancelled",
    "expired": "TaskCancelled",
    "panic": "TaskPanicked",
    "node_lost": "TaskPanicked",
    "timeout": "TaskTimeout",
    "deadline": "TaskTimeout",
    "heartbeat": "TaskTimeout",
    "memory": "TaskMemory",
    "interrupted": "TaskInterrupted",
}


def _rebuilt(pickled: bytes) -> BaseException | None:
    """Return the handler's exception, or None if anything at all goes wrong on the way; a real Ctrl-C passes."""
    try:
        own = loads(pickled)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return None
    return own if isinstance(own, BaseException) else None
