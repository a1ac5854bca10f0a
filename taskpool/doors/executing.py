"""Running a task's attempt oneself: the part of a Client that is the worker of what it asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from taskpool.doors.amending import Amending, TaskId
from taskpool.errors import InvalidHandler, InvalidPayload
from taskpool.model import Codec, Progress, Task, TaskSpec
from taskpool.wire.jobs import Checkpointed
from taskpool.wire.messages import Execute, Executed, Speak, Submit

if TYPE_CHECKING:
    from taskpool.doors.link import Link

Executor = Callable[[Task], Any]


class Executing(Amending):
    """Executes single tasks in the calling process."""

    def execute_and_advance(
        self, task_id: TaskId, executor: Executor | None = None, /, *, labels: str | Iterable[str] = ()
    ) -> Task:
        """Run the next attempt of a task here and now, in this thread, and return the task as it stands after that.

        executor: called with the Task; what it returns is the result, what it raises is a failure, retried by the task's policy.
        None: its handler is called with its arguments. The task's turn is not waited for, all other rules hold: it must wait, be
        due, and its queue must have room. labels: the targets that the caller is; a task with another is not its to take. Either
        may use `taskpool.controller()`, and should ask it now and then whether it was cancelled: nothing here can be stopped by
        force, so an attempt that overruns its time is given up while it still runs.

        Raises IllegalTransition if it may not start now, and says why (also when somebody else runs it already), NotFound,
        StaleVersion if the attempt was given up before it had ended here; PoolStopped if the supervisor went away meanwhile: it is
        then an interruption, as is the end of this process. Ctrl-C, SystemExit and their like give the attempt up and come through.
        """
        if executor is not None and not callable(executor):
            raise InvalidHandler(f"an executor is called with the task: {executor!r:.100} cannot be", hint="lambda task: …")
        from taskpool.worker.attempt import run_attempt
        from taskpool.worker.caller import CallersOwn

        number = task_id if isinstance(task_id, int) else self._id_of(task_id)
        link = self._link
        names = [labels] if isinstance(labels, str) else list(labels)
        lent = link.request(lambda seq: Execute(seq, number, names)).lent
        assert lent is not None
        worker, job = lent
        try:
            around = CallersOwn(_Line(link, worker), link.told[worker])
            body = None if executor is None else partial(executor, self.get(number))
            report = run_attempt(job, around, time.monotonic_ns(), body)
            if around.ended_by is not None:
                raise around.ended_by
        except BaseException:
            link.request_soon(lambda seq: Speak(0, worker, give_up=True))
            raise
        finally:
            link.told.pop(worker, None)
        tasks = link.request(lambda seq: Executed(seq, worker, report)).tasks
        assert tasks
        return tasks[0]


def arguments(task: Task) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return what a task was submitted with, for its handler: (args, kwargs), without the controller.

    Raises HandlerNotFound where its handler is not known, ArgTypeError, ArgCountError or InvalidPayload if they do not fit it.
    """
    from taskpool.core.registry import default_registry
    from taskpool.wire.codec import DecodeError, decode_args, decode_by_value

    try:
        if task.codec == Codec.CALL:
            _, args, kwargs = decode_by_value(task.payload)
            return args, kwargs
        return decode_args(default_registry.resolve(task.name), task.codec, task.payload)
    except DecodeError as error:
        raise InvalidPayload(f"the arguments of task {task.id} cannot be read: {error}") from error


class _Line:
    """Brings the words of an attempt to the supervisor."""

    def __init__(self, link: Link, worker: int) -> None:
        self._link = link
        self._worker = worker

    def say(self, progress: Progress | None = None, extend_s: float = 0.0) -> None:
        """Send a word that nobody answers."""
        self._link.request_soon(lambda seq: Speak(0, self._worker, progress, extend_s))

    def save(self, checkpoint: Checkpointed) -> None:
        """Have a checkpoint stored, and return when it is."""
        self._link.request(lambda seq: Speak(seq, self._worker, checkpoint=checkpoint.data))

    def store(self, spec: TaskSpec) -> int:
        """Have a task stored, and return its id."""
        ids = self._link.request(lambda seq: Submit(seq, [spec], watch=False, resend=True)).ids
        assert ids
        return ids[0]
