"""execute_and_advance: the caller is the worker of one attempt; starts, ends and counts are those of every attempt."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import taskpool
from taskpool import (
    Cancelled,
    Controller,
    Filter,
    IllegalTransition,
    InvalidHandler,
    NonRetryableError,
    NotFound,
    Pool,
    PoolStopped,
    Queue,
    RetryPolicy,
    Snooze,
    SoftTimeout,
    StaleVersion,
    Status,
    Task,
    connect,
)
from taskpool.core import callers
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.model import Options, TaskError
from taskpool.wire import jobs
from taskpool.wire import messages as wire
from tests.scheduler_rig import CLIENT, Rig, of, the
from tests.waiting import wait_file, wait_until

WAIT_S = 30.0
PID = 4711
S = 1_000_000  # µs


# ---- decided ----------------------------------------------------------------------------------------------------------


def ask(
    rig: Rig, task_id: int, *, seq: int = 9, client: int = CLIENT, row: ev.TaskRow | None = None, held: bool = False
) -> list[Any]:
    return rig.turn(ev.ExecuteAsked(client, seq, task_id, PID, row, held))


def busy(size: int = 1, **how: Any) -> Rig:
    """All workers have something that goes on for ever."""
    rig = Rig(size, **how)
    rig.submit(size, Options(timeout_s=9e6), name="ever")
    return rig


def refused(commands: list[Any]) -> str:
    answer = the(commands, cmd.Agree)
    assert answer.code in ("illegal_transition", "not_found", "pool_stopped")
    assert not of(commands, cmd.Start)
    return f"{answer.code}: {answer.message}"


def ended(commands: list[Any]) -> cmd.End:
    end: cmd.End = the(commands, cmd.End)
    return end


def test_a_caller_starts_a_task_that_waits_for_a_worker() -> None:
    rig = busy()
    first, second = rig.submit(2)
    start = the(ask(rig, second), cmd.Start)
    assert (start.id, start.attempt, start.caller) == (second, 1, (CLIENT, 9)), "its place in the line does not matter"
    end = ended(rig.turn(rig.report(second, value=b"x")))
    assert (end.to, end.closed.worker, end.charged) == ("succeeded", start.worker, 1)
    assert start.worker not in rig.scheduler.workers, "it was a worker for this attempt only"
    assert rig.row(first).status == "queued"


def test_a_caller_is_none_of_the_workers_that_the_pools_size_is_about() -> None:
    rig = busy(2, spares=1)
    (task_id,) = rig.submit()
    commands = ask(rig, task_id)
    assert not of(commands, cmd.Spawn)
    assert not of(commands, cmd.Kill)
    assert sum(box.active for box in rig.scheduler.workers.values()) == 2


def test_what_may_not_start_is_refused_in_words() -> None:
    rig = busy(1)
    rig.turn(ev.QueueSet(Queue("shut", paused=True)), ev.QueueSet(Queue("one", concurrency=1)))
    (shut,) = rig.submit(queue="shut")
    one, other = rig.submit(2, queue="one")
    (late,) = rig.submit(at=rig.wall + 60 * S)
    ask(rig, one)
    assert "no task 4711" in refused(ask(rig, 4711))
    assert "runs already, attempt 1 on worker" in refused(ask(rig, one))
    assert "'shut' is paused" in refused(ask(rig, shut))
    assert "of which 1 tasks run" in refused(ask(rig, other))
    assert "is pending, due in 60.0 s" in refused(ask(rig, late))
    assert "waits for its parents" in refused(ask(rig, other, held=True))
    (holder,) = rig.submit(key="k")
    (behind,) = rig.submit(key="k")
    ask(rig, holder)
    assert f"waits for serialization key 'k', held by task {holder}" in refused(ask(rig, behind))
    rig.turn(rig.report(one))
    assert "has ended succeeded" in refused(
        ask(rig, one, row=ev.TaskRow(one, "f", "one", 0, "succeeded", 3, 1, 1, 0, 0, Options()))
    )
    rig.turn(ev.StopAsked(None))
    assert "pool_stopped" in refused(ask(rig, other))


def test_what_is_due_but_not_yet_moved_into_its_line_may_start() -> None:
    rig = busy()
    (task_id,) = rig.submit(at=rig.wall + S)
    rig.clock.advance(2)
    start = the(ask(rig, task_id), cmd.Start)
    assert start.status == "pending"
    rig.turn(ev.CallerGone(CLIENT, start.worker))
    rig.clock.advance(1)
    rig.scheduler.check()


def test_a_deadline_that_passed_is_met_before_the_start() -> None:
    rig = busy()
    (task_id,) = rig.submit(options=Options(deadline_at=rig.wall + S))
    rig.clock.advance(2)
    commands = rig.turn(ev.ExecuteAsked(CLIENT, 1, task_id, PID))
    assert the(commands, cmd.Move).to == "failed"
    assert "has ended failed" in refused(commands)


def test_a_caller_that_dies_is_an_interruption() -> None:
    rig = busy()
    (task_id,) = rig.submit()
    ask(rig, task_id)
    end = ended(rig.turn(ev.CallerGone(CLIENT)))
    assert (end.to, end.charged, end.closed.outcome) == ("pending", 0, "interrupted")
    assert end.extras is not None
    assert end.extras.interruptions == 1
    (held,) = rig.submit(options=Options(at_most_once=True))
    ask(rig, held)
    end = ended(rig.turn(ev.CallerGone(CLIENT)))
    assert end.to == "interrupted"
    assert end.error is not None
    assert "caller was gone" in end.error.message


def test_a_client_that_leaves_in_the_turn_in_which_it_asks_gets_nothing() -> None:
    rig = busy()
    (task_id,) = rig.submit()
    commands = rig.turn(ev.ExecuteAsked(CLIENT, 1, task_id, PID), ev.CallerGone(CLIENT))
    assert not of(commands, cmd.Start)
    assert rig.row(task_id).status == "queued"


def test_others_callers_are_not_touched() -> None:
    rig = busy()
    mine, theirs = rig.submit(2)
    ask(rig, mine), ask(rig, theirs, client=CLIENT + 1)
    rig.turn(ev.CallerGone(CLIENT))
    assert rig.row(theirs).status == "running"


@pytest.mark.parametrize(
    ("options", "why", "kind", "to"),
    [
        (Options(timeout_s=1.0, max_attempts=2), "timeout", "timeout", "retrying"),
        (Options(heartbeat_timeout_s=1.0), "no sign of life", "heartbeat", "failed"),
    ],
)
def test_an_attempt_whose_time_is_over_is_given_up(options: Options, why: str, kind: str, to: str) -> None:
    rig = busy()
    (task_id,) = rig.submit(options=options)
    start = the(ask(rig, task_id), cmd.Start)
    timer = rig.scheduler.next_timer(rig.clock.now())
    assert timer is not None
    assert 0.9 < timer <= 1.0
    rig.clock.advance(timer)
    commands = rig.turn()
    end = ended(commands)
    assert (end.to, end.charged) == (to, 1)
    assert end.error is not None
    assert end.error.kind == kind
    assert why in end.error.message
    assert the(commands, cmd.Tell) == cmd.Tell(CLIENT, start.worker, callers.OVER)
    report = jobs.Report(start.n, task_id, 1, jobs.OK, 0, 1, value=b"")
    assert not of(rig.turn(ev.Reported(start.worker, PID, [report])), cmd.End), "what it says now comes too late"


def test_a_deadline_ends_what_a_caller_runs() -> None:
    rig = busy()
    (task_id,) = rig.submit(options=Options(deadline_at=rig.wall + S, max_attempts=3))
    ask(rig, task_id)
    rig.clock.advance(1.001)
    end = ended(rig.turn())
    assert end.to == "failed"
    assert end.error is not None
    assert end.error.kind == "deadline"


def test_more_time_and_signs_of_life() -> None:
    rig = busy()
    (task_id,) = rig.submit(options=Options(timeout_s=1.0, heartbeat_timeout_s=0.6))
    start = the(ask(rig, task_id), cmd.Start)
    rig.clock.advance(0.5)
    rig.turn(ev.CallerSpoke(CLIENT, start.worker, extend_ns=10**9), ev.CallerSpoke(CLIENT + 1, start.worker, extend_ns=10**12))
    rig.clock.advance(0.59)
    assert not of(rig.turn(), cmd.End)
    rig.clock.advance(0.02)
    assert ended(rig.turn()).error.kind == "heartbeat"  # type: ignore[union-attr]


def test_a_soft_timeout_is_told_once() -> None:
    rig = busy()
    (task_id,) = rig.submit(options=Options(soft_timeout_s=1.0))
    ask(rig, task_id)
    rig.clock.advance(1)
    assert the(rig.turn(), cmd.Tell).what == callers.SOFT_TIMEOUT
    assert not of(rig.turn(), cmd.Tell)


def test_a_cancel_is_told_and_given_up_after_its_grace() -> None:
    rig = busy()
    (task_id,) = rig.submit()
    ask(rig, task_id)
    commands = rig.turn(rig.cancel(task_id, grace_s=2.0))
    assert the(commands, cmd.Tell).what == callers.CANCEL
    assert the(commands, cmd.Respond).ids == [task_id]
    rig.clock.advance(1.9)
    assert not of(rig.turn(), cmd.End)
    rig.clock.advance(0.1)
    assert ended(rig.turn()).to == "cancelled"


def test_a_success_within_the_grace_stays_one() -> None:
    rig = busy()
    (task_id,) = rig.submit()
    ask(rig, task_id)
    rig.turn(rig.cancel(task_id))
    assert ended(rig.turn(rig.report(task_id))).to == "succeeded"


def test_a_forced_cancel_waits_for_nothing() -> None:
    rig = busy()
    (task_id,) = rig.submit()
    ask(rig, task_id)
    assert ended(rig.turn(rig.cancel(task_id, force=True))).to == "cancelled"


def test_a_pool_that_stops_waits_for_its_callers_then_gives_up() -> None:
    rig = Rig(1)
    rig.turn(ev.QueueSet(Queue("default", concurrency=1)))
    first, task_id = rig.submit(2)
    rig.turn(rig.report(first), ev.QueueSet(Queue("default", paused=True)))
    rig.turn(ev.QueueSet(Queue("default")))
    if rig.row(task_id).status == "running":  # the worker has it
        rig.turn(rig.report(task_id))
        rig.scheduler.workers[1].leaving = True
        (task_id,) = rig.submit()
    ask(rig, task_id)
    commands = rig.turn(ev.StopAsked(1.0))
    assert the(commands, cmd.Tell).what == callers.STOPPING
    assert not of(commands, cmd.Halted)
    rig.clock.advance(1)
    assert the(rig.turn(), cmd.Tell).what == callers.STOP
    rig.clock.advance(rig.scheduler.grace_s)
    commands = rig.turn()
    end = ended(commands)
    assert (end.to, end.closed.outcome, end.charged) == ("pending", "stopped", 0)
    assert of(commands, cmd.Halted)


def test_what_the_store_refuses_is_told_to_the_caller() -> None:
    rig = busy()
    (task_id,) = rig.submit()
    start = the(ask(rig, task_id, seq=12), cmd.Start)
    answer = the(rig.turn(ev.Dropped([task_id])), cmd.Agree)
    assert (answer.client, answer.seq, answer.code) == (CLIENT, 12, "stale_version")
    assert start.worker not in rig.scheduler.workers


def test_a_caller_counts_in_its_queue_and_in_what_it_says_it_needs() -> None:
    from taskpool.core.admission import Room

    rig = Rig(2, room=Room(4, 0))
    rig.turn(ev.QueueSet(Queue("one", concurrency=1, paused=True)))
    one, other = rig.submit(2, queue="one")
    rig.submit(2, Options(timeout_s=9e6), name="ever")
    rig.turn(ev.QueueSet(Queue("one", concurrency=1)))
    ask(rig, one)
    (big,) = rig.submit(options=Options(cpus=2.0))
    ask(rig, big)
    (bigger,) = rig.submit(options=Options(cpus=1.0))
    assert "waits for processors" in refused(ask(rig, bigger))
    assert "as many as may" in refused(ask(rig, other))


# ---- with a real pool ---------------------------------------------------------------------------------------------------


def hold(path: str) -> None:
    """Keep the worker until somebody writes the file."""
    wait_file(path)


def add(a: int, b: int = 1) -> int:
    return a + b


def with_controller(ctl: Controller, n: int) -> int:
    ctl.progress(n, 10, "half")
    return ctl.attempt * 100 + n


def fails() -> None:
    raise ValueError("bad luck")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A pool whose one worker is kept busy."""
    with Pool(tmp_path / "x.db", workers=1) as pool:
        busy = pool.submit(hold, str(tmp_path / "go"))
        wait_until(busy.running, "its begin")
        yield pool
        pool.cancel(Filter(statuses=("queued", "pending", "retrying")))
        (tmp_path / "go").touch()


def test_the_handler_runs_in_this_process(pool: Pool) -> None:
    future = pool.submit(add, 20, b=3)
    task = pool.execute_and_advance(future.id)
    assert (task.status, task.attempt, future.result(WAIT_S)) == (Status.SUCCEEDED, 1, 23)
    (attempt,) = pool.attempts(future.id)
    import os

    assert attempt.pid == os.getpid()
    assert attempt.outcome == "succeeded"
    assert attempt.worker_id == task.worker_id


def test_an_executor_of_ones_own_gets_the_task(pool: Pool) -> None:
    future = pool.options(tags=["mine"], headers={"a": "b"}).submit(add, 20, b=3)

    def execute(task: Task) -> Any:
        args, kwargs = taskpool.arguments(task)
        assert (task.id, task.status, task.options.headers) == (future.id, Status.RUNNING, {"a": "b"})
        return [task.name.rpartition(":")[2], *args, kwargs]

    assert pool.execute_and_advance(future.id, execute).status == Status.SUCCEEDED
    assert future.result(WAIT_S) == ["add", 20, {"b": 3}]


def test_the_uid_and_what_enqueue_returned_name_a_task_too(pool: Pool, tmp_path: Path) -> None:
    from functools import partial

    with closing(sqlite3.connect(tmp_path / "x.db")) as connection, taskpool.transaction(connection) as tx:
        put = tx.submit(add, 1)
        other = tx.submit(add, 5)
    assert pool.execute_and_advance(put).status == Status.SUCCEEDED
    assert pool.execute_and_advance(other.uid, partial(lambda task: 8)).status == Status.SUCCEEDED


def test_failures_are_counted_and_retried_as_ever(pool: Pool) -> None:
    policy = RetryPolicy(initial_interval=0.0, maximum_attempts=3)
    future = pool.options(retry=policy).submit(fails)
    task = pool.execute_and_advance(future.id)
    assert (task.status, task.charged, task.error and task.error.kind) == (Status.QUEUED, 1, "handler"), "due again at once"
    assert task.error is not None
    assert "bad luck" in task.error.message
    assert "fails" in task.error.traceback

    def give_up(task: Task) -> None:
        raise NonRetryableError(ValueError("no"))

    assert pool.execute_and_advance(future.id, give_up).status == Status.FAILED
    with pytest.raises(IllegalTransition, match="has ended failed"):
        pool.execute_and_advance(future.id)


def test_backoff_is_waited_for(pool: Pool) -> None:
    future = pool.options(retry=RetryPolicy(initial_interval=60.0)).submit(fails)
    pool.execute_and_advance(future.id)
    with pytest.raises(IllegalTransition, match=r"is retrying, due in (60|59)"):
        pool.execute_and_advance(future.id)


def test_snooze_cancel_and_odd_results(pool: Pool) -> None:
    def snooze(task: Task) -> None:
        raise Snooze(100)

    def cancel(task: Task) -> None:
        raise Cancelled("not this one")

    task = pool.execute_and_advance(pool.submit(add, 1).id, snooze)
    assert (task.status, task.snoozes, task.charged) == (Status.PENDING, 1, 0)
    assert pool.execute_and_advance(pool.submit(add, 1).id, cancel).status == Status.CANCELLED
    task = pool.execute_and_advance(pool.submit(add, 1).id, lambda task: (n for n in ()))
    assert task.status == Status.FAILED
    assert task.error is not None
    assert task.error.kind == "result"


def test_the_controller_is_there_and_only_inside(pool: Pool) -> None:
    future = pool.submit(with_controller, 5)
    assert pool.execute_and_advance(future.id).progress.fraction == 0.5  # type: ignore[union-attr]
    assert future.result(WAIT_S) == 105

    def look(task: Task) -> int:
        ctl = taskpool.controller()
        ctl.progress(1, 4)
        assert not ctl.cancelled
        assert not ctl.stopping
        assert ctl.deadline_left() is None
        return ctl.task.id

    other = pool.submit(add, 1)
    pool.execute_and_advance(other.id, look)
    assert other.result(WAIT_S) == other.id
    assert taskpool.controller().task.id == 0


def test_a_checkpoint_is_durable_when_it_returns(pool: Pool) -> None:
    future = pool.options(retry=RetryPolicy(initial_interval=0.0)).submit(add, 1)

    def first(task: Task) -> None:
        taskpool.controller().checkpoint({"at": 7})
        raise OSError

    def second(task: Task) -> Any:
        return taskpool.controller().last_checkpoint

    pool.execute_and_advance(future.id, first)
    pool.execute_and_advance(future.id, second)
    assert future.result(WAIT_S) == {"at": 7}


def test_effects_are_applied_with_the_success(pool: Pool, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE shop_order(n INTEGER PRIMARY KEY)")

        def execute(task: Task) -> None:
            taskpool.controller().on_success("INSERT INTO shop_order VALUES(?)", (task.id,))

        future, clash = pool.submit(add, 1), pool.submit(add, 1)
        pool.execute_and_advance(future.id, execute)
        task = pool.execute_and_advance(
            clash.id, lambda task: taskpool.controller().on_success("INSERT INTO shop_order VALUES(?)", (future.id,))
        )
        assert task.status == Status.FAILED
        assert task.error is not None
        assert task.error.kind == "effect"
        assert connection.execute("SELECT n FROM shop_order").fetchall() == [(future.id,)]


def test_two_callers_at_once(pool: Pool) -> None:
    future = pool.submit(add, 1)
    inside, go = threading.Event(), threading.Event()

    def execute(task: Task) -> str:
        inside.set()
        assert go.wait(WAIT_S)
        return "first"

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(pool.execute_and_advance(future.id, execute)))
    thread.start()
    assert inside.wait(WAIT_S)
    with connect(pool.store) as other:
        with pytest.raises(IllegalTransition, match="runs already, attempt 1 on worker"):
            other.execute_and_advance(future.id, lambda task: "second")
        state = next(one for one in other.stats().workers if one.task_id == future.id)
        assert state.state == "caller"
    go.set()
    thread.join(WAIT_S)
    assert future.result(WAIT_S) == "first"
    assert len(pool.attempts(future.id)) == 1


def test_one_process_may_run_several_at_once_each_with_its_controller(pool: Pool) -> None:
    futures = [pool.submit(add, n) for n in range(4)]
    barrier = threading.Barrier(4)

    def execute(task: Task) -> int:
        barrier.wait(WAIT_S)
        return taskpool.controller().task.id

    threads = [threading.Thread(target=pool.execute_and_advance, args=(future.id, execute)) for future in futures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert [future.result(WAIT_S) for future in futures] == [future.id for future in futures]


def test_an_attempt_that_overruns_is_given_up_and_the_caller_is_told(pool: Pool) -> None:
    future = pool.options(timeout=0.05).submit(add, 1)

    def execute(task: Task) -> str:
        ctl = taskpool.controller()
        wait_until(lambda: ctl.cancelled, "the cancel")
        return "too late"

    with pytest.raises(StaleVersion, match="given up before this came"):
        pool.execute_and_advance(future.id, execute)
    task = pool.get(future.id)
    assert task.status == Status.FAILED
    assert task.error is not None
    assert task.error.kind == "timeout"
    assert "given up" in task.error.message


def test_a_soft_timeout_is_raised_where_the_body_asks(pool: Pool) -> None:
    future = pool.options(soft_timeout=0.05).submit(add, 1)

    def execute(task: Task) -> str:
        ctl = taskpool.controller()
        try:
            wait_until(ctl.raise_if_cancelled, "the exception")
        except SoftTimeout:
            ctl.raise_if_cancelled()  # once
            return "cut short"
        return "no"

    assert pool.execute_and_advance(future.id, execute).status == Status.SUCCEEDED
    assert future.result(WAIT_S) == "cut short"


def test_a_cancel_reaches_the_body_that_asks(pool: Pool) -> None:
    future = pool.submit(add, 1)

    def execute(task: Task) -> None:
        assert future.cancel()
        for _ in taskpool.track(iter(int, 1)):
            time.sleep(0.005)

    task = pool.execute_and_advance(future.id, execute)
    assert task.status == Status.CANCELLED


def test_ctrl_c_is_the_programs_and_the_attempt_an_interruption(pool: Pool) -> None:
    future = pool.submit(add, 1)

    def execute(task: Task) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.execute_and_advance(future.id, execute)
    task = pool.get(future.id)
    assert (task.status, task.charged, task.interruptions) == (Status.PENDING, 0, 1) or task.status == Status.QUEUED


def test_who_stops_waiting_for_its_turn_leaves_nothing_running(pool: Pool) -> None:
    """An answer that comes when nobody waits for it any more gives the attempt back."""
    future = pool.submit(add, 1)
    link = pool._link
    task_id = future.id
    link.request_soon(lambda seq: wire.Execute(seq, task_id))
    wait_until(lambda: pool.get(task_id).interruptions == 1, "the interruption")
    assert not link.told


def test_bad_input_is_refused_before_anything_happens(pool: Pool) -> None:
    with pytest.raises(InvalidHandler, match="called with the task"):
        pool.execute_and_advance(pool.submit(add, 1).id, "add")  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="no task 4711"):
        pool.execute_and_advance(4711)


def test_what_is_no_report_is_refused(pool: Pool) -> None:
    from taskpool.errors import InvalidTask

    future = pool.submit(add, 1)
    link = pool._link
    task_id = future.id
    lent = link.request(lambda seq: wire.Execute(seq, task_id)).lent
    assert lent is not None
    worker, job = lent
    bad = jobs.Report(job.n, task_id, 1, 17, 0, 1)
    with pytest.raises(InvalidTask, match="no attempt ends with outcome 17"):
        link.request(lambda seq: wire.Executed(seq, worker, bad))
    silent = jobs.Report(job.n, task_id, 1, jobs.ERROR, 0, 1)
    with pytest.raises(InvalidTask, match="says why"):
        link.request(lambda seq: wire.Executed(seq, worker, silent))
    with connect(pool.store) as other, pytest.raises(StaleVersion):
        other._link.request(lambda seq: wire.Executed(seq, worker, jobs.Report(1, task_id, 1, jobs.OK, 0, 1)))
    odd = jobs.Report(99, 98, 97, jobs.ERROR, 0, 1, error=TaskError("handler", "mine"))
    (task,) = link.request(lambda seq: wire.Executed(seq, worker, odd)).tasks or []
    assert task.status == Status.FAILED, "a report is of the attempt that was lent, whatever it says"


def test_a_pool_that_is_stopped_meanwhile(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "x.db", workers=1)
    busy = pool.submit(hold, str(tmp_path / "go"))
    wait_until(busy.running, "its begin")
    future = pool.submit(add, 1)

    def execute(task: Task) -> str:
        pool.stop(0.0)
        wait_until(lambda: pool._link.stopped, "the end")
        assert taskpool.controller().cancelled
        return "too late"

    with pytest.raises(PoolStopped):
        pool.execute_and_advance(future.id, execute)
    pool.close()
    (tmp_path / "go").touch()
    with Pool(tmp_path / "x.db", workers=1) as again:
        assert again.wait(future.id, WAIT_S).status == Status.SUCCEEDED
        first, _ = again.attempts(future.id)
        assert first.outcome == "stopped"
