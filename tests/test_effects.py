"""Effects: from the call in a body, through the turn of the store, to the rows of a user's tables."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskpool import Pool, RetryPolicy, TaskFailed, controller
from taskpool.core import effects as core
from taskpool.core import events as ev
from taskpool.core import retry
from taskpool.core.commands import Save
from taskpool.errors import InvalidPayload, InvalidTask, StoreUnusable
from taskpool.model import Controller, Options, TaskError
from taskpool.store.conditions import StoreBusy
from taskpool.store.store import Store
from taskpool.wire import effects
from taskpool.wire.effects import Effect
from taskpool.wire.jobs import ERROR, OK, Report
from taskpool.wire.limits import EFFECT_BYTES_MAX, EFFECTS_MAX
from taskpool.worker.controller import Detached
from tests.store_rig import end, insert, rows, start

INSERT = "INSERT INTO shop_order VALUES(?, ?)"


# ---- at the call ----------------------------------------------------------------------------------------------------


def check(sql: Any, params: Any = ()) -> Effect:
    return effects.checked(sql, params, [], 0)[0]


@pytest.mark.parametrize(
    ("sql", "params"),
    [
        ("insert into a values(?, ?2, ?)", (1, 2, 3)),
        ("  -- a comment; with a ?\nUPDATE a SET b = ':x ; ?' WHERE c = :c ;\n", {"c": 1, "unused": 2}),
        ("WITH x AS (SELECT 1) DELETE FROM a WHERE b IN x", []),
        ('/* ; */ REPLACE INTO "a;b?"([c?], `d?`) VALUES(1, ?)', (b"x",)),
    ],
)
def test_statements_that_change_rows_are_taken(sql: str, params: Any) -> None:
    assert check(sql, params).sql == sql


@pytest.mark.parametrize(
    ("sql", "params", "words"),
    [
        (7, (), "a text in SQL, not a int"),
        ("", (), "cannot be ''"),
        ("SELECT 1", (), "cannot be 'SELECT 1'"),
        ("DROP TABLE a", (), "cannot be"),
        ("PRAGMA user_version = 7", (), "cannot be"),
        ("COMMIT", (), "cannot be"),
        ("-- INSERT\nVACUUM", (), "cannot be"),
        ("DELETE FROM a; DELETE FROM b", (), "one statement"),
        ("DELETE FROM a\0", (), "zero character"),
        ("DELETE FROM a WHERE b = '\ud800'", (), "no valid Unicode"),
        (INSERT, (1,), "2 parameters, and was given 1"),
        (INSERT, (1, 2, 3), "2 parameters, and was given 3"),
        (INSERT, "ab", "not a str"),
        (INSERT, 7, "not a int"),
        (INSERT, {"a": 1}, "no value for ?"),
        ("DELETE FROM a WHERE b = :b", (1,), "no value for :b"),
        ("DELETE FROM a WHERE b = @b AND c = $c", {"b": 1}, "no value for :c"),
        ("DELETE FROM a WHERE b = :b", {1: 1}, "name is a text"),
        (INSERT, (1, object()), "parameter 2 is a object"),
        (INSERT, (1, {}), "parameter 2 is a dict"),
        (INSERT, (2**63, 1), "over 64 bits"),
        (INSERT, (1, float("nan")), "NaN"),
        (INSERT, (1, "\udcff"), "no valid Unicode"),
    ],
)
def test_anything_else_is_refused_with_words(sql: Any, params: Any, words: str) -> None:
    with pytest.raises(InvalidPayload, match=words.replace("?", r"\?")):
        check(sql, params)


def test_values_come_as_sqlite_keeps_them() -> None:
    class Text(str):
        pass

    found = check("INSERT INTO a VALUES(?, ?, ?, ?, ?, ?)", (True, Text("x"), bytearray(b"y"), None, 1.5, -(2**63)))
    assert found.params == [1, "x", b"y", None, 1.5, -(2**63)]
    assert [type(value) for value in found.params] == [int, str, bytes, type(None), float, int]


def test_their_number_and_their_size_are_bounded() -> None:
    with pytest.raises(InvalidPayload, match="1000 effects"):
        effects.checked(INSERT, (1, 2), [Effect(INSERT)] * EFFECTS_MAX, 0)
    with pytest.raises(InvalidPayload, match="8 MiB"):
        effects.checked(INSERT, (1, bytes(100)), [], EFFECT_BYTES_MAX - 100)


def test_outside_of_a_task_they_are_checked_and_kept() -> None:
    outside = Detached()
    outside.on_success(INSERT, (1, 2))
    assert outside.effects == [Effect(INSERT, [1, 2])]
    with pytest.raises(InvalidPayload):
        outside.on_success("DROP TABLE a")


# ---- in the store ---------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store.open(path, durability="process")
    ours(path)
    yield opened
    opened.close()


def ours(path: Path, more: str = "") -> None:
    """Make a user's tables."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE shop_order(id INTEGER PRIMARY KEY, item TEXT);"
            "CREATE TABLE shop_count(name TEXT PRIMARY KEY, n INTEGER NOT NULL);"
            f"INSERT INTO shop_count VALUES('orders', 0); {more}"
        )


def told(task_id: int, *statements: tuple[str, Any] | str, attempt: int = 1) -> Report:
    made = [Effect(one) if isinstance(one, str) else Effect(one[0], list(one[1])) for one in statements]
    return Report(1, task_id, attempt, OK, 0, 5_000, codec=0, value=b"result", effects=made)


def run(store: Store, *task_ids: int) -> None:
    """Let tasks run."""
    store.commit([save for task_id in task_ids for save in (insert(task_id), start(task_id))])


def turn(store: Store, *reports: Report) -> dict[int, TaskError]:
    """Take reports through a turn as the loop does; return what failed."""
    keyed = {(report.task_id, report.attempt): report for report in reports}
    failed = store.try_effects(keyed)
    core.fail([ev.Reported(1, 4711, list(reports))], failed)
    saves: list[Save] = [
        end(report.task_id, report=report) if report.outcome == OK else end(report.task_id, "failed", error=report.error)
        for report in reports
    ]
    assert store.commit(saves, effects=core.wanted(saves)) == []
    return {task_id: error for (task_id, _), error in failed.items()}


def orders(path: Path) -> list[tuple[int, str]]:
    return rows(path, "SELECT id, item FROM shop_order ORDER BY id")


def test_they_are_applied_in_the_transaction_of_the_success(store: Store, path: Path) -> None:
    run(store, 1)
    count = ("UPDATE shop_count SET n = n + 1", ())
    assert store.try_effects({(1, 1): told(1, (INSERT, (7, "tea")), count)}) == {}
    assert orders(path) == [], "not before it is committed"
    saves = [end(1, report=told(1, (INSERT, (7, "tea")), count))]
    store.commit(saves, effects=core.wanted(saves))
    assert orders(path) == [(7, "tea")]
    assert rows(path, "SELECT n FROM shop_count") == [(1,)]
    assert store.task(1).status == "succeeded"


def test_one_that_fails_takes_back_its_own_attempts_alone(store: Store, path: Path) -> None:
    run(store, 1, 2, 3)
    failed = turn(
        store,
        told(1, (INSERT, (1, "a"))),
        told(2, (INSERT, (2, "b")), (INSERT, (1, "again"))),
        told(3, (INSERT, (3, "c"))),
    )
    assert orders(path) == [(1, "a"), (3, "c")]
    assert failed.keys() == {2}
    assert (failed[2].kind, failed[2].type_name) == ("effect", "sqlite3.IntegrityError")
    assert failed[2].message == f"on_success statement 2 of 2: UNIQUE constraint failed: shop_order.id: {INSERT}"
    assert [str(store.task(task_id).status) for task_id in (1, 2, 3)] == ["succeeded", "failed", "succeeded"]


ENDLESS = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) INSERT INTO shop_order SELECT n, '' FROM x WHERE n < 0"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (ENDLESS, "more than .* steps"),
        ("INSERT OR ROLLBACK INTO shop_order VALUES(1, 'again')", "UNIQUE"),
        ("INSERT INTO shop_order VALUES(-1, 'rolls back')", "not that"),
    ],
)
def test_one_that_ends_the_transaction_costs_nobody_else_anything(store: Store, path: Path, statement: str, words: str) -> None:
    """An interrupt and a ROLLBACK end all that SQLite was at: the others are written anew."""
    ours_too = "CREATE TRIGGER shop_no BEFORE INSERT ON shop_order WHEN new.id = -1 BEGIN SELECT RAISE(ROLLBACK, 'not that'); END"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(ours_too)
    run(store, 1, 2, 3)
    turn_before = store.meta()["turn"]
    failed = turn(store, told(1, (INSERT, (1, "a"))), told(2, (INSERT, (2, "b")), statement), told(3, (INSERT, (3, "c"))))
    assert failed.keys() == {2}
    assert re.search(f"statement 2 of 2: .*{words}", failed[2].message)
    assert orders(path) == [(1, "a"), (3, "c")]
    assert store.meta()["turn"] == turn_before + 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE task SET status = 'failed'",
        'DELETE FROM "TASK"',
        "INSERT INTO shop_order SELECT id, name FROM task",
        "INSERT INTO meta DEFAULT VALUES",
        "UPDATE sqlite_sequence SET seq = 0",
        "DELETE FROM sqlite_master",
        "INSERT INTO shop_order SELECT 1, load_extension('x')",
        "INSERT INTO shop_order SELECT 1, name FROM pragma_table_info('shop_order')",
        "INSERT INTO shop_task VALUES(1)",  # by a trigger
        "DELETE FROM shop_view",  # likewise
        "INSERT INTO nothing VALUES(1)",
        "INSERT INTO",
        "INSERT INTO shop_order VALUES(1, zeroblob(1000000000))",
    ],
)
def test_what_is_not_theirs_they_cannot_touch(store: Store, path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE shop_task(id INTEGER);"
            "CREATE TRIGGER shop_task_on AFTER INSERT ON shop_task BEGIN UPDATE task SET status = 'failed'; END;"
            "CREATE VIEW shop_view AS SELECT 1 AS one;"
            "CREATE TRIGGER shop_view_on INSTEAD OF DELETE ON shop_view BEGIN DELETE FROM attempt; END"
        )
    run(store, 1)
    before = rows(path, "SELECT status, attempt FROM task")
    failed = turn(store, told(1, statement))
    assert failed[1].kind == "effect"
    assert rows(path, "SELECT status FROM task") == [("failed",)], before
    assert orders(path) == []


def test_a_statement_of_ours_is_no_key_to_our_tables(store: Store, path: Path) -> None:
    """SQLite compiled it for us without asking, and Python keeps it by its text."""
    ours = "UPDATE task SET extras = NULL WHERE id = 2"
    store._db.execute(ours)
    run(store, 1)
    assert "is taskpool's" in turn(store, told(1, ours))[1].message
    run(store, 2)
    assert turn(store, told(2, (INSERT, (1, "a")))) == {}, "and our own writing goes on"


def test_triggers_and_search_of_theirs_work(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE VIRTUAL TABLE shop_words USING fts5(item);"
            "CREATE TABLE shop_log(id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT);"
            "CREATE TRIGGER shop_new AFTER INSERT ON shop_order BEGIN INSERT INTO shop_log(item) VALUES(new.item); END"
        )
    run(store, 1)
    many = ("INSERT INTO shop_order SELECT value, 'x' FROM json_each(?)", ("[2, 3]",))
    assert turn(store, told(1, (INSERT, (1, "green tea")), many, ("INSERT INTO shop_words VALUES(?)", ("green tea",)))) == {}
    assert rows(path, "SELECT item FROM shop_words WHERE shop_words MATCH 'tea'") == [("green tea",)]
    assert rows(path, "SELECT id, item FROM shop_log") == [(1, "green tea"), (2, "x"), (3, "x")]


def test_a_report_that_comes_too_late_has_no_effect(store: Store, path: Path) -> None:
    run(store, 1)
    store.commit([end(1, "retrying", charged=1), start(1, version=3, status="retrying", attempt=2)])
    assert store.try_effects({(1, 1): told(1, (INSERT, (1, "late"))), (9, 1): told(9, (INSERT, (9, "nobody's")))}) == {}
    store.commit([insert(2)])
    assert orders(path) == []


def test_effects_without_their_success_are_not_stored(store: Store, path: Path) -> None:
    """The scheduler may know better than the store: then nothing of them is left, and nothing else is lost."""
    run(store, 1, 2)
    both = {(1, 1): told(1, (INSERT, (1, "a"))), (2, 1): told(2, (INSERT, (2, "b")))}
    assert store.try_effects(both) == {}
    saves: list[Save] = [end(1, "queued", charged=0), end(2, report=both[2, 1])]
    store.commit(saves, effects=core.wanted(saves))
    assert orders(path) == [(2, "b")]
    run(store, 3)
    store.try_effects({(3, 1): told(3, (INSERT, (3, "c")))})
    store.abandon()
    assert orders(path) == [(2, "b")]


def test_a_success_that_is_refused_takes_its_effects_along(store: Store, path: Path) -> None:
    run(store, 1, 2)
    reports = [told(1, (INSERT, (1, "a"))), told(2, (INSERT, (2, "b")))]
    store.try_effects({(report.task_id, 1): report for report in reports})
    saves = [end(1, version=7, report=reports[0]), end(2, report=reports[1])]
    assert store.commit(saves, effects=core.wanted(saves)) == [1]
    assert orders(path) == [(2, "b")]
    assert str(store.task(1).status) == "running"


def test_any_other_transaction_leaves_nothing_of_what_was_tried(store: Store, path: Path) -> None:
    run(store, 1)
    store.try_effects({(1, 1): told(1, (INSERT, (1, "a")))})
    store.close()
    assert orders(path) == []
    assert rows(path, "SELECT status FROM task") == [("running",)]


def test_a_turn_is_stored_later_with_its_effects(store: Store, path: Path) -> None:
    """As when the disk was full at the commit."""
    run(store, 1)
    report = told(1, (INSERT, (1, "a")))
    store.try_effects({(1, 1): report})
    store.abandon()
    saves = [end(1, report=report)]
    assert store.commit(saves, effects=core.wanted(saves)) == []
    assert orders(path) == [(1, "a")]


def test_an_effect_that_fails_after_it_was_decided_upon_ends_the_owner(store: Store, path: Path) -> None:
    run(store, 1)
    report = told(1, (INSERT, (1, "a")))
    store.try_effects({(1, 1): report})
    store.abandon()
    with closing(sqlite3.connect(path, isolation_level=None)) as guest:
        guest.execute(INSERT, (1, "first"))
    saves = [end(1, report=report)]
    for _ in range(2):
        with pytest.raises(StoreUnusable, match="an effect of task 1"):
            store.commit(saves, effects=core.wanted(saves))
    assert rows(path, "SELECT status FROM task") == [("running",)]
    assert orders(path) == [(1, "first")]


def test_while_a_guest_writes_nothing_is_tried(store: Store, path: Path) -> None:
    run(store, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as guest:
        guest.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            store.try_effects({(1, 1): told(1, (INSERT, (1, "a")))})
        guest.execute("COMMIT")
    assert turn(store, told(1, (INSERT, (1, "a")))) == {}


# ---- what is decided ------------------------------------------------------------------------------------------------


def test_a_failed_effect_makes_the_report_a_failure() -> None:
    good, bad = told(1, INSERT), told(2, INSERT)
    events = [ev.Reported(1, 4711, [good, bad])]
    assert core.told(events) == {(1, 1): good, (2, 1): bad}
    core.fail(events, {(2, 1): TaskError("effect", "why")})
    assert (good.outcome, bad.outcome, bad.value, bad.effects) == (OK, ERROR, None, None)
    assert core.told(events) == {(1, 1): good}


@pytest.mark.parametrize(
    ("policy", "retried"),
    [
        (None, False),
        (RetryPolicy(), False),
        (RetryPolicy(retryable_error_kinds=("effect",)), True),
        (RetryPolicy(retryable_error_kinds=("effect",), maximum_attempts=1), False),
        (RetryPolicy(retryable_error_kinds=("result",)), False),
    ],
)
def test_it_is_retried_only_if_the_policy_says_so(policy: RetryPolicy | None, retried: bool) -> None:
    options = Options(retry=policy, max_attempts=None if policy else 5)
    due = retry.after_failure(options, TaskError("effect", "why", False), 1, 0, 1, 0)
    assert (due is not None) == retried


def test_a_policy_can_name_only_kinds_that_wait_for_being_named() -> None:
    with Pool(workers=1) as pool, pytest.raises(InvalidTask, match="cannot name 'cancelled'"):
        pool.options(retry=RetryPolicy(retryable_error_kinds=("cancelled",)))


# ---- the whole way --------------------------------------------------------------------------------------------------


def order(ctl: Controller, number: int, item: str) -> str:
    ctl.on_success(INSERT, (number, item))
    ctl.on_success("UPDATE shop_count SET n = n + :n", {"n": 1})
    if item == "broken":
        raise ValueError(item)
    return f"{number}: {item}"


def order_late(number: int) -> None:
    """Fail at the first attempt, and hand over effects all the same."""
    ctl = controller()
    ctl.on_success(INSERT, (number, f"attempt {ctl.attempt}"))
    if ctl.attempt == 1:
        raise ValueError("not yet")


def order_big(number: int) -> None:
    controller().on_success(INSERT, (number, "x" * 2_000_000))


def test_rows_come_with_successes_alone(path: Path) -> None:
    with Pool(path, workers=1, durability="process") as pool:
        ours(path)
        good = pool.submit(order, 1, "tea")
        bad = pool.submit(order, 2, "broken")
        twice = pool.submit(order, 1, "the same again")
        assert good.result(30) == "1: tea"
        with pytest.raises(ValueError, match="broken"):
            bad.result(30)
        with pytest.raises(TaskFailed, match=r"on_success statement 1 of 2: UNIQUE") as caught:
            twice.result(30)
        assert caught.value.error.kind == "effect"
        assert twice.task().charged == 1
        late = pool.options(retry=RetryPolicy(initial_interval=0.01)).submit(order_late, 3)
        late.result(30)
        pool.submit(order_big, 4).result(30)
    assert [(number, item[:9]) for number, item in orders(path)] == [(1, "tea"), (3, "attempt 2"), (4, "x" * 9)]
    assert rows(path, "SELECT n FROM shop_count") == [(1,)]


def test_an_effect_that_failed_is_tried_again_where_that_is_wanted(path: Path) -> None:
    policy = RetryPolicy(initial_interval=0.01, maximum_attempts=50, retryable_error_kinds=("effect",))
    with Pool(path, workers=1, durability="process") as pool:
        future = pool.options(retry=policy).submit(order, 1, "tea")  # there is no such table yet
        while not future.attempts:
            pass
        ours(path)
        assert future.result(30) == "1: tea"
        assert future.attempts[0].error.kind == "effect"
    assert orders(path) == [(1, "tea")]
