"""Tasks in the caller's transaction: stored if, and only if, it commits, whatever else happens."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import taskpool
from bench import processes
from taskpool import Enqueued, NotFound, Outbox, Pool, enqueue, try_execute_now
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.engines.inotify import FileWatch
from taskpool.errors import ArgCountError, InvalidHandler, InvalidPayload, InvalidTask, StoreTooNew, StoreUnusable
from taskpool.model import Options, TaskSpec, encode
from taskpool.store import inbox
from taskpool.store.conditions import StoreBusy
from taskpool.store.store import Store
from taskpool.supervisor.inbox import FULL_RETRY_NS, LOOK_NS_MIN, Inbox
from tests.scheduler_rig import Rig, of
from tests.store_rig import insert as insert_of
from tests.store_rig import rows

WAIT_S = 30.0


def double(n: int) -> int:
    return 2 * n


def nothing() -> None:
    pass


class Stubborn:
    """What cannot travel."""

    def __reduce__(self) -> Any:
        raise TypeError("not me")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def made(path: Path) -> Path:
    """A store that nobody owns."""
    Store.open(path, durability="process").close()
    return path


@pytest.fixture
def guest(made: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(made, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE shop_order(id INTEGER PRIMARY KEY)")
        yield connection


def waiting(path: Path) -> int:
    return int(rows(path, "SELECT COUNT(*) FROM inbox")[0][0])


# ---- the guest's side -----------------------------------------------------------------------------------------------


def test_tasks_are_there_if_and_only_if_the_transaction_commits(guest: sqlite3.Connection, made: Path) -> None:
    guest.execute("BEGIN")
    guest.execute("INSERT INTO shop_order VALUES(1)")
    tasks = enqueue(partial(double, 1), partial(double, n=2), nothing, connection=guest, priority=3)
    assert [type(task) for task in tasks] == [Enqueued] * 3
    assert (waiting(made), rows(made, "SELECT * FROM shop_order")) == (0, [])
    guest.execute("COMMIT")
    assert (waiting(made), rows(made, "SELECT * FROM shop_order")) == (3, [(1,)])
    guest.execute("BEGIN")
    enqueue(nothing, connection=guest)
    guest.execute("ROLLBACK")
    assert waiting(made) == 3
    with closing(Store.open(made, durability="process")) as store:
        found, more = store.arrivals()
    assert not more
    specs = [arrival.spec for arrival in found]
    assert [(spec.uid, spec.name, spec.priority) for spec in specs if spec] == [(task._uid, task.name, 3) for task in tasks]


def test_python_may_begin_the_transaction(made: Path) -> None:
    """As it does by default before an INSERT."""
    with closing(sqlite3.connect(made)) as connection:
        enqueue(nothing, connection=connection)
        assert connection.in_transaction
        connection.rollback()
        assert waiting(made) == 0
        with connection:
            enqueue(nothing, connection=connection)
        assert waiting(made) == 1


def test_the_block_commits_or_rolls_back(guest: sqlite3.Connection, made: Path) -> None:
    with taskpool.transaction(guest) as tx:
        task = tx.submit(double, 1)
        urgent = tx.options(priority=9).options(tags=["x"])
        urgent.submit(double, 2)
        assert waiting(made) == 0
    assert (waiting(made), len(tx.tasks), task.id) == (2, 2, 0)
    assert not guest.in_transaction
    with pytest.raises(ZeroDivisionError), taskpool.transaction(guest) as tx:
        tx.submit(double, 3)
        raise ZeroDivisionError
    assert waiting(made) == 2
    assert not guest.in_transaction
    with taskpool.transaction(guest) as tx:
        tx.submit(double, 3)
        guest.execute("ROLLBACK")
    assert waiting(made) == 2


def test_a_call_that_cannot_be_sent_leaves_the_transaction_as_it_was(guest: sqlite3.Connection, made: Path) -> None:
    guest.execute("BEGIN")
    guest.execute("INSERT INTO shop_order VALUES(1)")
    for error, call in (
        (ArgCountError, partial(double)),
        (InvalidPayload, partial(print, Stubborn())),
        (InvalidHandler, 7),
    ):
        with pytest.raises(error):
            enqueue(partial(double, 1), call, connection=guest)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="did you mean priority"):
        enqueue(nothing, connection=guest, priorty=1)  # type: ignore[call-arg]
    guest.execute("COMMIT")
    assert (waiting(made), rows(made, "SELECT * FROM shop_order")) == (0, [(1,)])


def test_in_autocommit_nothing_is_written(guest: sqlite3.Connection, made: Path) -> None:
    with pytest.raises(InvalidTask, match=r"no transaction is open .*BEGIN IMMEDIATE"):
        enqueue(nothing, connection=guest)
    assert waiting(made) == 0


def test_other_connections_are_refused_with_words(guest: sqlite3.Connection, made: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidTask, match=r"over a sqlite3\.Connection, not a str"):
        enqueue(nothing, connection="x.db")  # type: ignore[arg-type]
    closed = sqlite3.connect(made)
    closed.close()
    with pytest.raises(InvalidTask, match="closed database"):
        enqueue(nothing, connection=closed)
    with pytest.raises(InvalidTask, match="closed database"):
        taskpool.transaction(closed)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, pytest.raises(StoreUnusable, match=r"other\.db is no store"):
        enqueue(nothing, connection=other)
    with closing(sqlite3.connect(":memory:")) as other, pytest.raises(StoreUnusable, match="a database in memory is no store"):
        enqueue(nothing, connection=other)
    with closing(sqlite3.connect(f"file:{made}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        with pytest.raises(StoreUnusable, match="may only read"):
            enqueue(nothing, connection=reader)
    guest.execute("PRAGMA query_only = ON")
    guest.execute("BEGIN")
    with pytest.raises(StoreUnusable, match="read-only"):
        enqueue(nothing, connection=guest)
    guest.execute("ROLLBACK")
    guest.execute("PRAGMA query_only = OFF")
    with taskpool.transaction(guest), pytest.raises(InvalidTask, match="open on this connection already"):
        taskpool.transaction(guest).__enter__()
    with pytest.raises(InvalidTask, match="not open"):
        taskpool.transaction(guest).submit(nothing)
    guest.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreTooNew, match="schema 99"):
        enqueue(nothing, connection=guest)
    assert waiting(made) == 0


def test_whatever_factories_the_connection_has(guest: sqlite3.Connection, made: Path) -> None:
    guest.row_factory = lambda cursor, row: {"row": row}
    guest.text_factory = bytes
    with taskpool.transaction(guest) as tx:
        tx.submit(nothing)
    assert waiting(made) == 1
    assert tx.tasks[0].store == str(made)


def test_it_takes_the_checkpoints_from_the_guest(guest: sqlite3.Connection) -> None:
    with taskpool.transaction(guest) as tx:
        tx.submit(nothing)
    assert guest.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)


def test_a_store_of_a_version_before_is_named(guest: sqlite3.Connection) -> None:
    guest.execute("DROP TABLE inbox")
    guest.execute("BEGIN")
    with pytest.raises(StoreUnusable, match="older taskpool"):
        enqueue(nothing, connection=guest)


# ---- the owner's side -----------------------------------------------------------------------------------------------


def put(connection: sqlite3.Connection, *specs: TaskSpec) -> None:
    connection.execute("BEGIN IMMEDIATE")
    inbox.insert(connection, specs)
    connection.execute("COMMIT")


def spec(uid: int, **fields: Any) -> TaskSpec:
    return TaskSpec(uid.to_bytes(16), "jobs:price", 1, b"", **fields)


def taken(seqs: list[int]) -> list[cmd.Plan]:
    return [cmd.Taken(seq, 0) for seq in seqs]


class OneInbox:
    """An inbox whose watch is counted instead of read."""

    def __init__(self, store: Store) -> None:
        self.said: list[str] = []
        self.drained = 0
        self.quiet: list[bool] = []
        self.inbox = Inbox(store, self.said.append, watch=self)
        self.inbox.quiet = self.quiet.append

    def drain(self) -> None:
        self.drained += 1

    def take(self, now: int = 0) -> Any:
        events = self.inbox.take(now)
        assert len(events) <= 1
        return events[0] if events else None


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(path, durability="process")) as opened:
        yield opened


@pytest.fixture
def other(store: Store) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
        yield connection


def test_what_lies_there_at_the_start_is_found(store: Store, other: sqlite3.Connection) -> None:
    put(other, spec(1), spec(2))
    one = OneInbox(store)
    event = one.take()
    assert [found.uid for found in event.specs] == [spec(1).uid, spec(2).uid]
    assert store.commit([insert_of(1, uid=1), insert_of(2, uid=2)], plans=taken(event.seqs)) == []
    assert waiting(Path(store.path)) == 0
    assert one.take() is None


def test_a_uid_that_is_stored_is_only_taken_out(store: Store, other: sqlite3.Connection) -> None:
    store.commit([insert_of(1, uid=1)])
    put(other, spec(1), spec(2))
    event = OneInbox(store).take()
    assert (event.known, [found.uid for found in event.specs]) == ([1], [spec(2).uid])
    store.commit([], plans=taken(event.known))
    assert rows(Path(store.path), "SELECT seq FROM inbox") == [(2,)]
    put(other, spec(2))
    assert waiting(Path(store.path)) == 1, "it lies there already"


def test_taking_out_and_storing_are_one(store: Store, other: sqlite3.Connection) -> None:
    put(other, spec(1))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        store.commit([insert_of(1, uid=1)], plans=[cmd.Taken(1, 1)])
    other.execute("ROLLBACK")
    assert waiting(Path(store.path)) == 1
    assert store.commit([insert_of(1, uid=1)], plans=[cmd.Taken(1, 1)]) == []
    assert (waiting(Path(store.path)), store.counts()) == (0, {"queued": 1})


def test_what_is_refused_stays_in_the_inbox(store: Store, other: sqlite3.Connection) -> None:
    put(other, spec(1), spec(2))
    store.commit([insert_of(1, uid=1)])
    saves = [insert_of(2, uid=1), insert_of(3, uid=2)]
    assert store.commit(saves, plans=[cmd.Taken(1, 2), cmd.Taken(2, 3)]) == [2]
    assert rows(Path(store.path), "SELECT seq FROM inbox") == [(1,)]


def test_many_are_moved_in_pieces(store: Store, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "ROWS_MAX", 2)
    put(other, *(spec(uid) for uid in range(1, 6)))
    one = OneInbox(store)
    sizes = []
    while event := one.take():
        sizes.append(len(event.seqs))
        assert one.inbox.due == (sum(sizes) < 5)
        store.commit([], plans=taken(event.seqs))
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(inbox, "BYTES_MAX", 100)
    put(other, *(spec(uid, batch="x" * 90, item=uid) for uid in range(1, 4)))
    one.inbox.knock()
    assert len(one.take().seqs) == 1


def test_what_nobody_can_read_stays_and_holds_up_nothing(store: Store, other: sqlite3.Connection) -> None:
    other.execute("INSERT INTO inbox(uid, spec) VALUES(x'01', x'c1')")
    put(other, spec(2))
    one = OneInbox(store)
    event = one.take()
    assert event.seqs == [2]
    assert "row 1 of the inbox cannot be read" in one.said[0]
    store.commit([], plans=taken(event.seqs))
    one.inbox.knock()
    assert one.take() is None
    assert len(one.said) == 1
    assert rows(Path(store.path), "SELECT seq FROM inbox") == [(1,)]


def test_its_own_commits_say_nothing_and_a_guests_are_never_missed(store: Store, other: sqlite3.Connection) -> None:
    one = OneInbox(store)
    assert one.take() is None
    store.commit([insert_of(1)])
    one.inbox.settle()
    assert (one.inbox.due, one.drained) == (False, 1)
    put(other, spec(2))  # told together with ours, which are about to be forgotten
    store.commit([insert_of(3)])
    one.inbox.settle()
    assert one.inbox.due
    assert one.take().seqs == [1]


def test_a_log_that_is_written_all_the_time_is_looked_at_now_and_then(store: Store, other: sqlite3.Connection) -> None:
    other.execute("CREATE TABLE shop_order(id INTEGER PRIMARY KEY)")
    one = OneInbox(store)
    one.take()
    start = 10 * LOOK_NS_MIN
    one.inbox.stirred(start)
    assert (one.quiet, one.inbox.next_look(start)) == ([True], 0.0)
    assert one.take(start) is None
    assert one.quiet == [True, False]
    one.inbox.stirred(start + 1)
    assert one.inbox.next_look(start + 1) == pytest.approx(LOOK_NS_MIN / 1e9, rel=0.01)
    put(other, spec(1))
    one.inbox.settle()  # a commit of ours meanwhile forgets nothing
    assert one.take(start + 2) is None
    assert one.take(start + LOOK_NS_MIN).seqs == [1]


def test_those_without_room_are_looked_for_again(store: Store, other: sqlite3.Connection) -> None:
    put(other, spec(1))
    one = OneInbox(store)
    assert one.take().seqs == [1]
    one.inbox.again(0)
    assert one.take(FULL_RETRY_NS - 1) is None
    assert one.take(FULL_RETRY_NS).seqs == [1]


def test_the_kernel_tells_of_writes(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"")
    watch = FileWatch(str(file))
    try:
        watch.drain()
        with pytest.raises(BlockingIOError):
            os.read(watch.fd, 100)
        file.write_bytes(b"x")
        watch.drain()
        with pytest.raises(BlockingIOError):
            os.read(watch.fd, 100)
        file.write_bytes(b"y")
        assert os.read(watch.fd, 100)
    finally:
        watch.close()
    with pytest.raises(OSError, match="No such file"):
        FileWatch(str(tmp_path / "nothing"))


def test_the_scheduler_makes_tasks_of_arrivals() -> None:
    rig = Rig()
    commands = rig.turn(ev.Arrived([7, 8], [spec(1), spec(2, priority=5)], [Options(), Options()], [9]))
    assert [(one.id, one.spec.uid) for one in of(commands, cmd.Insert)] == [(1, spec(1).uid), (2, spec(2).uid)]
    assert [(one.seq, one.id) for one in of(commands, cmd.Taken)] == [(7, 1), (8, 2), (9, 0)]
    assert of(commands, cmd.Start)[0].id == 2
    assert of(commands, cmd.Accept) == []


# ---- the whole way --------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(path: Path) -> Iterator[Pool]:
    with Pool(path, workers=1, durability="process") as opened:
        yield opened


@pytest.fixture
def mine(pool: Pool) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(pool.store, isolation_level=None)) as connection:
        yield connection


def test_leaving_the_block_hands_them_to_the_live_supervisor(pool: Pool, mine: sqlite3.Connection) -> None:
    with taskpool.transaction(mine) as tx:
        task = tx.submit(double, 21)
        with pytest.raises(NotFound, match="has not committed"):
            pool.get(task)
    assert task.id == 1
    assert pool.future(task).result(WAIT_S) == 42
    assert (pool.get(task.uid).id, pool.get(1).uid) == (1, task.uid)
    assert pool.wait(task).result is not None
    assert repr(task).endswith("task 1>")


def test_a_commit_is_seen_without_a_word(pool: Pool, mine: sqlite3.Connection) -> None:
    """The file system tells."""
    pool.submit(double, 1).result(WAIT_S)
    for n in range(20):
        mine.execute("BEGIN")
        enqueue(partial(double, n), connection=mine)
        mine.execute("COMMIT")
    while pool.count(status="succeeded") < 21:
        pass
    assert waiting(Path(pool.store)) == 0


def test_a_deferred_transaction_is_not_lost_to_what_enqueue_reads(
    guest: sqlite3.Connection, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who commits between that and the insert would make SQLite refuse it; so the lock is taken first."""
    check = inbox.check

    def checked(connection: sqlite3.Connection) -> str:
        path = check(connection)
        with closing(sqlite3.connect(made, isolation_level=None, timeout=0)) as other, pytest.raises(sqlite3.OperationalError):
            other.execute("INSERT INTO shop_order VALUES(7)")
        return path

    monkeypatch.setattr(inbox, "check", checked)
    guest.execute("BEGIN")
    enqueue(nothing, connection=guest)
    guest.execute("COMMIT")
    assert waiting(made) == 1


def test_a_commit_is_seen_in_the_middle_of_other_work(pool: Pool, mine: sqlite3.Connection) -> None:
    futures = pool.submit_many(double, range(2000))
    for n in range(20):
        mine.execute("BEGIN IMMEDIATE")
        enqueue(partial(double, n), connection=mine)
        mine.execute("COMMIT")
    for future in futures:
        future.result(WAIT_S)
    while pool.count(status="succeeded") < 2020:
        pass


def test_try_execute_now_says_whether_they_are_there(pool: Pool, mine: sqlite3.Connection) -> None:
    mine.execute("BEGIN")
    tasks = enqueue(*(partial(double, n) for n in range(3000)), connection=mine)  # of more turns than one
    assert try_execute_now(*tasks, timeout=5) is False
    mine.execute("COMMIT")
    assert try_execute_now(*tasks, timeout=10) is True
    assert sorted(task.id for task in tasks) == list(range(1, 3001))
    lost = enqueue_and_roll_back(mine)
    assert try_execute_now(lost) is False
    with pytest.raises(NotFound, match="rolled back"):
        pool.future(lost)
    with pytest.raises(NotFound, match=f"there is no task {lost.uid}"):
        pool.get(lost.uid)
    for wrong in ("seven", "7", None, 7.0):
        with pytest.raises(InvalidTask, match=r"named by its id \(a whole number\), its UUID"):
            pool.get(wrong)  # type: ignore[arg-type]
    assert try_execute_now()


def enqueue_and_roll_back(connection: sqlite3.Connection) -> Enqueued:
    connection.execute("BEGIN")
    (task,) = enqueue(nothing, connection=connection)
    connection.execute("ROLLBACK")
    return task


def test_without_a_supervisor_they_wait_for_the_next(guest: sqlite3.Connection, made: Path) -> None:
    with taskpool.transaction(guest) as tx:
        task = tx.submit(double, 4)
    assert (task.id, try_execute_now(task)) == (0, False)
    with Pool(made, workers=1, durability="process") as pool:
        assert pool.future(task).result(WAIT_S) == 8


def test_an_open_transaction_of_a_guest_is_waited_for(pool: Pool, mine: sqlite3.Connection) -> None:
    with taskpool.transaction(mine) as tx:
        blocked = pool.submit_nowait(double, 1)
        task = tx.submit(double, 2)
        with pytest.raises(TimeoutError):
            blocked.result(0.1)
    assert blocked.result(WAIT_S) == 2
    assert pool.future(task).result(WAIT_S) == 4


def test_an_idle_supervisor_sleeps(pool: Pool, mine: sqlite3.Connection) -> None:
    """Its own commits do not wake it."""
    with taskpool.transaction(mine) as tx:
        task = tx.submit(double, 2)
    pool.future(task).result(WAIT_S)
    pool.stats()
    turns = pool.stats().turns
    before = processes.wakeups(pool.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=2.0, check=False)
    assert pool.stats().turns - turns <= 4, "this question, and at most one look a second"
    assert processes.wakeups(pool.pid) - before <= 12


# ---- the outbox -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as connection:
        yield connection


def test_tasks_of_another_file_arrive_when_its_transaction_commits(pool: Pool, shop: sqlite3.Connection) -> None:
    outbox = Outbox(shop, pool.store)
    with outbox.transaction() as tx:
        task = tx.submit(double, 5)
        tx.options(priority=1).submit(double, 6)
    assert pool.future(task).result(WAIT_S) == 10
    assert shop.execute("SELECT COUNT(*) FROM taskpool_outbox").fetchone() == (0,)
    with pytest.raises(ZeroDivisionError), outbox.transaction() as tx:
        tx.submit(double, 7)
        raise ZeroDivisionError
    assert outbox.deliver() == 0
    assert pool.count() == 2


def test_they_arrive_once_whoever_dies_on_the_way(made: Path, shop: sqlite3.Connection) -> None:
    outbox = Outbox(shop, made)
    shop.execute("BEGIN")
    tasks = [outbox.submit(double, 1), *outbox.options(tags=["x"]).enqueue(partial(double, 2), nothing)]
    assert outbox.deliver() == 0, "not before it commits"
    shop.execute("COMMIT")
    kept = shop.execute("SELECT uid, spec FROM taskpool_outbox").fetchall()
    assert outbox.deliver() == 3
    again = "INSERT INTO taskpool_outbox(uid, spec) VALUES(?, ?)"  # as if it had died before it forgot them
    shop.executemany(again, kept)
    assert outbox.deliver() == 3
    assert waiting(made) == 3
    with Pool(made, workers=1, durability="process") as pool:
        assert pool.future(tasks[1]).result(WAIT_S) == 4
        shop.executemany(again, kept)
        assert outbox.deliver() == 3
        assert [pool.get(task).id for task in tasks] == [1, 2, 3]
        assert pool.count() == 3
        assert waiting(made) == 0


def test_a_store_that_is_not_there_yet_costs_nothing(tmp_path: Path, shop: sqlite3.Connection) -> None:
    outbox = Outbox(shop, tmp_path / "later.db")
    with outbox.transaction() as tx:
        task = tx.submit(double, 1)
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        outbox.deliver()
    with Pool(tmp_path / "later.db", workers=1, durability="process") as pool:
        assert outbox.deliver() == 1
        assert pool.future(task).result(WAIT_S) == 2


def test_an_outbox_needs_a_file_and_a_transaction(made: Path, shop: sqlite3.Connection) -> None:
    with closing(sqlite3.connect(":memory:")) as memory, pytest.raises(InvalidTask, match="in memory can have no outbox"):
        Outbox(memory, made)
    with pytest.raises(InvalidTask, match="not a str"):
        Outbox("shop.db", made)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="no transaction is open"):
        Outbox(shop, made).submit(nothing)
    outbox = Outbox(shop, made)
    shop.close()
    with pytest.raises(InvalidTask, match="closed database"):
        Outbox(shop, made)
    assert outbox.deliver() == 0


def test_options_that_make_no_sense_are_seen_at_once(guest: sqlite3.Connection) -> None:
    assert encode(spec(1))
    with taskpool.transaction(guest) as tx, pytest.raises(InvalidTask, match="priority must be a whole number"):
        tx.options(priority="high")  # type: ignore[arg-type]
