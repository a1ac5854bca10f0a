"""In a transaction of its own a thread would wait for its pool for ever: it is told instead."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskpool import Flow, InvalidTask, NotFound, Outbox, Pool, PoolStore, Record, transaction
from taskpool.doors import held

WAIT_S = 60.0


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        yield pool


@pytest.fixture
def db(pool: Pool) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(pool.store, check_same_thread=False)) as connection:
        yield connection


def flow(pool: Pool) -> None:
    graph = Flow("f")
    graph.submit(abs, -1)
    pool.submit_flow(graph)


HAND_IN: list[Callable[[Pool], Any]] = [
    lambda pool: pool.submit(abs, -1),
    lambda pool: pool.options(priority=1).submit(abs, -1),
    lambda pool: pool.submit_many(abs, [-1, -2]),
    lambda pool: PoolStore(pool).put_all(Record(type=7)),
    flow,
]


@pytest.mark.parametrize("hand_in", HAND_IN)
def test_what_is_handed_in_beside_the_transaction_is_refused_at_once(
    pool: Pool, db: sqlite3.Connection, hand_in: Callable[[Pool], Any]
) -> None:
    with transaction(db) as tx:
        with pytest.raises(InvalidTask, match="holds the write lock"):
            hand_in(pool)
        mine = tx.submit(abs, -7)
    assert pool.future(mine).result(WAIT_S) == 7
    assert pool.count() == 1, "nothing of it was stored"


def test_what_could_only_be_answered_after_it_is_told_so(
    pool: Pool, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "WAIT_S", 0.2)
    with transaction(db) as tx:
        mine = tx.submit(abs, -7)
        with pytest.raises(InvalidTask, match="holds the write lock"):
            pool.pause("default")
        with pytest.raises((InvalidTask, NotFound)):  # as the supervisor stands: it may wait for the lock meanwhile
            pool.future(mine)
        later = pool.submit_nowait(abs, -8)  # waits for nobody
        with pytest.raises(InvalidTask, match="holds the write lock"):
            later.result()
        with pytest.raises(TimeoutError):
            later.result(0.01)
    pool.resume()
    assert (later.result(WAIT_S), pool.future(mine).result(WAIT_S)) == (8, 7)


def test_nobody_else_is_told_anything(pool: Pool, db: sqlite3.Connection, tmp_path: Path) -> None:
    """Not after it, not after a commit inside of it, not another thread, nor who holds some other file."""
    with pytest.raises(RuntimeError), transaction(db):
        raise RuntimeError
    assert pool.submit(abs, -1).result(WAIT_S) == 1
    with transaction(db):
        db.commit()
        assert pool.submit(abs, -2).result(WAIT_S) == 2
    results: list[int] = []
    other = threading.Thread(target=lambda: results.append(pool.submit(abs, -3).result(WAIT_S)))
    with transaction(db):
        other.start()
    other.join(WAIT_S)
    assert results == [3]
    with closing(sqlite3.connect(tmp_path / "shop.db")) as shop, Outbox(shop, pool.store).transaction():
        assert pool.submit(abs, -4).result(WAIT_S) == 4
    with Pool(workers=1) as private, transaction(db):
        assert private.submit(abs, -5).result(WAIT_S) == 5
    assert not held.by_thread
    with pytest.raises(NotFound):
        pool.get(99)
