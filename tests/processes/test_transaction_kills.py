"""Guests, outboxes and supervisors are killed by chance: a task exists if, and only if, its transaction committed, and once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from taskpool import Outbox, Pool
from taskpool.store.store import Store
from tests.processes import evidence
from tests.processes.evidence import chance, wait_gone
from tests.processes.killing import drive_to
from tests.serving import start_server
from tests.waiting import wait_until

SCRIPT = str(Path(__file__).with_name("guest_script.py"))


def orders(place: Path) -> int:
    path = place / "orders"
    return len(path.read_text().splitlines()) if path.exists() else 0


def start_guest(place: Path, run: int, kind: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, SCRIPT, str(place), str(run), kind], stderr=subprocess.PIPE)


def check(place: Path, file: str) -> int:
    """Each order has its task, which has succeeded, and there is no other task; return how many."""
    with closing(sqlite3.connect(f"file:{place / file}?mode=ro", uri=True)) as connection:
        ordered = dict(connection.execute("SELECT uid, n FROM shop_order"))
    with closing(sqlite3.connect(f"file:{place / 'x.db'}?mode=ro", uri=True)) as connection:
        assert connection.execute("SELECT COUNT(*) FROM inbox").fetchone() == (0,)
    found = evidence.check(place, ended=True)
    assert set(found.statuses) == {"succeeded"}
    assert {task.uid: evidence.number_of(task) for task in found.tasks.values()} == ordered
    assert not [n for n in ordered.values() if n % 3 == 2], "what was rolled back was never there"
    return len(ordered)


def kill_guests(place: Path, tag: str, kind: str, kills: int, random_: random.Random) -> None:
    """Kill guests and, at other moments, the supervisor beside them."""
    path = place / "x.db"
    Store.open(path, durability="process").close()
    server: subprocess.Popen[str] | None = None
    for run in range(kills):
        guest = start_guest(place, run, kind)
        wanted = orders(place) + random_.randrange(1, 60)
        while orders(place) < wanted:
            assert guest.poll() is None, guest.communicate()[1].decode()
            if server is None:
                server = start_server(path)
            elif random_.random() < 0.02:
                os.kill(server.pid, signal.SIGKILL)
                server.wait()
                server = None
            time.sleep(0.002)
        guest.kill()
        guest.communicate()
    if server is not None:
        server.kill()
        server.wait()
    wait_gone(tag)
    if kind == "outbox":
        with closing(sqlite3.connect(place / "shop.db")) as connection:
            Outbox(connection, path).deliver()
            assert connection.execute("SELECT COUNT(*) FROM taskpool_outbox").fetchone() == (0,)
    with Pool(path, workers=2, durability="process") as pool:
        evidence.finish(pool)
    wait_gone(tag)
    assert check(place, "x.db" if kind == "own" else "shop.db") > kills / 3


@pytest.mark.parametrize("kind", ["own", "outbox"])
def test_kill_9_of_guests_and_supervisors(place: Path, tag: str, kind: str) -> None:
    kill_guests(place, tag, kind, 5, chance(f"guests, {kind}"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "outbox"])
def test_many_kills_of_guests_and_supervisors(place: Path, tag: str, kind: str) -> None:
    kill_guests(place, tag, kind, 40, chance(f"many guests, {kind}"))


@pytest.mark.parametrize("point", ["commit.before", "commit.inside", "commit.after", "start.after"])
def test_a_death_while_the_inbox_is_moved(place: Path, tag: str, point: str) -> None:
    """The row is taken out in the transaction that stores its task, or not at all."""
    path = place / "x.db"
    Store.open(path, durability="process").close()
    guest = start_guest(place, 0, "own")
    wait_until(lambda: orders(place) >= 10 or guest.poll() is not None, "orders")
    assert guest.poll() is None, guest.communicate()[1].decode()
    guest.kill()
    guest.communicate()
    for nth in range(1, 4):
        drive_to(path, point, nth, evidence.finish)
        wait_gone(tag)
    with Pool(path, workers=1, durability="process") as pool:
        evidence.finish(pool)
    wait_gone(tag)
    assert check(place, "x.db") >= 6
