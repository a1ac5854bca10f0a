"""Targets and labels, and tasks whose handler nobody here knows: who may run what, and why something waits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from taskpool import IllegalTransition, InvalidSettings, InvalidTask, Pool, Status
from taskpool.cli.main import main
from taskpool.config import settings
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.model import Options, Queue
from tests.scheduler_rig import CLIENT, Rig, of, the
from tests.serving import served

WAIT_S = 30.0
GPU = Options(target="gpu")


def started(commands: list[Any]) -> list[tuple[int, int]]:
    return [(start.id, start.worker) for start in of(commands, cmd.Start)]


def labelled(rig: Rig) -> list[int]:
    return [box.worker for box in rig.scheduler.workers.values() if box.labels]


# ---- decided ------------------------------------------------------------------------------------------------------------


def test_only_a_worker_with_the_label_takes_the_task() -> None:
    rig = Rig(3, labels={"gpu": 1})
    (worker,) = labelled(rig)
    ids = rig.submit(2, GPU)
    assert rig.jobs[ids[0]][0] == worker
    assert rig.row(ids[1]).status == "queued"
    assert rig.scheduler.workers[worker].sent.keys() == {1}
    assert started(rig.turn(rig.report(ids[0]))) == [(ids[1], worker)]


def test_what_waits_for_its_target_holds_up_nobody() -> None:
    rig = Rig(2)
    (aside,) = rig.submit(options=GPU, priority=5)
    (other,) = rig.submit()
    assert (rig.row(aside).status, rig.row(other).status) == ("queued", "running")
    reason = rig.scheduler.routes.reason(rig.row(aside), rig.scheduler.workers.values())
    assert reason is not None
    assert (reason.code, reason.detail.endswith("there is none")) == ("target", True)


def test_a_number_names_a_worker() -> None:
    rig = Rig(3)
    (task_id,) = rig.submit(options=Options(target="2"))
    assert rig.jobs[task_id][0] == 2
    (gone,) = rig.submit(options=Options(target="77"))
    assert rig.row(gone).status == "queued"


def test_whoever_takes_the_place_of_a_dead_worker_gets_its_labels() -> None:
    rig = Rig(1, spares=1, labels={"gpu": 1})
    rig.turn(ev.WorkerReady(2, 102))
    assert labelled(rig) == [1]
    (task_id,) = rig.submit(options=GPU)
    rig.turn(rig.death(1, begun=task_id))
    assert labelled(rig) == [2]


def test_the_order_of_a_queue_holds_for_those_aside_too() -> None:
    rig = Rig(1, labels={"gpu": 1})
    (running,) = rig.submit()
    (targeted,) = rig.submit(options=GPU)
    (before,) = rig.submit(priority=1)
    assert started(rig.turn(rig.report(running)))[0][0] == before
    assert rig.row(targeted).status == "queued"
    assert started(rig.turn(rig.report(before))) == [(targeted, 1)]


def test_those_aside_have_no_line_to_fill_memory_with() -> None:
    rig = Rig(1, line_max=4)
    ids = rig.submit(40, GPU)
    assert len(rig.scheduler.tasks) == 3
    assert not of(rig.turn(), cmd.Refill)
    rig.turn(rig.cancel(*ids[:2]))
    line = rig.scheduler.lines.ready["default"]
    assert line.mark is not None
    assert line.refilling, "there is room for those that follow"


@pytest.mark.parametrize("how", ["cancel", "update", "deadline"])
def test_what_stands_aside_can_be_changed(how: str) -> None:
    rig = Rig(1)
    (task_id,) = rig.submit(options=Options(target="gpu", deadline_at=rig.wall + 10**7))
    if how == "cancel":
        assert the(rig.turn(rig.cancel(task_id)), cmd.Move).to == "cancelled"
    elif how == "update":
        commands = rig.turn(ev.UpdateAsked(CLIENT, 1, task_id, 1, options=Options()))
        assert started(commands) == [(task_id, 1)]
    else:
        rig.clock.advance(11)
        assert the(rig.turn(), cmd.Move).to == "failed"
    assert not rig.scheduler.routes


def test_queues_keep_their_limits_for_those_aside() -> None:
    rig = Rig(2, labels={"gpu": 2})
    rig.turn(ev.QueueSet(Queue("q", concurrency=1)))
    first, second = rig.submit(2, GPU, queue="q")
    assert (rig.row(first).status, rig.row(second).status) == ("running", "queued")
    assert started(rig.turn(rig.report(first)))[0][0] == second


def test_a_caller_says_what_it_is() -> None:
    rig = Rig(1)
    (task_id,) = rig.submit(options=GPU)
    answer = the(rig.turn(ev.ExecuteAsked(CLIENT, 1, task_id, 1)), cmd.Agree)
    assert answer.message == f"task {task_id} is for 'gpu'"
    assert started(rig.turn(ev.ExecuteAsked(CLIENT, 2, task_id, 1, labels=["gpu"])))
    assert not rig.scheduler.routes


def test_an_unknown_handler_waits_until_it_is_known() -> None:
    rig = Rig(1)
    rig.turn(ev.HandlersKnown(["f"]))
    (waits,) = rig.submit(name="price")
    (imported,) = rig.submit(name="somewhere:price")
    (known,) = rig.submit(name="f")
    assert [rig.row(one).status for one in (waits, imported)] == ["queued", "running"]
    reason = rig.scheduler.routes.reason(rig.row(waits), ())
    assert reason is not None
    assert (reason.code, reason.detail) == ("handler", "waits for a pool that knows its handler 'price'; this one knows f")
    rig.turn(rig.report(imported))
    rig.turn(rig.report(known))
    assert started(rig.turn(ev.HandlersKnown(["f", "price"]))) == [(waits, 1)]


# ---- with real processes ------------------------------------------------------------------------------------------------


def test_a_target_reaches_its_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Pool(tmp_path / "x.db", workers=2, labels={"gpu": 1}) as pool:
        futures = [pool.options(target="gpu").submit(os.getpid) for _ in range(6)]
        assert len({future.result(WAIT_S) for future in futures}) == 1
        lost = pool.options(target="printer").submit(os.getpid)
        assert pool.get(lost.id).wait_reason == "target"
        assert "there is none" in lost.explain().sentence
        assert main(["-C", pool.store, "explain", str(lost.id)]) == 0
        assert capsys.readouterr().out.splitlines()[0] == lost.explain().sentence
        (state,) = [worker for worker in pool.stats().workers if worker.labels]
        assert state.labels == ("gpu",)
        with pytest.raises(IllegalTransition, match="is for 'printer'"):
            pool.execute_and_advance(lost.id)
        assert pool.execute_and_advance(lost.id, labels="printer").status is Status.SUCCEEDED
        assert lost.result(WAIT_S) == os.getpid()


def test_no_more_workers_have_a_label_than_there_may_be(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="3 workers are to have the label 'gpu', and there are at most 2"):
        Pool(tmp_path / "x.db", workers=1, max_workers=2, labels={"gpu": 3})
    assert settings(tmp_path / "x.db", workers=1, max_workers=3, labels={"gpu": 3}).labels == {"gpu": 3}


@pytest.mark.parametrize("labels", ["7", {"gpu": 0}, {"gpu": True}, [""], {"a\n": 1}])
def test_labels_that_make_no_sense(tmp_path: Path, labels: Any) -> None:
    with pytest.raises(InvalidSettings, match="label"):
        Pool(tmp_path / "x.db", labels=labels)


@pytest.mark.parametrize("target", [0, -1, True, 1.5, "x" * 300, "a\n"])
def test_targets_that_make_no_sense(tmp_path: Path, target: Any) -> None:
    with Pool(tmp_path / "x.db", workers=1) as pool, pytest.raises(InvalidTask, match="target must be"):
        pool.options(target=target)


def test_a_server_lets_tasks_of_other_servers_wait(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    (tmp_path / "jobs.py").write_text('from taskpool import task\n@task(name="price")\ndef price(n: int) -> int:\n    return n\n')
    with served(path, "jobs.py") as client:
        client.options(delay=0.0).submit("price", 1).result(WAIT_S)
        client.pause("default")
        waits = client.submit("price", 7)
        task_id = waits.id
    with served(path) as client:
        client.resume("default")
        assert client.submit(abs, -1).result(WAIT_S) == 1
        task = client.get(task_id)
        assert (task.status, task.wait_reason) == (Status.QUEUED, "handler")
        assert "waits for a pool that knows its handler 'price'" in client.explain(task_id).sentence
    with served(path, "jobs.py") as client:
        assert client.wait(task_id, WAIT_S).status is Status.SUCCEEDED


def test_unless_it_is_told_to_fail_them(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    (tmp_path / "jobs.py").write_text('from taskpool import task\n@task(name="price")\ndef price(n: int) -> int:\n    return n\n')
    with served(path, "jobs.py") as client:
        client.pause("default")
        task_id = client.submit("price", 7).id
    with served(path, "--fail-unknown") as client:
        client.resume("default")
        task = client.wait(task_id, WAIT_S)
        assert task.error is not None
        assert (task.status, task.error.kind) == (Status.FAILED, "unknown_handler")
