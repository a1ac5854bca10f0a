"""Tasks that make tasks: with their success, exactly once, or at once; what cannot be spawned is an error where it is spawned."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import taskpool
from taskpool import (
    ArgCountError,
    ArgTypeError,
    Cancelled,
    Controller,
    HandlerNotFound,
    InvalidPayload,
    InvalidTask,
    Pool,
    PoolStopped,
    Queue,
    QueueFull,
    RetryPolicy,
    Spawned,
    Task,
    TaskCancelled,
    TaskFailed,
    controller,
    task,
)
from taskpool.core import children
from taskpool.model import Options, Running, StepSpec, TaskSpec, encode
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from taskpool.wire.jobs import ERROR, OK, Report
from taskpool.wire.limits import CHILDREN_BYTES_MAX, CHILDREN_MAX, PAYLOAD_BYTES_MAX
from taskpool.worker.children import FIELDS_BYTES, Brood
from taskpool.worker.controller import Detached
from tests.store_rig import end, insert, rows, start

WAIT_S = 30.0
AGAIN = RetryPolicy(initial_interval=0.01)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("spawn") / "x.db", workers=2, durability="process") as made:
        yield made


def eventually(pool: Pool, spawned: Spawned) -> Any:
    return pool.future(spawned.uid).result(WAIT_S)


def of(pool: Pool, parent: Any) -> list[Task]:
    """Return the children of a future's task, oldest first."""
    return sorted(pool.list(parent_id=parent.id), key=lambda child: child.id)


# ---- bodies ---------------------------------------------------------------------------------------------------------


@task(max_attempts=3, tags="leaf")
def leaf(n: int) -> int:
    return n * 10


def plain(n: int, *, now: bool = False) -> tuple[int, bool]:
    return n + 1, now


def breed(ctl: Controller, count: int) -> list[Spawned]:
    return [ctl.spawn(leaf, n) for n in range(count)]


def breed_of_all_kinds() -> list[Spawned]:
    ctl = controller()
    io = ctl.options(queue="io", priority=3, tags=["t"])
    return [
        ctl.spawn(leaf, 1),
        io.spawn(plain, 2, now=True),
        ctl.spawn(lambda: "by value"),
        io.options(trace_ctx={"traceparent": "own"}).spawn_now(plain, n=3),
        ctl.spawn("leaf", 4),
        ctl.spawn(leaf.options(delay=0.01), 5),
    ]


def breed_and(what: str, place: str = "") -> str:
    ctl = controller()
    ctl.spawn(leaf, ctl.attempt)
    ctl.options(reference_id=what).spawn_now(leaf, 100 + ctl.attempt)
    if what == "fail" or (what == "fail once" and ctl.attempt == 1):
        raise ValueError(what)
    if what == "die" and ctl.attempt == 1:
        os.kill(os.getpid(), 9)
    if what == "cancel":
        raise Cancelled(what)
    if what == "unsendable":
        return threading.Lock()  # type: ignore[return-value]
    return what


def breed_wrongly(what: str) -> None:
    ctl = controller()
    ctl.spawn(leaf, 1)
    try:
        match what:
            case "argument":
                ctl.spawn(plain, sys._getframe())  # type: ignore[arg-type]
            case "arity":
                ctl.spawn(leaf)  # type: ignore[call-arg]
            case "type":
                ctl.spawn(leaf, "7")  # type: ignore[arg-type]
            case "option":
                ctl.options(qeue="io")  # type: ignore[call-arg]
            case "name":
                ctl.spawn("laef", 7)
            case "name now":
                ctl.spawn_now("laef", 7)
            case "parent":
                ctl.options(parent_id=7).spawn(leaf, 7)
            case "after":
                ctl.options(after=[7]).spawn(leaf, 7)
            case "full":
                ctl.options(queue="narrow").spawn_now(leaf, 7)
            case "machine":
                ctl.options(memory="900T").spawn_now(leaf, 7)
    except (HandlerNotFound, QueueFull) as error:
        raise TypeError(f"{type(error).__name__}: {error}") from error


# ---- with the success -----------------------------------------------------------------------------------------------


def test_children_exist_with_the_success_of_their_parent(pool: Pool) -> None:
    parent = pool.submit(breed, 3)
    made = parent.result(WAIT_S)
    assert [eventually(pool, one) for one in made] == [0, 10, 20]
    stored = of(pool, parent)
    assert [child.uid for child in stored] == [one.uid for one in made]
    assert [one.name for one in made] == [child.name for child in stored]
    assert {(child.max_attempts, child.options.tags, child.options.parent_id) for child in stored} == {(3, ("leaf",), parent.id)}
    assert {one.id for one in made} == {0}


def test_they_are_called_and_named_as_in_any_submit(pool: Pool) -> None:
    parent = pool.options(trace_ctx={"traceparent": "00-1"}).submit(breed_of_all_kinds)
    made = parent.result(WAIT_S)
    assert [eventually(pool, one) for one in made] == [10, (3, True), "by value", (4, False), 40, 50]
    stored = {child.uid: child for child in of(pool, parent)}
    assert [stored[one.uid].queue for one in made] == ["default", "io", "default", "io", "default", "default"]
    assert [stored[one.uid].options.tags for one in made] == [("leaf",), ("t",), (), ("t",), ("leaf",), ("leaf",)]
    traces = [stored[one.uid].options.trace_ctx["traceparent"] for one in made]
    assert traces == ["00-1", "00-1", "00-1", "own", "00-1", "00-1"]
    assert made[3].id == stored[made[3].uid].id


@pytest.mark.parametrize("what", ["fail", "cancel", "unsendable"])
def test_an_attempt_that_does_not_succeed_leaves_none_but_those_of_spawn_now(pool: Pool, what: str) -> None:
    parent = pool.submit(breed_and, what)
    with pytest.raises((ValueError, TaskCancelled, TaskFailed)):
        parent.result(WAIT_S)
    (child,) = of(pool, parent)
    assert child.options.reference_id == what
    assert pool.future(child.id).result(WAIT_S) == 1010


@pytest.mark.parametrize("what", ["fail once", "die"])
def test_a_retry_spawns_anew_and_only_the_success_counts(pool: Pool, what: str) -> None:
    parent = pool.options(retry=AGAIN).submit(breed_and, what)
    parent.result(WAIT_S)
    assert sorted(pool.future(child.id).result(WAIT_S) for child in of(pool, parent)) == [20, 1010, 1020]


def test_another_round_of_a_success_spawns_again(pool: Pool) -> None:
    parent = pool.submit(breed, 2)
    parent.result(WAIT_S)
    pool.retry(parent.id, force=True)
    pool.future(parent.id).result(WAIT_S)
    assert len(of(pool, parent)) == 4


def test_grandchildren(pool: Pool) -> None:
    parent = pool.submit(breed_deeply, 3)
    for _ in range(3):
        parent.result(WAIT_S)
        (child,) = of(pool, parent)
        parent = pool.future(child.id)
    assert parent.result(WAIT_S) == 0
    assert of(pool, parent) == []


def breed_deeply(depth: int) -> int:
    if depth:
        controller().spawn(breed_deeply, depth - 1)
    return depth


def test_effects_that_cannot_be_applied_take_the_children_along(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        parent = pool.submit(breed_with_an_effect)
        with pytest.raises(TaskFailed, match="no such table"):
            parent.result(WAIT_S)
        assert pool.count() == 1
        with closing(sqlite3.connect(tmp_path / "x.db")) as connection:
            connection.execute("CREATE TABLE mine(n)")
        parent = pool.submit(breed_with_an_effect)
        parent.result(WAIT_S)
        assert len(of(pool, parent)) == 1
    assert rows(tmp_path / "x.db", "SELECT n FROM mine") == [(7,)]


def breed_with_an_effect() -> None:
    controller().spawn(leaf, 1)
    controller().on_success("INSERT INTO mine VALUES(7)")


def test_many_children_travel_in_a_file_and_are_stored_in_one_transaction(pool: Pool) -> None:
    parent = pool.submit(breed, 3000)
    assert len(parent.result(WAIT_S)) == 3000
    assert pool.count(parent_id=parent.id) == 3000


def test_children_of_a_success_pass_the_backlog_of_a_queue(pool: Pool) -> None:
    pool.register_queue(Queue("tight", max_backlog=1, paused=True))
    parent = pool.submit(breed_into, "tight", 3)
    parent.result(WAIT_S)
    assert len(of(pool, parent)) == 3
    pool.resume("tight")


def breed_into(queue: str, count: int) -> None:
    for n in range(count):
        controller().options(queue=queue).spawn(leaf, n)


# ---- at once --------------------------------------------------------------------------------------------------------


def test_what_is_spawned_at_once_is_stored_when_the_call_returns(pool: Pool, tmp_path: Path) -> None:
    parent = pool.submit(breed_now_and_look, pool.store)
    assert parent.result(WAIT_S) == ("running", True)


def breed_now_and_look(store: str) -> tuple[str, bool]:
    ctl = controller()
    made = ctl.spawn_now(leaf, 1)
    with Reader(store) as reader:
        return reader.task(ctl.task.id).status.value, reader.task(made.id).uid == made.uid


def test_a_worker_that_waits_for_an_answer_loses_none_of_the_work_that_comes_meanwhile(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        futures = pool.submit_many(breed_now, range(300))
        assert [future.result(WAIT_S) for future in futures] == list(range(300))
        assert pool.count() == 600
        assert pool.stats().restarts == 0


def breed_now(n: int) -> int:
    assert controller().spawn_now(plain, n).id
    return n


def test_threads_of_a_body_may_spawn_at_once(pool: Pool) -> None:
    parent = pool.submit(breed_in_threads, 8)
    ids = parent.result(WAIT_S)
    assert len(set(ids)) == 8
    assert sorted(ids) == [child.id for child in of(pool, parent)]


def breed_in_threads(count: int) -> list[int]:
    ctl = controller()
    made: list[int] = []
    threads = [threading.Thread(target=lambda n=n: made.append(ctl.spawn_now(plain, n).id)) for n in range(count)]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def test_a_process_that_a_body_forked_cannot(pool: Pool) -> None:
    assert pool.submit(breed_in_a_fork).result(WAIT_S) == "only the worker process can speak to the supervisor"


def breed_in_a_fork() -> str:
    ctl = controller()
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            ctl.spawn_now(plain, 1)
        except RuntimeError as error:
            os.write(writing, str(error).partition(",")[0].encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        return pipe.read()


def test_a_full_queue_is_an_error_in_the_handler(pool: Pool) -> None:
    pool.register_queue(Queue("narrow", max_backlog=1, paused=True))
    pool.options(queue="narrow").submit(leaf, 1)
    with pytest.raises(TypeError, match="QueueFull: 1 tasks wait in queue 'narrow'"):
        pool.submit(breed_wrongly, "full").result(WAIT_S)
    pool.resume("narrow")


def test_a_pool_that_stops_takes_nothing_at_once_and_stores_what_comes_with_a_success(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with Pool(path, workers=1, durability="process") as pool:
        parent = pool.submit(breed_at_the_end)
        while parent.status != "running":
            time.sleep(0.005)  # of a status nobody is told
        pool.stop(grace=WAIT_S)
        assert parent.result(WAIT_S) == "PoolStopped"
    with Reader(path) as reader:
        assert [(one.id, one.status.value, one.options.parent_id) for one in reader.tasks(limit=9)] == [
            (2, "queued", 1),
            (1, "succeeded", None),
        ]


def breed_at_the_end() -> str:
    ctl = controller()
    ctl.spawn(leaf, 1)
    while not ctl.stopping:
        time.sleep(0.005)
    try:
        ctl.spawn_now(leaf, 2)
    except PoolStopped as error:
        return type(error).__name__
    return "nothing"


def test_it_waits_while_a_guest_holds_the_write_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with Pool(path, workers=1, durability="process") as pool, closing(sqlite3.connect(path, isolation_level=None)) as guest:
        parent = pool.submit(breed_when_told, str(tmp_path))
        while not (tmp_path / "begun").exists():
            time.sleep(0.005)
        guest.execute("BEGIN IMMEDIATE")
        (tmp_path / "go").touch()
        with pytest.raises(TimeoutError):
            parent.result(0.3)
        guest.execute("COMMIT")
        assert parent.result(WAIT_S) == 2


def breed_when_told(place: str) -> int:
    Path(place, "begun").touch()
    while not Path(place, "go").exists():
        time.sleep(0.005)
    return controller().spawn_now(leaf, 1).id


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("argument", InvalidPayload, "argument 'n' of .*plain cannot be sent"),
        ("arity", ArgCountError, "leaf"),
        ("type", ArgTypeError, "leaf"),
        ("option", InvalidTask, "no option 'qeue'.*did you mean queue"),
        ("name", TypeError, "HandlerNotFound: no handler is called 'laef'"),
        ("name now", TypeError, "HandlerNotFound: no handler is called 'laef'"),
        ("parent", InvalidTask, "leave parent_id out"),
        ("after", InvalidTask, "cannot wait for others"),
        ("machine", InvalidTask, "memory"),
    ],
)
def test_what_cannot_be_spawned_is_an_error_in_the_handler(pool: Pool, what: str, error: type[Exception], words: str) -> None:
    parent = pool.submit(breed_wrongly, what)
    with pytest.raises(error, match=words):
        parent.result(WAIT_S)
    assert of(pool, parent) == []


def brood() -> tuple[Brood, Any]:
    made = Brood(lambda: Running(7, 1, "it"), lambda spec: 8)
    return made, made.recorder()


def test_their_number_and_their_size_are_bounded() -> None:
    made, recorder = brood()
    for n in range(CHILDREN_MAX):
        made.spawn(recorder, leaf, (n,), {})
    for spawn in (made.spawn, made.spawn_now):
        with pytest.raises(InvalidTask, match="10,000 tasks"):
            spawn(recorder, leaf, (1,), {})
    made, recorder = brood()
    many = b"x" * (1 << 20)
    for _ in range(CHILDREN_BYTES_MAX // (len(many) + FIELDS_BYTES)):
        made.spawn(recorder, plain, (many,), {})
    with pytest.raises(InvalidPayload, match="16 MiB"):
        made.spawn(recorder, plain, (many,), {})
    assert made.spawn_now(recorder, plain, (many,), {}).id == 8


def test_a_controller_that_outlives_its_attempt_spawns_nothing() -> None:
    made, recorder = brood()
    made.close()
    for spawn in (made.spawn, made.spawn_now):
        with pytest.raises(RuntimeError, match="has ended"):
            spawn(recorder, leaf, (1,), {})


def test_outside_of_a_task_calls_are_checked_and_kept() -> None:
    outside = Detached()
    first, second = outside.spawn(leaf, 1), outside.options(tags="x").spawn_now("leaf", 2)
    assert [spec.name for spec in outside.brood.specs] == [first.name, second.name]
    with pytest.raises(ArgCountError):
        outside.spawn(leaf)
    assert breed_deeply(1) == 1


# ---- by whoever runs the attempt ------------------------------------------------------------------------------------


def test_callers_who_run_an_attempt_themselves_spawn_too(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        pool.register_queue(Queue("held", paused=True))
        pool.register_queue(Queue("narrow", max_backlog=1, paused=True))
        busy = pool.submit(time.sleep, WAIT_S)
        while busy.status != "running":
            time.sleep(0.005)
        parent = pool.submit(plain, 1)

        def executor(one: Task) -> int:
            ctl = taskpool.controller()
            ctl.options(queue="held").spawn(leaf, 1)
            made = ctl.options(queue="narrow").spawn_now(leaf, 2)
            assert pool.get(made.id).options.parent_id == one.id
            with pytest.raises(QueueFull):
                ctl.options(queue="narrow").spawn_now(leaf, 3)
            if one.attempt == 1:
                raise ValueError("not yet")
            return 7

        assert pool.execute_and_advance(parent, executor).status == "failed"
        assert [child.queue for child in of(pool, parent)] == ["narrow"]
        pool.cancel(parent_id=parent.id)
        pool.retry(parent.id)
        again = pool.execute_and_advance(parent, lambda one: taskpool.controller().options(queue="held").spawn(leaf, 1).name)
        assert again.status == "succeeded"
        assert [child.queue for child in of(pool, parent)] == ["narrow", "held"]
        busy.cancel(force=True)


# ---- decided and stored ---------------------------------------------------------------------------------------------


def child(number: int = 1, **fields: Any) -> TaskSpec:
    values: dict[str, Any] = {"name": "jobs:child", "codec": 1, "payload": b""} | fields
    return TaskSpec(number.to_bytes(16), **values)


def test_a_report_tells_of_its_children() -> None:
    packed = encode(Options(parent_id=5, tags=("x",)))
    report = Report(1, 5, 1, OK, 0, 0, children=[child(1), child(2, options=packed)])
    assert [(one.parent, one.options.tags) for one in children.read(report)] == [(5, ()), (5, ("x",))]
    report.outcome = ERROR
    assert children.read(report) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"options": b"\xc1"},
        {"queue": ""},
        {"batch": "b", "item": 1},
        {"step": StepSpec()},
        {"payload": bytes(PAYLOAD_BYTES_MAX + 1)},
        {"options": encode(Options(recurrence="nightly"))},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_children_that_nobody_can_store_make_the_report_a_failure(wrong: dict[str, Any]) -> None:
    report = Report(1, 5, 1, OK, 0, 0, value=b"x", children=[child(1), child(2, **wrong)])
    assert children.read(report) == []
    assert report.outcome == ERROR
    assert report.error is not None
    assert (report.error.kind, report.value, report.children) == ("result", None, None)


def test_the_store_refuses_children_with_the_success_that_they_belong_to(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    store = Store.open(path, durability="process")
    try:
        store.commit([insert(1), insert(2), start(1), start(2)])
        first, second = insert(3), insert(4)
        first.of, second.of = 1, 2
        assert store.commit([end(1, version=7), first, end(2), second]) == [1, 3]
    finally:
        store.close()
    assert rows(path, "SELECT id, status FROM task ORDER BY id") == [(1, "running"), (2, "succeeded"), (4, "queued")]


# ---- shown ----------------------------------------------------------------------------------------------------------


def run(path: Path, *args: str) -> Any:
    command = [sys.executable, "-m", "taskpool", "-C", str(path), *args]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(120)
def test_show_names_parent_and_children_and_ls_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    store = Store.open(path, durability="process")
    try:
        mine = [insert(n, options=Options(parent_id=1, label=str(n))) for n in range(2, 30)]
        store.commit([insert(1), *mine, insert(30, options=Options(parent_id=12, tags=("parent_id\x01",))), insert(31)])
    finally:
        store.close()
    shown = json.loads(run(path, "show", "1", "--json"))
    assert shown["children"] == list(range(2, 30))
    words = run(path, "show", "1")
    assert "children   2, 3, 4," in words
    assert "21, … (8 further: taskpool ls --parent)" in words
    assert "parent     1\n" in run(path, "show", "2")
    listed = json.loads(run(path, "ls", "--parent", "1", "--limit", "100", "--json"))
    assert sorted(item["id"] for item in listed["items"]) == list(range(2, 30))
    assert [item["id"] for item in json.loads(run(path, "ls", "--parent", "12", "--json"))["items"]] == [30]


def test_what_is_decorated_keeps_its_traceback(pool: Pool) -> None:
    """The error comes from the call of spawn, in the handler's own line."""
    with pytest.raises(ArgCountError) as caught:
        pool.submit(breed_wrongly, "arity").result(WAIT_S)
    assert "ctl.spawn(leaf)" in "".join(traceback.format_exception(caught.value))
