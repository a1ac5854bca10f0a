"""What is expected of a keeper of records (`taskpool.Store`), as tests: run them over a store of your own.

    from taskpool.testing import StoreConformance

    class TestMyStore(StoreConformance):
        def make_store(self):
            return MyStore()

Each test gets an empty store; one that has a `close` is closed after it. Nothing must run what is in it meanwhile.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from taskpool.errors import AlreadyExists, IllegalTransition, InvalidTask, NotFound, StaleVersion
from taskpool.model import Filter
from taskpool.protocols import Store
from taskpool.records import Record, State

HOUR_US = 3_600_000_000
LATER = 4_000_000_000_000_000  # wall µs, in the year 2096
SOON = 1_000_000  # wall µs, long ago


class StoreConformance:
    """The tests. Give it `make_store`."""

    def make_store(self) -> Store:
        """Return an empty store."""
        raise NotImplementedError

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """Give each test a store of its own."""
        store = self.make_store()
        yield store
        if hasattr(store, "close"):
            store.close()

    def test_it_is_a_store(self, store: Store) -> None:
        """It has every verb of the protocol."""
        assert isinstance(store, Store)

    # ---- put and get ----------------------------------------------------------------------------------------------------

    def test_what_is_put_can_be_got(self, store: Store) -> None:
        """All that was said of it, and what a store knows: id, version, status, created_at."""
        record = Record(
            type=7, data=b"\x00\xff", reference_id="order-1", owner_type="user", owner_id="9", source="web", next_attempt_at=LATER
        )
        store.put_all(record)
        found = store.get(record.task_id)
        assert found == record
        assert (found.type, found.data, found.reference_id, found.owner_id) == (7, b"\x00\xff", "order-1", "9")
        assert (found.state, found.failed_attempts, found.next_attempt_at) == (State.PENDING, 0, LATER)
        assert found.id > 0
        assert found.version > 0
        assert found.created_at > 0

    def test_types_are_numbers_or_names(self, store: Store) -> None:
        """Each comes back as it was put."""
        for kind in (0, 2**32 - 1, "jobs:price"):
            record = Record(type=kind, next_attempt_at=LATER)
            store.put_all(record)
            assert store.get(record.task_id).type == kind

    def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        """NotFound, whatever is asked."""
        nobody = str(uuid.uuid4())
        with pytest.raises(NotFound):
            store.get(nobody)
        with pytest.raises(NotFound):
            store.update(Record(type=1, task_id=nobody, version=1))
        with pytest.raises(NotFound):
            store.update_status(nobody, "cancelled")

    def test_a_task_id_is_stored_once(self, store: Store) -> None:
        """AlreadyExists, and what was there stays as it was."""
        record = Record(type=1, data=b"first", next_attempt_at=LATER)
        store.put_all(record)
        with pytest.raises(AlreadyExists):
            store.put_all(Record(type=1, data=b"second", task_id=record.task_id, next_attempt_at=LATER))
        assert store.get(record.task_id).data == b"first"

    def test_all_are_put_or_none(self, store: Store) -> None:
        """One that is there already, or that makes no sense, and none of them is stored."""
        there = Record(type=1, next_attempt_at=LATER)
        store.put_all(there)
        for wrong, error in ((Record(type=1, task_id=there.task_id), AlreadyExists), (Record(type=-1), InvalidTask)):
            with pytest.raises(error):
                store.put_all(Record(type=1, next_attempt_at=LATER), wrong, Record(type=1, next_attempt_at=LATER))
        assert [record.task_id for record in store.list()] == [there.task_id]
        twice = str(uuid.uuid4())
        with pytest.raises(AlreadyExists):
            store.put_all(Record(type=1, task_id=twice), Record(type=1, task_id=twice))
        assert store.count(State.PENDING) == 1

    def test_what_it_returns_is_a_copy(self, store: Store) -> None:
        """Changing it changes nothing in the store."""
        record = Record(type=1, next_attempt_at=LATER)
        store.put_all(record)
        store.get(record.task_id).priority = 5
        record.priority = 6
        assert store.get(record.task_id).priority == 0

    # ---- update ---------------------------------------------------------------------------------------------------------

    def test_an_update_writes_what_is_mutable_and_raises_the_version(self, store: Store) -> None:
        """What a record is (type, data, task_id) stays, whatever the update says."""
        record = Record(type=1, data=b"data", next_attempt_at=LATER)
        store.put_all(record)
        version = record.version
        record.next_attempt_at, record.priority, record.reference_id, record.max_attempts = LATER + HOUR_US, 3, "r", 4
        record.type, record.data = 2, b"other"
        store.update(record)
        found = store.get(record.task_id)
        assert found.version == record.version > version
        assert (found.next_attempt_at, found.priority, found.reference_id, found.max_attempts) == (LATER + HOUR_US, 3, "r", 4)
        assert (found.type, found.data) == (1, b"data")

    def test_a_stale_version_is_refused(self, store: Store) -> None:
        """Of two who read the same version the second loses, and nothing of it is written."""
        record = Record(type=1, next_attempt_at=LATER)
        store.put_all(record)
        one, other = store.get(record.task_id), store.get(record.task_id)
        one.priority, other.priority = 1, 2
        store.update(one)
        with pytest.raises(StaleVersion):
            store.update(other)
        assert store.get(record.task_id).priority == 1

    def test_what_has_ended_is_not_updated(self, store: Store) -> None:
        """IllegalTransition."""
        record = Record(type=1, next_attempt_at=LATER)
        store.put_all(record)
        ended = store.update_status(record.task_id, "cancelled")
        with pytest.raises(IllegalTransition):
            store.update(ended)

    # ---- status ---------------------------------------------------------------------------------------------------------

    def test_status_moves_by_hand_only_where_the_table_lets_people(self, store: Store) -> None:
        """Cancelled, then another round; never succeeded, running or failed by hand."""
        record = Record(type=1, next_attempt_at=LATER)
        store.put_all(record)
        for status in ("succeeded", "running", "failed", "retrying", "interrupted", "pending"):
            with pytest.raises(IllegalTransition):
                store.update_status(record.task_id, status)
        assert store.update_status(record.task_id, "queued").status == "queued"
        cancelled = store.update_status(record.task_id, "cancelled")
        assert (cancelled.status, cancelled.state) == ("cancelled", State.FAILED)
        with pytest.raises(IllegalTransition):
            store.update_status(record.task_id, "cancelled")
        again = store.update_status(record.task_id, "pending")
        assert again.state is State.PENDING
        assert again.version > cancelled.version
        with pytest.raises(InvalidTask):
            store.update_status(record.task_id, "waiting")

    def test_what_has_ended_can_be_pruned(self, store: Store) -> None:
        """Only of the statuses that are meant, and nothing that waits; no id is given twice."""
        records = [Record(type=1, next_attempt_at=LATER) for _ in range(3)]
        store.put_all(*records)
        for record in records[1:]:
            store.update_status(record.task_id, "cancelled")
        assert store.prune(3600.0) == 0
        assert store.prune(0.0, ["succeeded", "failed"]) == 0
        assert store.prune(0.0) == 2
        assert [record.task_id for record in store.list()] == [records[0].task_id]
        assert [store.count(state) for state in State] == [0, 1, 0, 0]
        with pytest.raises(NotFound):
            store.get(records[2].task_id)
        another = Record(type=1, next_attempt_at=LATER)
        store.put_all(another)
        assert another.id > max(record.id for record in records)
        with pytest.raises(InvalidTask):
            store.prune(0.0, ["pending"])

    def test_counts_follow(self, store: Store) -> None:
        """By state."""
        records = [Record(type=1, next_attempt_at=LATER) for _ in range(3)]
        store.put_all(*records)
        store.update_status(records[0].task_id, "cancelled")
        assert [store.count(state) for state in State] == [0, 2, 0, 1]

    # ---- finding --------------------------------------------------------------------------------------------------------

    def test_lists_are_newest_first_and_filtered(self, store: Store) -> None:
        """By owner, reference and source; with limit and offset."""
        records = [Record(type=1, owner_id=str(number % 2), source="s", next_attempt_at=LATER) for number in range(5)]
        for record in records:
            store.put_all(record)
        ids = [record.task_id for record in records]
        assert [found.task_id for found in store.list()] == ids[::-1]
        assert [found.task_id for found in store.list(limit=2, offset=1)] == [ids[3], ids[2]]
        assert [found.task_id for found in store.list(Filter(owner_id="1"))] == [ids[3], ids[1]]
        assert store.list(Filter(owner_id="1", source="t")) == []

    def test_ready_is_by_state_and_time_page_by_page(self, store: Store) -> None:
        """Both directions, as of a moment, after a cursor."""
        records = [Record(type=1, next_attempt_at=LATER + offset) for offset in (2, 0, 1, 9)]
        store.put_all(*records)
        third, first, second, _ = [record.task_id for record in records]

        def ids(*, as_of: int = LATER + 2, state: State = State.PENDING, **how: object) -> list[str]:
            return [record.task_id for record in store.ready(state, as_of, **how)]  # type: ignore[arg-type]

        assert ids() == [first, second, third]
        assert ids(descending=True) == [third, second, first]
        assert ids(as_of=LATER) == [first]
        assert ids(as_of=LATER - 1) == []
        assert ids(state=State.FAILED) == []
        page = store.ready(State.PENDING, LATER + 2, limit=2)
        assert ids(after=page[-1]) == [third]
        assert ids(after=page[-1], descending=True) == [first]

    def test_what_is_due_is_found_oldest_first(self, store: Store) -> None:
        """What waits for a later time is not."""
        records = [Record(type=1, next_attempt_at=at) for at in (SOON + 1, LATER, SOON)]
        store.put_all(*records)
        second, later, first = [record.task_id for record in records]
        assert [found.task_id for found in store.find_due(SOON + 1)] == [first, second]
        assert [found.task_id for found in store.find_due(SOON + 1, 1)] == [first]
        assert [found.task_id for found in store.find_due(LATER)] == [first, second, later]

    def test_the_first_of_a_key_is_found(self, store: Store) -> None:
        """Of those that are queued, the one that was due first; what waits for a later time is none of them."""
        times = [("a", SOON + 1), ("a", SOON), ("b", SOON - 1), ("", SOON - 1), ("a", LATER), ("c", LATER)]
        records = [Record(type=1, key=key, next_attempt_at=at) for key, at in times]
        store.put_all(*records)
        found = store.find_queued_for_key("a")
        assert found is not None
        assert (found.task_id, found.key) == (records[1].task_id, "a")
        store.update_status(found.task_id, "cancelled")
        found = store.find_queued_for_key("a")
        assert found is not None
        assert found.task_id == records[0].task_id
        assert store.find_queued_for_key("c") is None, "it waits for its time"
        for bad in ("x" * 201, "a\nb"):
            with pytest.raises(InvalidTask, match="key of a record"):
                store.put_all(Record(type=1, key=bad))

    def test_nothing_was_interrupted(self, store: Store) -> None:
        """In a store in which nothing ran."""
        store.put_all(Record(type=1, next_attempt_at=LATER))
        assert store.mark_interrupted() == 0
        assert store.count(State.PENDING) == 1


__all__ = ["StoreConformance"]
