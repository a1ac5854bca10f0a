"""Supervisors killed again and again while schedules fire each second: every planned time has one row, and at most one task."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from taskpool import Pool, PoolStopped
from taskpool.clock import US
from taskpool.store.reading import Reader
from tests.processes.evidence import WAIT_S, chance, note, wait_gone

POLICIES = {"all": "allow", "last": "skip", "skip": "cancel_previous"}
POINTS = ("commit.before", "commit.inside", "commit.after", "start.after", "reply.before")


def tick(place: str) -> None:
    note(place, "begin")
    time.sleep(0.05)
    note(place, "end")


def add(pool: Pool, place: Path) -> None:
    for missed, overlap in POLICIES.items():
        pool.add_cron("@every 1s", tick, str(place), name=missed, missed=missed, overlap=overlap)  # type: ignore[arg-type]
    pool.add_cron("@every 1s", tick, str(place), name="queue", missed="all", overlap="queue")


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
        until = time.monotonic() + WAIT_S
        while pool.count(status=["pending", "queued", "running", "retrying"]) and time.monotonic() < until:
            time.sleep(0.02)
    with Reader(place / "x.db") as reader:
        rows = [one for schedule in reader.schedules() for one in reader.occurrences(schedule.name, 100_000)]
        assert all(one.outcome != "queued" for one in rows)
        assert set(reader.counts()) <= {"succeeded", "cancelled"}


def test_kill_9_while_schedules_fire(place: Path, tag: str) -> None:
    random_ = chance("cron kills")
    for kill in range(8):
        with pytest.raises(PoolStopped), Pool(place / "x.db", workers=2, durability="process") as pool:
            if not kill:
                add(pool, place)
            # Around the second, when they fire.
            time.sleep((1.0 - time.time() % 1.0 + random_.uniform(-0.01, 0.03)) % 1.0)
            os.kill(pool.pid, signal.SIGKILL)
            pool.submit(time.sleep, 0)
        wait_gone(tag)
        check(place)
    finish(place)


@pytest.mark.parametrize("point", POINTS)
def test_killed_between_two_steps(place: Path, tag: str, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """At each step of a turn that fires."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        add(pool, place)
    for count in (4, 9):
        monkeypatch.setenv("TASKPOOL_FAULTS_ENABLED", "1")
        monkeypatch.setenv("TASKPOOL_FAULT", f"{point}:{count}:kill")
        try:
            with Pool(place / "x.db", workers=2, durability="process") as pool:
                supervisor = psutil.Process(pool.pid)
                supervisor.wait(WAIT_S)
        except PoolStopped:
            pass
        monkeypatch.delenv("TASKPOOL_FAULT")
        monkeypatch.delenv("TASKPOOL_FAULTS_ENABLED")
        wait_gone(tag)
        check(place)
    time.sleep(1.0)
    finish(place)
