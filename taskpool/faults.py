"""Named fault points: places between two steps where a test may stop, kill or slow a process.

`TASKPOOL_FAULT=point:n:action[,…]` fires at the n-th passage of that point (0: every passage). Actions: `kill` (SIGKILL
of itself), `exit` (os._exit 70), `stop` (SIGSTOP of itself), `sleep=S`, `error` (OSError EIO). Obeyed only in processes that
also find TASKPOOL_FAULTS_ENABLED in their environment, which `taskpool.testing` sets; otherwise `point` is a no-op.
"""

from __future__ import annotations

import os
from collections.abc import Callable

# Every point of the product, in the order of a task's life; a test tries each.
POINTS = (
    "submit.read",  # supervisor: a submit was decoded, nothing is stored
    "commit.before",  # supervisor: the turn is decided, not stored
    "commit.inside",  # store: rows are written, the transaction is open
    "commit.after",  # supervisor: stored, nothing sent or answered
    "start.half",  # supervisor: some frames of the turn are sent
    "start.after",  # supervisor: all frames of the turn are sent
    "body.before",  # worker: the page names the attempt, the body has not begun
    "result.before",  # worker: the body ended, its record is not in the ring
    "result.half",  # worker: the record's bytes are in the ring, its head word is not
    "result.after",  # worker: the record is in the ring, the doorbell is not rung
    "result.read",  # supervisor: records were read, not committed
    "reply.before",  # supervisor: committed, the clients are not told
    "checkpoint.inside",  # store: during a WAL checkpoint at stop
    "prune.inside",  # store: rows of ended tasks are deleted, the transaction is open
    "migrate.inside",  # store: inside a migration's transaction
)


def compile_faults(text: str) -> dict[str, tuple[int, str]]:
    """Return point → (which passage, action) of a TASKPOOL_FAULT text. Raises ValueError for what does not exist."""
    faults = {}
    for part in filter(None, text.split(",")):
        point, count, action = part.split(":")
        if point not in POINTS:
            raise ValueError(f"there is no fault point {point!r}; there are {', '.join(POINTS)}")
        if action not in ("kill", "exit", "stop", "error") and not action.startswith("sleep="):
            raise ValueError(f"there is no fault action {action!r}; there are kill, exit, stop, error and sleep=SECONDS")
        faults[point] = (int(count), action)
    return faults


def _act(action: str) -> None:
    import signal
    import time

    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "exit":
        os._exit(70)
    elif action.startswith("sleep="):
        time.sleep(float(action[6:]))
    else:
        raise OSError(5, "injected by a fault point")


def _armed(faults: dict[str, tuple[int, str]]) -> Callable[[str], None]:
    passed: dict[str, int] = {}

    def point(name: str) -> None:
        if name in faults:
            passed[name] = passed.get(name, 0) + 1
            count, action = faults[name]
            if count in (0, passed[name]):
                _act(action)

    return point


def _unarmed(name: str) -> None:
    """Do nothing: no fault is planted in this process."""


point: Callable[[str], None] = _unarmed
ACTIVE = False
if "TASKPOOL_FAULTS_ENABLED" in os.environ and os.environ.get("TASKPOOL_FAULT"):
    point = _armed(compile_faults(os.environ["TASKPOOL_FAULT"]))
    ACTIVE = True
