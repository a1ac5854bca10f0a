"""Spawning under kill -9: whatever dies around it, a success has its children exactly once, and nothing else has any."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from taskpool import controller
from taskpool.model import Options
from tests.processes import evidence
from tests.processes.drill import ENDS, Drill
from tests.processes.evidence import chance

TASKS = 300
CHILDREN = 2  # of each


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


NEST = Drill(breed, "nest", TASKS, check)


def test_kill_9_of_supervisors(place: Path, tag: str) -> None:
    NEST.kill_supervisors(place, tag, 8, chance("children"))


@pytest.mark.slow
def test_many_kills_of_supervisors(place: Path, tag: str) -> None:
    NEST.kill_supervisors(place, tag, 30, chance("many children"))


def test_kill_9_of_workers(place: Path) -> None:
    NEST.kill_workers(place, 10, chance("children, workers"))
    # A child dies with the worker that runs it: nobody retries it.
    check(place, TASKS, ended=False)


@pytest.mark.parametrize("point", ENDS)
def test_a_death_at_each_point_of_an_attempts_end(place: Path, tag: str, point: str) -> None:
    """A report that lies in the ring of a dead owner's worker has its children too, once."""
    NEST.kill_at(place, tag, point)
    check(place, 12, ended=False)
