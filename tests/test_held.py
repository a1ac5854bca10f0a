"""In a transaction of its own a thread would wait for its pool for ever: it is told instead."""

from __future__ import annotations

import functools
import gc
import sqlite3
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskpool import Flow, InvalidTask, NotFound, Outbox, Pool, PoolStore, Record, enqueue, transaction
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


MINUS_SEVEN = functools.partial(abs, -7)


@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE", None])
@pytest.mark.parametrize("hand_in", HAND_IN)
def test_a_transaction_begun_by_hand_is_known_from_the_first_enqueue_in_it(
    pool: Pool, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, hand_in: Callable[[Pool], Any], begin: str | None
) -> None:
    """Also one that sqlite3 begins by itself (None)."""
    monkeypatch.setattr(held, "WAIT_S", 0.2)
    if begin is not None:
        db.execute(begin)
    mine, also = (enqueue(MINUS_SEVEN, connection=db)[0] for _ in range(2))
    with pytest.raises(InvalidTask, match="holds the write lock"):
        hand_in(pool)
    db.commit()
    monkeypatch.setattr(held, "WAIT_S", WAIT_S)
    hand_in(pool)
    assert (pool.future(mine).result(WAIT_S), pool.future(also).result(WAIT_S)) == (7, 7)
    assert not held.by_thread


def test_what_waits_for_an_answer_in_it_is_told_so_too(pool: Pool, db: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "WAIT_S", 0.2)
    db.execute("BEGIN")
    enqueue(MINUS_SEVEN, connection=db)
    later = pool.submit_nowait(abs, -8)
    for wait in (later.result, functools.partial(pool.resume, "default")):
        with pytest.raises(InvalidTask, match="holds the write lock"):
            wait()
    db.rollback()
    assert later.result(WAIT_S) == 8


def test_once_it_is_over_nothing_is_refused(pool: Pool, db: sqlite3.Connection, tmp_path: Path) -> None:
    """Not after its end, not in the next that only reads, not if the connection is closed, nor for another file's outbox."""
    db.execute("BEGIN")
    enqueue(MINUS_SEVEN, connection=db)
    db.rollback()
    db.execute("BEGIN")
    assert db.execute("SELECT COUNT(*) FROM task").fetchone() == (0,)
    assert pool.submit(abs, -1).result() == 1
    db.rollback()
    with closing(sqlite3.connect(pool.store)) as other:
        enqueue(MINUS_SEVEN, connection=other)
    assert pool.submit(abs, -2).result() == 2
    with closing(sqlite3.connect(tmp_path / "shop.db")) as shop:
        Outbox(shop, pool.store).enqueue(MINUS_SEVEN)
        assert pool.submit(abs, -3).result() == 3
    assert not held.by_thread


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit came with 3.12")
def test_where_python_keeps_a_transaction_open_at_all_times_its_commit_counts(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {"autocommit": False}
    with closing(sqlite3.connect(pool.store, **kept)) as db:
        (mine,) = enqueue(MINUS_SEVEN, connection=db)
        monkeypatch.setattr(held, "WAIT_S", 0.2)
        with pytest.raises(InvalidTask, match="holds the write lock"):
            pool.submit(abs, -1)
        db.commit()
        monkeypatch.setattr(held, "WAIT_S", WAIT_S)
        assert (pool.submit(abs, -1).result(), pool.future(mine).result()) == (1, 7)


def test_a_transaction_that_another_thread_ends_is_waited_for(pool: Pool, db: sqlite3.Connection, monkeypatch: Any) -> None:
    monkeypatch.setattr(held, "WAIT_S", WAIT_S)
    db.execute("BEGIN")
    (mine,) = enqueue(MINUS_SEVEN, connection=db)
    ender = threading.Timer(0.1, db.commit)
    ender.start()
    assert (pool.submit(abs, -1).result(), pool.future(mine).result()) == (1, 7)
    ender.join(WAIT_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python ≥ 3.13 warns of such connections
@pytest.mark.parametrize("is_subclass", [False, True])
def test_a_connection_that_nobody_holds_goes_with_its_transaction(pool: Pool, is_subclass: bool) -> None:
    class Connection(sqlite3.Connection):
        pass

    class Alive:
        def __call__(self) -> int:
            return 1

    db = sqlite3.connect(pool.store, factory=Connection if is_subclass else sqlite3.Connection)
    alive = Alive()
    seen = weakref.ref(alive)
    db.create_function("alive", 0, alive)
    enqueue(MINUS_SEVEN, connection=db)
    assert held.by_thread, "it is noted"
    del alive, db
    gc.collect()
    assert seen() is None
    assert pool.submit(abs, -1).result() == 1
    assert not held.by_thread


def test_notes_of_threads_that_are_no_more_are_dropped(pool: Pool) -> None:
    def enqueue_once() -> None:
        with closing(sqlite3.connect(pool.store)) as db:
            enqueue(MINUS_SEVEN, connection=db)
            db.commit()

    for _ in range(3):
        thread = threading.Thread(target=enqueue_once)
        thread.start()
        thread.join(WAIT_S)
    enqueue_once()
    assert list(held.by_thread) == [threading.get_ident()]
    assert pool.submit(abs, -1).result() == 1
    assert not held.by_thread
