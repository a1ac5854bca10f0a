"""Refusals of the supervisor as the exceptions that they stand for."""

from __future__ import annotations

from collections.abc import Iterator

from taskpool.errors import TaskpoolError
from taskpool.wire.messages import Refused

_by_code: dict[str, type[TaskpoolError]] = {}


def error_of(refused: Refused) -> TaskpoolError:
    """Return the exception that a Refused stands for."""
    if not _by_code:
        _by_code.update({leaf.code: leaf for leaf in _leaves(TaskpoolError)})
    return _by_code.get(refused.code, TaskpoolError)(refused.message, hint=refused.hint)


def _leaves(base: type[TaskpoolError]) -> Iterator[type[TaskpoolError]]:
    for leaf in base.__subclasses__():
        yield from _leaves(leaf)
    yield base
