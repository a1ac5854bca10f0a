"""Spawning under kill -9: whatever dies around it, a success has its children exactly once, and nothing else has any."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import pytest

from taskpool import Pool, PoolStopped, RetryPolicy, controller
from taskpool.model import Options
from tests.processes import evidence
from tests.processes.evidence import chance, finish, wait_gone
from tests.processes.killing import drive_to
from tests.processes.test_kill_loops import Killer

TASKS = 300
CHILDREN = 2  # of each
AGAIN = RetryPolicy(initial_interval=0.001, maximum_interval=0.01, maximum_attempts=0)


def breed(item: tuple[str, int, int]) -> int:
    """Spawn children with the success, and one at once, named after the item and the attempt."""
    place, n, us = item
    ctl = controller()
    evidence.note(place, "begin")
    for number in range(CHILDREN):
        ctl.options(reference_id=f"{n}/{ctl.attempt}/{number}").spawn(child, place, n)
    if n % 3 == 0:
        made = ctl.options(reference_id=f"now {n}/{ctl.attempt}").spawn_now(child, place, n)
        evidence.append(Path(place, "ledger of children"), f"{made.id} {made.uid}")
    if us:
        time.sleep(us / 1e6)
    evidence.note(place, "end")
    return n


def child(place: str, n: int) -> int:
    evidence.note(place, "child")
    return n


def check(place: Path, count: int, *, ended: bool) -> None:
    """The children are those of the attempts that succeeded; what was acknowledged at once is there too."""
    with closing(sqlite3.connect(f"file:{place / 'x.db'}?mode=ro", uri=True)) as connection:
        parents = connection.execute("SELECT id, item, status, attempt FROM task WHERE batch = 'nest'").fetchall()
        others = connection.execute(
            "SELECT id, lower(hex(uid)), options, status FROM task WHERE batch IS NULL AND length(options) > 0"
        ).fetchall()
    decoded = [(task_id, uid, msgspec.msgpack.decode(packed, type=Options), status) for task_id, uid, packed, status in others]
    found = Counter((options.parent_id, options.reference_id) for _, _, options, _ in decoded if "/" in options.reference_id)
    wanted = {
        (task_id, f"{item}/{attempt}/{number}")
        for task_id, item, status, attempt in parents
        if status == "succeeded"
        for number in range(CHILDREN)
    }
    spawned = {key: times for key, times in found.items() if not key[1].startswith("now")}
    assert spawned == dict.fromkeys(wanted, 1)
    assert all(times == 1 for times in found.values())
    stored = {(task_id, uid) for task_id, uid, _, _ in decoded}
    ledger = place / "ledger of children"
    for line in ledger.read_text().splitlines() if ledger.exists() else ():
        number, uid = line.split()
        assert (int(number), uid.replace("-", "")) in stored, "what was acknowledged is not stored"
    if ended:
        assert {item for _, item, status, _ in parents if status == "succeeded"} == set(range(count))
        assert {status for _, _, options, status in decoded if "/" in options.reference_id} == {"succeeded"}


def drive(pool: Pool, place: Path, count: int) -> None:
    items = evidence.items(str(place), count)
    for n, result in enumerate(pool.options(retry=AGAIN, crash_limit=1000).map(breed, items, batch="nest", buffersize=100)):
        assert result == n


def kill_supervisors(place: Path, tag: str, kills: int, random_: random.Random) -> None:
    with Pool(place / "x.db", workers=1, durability="process"):
        pass  # the store is there
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
    kill_supervisors(place, tag, 8, chance("children"))


@pytest.mark.slow
def test_many_kills_of_supervisors(place: Path, tag: str) -> None:
    kill_supervisors(place, tag, 60, chance("many children"))


def test_kill_9_of_workers(place: Path) -> None:
    random_ = chance("children, workers")
    kills = 10
    with Pool(place / "x.db", workers=3, durability="process") as pool:
        view = pool.options(retry=AGAIN, crash_limit=1000)
        results = view.map(breed, evidence.items(str(place), TASKS), batch="nest", buffersize=TASKS)
        for kill in range(kills):
            evidence.wait_lines(place, 2 * TASKS * kill // kills)
            workers = [worker.pid for worker in pool.stats().workers if worker.pid]
            if workers:
                os.kill(random_.choice(workers), signal.SIGKILL)
        assert list(results) == list(range(TASKS))
        # A child dies with the worker that runs it: nobody retries it.
    check(place, TASKS, ended=False)


@pytest.mark.parametrize("point", ["result.read", "commit.before", "commit.inside", "commit.after", "reply.before", "result.after"])
def test_a_death_at_each_point_of_an_attempts_end(place: Path, tag: str, point: str) -> None:
    """A report that lies in the ring of a dead owner's worker has its children too, once."""
    path = place / "x.db"
    for nth in range(1, 5):
        drive_to(path, point, nth, partial(drive, place=place, count=3 * nth))
        wait_gone(tag)
        check(place, 3 * nth, ended=False)
    with Pool(path, workers=1, durability="process") as pool:
        drive(pool, place, 12)
        finish(pool)
    check(place, 12, ended=False)
