"""The reading verbs: the same answers for the owner and for a reader, live or after a crash; and by an index where it matters."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from taskpool.core.commands import Checkpoint, Save
from taskpool.errors import InvalidTask, NotFound, StoreCorrupt, StoreError, StoreTooNew, StoreUnusable
from taskpool.model import Filter, Options, Progress, TaskError
from taskpool.store import schema
from taskpool.store.reading import Reader, Reading
from taskpool.store.store import Store
from tests.store_rig import T0, end, insert, move, start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture(params=["owner", "reader beside it", "reader after a crash"])
def filled(request: pytest.FixtureRequest, path: Path) -> Iterator[Reading]:
    """Ten tasks: 1 to 4 ended, 5 runs, 6 to 8 are queued, 9 and 10 are delayed."""
    store = Store.open(path, durability="process")
    fill(store)
    if request.param == "owner":
        yield store
    else:
        if request.param.endswith("crash"):
            store.close(clean=False)
        with Reader(path) as reader:
            yield reader
    store.close()


def fill(store: Store) -> None:
    saves: list[Save] = [insert(n, options=Options(tags=("odd",) if n % 2 else ("even", "all"))) for n in range(1, 5)]
    saves += [insert(5, name="jobs:long", batch="night", item=0), insert(6, queue="cpu"), insert(7, priority=5)]
    saves += [insert(8, at=T0 - 1), insert(9, "pending", at=T0 + 100), insert(10, options=Options(max_attempts=3))]
    store.commit([*saves, *(start(n) for n in (1, 2, 3, 5, 10))])
    store.commit(
        [
            end(1),
            end(2, "failed", error=TaskError("handler", "no such file: æ'\"%", type_name="OSError")),
            end(3, "cancelled", error=TaskError("cancelled", "by hand")),
            move(4, "queued", "cancelled"),
            end(10, "retrying", scheduled_at=T0 + 50),
            Checkpoint(5, 1, b"state"),
        ]
    )
    store.save_progress([(5, Progress(1, 2, "half", T0))])


def ids(found: Reading, wanted: Filter, **page: int) -> list[int]:
    listed = [task.id for task in found.tasks(wanted, **page)]
    if not page:
        assert found.match(wanted) == listed
    return listed


def test_one_task(filled: Reading) -> None:
    task = filled.task(5)
    assert (task.name, task.status, task.batch, task.item) == ("jobs:long", "running", "night", 0)
    assert task.progress == Progress(1, 2, "half", T0)
    assert task.uid == "00000000-0000-0000-0000-000000000005"
    assert filled.task(10).max_attempts == 3
    with pytest.raises(NotFound, match="there is no task 99"):
        filled.task(99)


def test_tasks_come_newest_first_in_pages(filled: Reading) -> None:
    assert ids(filled, Filter()) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert ids(filled, Filter(), limit=3) == [10, 9, 8]
    assert ids(filled, Filter(), limit=3, before=8) == [7, 6, 5]
    assert ids(filled, Filter(), limit=3, before=2) == [1]
    assert ids(filled, Filter(), limit=0) == []


def test_a_list_leaves_values_out(filled: Reading) -> None:
    (listed,) = filled.tasks(Filter(ids=(1,)))
    whole = filled.task(1)
    assert (whole.payload, whole.result) == (b"payload 1", b"result")
    assert listed == msgspec.structs.replace(whole, payload=b"", result=None)


def test_every_field_of_a_filter(filled: Reading) -> None:
    assert ids(filled, Filter(ids=(3, 1, 99))) == [3, 1]
    assert ids(filled, Filter(statuses=("succeeded", "failed"))) == [2, 1]
    assert ids(filled, Filter(statuses=("queued",))) == [8, 7, 6]
    assert ids(filled, Filter(names=("jobs:long", "nobody"))) == [5]
    assert ids(filled, Filter(queues=("cpu",))) == [6]
    assert ids(filled, Filter(tags=("even",))) == [4, 2]
    assert ids(filled, Filter(tags=("all", "even"), statuses=("cancelled",))) == [4]
    assert ids(filled, Filter(batch="night")) == [5]
    assert ids(filled, Filter(since=T0 + 1)) == []
    assert ids(filled, Filter(since=T0, until=T0 + 1, queues=("cpu",))) == [6]
    assert ids(filled, Filter(until=T0)) == []
    assert ids(filled, Filter(error_contains="no such file: æ'\"%")) == [2]
    assert ids(filled, Filter(error_contains="OSError")) == [2]
    assert ids(filled, Filter(error_contains="[cancelled]")) == [3]


def test_a_filter_is_never_sql(filled: Reading) -> None:
    evil = "'; DROP TABLE task; --"
    assert ids(filled, Filter(names=(evil,), queues=(evil,), tags=(evil,), batch=evil, error_contains=evil)) == []
    with pytest.raises(InvalidTask, match="there is no status"):
        filled.match(Filter(statuses=(evil,)))
    assert len(filled.match(Filter())) == 10


def test_counts(filled: Reading) -> None:
    assert filled.counts() == {"succeeded": 1, "failed": 1, "cancelled": 2, "running": 1, "queued": 3, "pending": 1, "retrying": 1}
    assert filled.counts_by_queue() == filled.recount()
    assert filled.counts_by_queue()["cpu"] == {"queued": 1}


def test_attempts_and_outcomes(filled: Reading) -> None:
    (attempt,) = filled.attempts(2)
    assert attempt.error is not None
    assert attempt.error.type_name == "OSError"
    assert filled.attempts(99) == []
    found = {outcome.id: outcome for outcome in filled.outcomes(range(1, 12))}
    assert sorted(found) == [1, 2, 3, 4]
    assert (found[1].value, found[1].codec, found[1].attempts, found[1].finished_at) == (b"result", 0, 1, T0 + 20)
    assert (found[2].error, found[4].attempts) == (attempt.error, 0)


def test_what_the_scheduler_asks_for(filled: Reading) -> None:
    assert filled.next_id() == 11
    assert filled.queues_waiting() == ["cpu", "default"]
    assert [row.id for row in filled.running()] == [5]
    assert [row.id for row in filled.rows([7, 99, 2])] == [7, 2]
    assert filled.payloads([5, 6]) == {
        5: (1, b"payload 5", b"", "jobs:long", b"state"),
        6: (1, b"payload 6", b"", "jobs:price", None),
    }


def test_a_line_comes_back_in_its_order_and_in_parts(filled: Reading) -> None:
    def line(queue: str | None, after: tuple[int, int, int] | None, n: int) -> tuple[list[int], bool]:
        found, more = filled.refill(queue, after, n)
        return [row.id for row in found], more

    assert line("default", None, 10) == ([7, 8], False)
    assert line("default", None, 1) == ([7], True)
    assert line("default", (-5, T0, 7), 10) == ([8], False)
    assert line("default", (0, T0 - 1, 8), 10) == ([], False)
    assert line("nobody's", None, 10) == ([], False)
    assert line(None, None, 10) == ([10, 9], False)
    assert line(None, None, 1) == ([10], True)
    assert line(None, (0, T0 + 50, 10), 10) == ([9], False)


def test_a_long_line_is_read_without_gaps(path: Path) -> None:
    with_same = [insert(n, priority=n % 3, at=T0 + n % 7) for n in range(1, 301)]
    store = Store.open(path, memory=True)
    store.commit(with_same)
    expected = sorted((-(n % 3), T0 + n % 7, n) for n in range(1, 301))
    got: list[tuple[int, int, int]] = []
    more = True
    while more:
        found, more = store.refill("default", got[-1] if got else None, 37)
        got += [(row.rank, row.scheduled_at, row.id) for row in found]
    assert got == expected
    store.close()


def test_tags_and_errors_are_found_beyond_one_page(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.store.search.SCAN", 10)
    store = Store.open(path, memory=True)
    store.commit([insert(n, options=Options(tags=("rare",)) if n % 50 == 0 else None) for n in range(1, 201)])
    assert store.match(Filter(tags=("rare",))) == [200, 150, 100, 50]
    assert store.match(Filter(tags=("rare",)), limit=2) == [200, 150]
    assert [task.id for task in store.tasks(Filter(tags=("rare",)), limit=2, before=150)] == [100, 50]
    store.close()


@pytest.mark.parametrize(
    ("verb", "index"),
    [
        (lambda store: store.refill("default", (0, T0, 5), 10), "task_ready"),
        (lambda store: store.refill(None, (0, T0, 5), 10), "task_delayed"),
        (lambda store: store.refill("default", (0, T0, 5), 10, "a key"), "task_key"),
        (lambda store: store.match(Filter(key="a key", statuses=("queued", "running"))), "task_key"),
        (lambda store: store.ready(["queued"], T0, None, 1, key="a key"), "task_key (key=?)"),
        (lambda store: store.match(Filter(unique="one", statuses=("queued", "running"))), "task_unique"),
        (lambda store: store.unique_holders(["one"]), "task_unique"),
        (lambda store: store.kept_keys(), "task_key_kept"),
        (lambda store: store.running(), "task_running"),
        (lambda store: store.queues_waiting(), "task_ready"),
        (lambda store: store.match(Filter(statuses=("failed",))), "task_bad"),
        (lambda store: store.match(Filter(statuses=("cancelled",))), "task_bad"),
        (lambda store: store.match(Filter(statuses=("running",))), "task_running"),
        (lambda store: store.match(Filter(statuses=("running", "queued"))), "task_ready"),
        (lambda store: store.match(Filter(statuses=("pending",), names=("a", "b"))), "task_delayed"),
        (lambda store: store.match(Filter(batch="night")), "task_batch"),
        (lambda store: store.find_batch("night", [1, 2]), "task_batch"),
        (lambda store: store.find_uids([b"x" * 16]), "sqlite_autoindex_task_1"),
        (lambda store: store.rows([1, 2]), "INTEGER PRIMARY KEY"),
        (lambda store: store.payloads([1, 2]), "INTEGER PRIMARY KEY"),
        (lambda store: store.match(Filter(ids=(1, 2))), "INTEGER PRIMARY KEY"),
        (lambda store: store.attempts(1), "PRIMARY KEY"),
        (lambda store: store.next_id(), "SEARCH"),
    ],
)
def test_what_must_be_quick_goes_by_an_index(path: Path, verb: object, index: str) -> None:
    """No sort, and no walk over the table, however many tasks have ended."""
    store = Store.open(path, memory=True)
    store.commit([save for n in range(1, 41) for save in (insert(n), start(n))])
    store.commit([end(n) for n in range(1, 41)])
    asked: list[str] = []
    store._db.set_trace_callback(asked.append)
    verb(store)  # type: ignore[operator]
    store._db.set_trace_callback(None)
    plans = [plan for sql in asked for *_, plan in store._db.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert any(index in plan for plan in plans), plans
    assert not any(plan in ("SCAN task", "SCAN attempt") for plan in plans), plans
    if "scheduled_at, id LIMIT" in asked[0]:
        assert not any("TEMP B-TREE" in plan for plan in plans), plans
    store.close()


# ---- files that cannot be read --------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(StoreUnusable, match="there is no store at"):
        Reader(path)
    assert not path.exists()
    assert not path.with_name("x.db.d").exists()


def test_a_file_of_another_program(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE task(id)")
    other.close()
    with pytest.raises(StoreCorrupt, match="another program"):
        Reader(path)


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreCorrupt, match=r"damaged.*sqlite3 .* \.recover"):
        Reader(path)


def test_a_file_that_nobody_has_set_up(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreUnusable, match="empty"):
        Reader(path)


def test_a_file_of_a_newer_taskpool(path: Path) -> None:
    Store.open(path).close()
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    other.close()
    with pytest.raises(StoreTooNew, match="upgrade"):
        Reader(path)


def test_a_file_that_somebody_keeps_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.store.connection.PATIENCE_S", 0.05)
    Store.open(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("UPDATE meta SET turn = turn")
    with pytest.raises(StoreError, match="locked"):
        Reader(path)
    other.execute("ROLLBACK")
    other.close()


def test_a_reader_leaves_a_crash_as_it_is(path: Path) -> None:
    store = Store.open(path)
    fill(store)
    store.close(clean=False)
    log = path.with_name("x.db-wal")
    before = (path.stat().st_size, log.stat().st_size)
    with Reader(path) as reader:
        assert len(reader.tasks()) == 10
        assert reader.meta()["clean"] == 0
    assert (path.stat().st_size, log.stat().st_size) == before


def test_a_reader_sees_each_turn(path: Path) -> None:
    store = Store.open(path)
    with Reader(path) as reader:
        for n in range(1, 6):
            store.commit([insert(n)])
            assert reader.counts() == {"queued": n}
        assert store.checkpoint_wal()
        assert reader.counts() == {"queued": 5}
    store.close()


def test_words_in_packed_options_are_told_apart(tmp_path: Path) -> None:
    """One that only occurs in another option, or within a longer one, does not count; nor does SQL in one mean anything."""
    with closing(Store.open(tmp_path / "words.db")) as store:
        said = [
            Options(owner_id="ann"), Options(owner_type="ann"), Options(owner_id="anna"), Options(tags=("ann",)),
            Options(source="søn'; --"), Options(parent_id=1), Options(owner_id="ann", source="ann"),
        ]  # fmt: skip
        store.commit([insert(number, options=options) for number, options in enumerate(said, 1)])
        assert store.match(Filter(owner_id="ann")) == [7, 1]
        assert store.match(Filter(owner_type="ann")) == [2]
        assert store.match(Filter(tags=("ann",))) == [4]
        assert store.match(Filter(source="søn'; --")) == [5]
        assert store.match(Filter(owner_id="ann", source="ann")) == [7]
        assert store.match(Filter(parent_id=1)) == [6]
        assert store.match(Filter(owner_id="", source="")) == [6, 4, 2]
