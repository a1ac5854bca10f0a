"""Planting faults: processes that are started inside a `with` fail at a named point."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from taskpool import faults

ENABLED = "TASKPOOL_FAULTS_ENABLED"
PLANTED = "TASKPOOL_FAULT"


@contextmanager
def planted_fault(point: str, nth: int = 1, action: str = "kill") -> Iterator[None]:
    """Let processes that are started inside the `with` fail at a named point of a task's life, at its nth passage (0: each).

    point: one of `taskpool.faults.POINTS`; action: kill, exit, stop, error or sleep=SECONDS. The process of the caller is spared:
    it read its environment when it was started. Raises ValueError for a point or action that does not exist.
    """
    faults.compile_faults(f"{point}:{nth}:{action}")
    before = {name: os.environ.get(name) for name in (ENABLED, PLANTED)}
    os.environ[ENABLED] = "1"
    os.environ[PLANTED] = f"{point}:{nth}:{action}"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
