"""Too few descriptors, no more processes, workers that never come up, storms of crashes: tasks wait, and others go on."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from taskpool import Pool, PoolStopped, TaskPanicked, TaskTimeout
from taskpool.engines.node import SWEEP_NS
from tests.processes import evidence
from tests.processes.evidence import check, submit, wait_gone
from tests.waiting import state_of, wait_until

WAIT_S = 30.0
PIDS = Path("/sys/fs/cgroup/pids")


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def workers_of(pool: Pool) -> list[int]:
    return [worker.pid for worker in pool.stats().workers if worker.pid]


# ---- descriptors ----------------------------------------------------------------------------------------------------

FEW_DESCRIPTORS = """
    import os, resource, sys
    from taskpool import Pool

    if __name__ == "__main__":
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
        with Pool(sys.argv[1], workers=8, durability="process") as pool:
            print(sum(pool.map(abs, range(-300, 0))))
            bad = [pool.submit(os._exit, 1) for _ in range(3)]
            print({type(future.exception(60)).__name__ for future in bad})
            print(sum(pool.map(abs, range(-300, 0))))
"""


def script(place: Path, text: str) -> list[str]:
    path = place / "job.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.parametrize("limit", [32, 64])
def test_few_descriptors_make_few_workers(place: Path, limit: int) -> None:
    """Those that can be had do all the work, and are replaced when they die. That there are too few is said."""
    done = subprocess.run(
        [*script(place, FEW_DESCRIPTORS), str(place / "x.db"), str(limit)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.stdout.splitlines() == ["45150", "{'TaskPanicked'}", "45150"], done.stderr
    assert limit > 32 or "a worker could not be started" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("none", [False, True])
def test_without_descriptors_tasks_wait_and_the_reason_is_told(place: Path, capfd: pytest.CaptureFixture[str], none: bool) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        wait_until(lambda: len(workers_of(pool)) == 3, "workers")
        soft, hard = resource.prlimit(pool.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pool.pid}/fd"))
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (4 if none else used - 12, hard))
        for worker in workers_of(pool):
            os.kill(worker, signal.SIGKILL)
        waiting = submit(pool, place, 1)
        said: list[str] = []
        wait_until(lambda: said.append(capfd.readouterr().err) or "a worker could not be started" in "".join(said), "a word")  # type: ignore[func-returns-value]
        assert "Too many open files" in "".join(said)
        # Nor does the supervisor mind that it cannot look for what the dead have left. Nothing tells of a look that was in vain.
        time.sleep(2 * SWEEP_NS / 1e9)
        assert not waiting.done()
        assert pool.get(waiting.id).status == "queued"
        assert pool.get(waiting.id).charged == 0
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert waiting.result(WAIT_S)[0] == 1
    check(place, ended=True, again_max=0)


def test_workers_that_live_work_on_without_descriptors(place: Path) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        wait_until(lambda: len(workers_of(pool)) == 3, "workers")
        soft, hard = resource.prlimit(pool.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (4, hard))
        assert sum(pool.map(abs, range(-30, 0))) == 465
        time.sleep(2 * SWEEP_NS / 1e9)  # it cannot look for what these have left, and tells nobody that it tried
        assert sum(pool.map(abs, range(-30, 0))) == 465
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (soft, hard))


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pids_group() -> Iterator[Path]:
    """A control group in which the number of processes can be bounded."""
    group = PIDS / f"taskpool-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group for processes: {error}")
    yield group
    wait_until(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
    group.rmdir()


def test_without_processes_tasks_wait_and_the_reason_is_told(
    place: Path, pids_group: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fork that fails is tried again, less and less often; no task is charged for it."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        wait_until(lambda: len(workers_of(pool)) == 3, "workers")
        zygote = next(child.pid for child in psutil.Process(pool.pid).children() if child.name() == "tp-zygote")
        (pids_group / "pids.max").write_text("1")
        (pids_group / "cgroup.procs").write_text(str(zygote))
        for worker in workers_of(pool):
            os.kill(worker, signal.SIGKILL)
        waiting = submit(pool, place, 1)
        wait_until(lambda: "cannot fork" in capfd.readouterr().err, "a word about it")
        assert pool.get(waiting.id).status == "queued"
        assert pool.get(waiting.id).charged == 0
        (pids_group / "pids.max").write_text("max")
        assert waiting.result(WAIT_S)[0] == 1
    check(place, ended=True, again_max=0)


# ---- workers that never come up -------------------------------------------------------------------------------------


def test_workers_that_die_at_birth_stop_the_pool(place: Path, tag: str) -> None:
    """Not a task is charged; the pool ends and says why; what waits is done when the cause is gone."""
    module = place / "stillborn.py"
    module.write_text(
        "import os, sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=[600], daemon=True).start()  # so that each worker imports it by itself\n"
        "if open('/proc/self/comm').read().startswith('tp-worker'):\n"
        "    print('the driver of this card is missing', file=sys.stderr)\n"
        "    os._exit(7)\n"
    )
    sys.path.insert(0, str(place))
    try:
        with pytest.raises(PoolStopped, match=r"die before they are ready.*driver of this card"):  # noqa: SIM117
            with Pool(place / "x.db", workers=2, durability="process", preload=["stillborn"]) as pool:
                waiting = submit(pool, place, 1)
                process = pool._supervisor.process
                waiting.result(WAIT_S)
        assert process.returncode == 1
    finally:
        sys.path.remove(str(place))
    wait_gone(tag)
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        assert pool.future(waiting.id).result(WAIT_S) == (1, 1)
    check(place, ended=True, again_max=0)


# ---- storms ---------------------------------------------------------------------------------------------------------


def belongings(pid: int) -> tuple[list[str], int, int, int]:
    """Return what a supervisor holds: descriptors, threads, children that are zombies, resident bytes."""
    process = psutil.Process(pid)
    names = sorted(re.sub(r"\d+", "#", os.readlink(f"/proc/{pid}/fd/{fd}")) for fd in os.listdir(f"/proc/{pid}/fd"))
    zombies = sum(child.status() == psutil.STATUS_ZOMBIE for child in process.children())
    return names, process.num_threads(), zombies, process.memory_info().rss


@pytest.mark.parametrize(("crashes", "good"), [(100, 1000), pytest.param(1000, 9000, marks=pytest.mark.slow)])
def test_a_storm_of_crashes(tmp_path: Path, tag: str, crashes: int, good: int) -> None:
    """Each costs itself; the others go on meanwhile; nothing is left of any."""
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        list(pool.map(abs, range(500)))
        for _ in range(10):
            assert pool.submit(os._exit, 1).exception(WAIT_S)
        wait_until(lambda: len(workers_of(pool)) == 3, "workers")
        before = belongings(pool.pid)
        bad = []
        well = []
        for n in range(crashes):
            bad.append(pool.submit_nowait(os._exit, n % 100))
            well += [pool.submit_nowait(abs, -n) for _ in range(good // crashes)]
        for n, future in enumerate(bad):
            with pytest.raises(TaskPanicked, match=f"exited with code {n % 100}"):
                future.result(WAIT_S)
        for n, future in enumerate(well):
            assert future.result(WAIT_S) == n // (good // crashes)
        stats = pool.stats()
        assert stats.restarts >= crashes
        assert stats.counts == {"succeeded": 500 + len(well), "failed": 10 + crashes}
        wait_until(lambda: len(workers_of(pool)) == 3, "workers")
        wait_until(lambda: belongings(pool.pid)[:3] == before[:3], "all to be as before")
        assert belongings(pool.pid)[3] < before[3] * 1.1 + (16 << 20)  # what ten thousand tasks that wait once took
        assert sorted(os.listdir(tmp_path / "x.db.d" / "run" / "e1")) == sorted(
            f"w{worker.worker_id}.page" for worker in pool.stats().workers
        )
        for future in well:
            assert not future._exception
        assert {task.charged for task in pool.list(status="succeeded", limit=1000)} == {1}


def test_a_storm_of_timeouts(place: Path) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        hanging = [submit(pool, place, n, fn=evidence.hold, timeout=0.05) for n in range(40)]
        for future in hanging:
            with pytest.raises(TaskTimeout):
                future.result(WAIT_S)
        assert submit(pool, place, 100).result(WAIT_S) == (100, 1)
    found = check(place, ended=True, again_max=0)
    assert found.statuses == {"failed": 40, "succeeded": 1}


# ---- a pool that is told to end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("grace", [WAIT_S, None])
def test_bodies_are_told_that_the_pool_stops(place: Path, tag: str, grace: float | None) -> None:
    """They may end in good time, and their results count, also for the futures that wait for them."""
    pool = Pool(place / "x.db", workers=1, durability="process")
    future = submit(pool, place, 1, fn=until_told)
    evidence.wait_lines(place, 1)
    pool.stop(grace=grace)
    assert future.result() == (1, 1)
    assert state_of(pool.pid) == "X"
    wait_gone(tag)
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        assert pool.future(future.id).result(WAIT_S) == (1, 1)


def until_told(place: str, n: int) -> tuple[int, int]:
    from taskpool import controller

    evidence.note(place, "begin")
    wait_until(lambda: controller().stopping, "the end of the pool")
    evidence.note(place, "end")
    return n, controller().attempt


@contextmanager
def serving(place: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server until it has ended or the block has."""
    with subprocess.Popen(
        [sys.executable, "-m", "taskpool", "-C", str(place / "x.db"), "serve", "--workers", "2", *arguments],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any("ready" in line for line in process.stderr)
            yield process
        finally:
            process.kill()


def test_sigterm_puts_back_what_does_not_end(place: Path, tag: str) -> None:
    """Nothing is charged or lost, and the exit is clean; a second SIGTERM does not wait."""
    from taskpool import connect

    with serving(place, "--drain-grace", "0.5s", "--cancel-grace", "0.2s") as server:
        with connect(place / "x.db") as client:
            running = [submit(client, place, n, fn=evidence.hold) for n in range(2)]  # type: ignore[arg-type]
            waiting = submit(client, place, 5)  # type: ignore[arg-type]
            evidence.wait_lines(place, 2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
    wait_gone(tag)
    found = check(place)
    assert {str(found.tasks[future.id].status) for future in running} == {"pending"}
    assert found.tasks[waiting.id].status == "queued"
    assert {task.charged for task in found.tasks.values()} == {0}
    with serving(place, "--drain-grace", "600s") as server:
        evidence.wait_lines(place, 4)
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None
        assert any("stopping" in line for line in server.stderr)
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0
    wait_gone(tag)
    (place / "go").touch()
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        evidence.finish(pool)
    found = check(place, ended=True, again_max=4)
    assert {task.charged for task in found.tasks.values()} == {1}
    assert {task.interruptions for task in found.tasks.values()} == {0}


def test_the_death_of_a_server_is_met_by_its_clients(place: Path, tag: str) -> None:
    from taskpool import connect

    with serving(place) as server, connect(place / "x.db") as client:
        running = submit(client, place, 1, fn=evidence.hold)  # type: ignore[arg-type]
        evidence.wait_lines(place, 1)
        server.kill()
        with pytest.raises(PoolStopped):
            running.result(WAIT_S)
    wait_gone(tag)
    (place / "go").touch()
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        assert pool.future(running.id).result(WAIT_S) == (1, 2)
    check(place, ended=True, again_max=1)
