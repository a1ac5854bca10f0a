"""Supervisors killed again and again while schedules fire each second: every planned time has one row, and at most one task."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from taskpool import Pool
from taskpool.clock import US
from taskpool.store.reading import Reader
from tests.processes import evidence
from tests.processes.evidence import chance, note, wait_gone
from tests.processes.killing import POINTS, drive_to, killed
from tests.waiting import wait_dead, wait_until

POLICIES = {"all": "allow", "last": "skip", "skip": "cancel_previous"}


def tick(place: str) -> None:
    note(place, "begin")
    time.sleep(0.05)
    note(place, "end")


def add(pool: Pool, place: Path) -> None:
    for missed, overlap in POLICIES.items():
        pool.add_cron("@every 1s", tick, str(place), name=missed, missed=missed, overlap=overlap)  # type: ignore[arg-type]
    pool.add_cron("@every 1s", tick, str(place), name="queue", missed="all", overlap="queue")


def made(pool: Pool) -> int:
    return sum(schedule.total for schedule in pool.cron_jobs())


def check(place: Path) -> int:
    """Hold the rows against each other; return how many occurrences fired."""
    with Reader(place / "x.db") as reader:
        made = Counter(task.recurrence for task in reader.tasks(limit=100_000))
        by_id = {task.id: task for task in reader.tasks(limit=100_000)}
        fired_in_all = 0
        for schedule in reader.schedules():
            rows = reader.occurrences(schedule.name, 100_000)
            fired = [one.task_id for one in rows if one.outcome == "fired"]
            assert len(fired) == len(set(fired)) == schedule.total == made[schedule.name], schedule.name
            assert all(task_id is not None and by_id[task_id].recurrence == schedule.name for task_id in fired)
            planned = sorted(one.planned_at for one in rows)
            if planned:
                assert planned == list(range(planned[0], planned[-1] + 1, US)), "a row for each second, of which none is lost"
                assert schedule.next_at == planned[-1] + US
            if schedule.missed == "all":
                assert all(one.outcome != "skipped" for one in rows)
            fired_in_all += len(fired)
        return fired_in_all


def finish(place: Path) -> None:
    """Pause all, and let what was made come to its end."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        for name in [*POLICIES, "queue"]:
            pool.pause_cron(name)
        evidence.finish(pool)
    with Reader(place / "x.db") as reader:
        rows = [one for schedule in reader.schedules() for one in reader.occurrences(schedule.name, 100_000)]
        assert all(one.outcome != "queued" for one in rows)
        assert set(reader.counts()) <= {"succeeded", "cancelled"}


def test_kill_9_while_schedules_fire(place: Path, tag: str) -> None:
    random_ = chance("cron kills")
    for kill in range(8):
        with killed(place / "x.db") as pool:
            if not kill:
                add(pool, place)
            # Around the second, when they fire.
            time.sleep((1.0 - time.time() % 1.0 + random_.uniform(-0.01, 0.03)) % 1.0)
        wait_gone(tag)
        check(place)
    finish(place)


@pytest.mark.parametrize("point", POINTS)
def test_killed_between_two_steps(place: Path, tag: str, point: str) -> None:
    """At each step of a turn that fires."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        add(pool, place)
    for nth in (4, 9):
        drive_to(place / "x.db", point, nth, lambda pool: wait_dead(pool.pid), workers=2)
        wait_gone(tag)
        check(place)
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        fired = made(pool)
        wait_until(lambda: made(pool) > fired, "one more to fire")
    finish(place)
