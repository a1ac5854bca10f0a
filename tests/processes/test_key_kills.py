"""Supervisors killed again and again while keys are in use: bodies of a key never overlap, and keep their order."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from taskpool import Pool, RetryPolicy, controller, task
from taskpool.core.lifecycle import TERMINAL
from tests.processes import evidence
from tests.processes.evidence import chance, note, read_evidence, wait_gone
from tests.processes.killing import POINTS, drive_to, killed

KEYS, COUNT = ("x", "y", "z"), 60


@task(retry=RetryPolicy(initial_interval=0.01, maximum_attempts=3))
def turn(place: str, key: str, number: int) -> int:
    """Run under a key; some fail the first time, and whoever waits behind them waits on."""
    note(place, f"begin-{key}")
    time.sleep(0.001)
    note(place, f"end-{key}")
    if number % 7 == 3 and controller().attempt == 1:
        raise ValueError(number)
    return number


@task(unique="one", on_conflict="replace")
def only(place: str, number: int) -> int:
    note(place, "only")
    return number


def submit(place: Path) -> None:
    """Hand in tasks of several keys, in the order in which they are to run, and, between them, such as replace each other."""
    random_ = chance("keys")
    for number in range(COUNT):
        key = random_.choice(KEYS)
        turn.options(key=key).submit_nowait(str(place), key, number)
        if number % 5 == 0:
            only.options(delay=random_.choice((0.0, 0.02, 0.05))).submit_nowait(str(place), number)
    turn.options(key="x").submit(str(place), "x", COUNT)  # durable: so are those before it


def check(place: Path) -> Counter[str]:
    """Hold what bodies wrote against their keys, and rows against each other; return how many tasks are in which status."""
    for key in KEYS:
        open_: tuple[int, int] | None = None
        over: set[tuple[int, int]] = set()
        last = 0
        for line in read_evidence(place):
            attempt = (line.task_id, line.attempt)
            if line.kind == f"begin-{key}":
                if open_ is not None:
                    over.add(open_)  # its worker was killed: it never comes to its end
                assert line.task_id >= last, f"task {line.task_id} of key {key} began after task {last}"
                open_, last = attempt, line.task_id
            elif line.kind == f"end-{key}":
                assert attempt not in over, f"attempt {attempt} of key {key} went on while another ran"
                assert attempt == open_
                open_ = None
    db = sqlite3.connect(f"file:{place / 'x.db'}?mode=ro", uri=True)
    try:
        live = "status IN ('pending', 'queued', 'running', 'retrying')"
        running = db.execute("SELECT key, COUNT(*) FROM task WHERE status = 'running' AND key IS NOT NULL GROUP BY 1").fetchall()
        assert all(count == 1 for _, count in running), running
        assert db.execute(f"SELECT COUNT(*) FROM task WHERE unique_key = 'one' AND {live}").fetchone()[0] <= 1
        ends = [reason for (reason,) in db.execute("SELECT status FROM task WHERE unique_key = 'one'")]
        assert not ends or set(ends) != {"cancelled"}, "the last one was replaced by nothing"
        return Counter(status for (status,) in db.execute("SELECT status FROM task"))
    finally:
        db.close()


def finish(place: Path) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        evidence.finish(pool)
    counts = check(place)
    assert counts.keys() <= TERMINAL, counts
    assert not counts["failed"], "all that failed was tried again"
    assert counts["succeeded"] > COUNT // 2


def test_kill_9_while_tasks_wait_for_their_keys(place: Path, tag: str) -> None:
    random_ = chance("key kills")
    for kill in range(12):
        with killed(place / "x.db", workers=3):
            if kill % 4 == 0:
                submit(place)
            time.sleep(random_.uniform(0.0, 0.04))  # the moment is to be one of chance
        wait_gone(tag)
        check(place)
    finish(place)


@pytest.mark.parametrize("point", POINTS)
def test_killed_between_two_steps_of_a_turn(place: Path, tag: str, point: str) -> None:
    def run(pool: Pool) -> None:
        submit(place)
        evidence.finish(pool)

    for nth in (2, 3, 5, 8):
        drive_to(place / "x.db", point, nth, run, workers=3)
        wait_gone(tag)
        check(place)
    with Pool(place / "x.db", workers=2, durability="process"):
        submit(place)
    finish(place)
