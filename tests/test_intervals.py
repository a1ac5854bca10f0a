"""The intervals between looks at what no event tells of: a clock that was set, a log that the kernel cannot watch, a status."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from taskpool import InvalidSettings, InvalidTask, Pool, enqueue
from taskpool.clock import NS
from taskpool.core import events as ev
from taskpool.store.store import Store
from taskpool.supervisor.inbox import Inbox
from tests.waiting import WAIT_S, wait_file, wait_until


def touch(path: str, until: str) -> None:
    Path(path).touch()
    wait_file(until)


def test_an_idle_supervisor_looks_at_the_clock_as_often_as_it_is_told(tmp_path: Path) -> None:
    """It would wait for half a minute, and the task for its hour: nothing but that interval makes turns."""
    with Pool(tmp_path / "x.db", workers=1, durability="process", poll_interval=0.001) as pool:
        pool.options(delay=3600).submit(time.sleep, 0)
        asked = 0

        def looks() -> int:
            nonlocal asked
            asked += 1
            return pool.stats().turns - asked

        before = looks()
        wait_until(lambda: looks() > before + 50, "turns that nobody asked for", WAIT_S / 3)
        pool.cancel(status="pending")


def test_a_log_that_nobody_watches_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    Store.open(path, durability="process").close()
    with closing(Store.open(path, durability="process")) as store, closing(sqlite3.connect(path)) as guest:
        inbox = Inbox(store, print)
        assert inbox.take(0) == []
        assert inbox.next_look(0) is None
        inbox.look_every(0.5, 0)
        enqueue(time.monotonic, connection=guest)
        guest.commit()
        assert inbox.next_look(0) == 0.5
        assert inbox.take(NS // 4) == []
        (event,) = inbox.take(NS // 2)
        assert isinstance(event, ev.Arrived)
        assert inbox.next_look(NS // 2) == 0.5


def test_waiting_for_a_status(tmp_path: Path) -> None:
    began, go = tmp_path / "began", tmp_path / "go"
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        future = pool.submit(touch, str(began), str(go))
        assert pool.wait(future.id, WAIT_S, status="running", interval=0.01).status == "running"
        behind = pool.submit(time.sleep, 0)
        with pytest.raises(TimeoutError, match=f"task {behind.id} is still queued"):
            pool.wait(behind.id, 0.05, status="running")
        go.touch()
        assert pool.wait(behind.id, WAIT_S, status="failed").status == "succeeded", "it has ended, and cannot get there"
        with pytest.raises(InvalidTask, match="there is no status 'done'"):
            pool.wait(behind.id, status="done")
        with pytest.raises(InvalidSettings, match="interval"):
            pool.wait(behind.id, status="running", interval=0)
