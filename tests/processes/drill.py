"""What kill -9 must not change of a batch of bodies: the three ways to kill around it, whatever it is that a body leaves behind."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from taskpool import Pool, PoolStopped, RetryPolicy
from tests.processes import evidence
from tests.processes.evidence import finish, wait_gone
from tests.processes.killing import drive_to
from tests.processes.test_kill_loops import Killer

AGAIN = RetryPolicy(initial_interval=0.001, maximum_interval=0.01, maximum_attempts=0)
ENDS = (
    "result.read",
    "commit.before",
    "commit.inside",
    "commit.after",
    "reply.before",
    "result.after",
)  # points of an attempt's end


class Check(Protocol):
    """Hold what the first `count` bodies left behind against the rows of the store; ended: all of it must be there."""

    def __call__(self, place: Path, count: int, *, ended: bool) -> None: ...


@dataclass(frozen=True)
class Drill:
    """A batch of so many items, each (place, number, µs) of `evidence.items`, whose results are their numbers.

    prepare: what a store needs before the first body.
    """

    body: Callable[[Any], int]
    batch: str
    tasks: int
    check: Check
    prepare: Callable[[Path], object] = lambda path: None

    def kill_supervisors(self, place: Path, tag: str, kills: int, random_: random.Random) -> None:
        """Kill one owner after the other at moments of chance, each with more of the batch to do."""
        path, check = place / "x.db", self.check
        self._made(path)
        for kill in range(kills):
            count = self.tasks * (kill + 1) // kills
            with (
                pytest.raises(PoolStopped, match="SIGKILL"),
                Killer(place, random_),
                Pool(path, workers=2, durability="process") as pool,
            ):
                self._drive(pool, place, count)
                for n in range(5 * self.tasks):  # it came through before the kill
                    pool.submit(evidence.work, str(place), n, 500).result(evidence.WAIT_S)
            wait_gone(tag)
            check(place, count, ended=False)
        with Pool(path, workers=2, durability="process") as pool:
            self._drive(pool, place, self.tasks)
            finish(pool)
        check(place, self.tasks, ended=True)

    def kill_workers(self, place: Path, kills: int, random_: random.Random) -> None:
        """Kill workers while the batch runs."""
        self._made(place / "x.db")
        with Pool(place / "x.db", workers=3, durability="process") as pool:
            view = pool.options(retry=AGAIN, crash_limit=1000)
            items = evidence.items(str(place), self.tasks)
            results = view.map(self.body, items, batch=self.batch, buffersize=self.tasks)
            for kill in range(kills):
                evidence.wait_lines(place, 2 * self.tasks * kill // kills)
                workers = [worker.pid for worker in pool.stats().workers if worker.pid]
                if workers:
                    os.kill(random_.choice(workers), signal.SIGKILL)
            assert list(results) == list(range(self.tasks))

    def kill_at(self, place: Path, tag: str, point: str) -> None:
        """Kill the owner at the first, second, … passage of a point, then let another finish."""
        path = place / "x.db"
        self._made(path)
        for nth in range(1, 5):
            count = 3 * nth
            drive_to(path, point, nth, partial(self._drive, place=place, count=count))
            wait_gone(tag)
            self.check(place, count, ended=False)
        with Pool(path, workers=1, durability="process") as pool:
            self._drive(pool, place, 12)
            finish(pool)

    def _made(self, path: Path) -> None:
        with Pool(path, workers=1, durability="process"):
            self.prepare(path)

    def _drive(self, pool: Pool, place: Path, count: int) -> None:
        items = evidence.items(str(place), count)
        results = pool.options(retry=AGAIN, crash_limit=1000).map(self.body, items, batch=self.batch, buffersize=100)
        for n, result in enumerate(results):
            assert result == n
