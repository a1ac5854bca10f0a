"""Effects under kill -9: however often a body runs, whatever dies around it, its rows are written exactly once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from taskpool import Pool, PoolStopped, RetryPolicy, controller
from tests.processes import evidence
from tests.processes.evidence import chance, finish, wait_gone
from tests.processes.killing import drive_to
from tests.processes.test_kill_loops import Killer

TASKS = 400
AGAIN = RetryPolicy(initial_interval=0.001, maximum_interval=0.01, maximum_attempts=0)


def tables(path: Path) -> None:
    """Make the user's tables: a row for each task, and one counter for all."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(
            "CREATE TABLE IF NOT EXISTS ledger_row(n INTEGER, attempt INTEGER);"
            "CREATE TABLE IF NOT EXISTS ledger_sum(n INTEGER NOT NULL, total INTEGER NOT NULL);"
            "INSERT INTO ledger_sum SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM ledger_sum);"
        )


def book(item: tuple[str, int, int]) -> int:
    """Book a number, twice told: nothing in these tables would refuse to hold it twice."""
    place, n, us = item
    ctl = controller()
    evidence.note(place, "begin")
    ctl.on_success("INSERT INTO ledger_row VALUES(?, ?)", (n, ctl.attempt))
    if us:
        time.sleep(us / 1e6)
    ctl.on_success("UPDATE ledger_sum SET n = n + 1, total = total + ?", (n,))
    evidence.note(place, "end")
    return n


def check(place: Path, count: int, *, ended: bool) -> None:
    """Each success has its row, of the attempt that succeeded, and nothing else has one."""
    with closing(sqlite3.connect(f"file:{place / 'x.db'}?mode=ro", uri=True)) as connection:
        booked = connection.execute("SELECT n, attempt FROM ledger_row ORDER BY n").fetchall()
        succeeded = connection.execute(
            "SELECT item, attempt FROM task WHERE status = 'succeeded' AND batch = 'books' ORDER BY item"
        ).fetchall()
        total = connection.execute("SELECT n, total FROM ledger_sum").fetchall()
    assert booked == succeeded
    assert total == [(len(booked), sum(n for n, _ in booked))]
    if ended:
        assert [n for n, _ in booked] == list(range(count))


def drive(pool: Pool, place: Path, count: int) -> None:
    items = evidence.items(str(place), count)
    for n, result in enumerate(pool.options(retry=AGAIN, crash_limit=1000).map(book, items, batch="books", buffersize=100)):
        assert result == n


def kill_supervisors(place: Path, tag: str, kills: int, random_: random.Random) -> None:
    with Pool(place / "x.db", workers=1, durability="process"):
        tables(place / "x.db")
    for kill in range(kills):
        count = TASKS * (kill + 1) // kills
        with (
            pytest.raises(PoolStopped, match="SIGKILL"),
            Killer(place, random_),
            Pool(place / "x.db", workers=2, durability="process") as pool,
        ):
            drive(pool, place, count)
            for n in range(5 * TASKS):  # it came through before the kill
                pool.submit(evidence.work, str(place), n, 500).result(evidence.WAIT_S)
        wait_gone(tag)
        check(place, count, ended=False)
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        drive(pool, place, TASKS)
        finish(pool)
    check(place, TASKS, ended=True)


def test_kill_9_of_supervisors(place: Path, tag: str) -> None:
    kill_supervisors(place, tag, 10, chance("effects"))


@pytest.mark.slow
def test_many_kills_of_supervisors(place: Path, tag: str) -> None:
    kill_supervisors(place, tag, 60, chance("many effects"))


def test_kill_9_of_workers(place: Path) -> None:
    random_ = chance("effects, workers")
    kills = 10
    with Pool(place / "x.db", workers=3, durability="process") as pool:
        tables(place / "x.db")
        view = pool.options(retry=AGAIN, crash_limit=1000)
        results = view.map(book, evidence.items(str(place), TASKS), batch="books", buffersize=TASKS)
        for kill in range(kills):
            evidence.wait_lines(place, 2 * TASKS * kill // kills)
            workers = [worker.pid for worker in pool.stats().workers if worker.pid]
            if workers:
                os.kill(random_.choice(workers), signal.SIGKILL)
        assert list(results) == list(range(TASKS))
    check(place, TASKS, ended=True)


@pytest.mark.parametrize("point", ["result.read", "commit.before", "commit.inside", "commit.after", "reply.before", "result.after"])
def test_a_death_at_each_point_of_an_attempts_end(place: Path, tag: str, point: str) -> None:
    """A report that lies in the ring of a dead owner's worker has its effects too, once."""
    path = place / "x.db"
    with Pool(path, workers=1, durability="process"):
        tables(path)
    for nth in range(1, 5):
        drive_to(path, point, nth, partial(drive, place=place, count=3 * nth))
        wait_gone(tag)
        check(place, 3 * nth, ended=False)
    with Pool(path, workers=1, durability="process") as pool:
        drive(pool, place, 12)
    check(place, 12, ended=True)
