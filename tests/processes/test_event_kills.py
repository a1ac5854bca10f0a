"""Supervisors killed while their log of transitions is followed: it has no gap, tells nothing twice, and ends as the rows stand."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from taskpool import Pool, TaskEvent, stored_events
from taskpool.core.lifecycle import MOVES
from taskpool.model import Status
from taskpool.store.eventlog import START, Place
from tests.processes.evidence import chance, wait_gone, wait_lines, work
from tests.processes.killing import killed

KILLS = 8
TASKS = 40  # of each run


def odd(place: str, n: int) -> int:
    """End as the number says, so that the log has ends of several kinds."""
    work(place, n)
    if n % 5 == 0:
        raise ValueError(n)
    return n


def check(place: Path) -> list[TaskEvent]:
    """Hold the whole log against the rows, and return it."""
    events = list(stored_events(place / "x.db"))
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    stands: dict[int, Status] = {}
    attempts: dict[int, int] = {}
    for event in events:
        assert event.before == stands.get(event.id), f"task {event.id} was {stands.get(event.id)}: {event}"
        assert event.status.value in MOVES[event.before.value if event.before else ""]
        assert event.attempt >= attempts.get(event.id, 0)
        stands[event.id], attempts[event.id] = event.status, event.attempt
    db = sqlite3.connect(place / "x.db")
    try:
        rows = {task_id: (status, attempt) for task_id, status, attempt in db.execute("SELECT id, status, attempt FROM task")}
    finally:
        db.close()
    assert {task_id: (status.value, attempts[task_id]) for task_id, status in stands.items()} == rows
    return events


def test_kill_9_leaves_no_gap_in_the_log(place: Path, tag: str) -> None:
    """Who follows, and asks again behind the last place it was told, has seen exactly what the log holds in the end."""
    random_ = chance("event kills")
    seen: list[TaskEvent] = []
    lines = 0

    def since() -> Place:
        return seen[-1].seq if seen else START

    for _ in range(KILLS):
        with killed(place / "x.db") as pool:
            pool.on(seen.append, since=since())
            for n in range(TASKS):
                pool.options(max_attempts=1 + n % 2).submit_nowait(odd, str(place), n)
            lines = len(wait_lines(place, lines + random_.randrange(1, TASKS)))
        wait_gone(tag)
        assert seen == check(place)[: len(seen)], "what was told is in the log, in that order"
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        pool.on(seen.append, since=since())
        pool.submit(odd, str(place), 1).result()
    assert seen == check(place)
    assert {event.status for event in seen} >= {Status.RUNNING, Status.SUCCEEDED, Status.FAILED}
