"""Records in the caller's own transaction, and what no store may be given."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from taskpool import (
    AlreadyExists,
    InvalidPayload,
    InvalidTask,
    NotFound,
    Outbox,
    Pool,
    PoolStore,
    Record,
    RecordStore,
    State,
    StoreUnusable,
    transaction,
)  # fmt: skip
from taskpool.doors.transaction import enqueue
from taskpool.protocols import Store

BAD: list[dict[str, Any]] = [
    {"queue": ""}, {"queue": 7}, {"priority": "high"}, {"priority": 2**40}, {"priority": True}, {"max_attempts": "3"},
    {"max_attempts": 1.5}, {"reference_id": 5}, {"owner_type": None}, {"owner_id": "x" * 201}, {"source": "a\nb"}, {"key": None},
    {"next_attempt_at": "now"}, {"next_attempt_at": 1.5}, {"next_attempt_at": 2**70}, {"task_id": 5}, {"task_id": None},
    {"data": None},
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with RecordStore(tmp_path / "x.db"):
        return tmp_path / "x.db"


@pytest.fixture
def db(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE shop(n)")
        yield connection


@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_what_no_store_can_keep_is_refused_by_name_and_nothing_is_stored(wrong: dict[str, Any]) -> None:
    (field,) = wrong
    with RecordStore() as store:
        with pytest.raises(InvalidTask, match=field):
            Record(type=1, **wrong).validate()
        with pytest.raises(InvalidTask, match=field):
            store.put_all(Record(type=1), Record(type=1, **wrong))
        assert store.count(State.PENDING) == 0
        assert list(store.list()) == []


def test_a_bad_record_harms_neither_a_live_pool_nor_a_stored_record(tmp_path: Path) -> None:
    """The connection goes on, and an update writes what is good or nothing."""
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        pool.pause("default")
        store: Store = PoolStore(pool)
        good = Record(type=1)
        store.put_all(good)
        for wrong in BAD:
            with pytest.raises(InvalidTask):
                store.put_all(Record(type=1, **wrong))
        with pytest.raises(InvalidPayload, match="16 MiB"):
            store.put_all(Record(type=1, data=bytes(17 << 20)))
        with pytest.raises(InvalidTask, match="no record"):
            store.put_all("no record")  # type: ignore[arg-type]
        for name, value in (("priority", "high"), ("reference_id", 5), ("max_attempts", "3")):
            changed = good.clone()
            setattr(changed, name, value)
            with pytest.raises(InvalidTask, match=name):
                store.update(changed)
        assert store.get(good.task_id) == good
        assert store.count(State.PENDING) == 1
        pool.stop()


def test_zero_attempts_mean_one() -> None:
    with RecordStore() as store:
        record = Record(type=1, max_attempts=0)
        store.put_all(record)
        assert record.max_attempts == 1


def test_records_are_there_if_and_only_if_the_transaction_commits(path: Path, db: sqlite3.Connection) -> None:
    kept, lost = Record(type=7, data=b"abc", reference_id="order-1"), Record(type=7)
    with transaction(db) as tx:
        db.execute("INSERT INTO shop VALUES(1)")
        tx.put_all(kept)
    with pytest.raises(RuntimeError, match="not today"), transaction(db) as tx:
        tx.put_all(lost)
        raise RuntimeError("not today")
    with Pool(path, workers=1, preload=["record_handlers"]) as pool:
        assert pool.wait(kept.task_id, 60).status == "succeeded"
        found = PoolStore(pool).get(kept.task_id)
        assert (found.state, found.type, found.data, found.reference_id) == (State.CONFIRMED, 7, b"abc", "order-1")
        with pytest.raises(NotFound):
            PoolStore(pool).get(lost.task_id)


def test_a_record_that_is_there_is_not_put_again(path: Path, db: sqlite3.Connection) -> None:
    """Whether it is a task already, or waits in the inbox, or comes twice at once; the transaction goes on without it."""
    stored, waiting, new = Record(type=7), Record(type=7), Record(type=7, task_id="0" * 31 + "1")
    db.commit()
    with RecordStore(path) as store:
        store.put_all(stored)
    with transaction(db) as tx:
        tx.put_all(waiting)
        for records in ((new, stored), (new, waiting), (new, new.clone())):
            with pytest.raises(AlreadyExists, match="nothing was stored"):
                tx.put_all(*records)
        db.execute("INSERT INTO shop VALUES(1)")
    assert db.execute("SELECT count(*) FROM inbox").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM shop").fetchone() == (1,)


def test_a_transaction_takes_records_only_as_they_are(path: Path, db: sqlite3.Connection) -> None:
    with transaction(db) as tx:
        with pytest.raises(InvalidTask, match="says all of itself"):
            tx.options(priority=3).put_all(Record(type=7))
        for wrong in BAD:
            with pytest.raises(InvalidTask):
                tx.put_all(Record(type=7), Record(type=7, **wrong))
        with pytest.raises(Exception, match="put_all"):
            enqueue(Record(type=7), connection=db)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="not open"):
        tx.put_all(Record(type=7))
    assert db.execute("SELECT count(*) FROM inbox").fetchone() == (0,)


def test_an_outbox_takes_records_too(path: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as other:
        record = Record(type=7, data=b"abc")
        with Outbox(other, path).transaction() as tx:
            tx.put_all(record)
    with Pool(path, workers=1, preload=["record_handlers"]) as pool:
        assert pool.wait(record.task_id, 60).status == "succeeded"


def test_a_refused_enqueue_leaves_no_transaction_open(path: Path) -> None:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as readonly:
        with pytest.raises(StoreUnusable, match="may only read"):
            enqueue(partial(abs, -1), connection=readonly)
        assert not readonly.in_transaction


def test_a_future_is_no_argument_in_a_transaction(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool, closing(sqlite3.connect(pool.store)) as connection:
        future = pool.submit(abs, -1)
        with transaction(connection) as tx, pytest.raises(InvalidTask, match="cannot wait for others"):
            tx.submit(abs, future)
