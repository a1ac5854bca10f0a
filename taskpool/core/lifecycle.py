"""The statuses and the table of legal moves: rules at the head, a small engine over them.

The figure in docs is drawn from this table, a test tries every pair, and the store asserts each move once more.
"""

from __future__ import annotations

from typing import Final

from taskpool.errors import IllegalTransition
from taskpool.model import Status

# Plain strings: an enum member costs an adapter call each time it is bound to a statement.
PENDING: Final = Status.PENDING.value
QUEUED: Final = Status.QUEUED.value
RUNNING: Final = Status.RUNNING.value
RETRYING: Final = Status.RETRYING.value
SUCCEEDED: Final = Status.SUCCEEDED.value
FAILED: Final = Status.FAILED.value
CANCELLED: Final = Status.CANCELLED.value
INTERRUPTED: Final = Status.INTERRUPTED.value

TERMINAL: Final = frozenset((SUCCEEDED, FAILED, CANCELLED, INTERRUPTED))
WAITING: Final = frozenset((PENDING, QUEUED, RETRYING))

# from → {to: why such a move happens}; "" is a task that is not stored yet.
MOVES: Final[dict[str, dict[str, str]]] = {
    "": {
        PENDING: "stored, not due",
        QUEUED: "stored, due",
        RUNNING: "stored and started in one turn",
        CANCELLED: "stored, cancelled in the same turn",
        FAILED: "stored after its deadline",
    },
    PENDING: {
        QUEUED: "due",
        RUNNING: "due and started in one turn",
        CANCELLED: "cancelled, or expired",
        FAILED: "its deadline passed",
    },
    QUEUED: {
        RUNNING: "started",
        PENDING: "rescheduled",
        CANCELLED: "cancelled, or expired",
        FAILED: "its deadline passed",
    },
    RUNNING: {
        SUCCEEDED: "its result arrived",
        RETRYING: "failed, tries again",
        FAILED: "failed for good",
        CANCELLED: "stopped on request",
        QUEUED: "sent, never begun",
        PENDING: "snoozed, or interrupted and to run again",
        INTERRUPTED: "a death above it, and its policy is hold",
    },
    RETRYING: {
        QUEUED: "due",
        RUNNING: "due and started in one turn",
        CANCELLED: "cancelled, or expired",
        FAILED: "its deadline passed",
    },
    FAILED: {PENDING: "retried by hand"},
    CANCELLED: {PENDING: "retried by hand"},
    INTERRUPTED: {PENDING: "retried by hand"},
    SUCCEEDED: {PENDING: "retried by hand, with force"},
}


def is_legal(before: str, after: str) -> bool:
    """Return whether the table allows the move. SUCCEEDED → PENDING needs force, which the caller checks."""
    return after in MOVES[before]


def check(task_id: int, before: str, after: str) -> None:
    """Raise IllegalTransition unless the table allows the move."""
    if after not in MOVES[before]:
        raise IllegalTransition(f"task {task_id} cannot move from {before or 'nothing'} to {after}")
