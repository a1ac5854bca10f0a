"""Our keepers of records pass the suite that we give to others: over memory, over a file, and through a live supervisor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import IllegalTransition, Pool, PoolStore, Record, RecordStore, State, StoreLocked, connect
from taskpool.core.commands import Start
from taskpool.model import Task
from taskpool.protocols import Store
from taskpool.testing import StoreConformance


class TestMemory(StoreConformance):
    def make_store(self) -> Store:
        return RecordStore()


class TestFile(StoreConformance):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self._path = tmp_path / "records.db"

    def make_store(self) -> Store:
        return RecordStore(self._path)


class TestLive(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with Pool(tmp_path / "records.db", workers=1, durability="process") as pool:
            pool.pause("default")
            yield PoolStore(pool)
            pool.stop()


def test_a_pool_runs_what_a_store_was_given(tmp_path: Path) -> None:
    """The numeric type is the handler's name, the data its argument; while one owns the file another cannot."""
    path = tmp_path / "records.db"
    record = Record(type=7, data=b"abc", max_attempts=1)
    with RecordStore(path) as store:
        store.put_all(record)
        with pytest.raises(StoreLocked):
            RecordStore(path)
    with Pool(path, workers=1, preload=["record_handlers"]) as pool:
        records = PoolStore(pool)
        assert pool.wait(record.id, 60).status == "succeeded"
        assert pool.future(record.id).result() == b"cba"
        other = Record(type=8, data=b"x")
        records.put_all(other)
        assert pool.wait(other.id, 60).status == "failed"
        found = records.get(other.task_id)
        assert (found.state, found.failed_attempts) == (State.FAILED, 1)
        assert [records.count(state) for state in State] == [0, 0, 1, 1]
        assert [one.task_id for one in records.ready(State.CONFIRMED, 2**62)] == [record.task_id]
        with connect(path) as client:
            assert PoolStore(client).get(record.task_id) == records.get(record.task_id)


@pytest.mark.parametrize(("on_interrupt", "status"), [("rerun", "pending"), ("hold", "interrupted"), ("fail", "failed")])
def test_what_ran_is_settled_by_its_own_policy(tmp_path: Path, on_interrupt: Any, status: str) -> None:
    with RecordStore(tmp_path / "records.db") as store:
        record = Record(type=1)
        store.put_all(record)
        task: Task = store._store.task(record.id)
        store._store.commit([Start(record.id, record.version, "queued", 1, 1, 1, task.created_at)])
        store._store._db.execute("BEGIN IMMEDIATE")
        from taskpool.model import Options, encode

        store._store._db.execute("UPDATE task SET options = ?", (encode(Options(on_interrupt=on_interrupt)),))
        store._store._db.execute("COMMIT")
        assert store.mark_interrupted() == 1
        assert store.get(record.task_id).status == status
        assert store.mark_interrupted() == 0


def test_what_waits_for_its_parents_is_not_hastened_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    pool = Pool(path, workers=1, durability="process")
    pool.pause("default")
    parent = pool.submit(abs, -1)
    children = [pool.options(after=[parent], delay=delay).submit(abs, -2) for delay in (0, 3600)]
    ids = [child.task().uid for child in children]
    pool.stop()
    with RecordStore(path) as records:
        for task_id in ids:
            with pytest.raises(IllegalTransition, match="parents"):
                records.update_status(task_id, "queued")
            assert records.update_status(task_id, "cancelled").status == "cancelled"


def test_states_stand_for_statuses_and_are_printed() -> None:
    assert [str(state) for state in State] == ["unknown", "pending", "confirmed", "failed"]
    assert State.of("retrying") is State.PENDING
    assert State.of("succeeded") is State.CONFIRMED
    assert {State.of(status) for status in ("failed", "cancelled", "interrupted")} == {State.FAILED}
    assert State.of("nonsense") is State.UNKNOWN
    assert State.CONFIRMED.statuses == ("succeeded",)
    assert State.UNKNOWN.statuses == ()


def test_records_are_cloned_copied_and_validated() -> None:
    record = Record(type=7, data=b"x", reference_id="r", version=3)
    clone = record.clone()
    assert clone == record
    clone.priority = 9
    assert record.priority == 0
    other = Record(type=1)
    clone.copy_to(other)
    assert other == clone
    record.validate()
    from taskpool import InvalidTask

    for wrong in (
        {"type": -1}, {"type": 2**32}, {"type": ""}, {"type": True}, {"type": 1, "data": "text"}, {"type": 1, "task_id": "x"},
        {"type": 1, "version": -1}, {"type": 1, "failed_attempts": 1.5}, {"type": 1, "next_attempt_at": -1},
    ):  # fmt: skip
        with pytest.raises(InvalidTask):
            Record(**wrong).validate()  # type: ignore[arg-type]


def test_of_a_record_that_waits_for_others_the_priority_can_be_changed(tmp_path: Path) -> None:
    """Without a supervisor as with one, and it goes on waiting."""
    path = tmp_path / "records.db"
    with Pool(path, workers=1, durability="process") as pool:
        pool.pause("default")
        parent = Record(type=7, data=b"a")
        PoolStore(pool).put_all(parent)
        child = pool.options(after=[parent.id], priority=1).submit(abs, 1).id
        uid = str(pool.get(child).uid)
        pool.stop()
    with RecordStore(path) as store:
        later = store.get(uid)
        later.next_attempt_at = 5
        with pytest.raises(IllegalTransition, match="waits for its parents"):
            store.update(later)
        record = store.get(uid)
        record.priority = 7
        store.update(record)
        assert (record.priority, store.get(uid).priority, store._store.is_held(child)) == (7, 7, True)
