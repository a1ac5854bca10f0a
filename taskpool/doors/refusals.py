"""Refusals of the supervisor as the exceptions that they stand for."""

from __future__ import annotations

from taskpool.errors import TaskpoolError, of_code
from taskpool.wire.messages import Refused


def error_of(refused: Refused) -> TaskpoolError:
    """Return the exception that a Refused stands for."""
    return of_code(refused.code, refused.message, refused.hint)
