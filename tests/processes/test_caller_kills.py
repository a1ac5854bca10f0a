"""Callers that run attempts themselves, and the supervisor beside them, are killed: each task succeeds once, whoever dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from taskpool import Pool, Status
from taskpool.store.reading import Reader
from tests.processes.caller_bodies import hold, never, slowly
from tests.processes.evidence import chance
from tests.serving import reached, start_server
from tests.waiting import wait_until

SCRIPT = str(Path(__file__).with_name("caller_script.py"))
TASKS = 400
WAIT_S = 60.0


def start_caller(place: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, str(place)], stderr=subprocess.DEVNULL)


def succeeded(path: Path) -> int:
    with Reader(path) as reader:
        return reader.counts().get("succeeded", 0)


def test_a_caller_that_is_killed_is_an_interruption_and_another_goes_on(place: Path) -> None:
    """Found in the middle by a stop, so that it is not a matter of luck whether there was anything to interrupt."""
    path = place / "x.db"
    with Pool(path, workers=1) as pool:
        holder = pool.submit(hold)
        wait_until(lambda: holder.status == "running", "the worker is busy")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("CREATE TABLE shop_done(task INTEGER PRIMARY KEY)")
        caller = start_caller(place)
        for _ in range(500):
            future = pool.submit(never)
            wait_until(lambda: pool.get(future.id).status in ("running", "succeeded"), "the caller takes it")  # noqa: B023
            os.kill(caller.pid, signal.SIGSTOP)  # in the middle, mostly
            if pool.get(future.id).status is Status.RUNNING:
                break
            os.kill(caller.pid, signal.SIGCONT)
        caller.kill()
        caller.wait()
        wait_until(lambda: pool.get(future.id).status is not Status.RUNNING, "its death is seen")
        task = pool.get(future.id)
        if task.status is not Status.SUCCEEDED:  # its report was not on the way
            assert (task.charged, task.interruptions) == (0, 1)
            assert pool.execute_and_advance(future.id, lambda task: "mine").status is Status.SUCCEEDED
            assert future.result(WAIT_S) == "mine"
            assert [one.outcome for one in pool.attempts(future.id)] == ["interrupted", "succeeded"]
        holder.cancel(force=True)


def test_kill_9_of_callers_and_supervisors(place: Path) -> None:
    """Workers and callers share the work: effects are those of the successes, exactly once, and every task comes to its end."""
    random_ = chance("callers")
    path = place / "x.db"
    server = start_server(path)
    with reached(path) as client:
        with closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("CREATE TABLE shop_done(task INTEGER PRIMARY KEY)")
        ids = [future.id for future in client.options(max_interruptions=10_000).submit_many(slowly, range(TASKS))]
    running = [start_caller(place), start_caller(place)]
    have = 0
    while have < TASKS:
        wait_until(lambda had=have: succeeded(path) > had, f"more than {have} to succeed")
        have = succeeded(path)
        time.sleep(random_.uniform(0.0, 0.4))
        if random_.random() < 0.3:
            server.kill()
            server.wait()
            server = start_server(path)
        else:
            first = running.pop(0)
            first.kill()
            first.wait()
            running.append(start_caller(place))
    for process in (*running, server):
        process.kill()
        process.wait()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT task FROM shop_done ORDER BY task").fetchall() == [(one,) for one in ids]
    by_callers = 0
    with Reader(path) as reader:
        for task_id in ids:
            attempts = reader.attempts(task_id)
            assert [one.attempt for one in attempts] == list(range(1, len(attempts) + 1))
            *before, last = attempts
            assert {one.outcome for one in before} <= {"interrupted", "returned", "stopped"}
            assert (last.outcome, reader.task(task_id).charged) == ("succeeded", 1)
            by_callers += last.duration_s < 0.04
    assert by_callers
