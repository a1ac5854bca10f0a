"""Supervisors killed again and again while graphs run: each step ends as its edges say, and the counts always match the rows."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from taskpool import Cancelled, Pool
from taskpool.core import graph
from taskpool.core.lifecycle import TERMINAL
from tests.processes import evidence
from tests.processes.evidence import chance, note, wait_gone
from tests.processes.killing import POINTS, drive_to, killed
from tests.waiting import wait_file

LAYERS, WIDTH = 12, 8


def step(place: str, number: int, *values: int | None) -> int:
    note(place, f"step {number}")
    if number % 29 == 7:
        raise ValueError(number)
    return number + sum(value or 0 for value in values)


def submit(pool: Pool, place: Path) -> None:
    """Hand in a graph in layers, of which some steps fail; edges of all kinds."""
    random_ = chance("graph")
    with pool.flow("layers") as flow:
        before: list[object] = []
        number = 0
        for _ in range(LAYERS):
            layer: list[object] = []
            for _ in range(WIDTH):
                number += 1
                values = random_.sample(before, 2) if before else []
                made = flow.step(step, str(place), number, *values, on=random_.choice(("success", "any", "any")))
                if before and random_.random() < 0.3:
                    made.after(random_.choice(before), on=random_.choice(("any", "failed")))
                layer.append(made)
            before = layer


def check(place: Path) -> dict[str, int]:
    """Hold counts against rows, and ends against edges; return how many steps there are in which status."""
    db = sqlite3.connect(place / "x.db")
    try:
        status = dict(db.execute("SELECT id, status FROM task"))
        started = dict(db.execute("SELECT task_id, MIN(started_at) FROM attempt WHERE outcome != 'returned' GROUP BY 1"))
        ended = dict(db.execute("SELECT id, finished_at FROM task"))
        edges: dict[int, list[tuple[int, int]]] = {}
        for parent, child, condition in db.execute("SELECT parent, child, condition FROM edge"):
            edges.setdefault(child, []).append((parent, condition))
        for task_id, opened, broken, held in db.execute("SELECT task_id, open, broken, held FROM step").fetchall():
            mine = edges.get(task_id, [])
            assert (opened, broken) == graph.counted([(condition, status[parent]) for parent, condition in mine])
            if status[task_id] != "pending":
                assert not held, f"step {task_id} is {status[task_id]} and waits"
            if task_id in started:
                assert not opened, f"step {task_id} began while a parent lived"
                assert not broken, f"step {task_id} began though a parent ended otherwise than it needs"
                assert all(ended[parent] <= started[task_id] for parent, _ in mine)
            elif status[task_id] == "cancelled":
                assert broken, f"step {task_id} was cancelled, and no parent of it ended otherwise than it needs"
        found: dict[str, int] = {}
        for one in status.values():
            found[one] = found.get(one, 0) + 1
        return found
    finally:
        db.close()


def finish(place: Path) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        evidence.finish(pool)
    counts = check(place)
    assert counts.keys() <= TERMINAL, counts
    assert counts["succeeded"] > LAYERS
    assert counts["failed"]
    assert counts["cancelled"]


def test_kill_9_while_a_graph_runs(place: Path, tag: str) -> None:
    random_ = chance("graph kills")
    for kill in range(10):
        with killed(place / "x.db") as pool:
            if not kill:
                submit(pool, place)
            time.sleep(random_.uniform(0.0, 0.03))  # the moment is to be one of chance
        wait_gone(tag)
        check(place)
    finish(place)


@pytest.mark.parametrize("point", POINTS)
def test_killed_between_two_steps_of_a_turn(place: Path, tag: str, point: str) -> None:
    def run(pool: Pool) -> None:
        if not pool.flows():
            submit(pool, place)
        evidence.finish(pool)

    for nth in (2, 3, 4, 5, 7):
        drive_to(place / "x.db", point, nth, run, workers=2)
        wait_gone(tag)
        check(place)
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        if not pool.flows():
            submit(pool, place)
    finish(place)


def stubborn(place: str, name: str) -> None:
    """Go on for ever, cancelled or not, and say both in files."""
    Path(place, name).touch()
    while True:
        try:
            time.sleep(3600)
        except Cancelled:
            Path(place, f"{name} was told").touch()


def fail_at(gate: str) -> None:
    wait_file(gate)
    raise ValueError("no more of this flow")


def test_killed_while_steps_are_ended_with_their_flow(place: Path, tag: str) -> None:
    """By whom a step was cancelled is stored before it is told, so it does not depend on who sees it end."""
    with killed(place / "x.db", workers=3) as pool:
        with pool.flow("fast", fail_fast=True) as flow:
            mine = flow.submit(stubborn, str(place), "mine")
            other = flow.submit(stubborn, str(place), "other")
            bad = flow.submit(fail_at, str(place / "gate"))
        wait_file(place / "mine")
        wait_file(place / "other")
        pool.cancel(mine.id, reason="I said so", grace=3600)
        wait_file(place / "mine was told")
        (place / "gate").touch()
        wait_file(place / "other was told")
        ids = mine.id, other.id, bad.id
    wait_gone(tag)
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        found = [pool.wait(task_id, 60) for task_id in ids]
    ends = [(one.status.value, one.finish_reason, one.error and one.error.kind) for one in found]
    assert ends == [("cancelled", "user", "cancelled"), ("cancelled", "upstream", "upstream"), ("failed", None, "handler")]
