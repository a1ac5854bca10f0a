"""A turn in the store: what it writes, what it refuses, and that it is one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from taskpool.core.commands import Checkpoint, Extras, Save
from taskpool.core.lifecycle import MOVES, RUNNING, TERMINAL
from taskpool.errors import BatchConflict, IllegalTransition
from taskpool.model import Progress, Status, TaskError
from taskpool.store import stages
from taskpool.store.conditions import StaleEpoch, StoreBusy, StoreFull, StoreIOError
from taskpool.store.stages import Grouping
from taskpool.store.store import Store
from tests.store_rig import T0, by_hand, end, insert, move, rows, start

STATUSES = [status.value for status in Status]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store.open(path, durability="process")
    yield opened
    opened.close()


def put(store: Store, task_id: int, status: str) -> int:
    """Bring a new task into a status by legal moves and return its version."""
    first = {"pending": "pending", "cancelled": "cancelled", "failed": "failed"}.get(status, "queued")
    saves: list[Save] = [insert(task_id, first)]
    if status not in (first, "queued"):
        saves.append(start(task_id))
    if status not in (first, "queued", "running"):
        assert store.commit(saves) == []
        saves = [end(task_id, status)]
    assert store.commit(saves) == []
    return store.task(task_id).version


# ---- a task's life --------------------------------------------------------------------------------------------------


def test_a_task_lives_through_three_turns(store: Store) -> None:
    store.commit([insert(1, priority=3, queue="cpu")])
    task = store.task(1)
    assert (task.status, task.version, task.priority, task.queue, task.payload) == ("queued", 1, 3, "cpu", b"payload 1")
    store.commit([start(1, worker=7)])
    task = store.task(1)
    assert (task.status, task.version, task.attempt, task.worker_id, task.epoch) == ("running", 2, 1, 7, store.epoch)
    assert task.started_at == T0 + 10
    store.commit([end(1)])
    task = store.task(1)
    assert (task.status, task.version, task.charged, task.result, task.result_codec) == ("succeeded", 3, 1, b"result", 0)
    assert (task.finished_at, task.error) == (T0 + 20, None)
    (attempt,) = store.attempts(1)
    assert (attempt.attempt, attempt.worker_id, attempt.pid, attempt.outcome) == (1, 1, 4711, "succeeded")
    assert (attempt.duration_s, attempt.cpu_user_s, attempt.cpu_system_s, attempt.peak_rss_bytes) == (5e-6, 0.004, 0.001, 2 << 20)


def test_a_task_started_in_its_first_turn_is_written_once(store: Store) -> None:
    (stage,) = Grouping(7, set()).group([insert(1), start(1, worker=3)])
    assert list(stage.params) == [stages.INSERT_RUNNING]
    store.commit([insert(1), start(1, worker=3)])
    task = store.task(1)
    assert (task.status, task.version, task.attempt, task.worker_id, task.started_at) == ("running", 2, 1, 3, T0 + 10)


def test_a_task_moved_in_its_first_turn_is_written_once(store: Store) -> None:
    saves = [
        insert(1, "pending"),
        move(1, "pending", "failed", error=TaskError("deadline"), extras=Extras(finish_reason="deadline")),
    ]
    (stage,) = Grouping(7, set()).group(saves)
    assert list(stage.params) == [stages.INSERT_MOVED]
    store.commit(saves)
    task = store.task(1)
    assert (task.status, task.version, task.finished_at, task.finish_reason) == ("failed", 2, T0 + 30, "deadline")
    assert task.error is not None
    assert task.error.kind == "deadline"


def test_a_task_due_and_started_in_its_first_turn(store: Store) -> None:
    """Three changes of one task: the first two join, the third begins a stage."""
    grouped = Grouping(1, set()).group([insert(1, "pending"), move(1, "pending", "queued"), start(1, 2)])
    assert [list(stage.params) for stage in grouped] == [[stages.INSERT_MOVED], [stages.START]]
    assert store.commit([insert(1, "pending"), move(1, "pending", "queued"), start(1, 2)]) == []
    assert (store.task(1).status, store.task(1).version) == ("running", 3)


def test_a_stage_holds_a_task_once(store: Store) -> None:
    store.commit([insert(1), insert(2)])
    saves: list[Save] = [start(1), start(2), end(1, "retrying", scheduled_at=T0 + 99), move(1, "retrying", "queued", 3), end(2)]
    grouped = Grouping(store.epoch, set()).group(saves)
    assert [sorted(stage.ids) for stage in grouped] == [[1, 2], [1], [1, 2]]
    assert store.commit(saves) == []
    assert (store.task(1).status, store.task(1).version, store.task(2).status) == ("queued", 4, "succeeded")


def test_rows_of_one_kind_go_in_together() -> None:
    saves: list[Save] = []
    for task_id in range(1, 101):
        saves += [insert(task_id), start(task_id)]
    (stage,) = Grouping(1, set()).group(saves)
    assert {statement: len(params) for statement, params in stage.params.items()} == {stages.INSERT_RUNNING: 100}


def test_wide_and_narrow_inserts_write_the_same(store: Store) -> None:
    """Numbers of rows around the width of a wide INSERT."""
    task_id = 0
    for count in (1, 24, 25, 26, 50, 51, 77):
        ids = range(task_id + 1, task_id + count + 1)
        task_id += count
        assert store.commit([insert(one, payload=b"%d" % one) for one in ids]) == []
        assert [row.id for row in store.rows(ids)] == list(ids)
        assert [store.payloads([one])[one][1] for one in ids] == [b"%d" % one for one in ids]
    assert store.counts() == {"queued": task_id}


@pytest.mark.parametrize("wrong", [0, 1, 50, 99])
def test_rows_alike_and_unlike_are_updated_the_same(store: Store, wrong: int) -> None:
    """Starts and ends of many tasks, most of which differ only in the id; one of each kind is refused."""
    ids = range(1, 101)
    store.commit([insert(n) for n in ids])
    starts = [start(n, version=7 if n == wrong else 1, worker=2 if n % 9 == 0 else 1) for n in ids]
    assert store.commit(starts) == ([wrong] if wrong else [])
    assert [row.id for row in store.running()] == [n for n in ids if n != wrong]
    assert {store.task(n).worker_id for n in ids if n % 9 == 0 and n != wrong} == {2}
    late = 100 if wrong != 100 else 98
    ends = [end(n, attempt=2 if n == late else 1, value=b"own %d" % n if n % 5 == 0 else b"same") for n in ids if n != wrong]
    assert store.commit(ends) == [late]
    for n in ids:
        if n not in (wrong, late):
            assert store.task(n).result == (b"own %d" % n if n % 5 == 0 else b"same")
    assert store.counts_by_queue() == store.recount()


def test_a_long_payload_lies_beside_its_row(store: Store, path: Path) -> None:
    long = b"x" * (stages.PAYLOAD_INLINE_MAX + 1)
    store.commit([insert(1, payload=long), start(1), insert(2, payload=long[1:])])
    assert rows(path, "SELECT id, length(data) FROM payload") == [(1, len(long))]
    assert store.payloads([1, 2]) == {1: (1, long, b"", "jobs:price", None), 2: (1, long[1:], b"", "jobs:price", None)}
    assert store.task(1).payload == long


def test_a_retry_keeps_the_history_and_the_last_error(store: Store) -> None:
    store.commit([insert(1), start(1)])
    store.commit([end(1, "retrying", scheduled_at=T0 + 500, extras=Extras(crashes=1))])
    task = store.task(1)
    assert (task.status, task.scheduled_at, task.crashes, task.finished_at) == ("retrying", T0 + 500, 1, None)
    assert task.error is not None
    store.commit([start(1, 3, "retrying", attempt=2), end(1, version=4, attempt=2, charged=2)])
    task = store.task(1)
    assert (task.status, task.attempt, task.charged, task.crashes, task.error) == ("succeeded", 2, 2, 1, None)
    first, second = store.attempts(1)
    assert (first.outcome, second.outcome) == ("retrying", "succeeded")
    assert first.error == TaskError("handler", "it raised")


def test_a_retry_by_hand_clears_the_end(store: Store) -> None:
    store.commit([insert(1), start(1)])
    store.commit([end(1)])
    store.commit([move(1, "succeeded", "pending", 3, charged=0, extras=Extras(round=1), clear_error=True, scheduled_at=T0 + 40)])
    task = store.task(1)
    assert (task.status, task.version, task.round, task.charged, task.scheduled_at) == ("pending", 4, 1, 0, T0 + 40)
    assert (task.result, task.error, task.finished_at) == (None, None, None)
    assert len(store.attempts(1)) == 1


def test_a_mark_changes_the_version_and_not_the_status(store: Store) -> None:
    put(store, 1, RUNNING)
    assert store.commit([move(1, RUNNING, RUNNING, 2, extras=Extras(cancel_requested_at=T0 + 30, cancel_reason="no more"))]) == []
    task = store.task(1)
    assert (task.status, task.version, task.cancel_requested_at) == (RUNNING, 3, T0 + 30)
    (row,) = store.running()
    assert (row.cancel_reason, row.upstream, row.worker, row.attempt) == ("no more", False, 1, 1)
    assert store.counts() == {RUNNING: 1}


def test_it_is_kept_by_whom_a_cancel_was_asked_for(store: Store) -> None:
    put(store, 1, RUNNING)
    store.commit([move(1, RUNNING, RUNNING, 2, extras=Extras(cancel_requested_at=T0 + 30, upstream=True))])
    (row,) = store.running()
    assert row.upstream


def test_marks_of_an_older_version_are_read() -> None:
    """Fields are only ever appended, so that rows of an older version decode."""
    older = msgspec.msgpack.encode([0, 1, 2, 0, T0, "no more", None, True])
    assert msgspec.msgpack.decode(older, type=Extras) == Extras(
        crashes=1, interruptions=2, cancel_requested_at=T0, cancel_reason="no more", begun=True
    )


# ---- moves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", STATUSES)
@pytest.mark.parametrize("after", STATUSES)
def test_every_pair_of_statuses(store: Store, before: str, after: str) -> None:
    """Legal moves are stored; illegal ones raise, and nothing of their turn is written."""
    version = put(store, 1, before)
    save: Save
    if after == RUNNING and before != RUNNING:
        save = start(1, version, before)
    elif before == RUNNING and after != RUNNING:
        save = end(1, after, version)
    else:
        save = move(1, before, after, version)
    legal = after in MOVES[before] or (after == before and before not in TERMINAL)
    if legal:
        assert store.commit([save, insert(2)]) == []
        assert (store.task(1).status, store.task(1).version) == (after, version + 1)
    else:
        with pytest.raises(IllegalTransition):
            store.commit([insert(2), save])
        assert (store.task(1).status, store.task(1).version) == (before, version)
        assert store.rows([2]) == []
    assert store.counts_by_queue() == store.recount()


@pytest.mark.parametrize("status", STATUSES)
def test_a_new_task_may_only_begin_where_the_table_says(store: Store, status: str) -> None:
    if status in MOVES[""]:
        assert store.commit([insert(1, status)]) == []
    else:
        with pytest.raises(IllegalTransition):
            store.commit([insert(1, status)])


@pytest.mark.parametrize("actual", STATUSES)
@pytest.mark.parametrize("said", STATUSES)
def test_a_write_against_another_status_is_refused(store: Store, actual: str, said: str) -> None:
    """The store asserts what the scheduler believes, whatever it believes."""
    version = put(store, 1, actual)
    for to in MOVES[said]:
        save: Save = (
            start(1, version, said) if to == RUNNING else end(1, to, version) if said == RUNNING else move(1, said, to, version)
        )
        refused = store.commit([save])
        if said == actual:
            assert refused == []
            return
        assert refused == [1]
        assert (store.task(1).status, store.task(1).version) == (actual, version)


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_write_against_another_version_is_refused(store: Store) -> None:
    put(store, 1, RUNNING)
    for version in (1, 3):
        assert store.commit([end(1, version=version)]) == [1]
    assert store.task(1).version == 2
    assert store.attempts(1) == []


def test_a_late_end_of_an_older_attempt_is_refused(store: Store) -> None:
    store.commit([insert(1), start(1)])
    store.commit([end(1, "retrying", scheduled_at=T0)])
    store.commit([start(1, 3, "retrying", attempt=2)])
    assert store.commit([end(1, version=4, attempt=1)]) == [1]
    assert (store.task(1).status, store.task(1).attempt) == (RUNNING, 2)


def test_what_belongs_together_is_stored_all_or_none(store: Store) -> None:
    """A submit of many: one uid that is taken, and none of them is there; others of the turn are."""
    store.commit([insert(1)])
    saves = [insert(2), insert(3, uid=1), start(2), insert(4), insert(5), insert(6, uid=5), start(5)]
    assert store.commit(saves, together=[[2, 3], [4], [5], [6]]) == [2, 3, 6]
    assert [task.id for task in store.tasks()] == [5, 4, 1]
    assert store.task(5).status == "running"
    saves = [insert(7), insert(8, uid=9), insert(9), insert(10, uid=7)]
    assert store.commit(saves, together=[[7, 8], [9, 10]]) == [9, 10], "the first is whole, so the second must go"
    assert store.recount() == store.counts_by_queue()


def test_what_a_refused_one_had_taken_is_free_again(store: Store) -> None:
    store.commit([insert(1)])
    saves = [insert(2, uid=50), insert(3, uid=1), insert(4, uid=50)]
    assert store.commit(saves, together=[[2, 3], [4]]) == [2, 3, 4], "it was refused while the first stood"
    assert [task.id for task in store.tasks()] == [1]


def test_a_refused_row_takes_nobody_with_it(store: Store) -> None:
    for task_id in (1, 2, 3):
        put(store, task_id, RUNNING)
    refused = store.commit(
        [insert(4), end(1), end(2, version=9), start(4), end(3), insert(5, uid=1), move(5, "queued", "cancelled")]
    )
    assert refused == [2, 5]
    assert [store.task(task_id).status for task_id in (1, 2, 3, 4)] == ["succeeded", RUNNING, "succeeded", RUNNING]
    assert store.rows([5]) == []
    assert store.counts_by_queue() == store.recount()


def test_a_uid_is_stored_once(store: Store) -> None:
    store.commit([insert(1)])
    assert store.commit([insert(2, uid=1), insert(3)]) == [2]
    assert store.find_uids([(1).to_bytes(16), (2).to_bytes(16), (3).to_bytes(16)]) == {(1).to_bytes(16): 1, (3).to_bytes(16): 3}


def test_an_id_is_stored_once(store: Store) -> None:
    store.commit([insert(1, payload=b"first")])
    assert store.commit([insert(1, uid=2, payload=b"second")]) == [1]
    assert store.task(1).payload == b"first"


def test_wide_inserts_are_refused_row_by_row(store: Store) -> None:
    store.commit([insert(1)])
    assert store.commit([insert(task_id, uid=1 if task_id == 40 else task_id) for task_id in range(2, 82)]) == [40]
    assert store.counts() == {"queued": 80}


def test_an_item_of_a_batch_is_stored_once(store: Store) -> None:
    assert store.commit([insert(1, batch="night", item=0), insert(2, batch="night", item=1), insert(3)]) == []
    assert store.commit([insert(4, batch="night", item=1), insert(5, batch="day", item=1)]) == [4]
    assert [(item.item, item.id, item.status) for item in store.find_batch("night")] == [(0, 1, "queued"), (1, 2, "queued")]


def test_a_batch_is_forgotten_when_all_of_it_has_ended(store: Store) -> None:
    store.commit([insert(1, batch="night", item=0), insert(2, batch="night", item=1), start(1), start(2)])
    store.commit([end(1)])
    with pytest.raises(BatchConflict, match="task 2 of batch 'night' has not ended"):
        store.forget_batch("night")
    store.commit([end(2, "failed")])
    store.forget_batch("night")
    assert store.find_batch("night") == []
    assert store.task(1).result == b"result"
    assert store.commit([insert(3, batch="night", item=0)]) == []


def test_a_batch_item_knows_other_work(store: Store) -> None:
    store.commit([insert(1, batch="night", item=0, codec=0, payload=b"\x92\x90\x80"), insert(2, batch="night", item=1)])
    first, second = store.find_batch("night", [0, 1, 2])
    first.check_same(insert(9, batch="night", codec=0, payload=b"\x92\x90\x80").spec)
    second.check_same(insert(9, batch="night", payload=b"the same arguments, pickled elsewhere").spec)
    with pytest.raises(BatchConflict, match="other arguments"):
        first.check_same(insert(9, batch="night", codec=0, payload=b"\x92\x91\x01\x80").spec)
    with pytest.raises(BatchConflict, match="handler jobs:price, now it is jobs:other"):
        second.check_same(insert(9, batch="night", name="jobs:other").spec)


# ---- checkpoints and progress ---------------------------------------------------------------------------------------


def test_the_last_checkpoint_of_a_live_attempt_is_kept(store: Store, path: Path) -> None:
    put(store, 1, RUNNING)
    store.commit([Checkpoint(1, 1, b"one"), Checkpoint(1, 1, b"two")])
    store.commit([Checkpoint(1, 1, b"three"), end(1, "retrying", scheduled_at=T0)])
    assert store.payloads([1])[1][4] == b"three"
    assert store.commit([Checkpoint(1, 1, b"too late")]) == []
    store.commit([start(1, 3, "retrying", attempt=2), Checkpoint(1, 1, b"of an older attempt")])
    assert store.payloads([1])[1][4] == b"three"
    store.commit([Checkpoint(1, 2, b"four")])
    assert rows(path, "SELECT * FROM checkpoint") == [(1, 2, b"four")]
    store.commit([end(1, version=4, attempt=2)])
    assert rows(path, "SELECT * FROM checkpoint") == []


def test_a_checkpoint_is_deleted_with_a_success_of_a_later_epoch(path: Path) -> None:
    store = Store.open(path)
    put(store, 1, RUNNING)
    store.commit([Checkpoint(1, 1, b"state"), end(1, "pending", charged=0)])
    store.close()
    store = Store.open(path)
    store.commit([start(1, 3, "pending", attempt=2)])
    assert store.payloads([1])[1][4] == b"state"
    store.commit([end(1, version=4, attempt=2)])
    assert rows(path, "SELECT COUNT(*) FROM checkpoint") == [(0,)]
    store.close()


def test_progress_is_the_latest(store: Store) -> None:
    put(store, 1, RUNNING)
    assert store.save_progress([(1, Progress(1, 4, "a", T0)), (1, Progress(2, 4, "b", T0 + 1))])
    assert store.task(1).progress == Progress(2, 4, "b", T0 + 1)
    last = end(1)
    assert last.report is not None
    last.report.progress = Progress(4, 4, "done", T0 + 2)
    store.commit([last])
    assert store.task(1).progress == Progress(4, 4, "done", T0 + 2)


def test_progress_does_not_insist(store: Store, path: Path) -> None:
    put(store, 1, RUNNING)
    guest = sqlite3.connect(path, isolation_level=None)
    guest.execute("BEGIN IMMEDIATE")
    assert not store.save_progress([(1, Progress(1, 4))])
    guest.execute("ROLLBACK")
    guest.close()
    assert store.save_progress([(1, Progress(1, 4))])
    assert store.pragmas()["synchronous"] == 1


# ---- who may write, and when ----------------------------------------------------------------------------------------


def test_a_guest_with_the_write_lock_makes_the_store_busy(store: Store, path: Path) -> None:
    guest = sqlite3.connect(path, isolation_level=None)
    guest.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        store.commit([insert(1)])
    assert store.rows([1]) == []
    guest.execute("ROLLBACK")
    guest.close()
    assert store.commit([insert(1)]) == []
    assert store.counts() == {"queued": 1}


def test_an_older_epoch_writes_nothing_more(store: Store, path: Path) -> None:
    put(store, 1, RUNNING)
    by_hand(path, "UPDATE meta SET epoch = epoch + 1")
    with pytest.raises(StaleEpoch):
        store.commit([end(1)])
    with pytest.raises(StaleEpoch):
        store.save_progress([(1, Progress(1, 2))])
    with pytest.raises(StaleEpoch):
        store.forget_batch("night")
    assert store.task(1).status == RUNNING
    store.close()
    assert rows(path, "SELECT clean FROM meta") == [(0,)]


def test_a_queue_whose_tasks_all_ran_when_the_owner_died_is_known_to_the_next(path: Path) -> None:
    """The tally has no row for it: what runs is counted by its index."""
    store = Store.open(path)
    store.commit([insert(1), insert(2, queue="other"), start(2)])
    store.close(clean=False)
    store = Store.open(path)
    assert [state.name for state in store.queues()] == ["default", "other"]
    assert store.counts_by_queue() == store.recount() == {"default": {"queued": 1}, "other": {"running": 1}}
    assert store.counts() == {"queued": 1, "running": 1}
    store.commit([start(1), end(2)])
    assert store.counts_by_queue() == store.recount() == {"default": {"running": 1}, "other": {"succeeded": 1}}
    store.close()


def test_a_full_disk_refuses_and_keeps(store: Store) -> None:
    put(store, 1, RUNNING)
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFull):
        store.commit([insert(2, payload=b"x" * 1_000_000), end(1)])
    assert (store.task(1).status, store.rows([2])) == (RUNNING, [])
    assert store.commit([end(1)]) == []
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.commit([insert(2, payload=b"x" * 1_000_000)]) == []
    assert store.counts_by_queue() == store.recount()


def test_a_failing_disk_is_not_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(5, "injected")

    put(store, 1, RUNNING)
    monkeypatch.setattr("taskpool.faults.point", fail)
    with pytest.raises(StoreIOError):
        store.commit([end(1)])
    monkeypatch.undo()
    with pytest.raises(StoreIOError):
        store.commit([end(1)])
    assert store.task(1).status == RUNNING


def test_a_bug_of_ours_leaves_no_transaction_open(store: Store) -> None:
    with pytest.raises(sqlite3.Error):
        store.commit([insert(1, name=object())])
    assert not store._db.in_transaction
    assert store.commit([insert(1)]) == []


def test_an_empty_turn_writes_nothing(store: Store) -> None:
    turn = store.meta()["turn"]
    assert store.commit([]) == []
    assert store.meta()["turn"] == turn
    store.commit([insert(1)])
    assert store.meta()["turn"] == turn + 1


# ---- the log --------------------------------------------------------------------------------------------------------


def test_tidy_makes_a_checkpoint_when_one_is_due(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    real = store.checkpoint_wal
    monkeypatch.setattr(store, "checkpoint_wal", lambda truncate=True: made.append(truncate) or real(truncate))
    monkeypatch.setattr("taskpool.store.store.CHECKPOINT_ROWS", 100)
    for task_id in range(1, 100):
        store.commit([insert(task_id)])
        store.tidy()
    assert made == []
    store.commit([insert(100)])
    store.tidy()
    assert made == [False]
    store.commit([insert(101)])
    store.tidy()
    assert made == [False]


def test_large_values_make_a_checkpoint_due(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.store.store.CHECKPOINT_BYTES", 1 << 20)
    for task_id in range(1, 41):
        store.commit([insert(task_id, payload=b"x" * 100_000)])
        store.tidy()
    assert store.wal_bytes() < 3 << 20


def test_the_log_stays_bounded_by_commit_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.store.store.CHECKPOINT_COMMITS", 5)
    for task_id in range(1, 200):
        store.commit([insert(task_id)])
    assert store.wal_bytes() < 1 << 20


def test_a_reader_that_stays_open_hinders_no_commit(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskpool.store.store.CHECKPOINT_ROWS", 10)
    store.commit([insert(1)])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT COUNT(*) FROM task").fetchone() == (1,)
    for task_id in range(2, 60):
        assert store.commit([insert(task_id)]) == []
        store.tidy()
    assert not store.checkpoint_wal()
    assert store.notices == []
    monkeypatch.setattr("taskpool.store.store.WAL_WARN_BYTES", 10_000)
    for task_id in range(60, 100):
        store.commit([insert(task_id)])
        store.tidy()
    assert len(store.notices) == 1
    assert "read transaction" in store.notices[0]
    reader.execute("COMMIT")
    assert store.checkpoint_wal()
    assert store.wal_bytes() == 0
    reader.close()


def test_in_memory_the_same_code(path: Path) -> None:
    store = Store.open(path, memory=True)
    for status in STATUSES:
        put(store, STATUSES.index(status) + 1, status)
    assert store.counts() == dict.fromkeys(STATUSES, 1)
    store.tidy()
    assert store.start_check() is None
    assert (store.wal_bytes(), store.checkpoint_wal()) == (0, True)
    store.close()
    assert not path.exists()
    assert store.places.run.is_dir()


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
def test_the_settings_in_force(path: Path, durability: str, synchronous: int) -> None:
    store = Store.open(path, durability=durability)
    found = store.pragmas()
    assert found["synchronous"] == synchronous
    assert (found["journal_mode"], found["mmap_size"], found["wal_autocheckpoint"]) == ("wal", 0, 0)
    assert found["sqlite_version"] == sqlite3.sqlite_version
    assert store._db.execute("PRAGMA busy_timeout").fetchone() == (0,)
    store.close()
