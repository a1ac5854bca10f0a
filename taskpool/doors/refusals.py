"""Refusals of the supervisor as the exceptions that they stand for."""

from __future__ import annotations

from taskpool.errors import IllegalTransition, TaskpoolError, of_code
from taskpool.model import Status, Task
from taskpool.wire.messages import Refused


def error_of(refused: Refused) -> TaskpoolError:
    """Return the exception that a Refused stands for."""
    return of_code(refused.code, refused.message, refused.hint)


def no_new_round(task: Task) -> IllegalTransition:
    """Return why a task got no new round, by how it stands now."""
    if not task.status.is_terminal:
        return IllegalTransition(f"task {task.id} is {task.status}", hint="only what has ended can have another round")
    if task.status == Status.SUCCEEDED:
        return IllegalTransition(f"task {task.id} has succeeded", hint="force=True runs it again all the same")
    if task.unique is not None:
        words = f"task {task.id} has ended {task.status}, but another has its unique key {task.unique!r} now"
        return IllegalTransition(words, hint="wait for that one, or cancel it")
    return IllegalTransition(f"task {task.id} is {task.status} and could not have another round", hint="ask again")
