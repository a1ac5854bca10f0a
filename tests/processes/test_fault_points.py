"""Every named fault point, hit by a kill, an exit or an error: what was promised until then holds, and the next pool goes on."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from taskpool import Pool, PoolStopped, TaskFailed, TaskInterrupted, TaskPanicked, controller, faults
from taskpool.core.lifecycle import RUNNING, SUCCEEDED
from taskpool.model import Filter, Task, TaskSpec, encode
from taskpool.store.reading import Reader
from taskpool.testing import planted_fault
from taskpool.wire.messages import Accepted, Submit
from tests.processes import evidence
from tests.processes.evidence import check, drive, finish, read_evidence, submit, wait_gone
from tests.processes.raw_client import RawClient
from tests.waiting import wait_until

WAIT_S = evidence.WAIT_S
MIGRATOR = str(Path(__file__).with_name("store_migrator.py"))

# At which passage each point is hit, so that much has gone before and much is under way.
SUPERVISOR = {
    "submit.read": 3,
    "commit.before": 9,
    "commit.inside": 7,
    "commit.after": 8,
    "start.half": 1,
    "start.after": 6,
    "result.read": 5,
    "reply.before": 7,
}
WORKER = {"body.before": 20, "result.before": 10, "result.half": 15, "result.after": 12}
AT_ITS_END = {"checkpoint.inside": 1}
OF_SCRIPTS = {"migrate.inside": 1}
ELSEWHERE = {"prune.inside": "tests/test_prune_doors.py"}
STATUS = {"kill": -signal.SIGKILL, "exit": 70}


def test_every_point_is_tried() -> None:
    """Each of these tests fails if its point is never passed."""
    assert {**SUPERVISOR, **WORKER, **AT_ITS_END, **OF_SCRIPTS, **ELSEWHERE}.keys() == set(faults.POINTS)
    for point, file in ELSEWHERE.items():
        assert f'planted_fault("{point}"' in (Path(__file__).parents[2] / file).read_text()


def wait_ready(pool: Pool, workers: int) -> None:
    """Wait until so many workers wait for work."""
    wait_until(lambda: sum(1 for worker in pool.stats().workers if worker.pid) >= workers, "workers")


def go_on(place: Path, tag: str, *, again_max: int, workers: int = 2) -> evidence.Checked:
    """Check what a dead owner has left, let the next one end it, and check that."""
    wait_gone(tag)
    check(place)
    with Pool(place / "x.db", workers=workers, durability="process") as pool:
        finish(pool)
        drive(pool, place, 9, 200, 0)
    found = check(place, again_max=again_max, ended=True)
    assert set(found.statuses) == {"succeeded"}
    return found


# ---- the supervisor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action", ["kill", pytest.param("exit", marks=pytest.mark.slow), pytest.param("error", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("point", SUPERVISOR)
def test_a_supervisor_that_fails(place: Path, tag: str, point: str, action: str, capfd: pytest.CaptureFixture[str]) -> None:
    with planted_fault(point, SUPERVISOR[point], action), pytest.raises(PoolStopped) as caught:  # noqa: SIM117
        with Pool(place / "x.db", workers=2, durability="process") as pool:
            process = pool._supervisor.process
            wait_ready(pool, 3)
            drive(pool, place, 0, 200, 20)
            drive(pool, place, 1, 200, 20)
            raise AssertionError(f"{point} was not passed")
    process.wait(WAIT_S)
    if action == "error":
        assert "injected" in str(caught.value)
        assert process.returncode == 1
    else:
        assert process.returncode == STATUS[action]
        # Futures are told within 50 ms; how it ended is known if that took no longer than 30.
        how = "SIGKILL" if action == "kill" else "exited with code 70"
        assert how in str(caught.value) or "closed the connection" in str(caught.value)
    assert ("Traceback" in capfd.readouterr().err) == (action == "error" and point != "commit.inside")
    go_on(place, tag, again_max=2)


@pytest.mark.parametrize("action", ["kill", "exit", "error"])
@pytest.mark.parametrize("point", AT_ITS_END)
def test_a_supervisor_that_fails_at_its_end(place: Path, tag: str, point: str, action: str) -> None:
    """All is stored by then, and the script is told nothing; the next owner opens the file as after a crash."""
    with planted_fault(point, 1, action), Pool(place / "x.db", workers=2, durability="power") as pool:
        process = pool._supervisor.process
        drive(pool, place, 0, 200, 20)
    assert process.returncode == STATUS.get(action, 0)
    go_on(place, tag, again_max=0)


@pytest.mark.parametrize("action", ["kill", "exit", "error"])
def test_a_migration_that_fails_has_not_been(place: Path, tag: str, action: str) -> None:
    """All of it or nothing; the file as it was still serves."""
    with Pool(place / "x.db", workers=2, durability="power") as pool:
        drive(pool, place, 0, 200, 20)
    with planted_fault("migrate.inside", 1, action):
        done = subprocess.run([sys.executable, MIGRATOR, str(place / "x.db")], capture_output=True, check=False)
    assert done.returncode == STATUS.get(action, 1), done.stderr
    go_on(place, tag, again_max=0)
    done = subprocess.run([sys.executable, MIGRATOR, str(place / "x.db")], capture_output=True, check=False)
    assert done.stdout == b"migrated\n", done.stderr


# ---- workers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["kill", "exit", "error"])
@pytest.mark.parametrize("point", WORKER)
def test_workers_that_fail(place: Path, point: str, action: str) -> None:
    """Each worker comes to the point in some task, which alone is charged, unless its result was handed over by then."""
    count = 150
    with planted_fault(point, WORKER[point], action), Pool(place / "x.db", workers=2, durability="process") as pool:
        futures = pool.submit_many(evidence.work_item, [(str(place), n, 0) for n in range(count)])
        errors = [future.exception(WAIT_S) for future in futures]
        deaths = pool.stats().restarts
        finish(pool)
    found = check(place, ended=True, again_max=0)
    bad = [error for error in errors if error is not None]
    if point == "result.half" and action == "error":
        assert {type(error) for error in bad} == {TaskFailed}  # its result cannot be handed over, and the worker lives to say so
        assert deaths == 0
        assert bad
        return
    assert deaths > 1, f"{point} was not passed"
    if point == "result.after":
        assert not bad
    else:
        assert len(bad) == deaths
        assert {type(error) for error in bad} == {TaskPanicked}
    assert {task.charged for task in found.tasks.values()} == {1}
    assert sum(task.crashes for task in found.tasks.values()) == len(bad)
    begun = {line.task_id for line in read_evidence(place)}
    for future, error in zip(futures, errors, strict=True):
        assert (future.id in begun) == (error is None or point != "body.before")


# ---- step by step: one task that may run once -----------------------------------------------------------------------

# The turns: two that start workers, one that stores and starts the task, one that stores its end.
PASSAGES = [
    ("submit.read", 1),
    ("commit.inside", 1),
    ("commit.after", 3),
    ("start.after", 3),
    ("reply.before", 3),
    ("result.read", 1),
    ("commit.inside", 2),
    ("commit.after", 4),
    ("reply.before", 4),
]


def one_task(place: Path) -> Task | None:
    """Return the only task of a store."""
    with Reader(place / "x.db") as reader:
        ids = reader.match(Filter())
        assert len(ids) <= 1
        return reader.task(ids[0]) if ids else None


def submitted_and_killed(place: Path, tag: str, point: str, nth: int) -> bool:
    """Submit a task whose supervisor is killed at that point; return whether it was acknowledged."""
    with planted_fault(point, nth), pytest.raises(PoolStopped), Pool(place / "x.db", workers=1, durability="process") as pool:
        wait_ready(pool, 2)
        submit(pool, place, 1, at_most_once=True).result(WAIT_S)
        pool.stats()
    wait_gone(tag)
    check(place)
    return bool(evidence.acknowledged(place))


def test_each_step_of_a_task_that_may_run_once(tmp_path: Path, tag: str) -> None:
    """Wherever its supervisor dies: it is unknown, or it runs once, or it is known to have been interrupted."""
    steps = set()
    for point, nth in PASSAGES:
        place = tmp_path / f"{point}-{nth}"
        place.mkdir()
        was_acknowledged = submitted_and_killed(place, tag, point, nth)
        task = one_task(place)
        kinds = [line.kind for line in read_evidence(place)]
        steps.add((str(task.status) if task is not None else None, *kinds))
        with Pool(place / "x.db", workers=1, durability="process") as pool:
            if task is None:
                assert not was_acknowledged
                assert pool.count() == 0
                continue
            if not was_acknowledged:
                assert sent_again(place, task) == task.id
            future = pool.future(task.id)
            if task.status == SUCCEEDED:
                assert future.result(WAIT_S) == (1, 1)
                assert pickle.loads(task.result or b"") == (1, 1)
            elif point in ("result.read", "commit.inside"):
                assert future.result(WAIT_S) == (1, 1)  # what lay in the ring
                assert task.status == RUNNING
            elif point == "commit.after":
                assert future.result(WAIT_S) == (1, 2)  # it was never sent
                assert [attempt.outcome for attempt in future.attempts] == ["returned", "succeeded"]
            else:
                pool.wait(task.id, WAIT_S)
        found = check(place, ended=True, again_max=0)
        assert set(found.statuses) <= {"succeeded", "interrupted"}
        begins = [line for line in read_evidence(place) if line.kind == "begin"]
        assert len(begins) <= 1
    assert {(None,), (RUNNING,), (RUNNING, "begin", "end"), (SUCCEEDED, "begin", "end")} <= steps


def sent_again(place: Path, task: Task) -> int:
    """Do what a client does that was never answered: submit under the same uid. Return the id it is given."""
    spec = TaskSpec(uuid.UUID(task.uid).bytes, task.name, task.codec, task.payload, encode(task.options))
    with RawClient(place / "x.db") as client:
        client.greet()
        answer = client.ask(Submit(1, [spec], False, True))
    assert isinstance(answer, Accepted), answer
    return answer.ids[0]


def test_without_its_page_a_start_counts_as_begun(place: Path, tag: str) -> None:
    """After a power cut the pages say nothing: what may have begun is not begun again, if it may run once."""
    submitted_and_killed(place, tag, "commit.after", 3)
    for directory in (place / "x.db.d" / "run").glob("e*"):
        shutil.rmtree(directory)
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        (task,) = pool.list()
        assert task.status == "interrupted"
        with pytest.raises(TaskInterrupted):
            pool.future(task.id).result(WAIT_S)
    assert read_evidence(place) == []


def test_what_waits_keeps_its_order(place: Path, tag: str) -> None:
    """By priority, then in the order of submission; an owner's death changes nothing of it."""
    with pytest.raises(PoolStopped), Pool(place / "x.db", workers=1, durability="process") as pool:
        held = submit(pool, place, 0, fn=evidence.hold)
        evidence.wait_lines(place, 1)
        futures = [submit(pool, place, 1 + n, priority=n % 3) for n in range(60)]
        os.kill(pool.pid, signal.SIGKILL)
        held.result(WAIT_S)
    (place / "go").touch()
    go_on(place, tag, again_max=1, workers=1)
    begun = [line.task_id for line in read_evidence(place) if line.kind == "begin"]
    waited = [future.id for future in sorted(futures, key=lambda future: (-((future.id - held.id - 1) % 3), future.id))]
    assert [task_id for task_id in begun if task_id in set(waited)] == waited


def test_half_a_task_is_never_run(place: Path, tag: str) -> None:
    """Its bytes were on their way into a worker that stood still when the supervisor was killed."""
    with pytest.raises(PoolStopped), Pool(place / "x.db", workers=1, durability="process") as pool:
        wait_ready(pool, 2)
        (pid,) = {worker.pid for worker in pool.stats().workers if worker.state != "spare"}
        os.kill(pid, signal.SIGSTOP)
        future = pool.submit(take, str(place), 1, b"x" * 4_000_000)
        wait_until(lambda: pool.get(future.id).status == "running", "its start")
        os.kill(pool.pid, signal.SIGKILL)
        future.result(WAIT_S)
    wait_gone(tag)
    assert read_evidence(place) == []
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        assert pool.future(future.id).result(WAIT_S) == (1, 2)
        assert [attempt.outcome for attempt in pool.attempts(future.id)] == ["returned", "succeeded"]


def take(place: str, n: int, data: bytes) -> tuple[int, int]:
    """A body with a large argument."""
    return evidence.work(place, n)


def test_nothing_runs_again_before_its_last_process_is_dead(place: Path, tag: str) -> None:
    """Supervisor and zygote are killed at once, so that a daemon of the body lives on until the next start finds it."""
    with pytest.raises(PoolStopped), Pool(place / "x.db", workers=1, durability="process") as pool:
        future = submit(pool, place, 1, fn=tick_and_hold)
        wait_until(lambda: (place / "ticks").exists(), "a daemon")
        zygote = next(pid for pid, name in evidence.tagged(tag).items() if name == "tp-zygote")
        os.kill(pool.pid, signal.SIGSTOP)  # so that it does not start another
        os.kill(zygote, signal.SIGKILL)
        os.kill(pool.pid, signal.SIGKILL)
        future.result(WAIT_S)
    wait_until(lambda: len(evidence.tagged(tag)) == 1, "the end of all but the daemon")
    ticks = (place / "ticks").stat().st_size
    wait_until(lambda: (place / "ticks").stat().st_size > ticks, "another tick")
    (place / "go").touch()
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        assert pool.future(future.id).result(WAIT_S) == (1, 2)
    again = [line.at_ns for line in read_evidence(place) if line.kind == "begin"][1]
    assert max(map(int, (place / "ticks").read_text().split())) < again


def tick_and_hold(place: str, n: int) -> tuple[int, int]:
    """In its first attempt leave a daemon that ticks for ever; then wait."""
    if controller().attempt == 1 and os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        while True:
            evidence.append(Path(place, "ticks"), str(time.monotonic_ns()))
            time.sleep(0.002)
    return evidence.hold(place, n)
