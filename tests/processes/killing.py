"""Supervisors that are killed: at a moment of the test's choice, or at a named point of a turn."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from taskpool import Pool, PoolStopped
from taskpool.testing import planted_fault

POINTS = ("commit.before", "commit.inside", "commit.after", "start.after", "reply.before")  # between which a turn can be cut


@contextmanager
def killed(path: Path, *, workers: int = 2) -> Iterator[Pool]:
    """Open a pool whose supervisor is killed where the block ends, and go on when that is known."""
    with pytest.raises(PoolStopped), Pool(path, workers=workers, durability="process") as pool:
        yield pool
        os.kill(pool.pid, signal.SIGKILL)
        while True:
            pool.submit(time.sleep, 0)


def drive_to(path: Path, point: str, nth: int, body: Callable[[Pool], object], *, workers: int = 1) -> None:
    """Do something with a pool whose supervisor is killed at the nth passage of a point: in its start, later, or not at all."""
    try:
        with planted_fault(point, nth=nth), Pool(path, workers=workers, durability="process") as pool:
            body(pool)
    except PoolStopped:
        pass
