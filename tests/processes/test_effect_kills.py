"""Effects under kill -9: however often a body runs, whatever dies around it, its rows are written exactly once."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from taskpool import controller
from tests.processes import evidence
from tests.processes.drill import ENDS, Drill
from tests.processes.evidence import chance

TASKS = 400


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


BOOKS = Drill(book, "books", TASKS, check, tables)


def test_kill_9_of_supervisors(place: Path, tag: str) -> None:
    BOOKS.kill_supervisors(place, tag, 10, chance("effects"))


@pytest.mark.slow
def test_many_kills_of_supervisors(place: Path, tag: str) -> None:
    BOOKS.kill_supervisors(place, tag, 30, chance("many effects"))


def test_kill_9_of_workers(place: Path) -> None:
    BOOKS.kill_workers(place, 10, chance("effects, workers"))
    check(place, TASKS, ended=True)


@pytest.mark.parametrize("point", ENDS)
def test_a_death_at_each_point_of_an_attempts_end(place: Path, tag: str, point: str) -> None:
    """A report that lies in the ring of a dead owner's worker has its effects too, once."""
    BOOKS.kill_at(place, tag, point)
    check(place, 12, ended=True)
