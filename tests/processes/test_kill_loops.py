"""Kills at moments of chance, again and again: nothing acknowledged is lost, nothing finished is done again, nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from taskpool import Pool, PoolStopped, RetryPolicy, TaskPanicked, TaskTimeout
from taskpool.engines import linux
from taskpool.store.reading import Reader
from tests.processes import evidence
from tests.processes.evidence import Reruns, chance, check, drive, finish, read_evidence, submit, wait_gone
from tests.waiting import wait_until

SCRIPT = str(Path(__file__).with_name("batch_script.py"))
WORKERS = 2
COUNT = 600  # items of the batch that every run takes up
PLAIN = 30  # tasks that every run submits by itself
LINE_BYTES = 40  # of evidence, about


def supervisors() -> list[int]:
    """Return the supervisors of this process, which may have other children, from other tests."""
    return [pid for pid in linux.children(os.getpid()) if b"taskpool.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Killer:
    """Kills whatever supervisor this process has, at a moment of chance: while it starts, or after so many lines of evidence."""

    def __init__(self, place: Path, random_: random.Random) -> None:
        self._evidence = place / "evidence"
        early = random_.random() < 0.2
        self._bytes = 0 if early else self._size() + random_.randrange(1, LINE_BYTES * COUNT)
        self._seconds = random_.uniform(0.0, 0.4 if early else 0.003)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _size(self) -> int:
        return self._evidence.stat().st_size if self._evidence.exists() else 0

    def _run(self) -> None:
        while self._size() < self._bytes and not self._over.is_set():
            time.sleep(0.0005)
        time.sleep(self._seconds)
        while not self._over.is_set():
            for pid in supervisors():
                os.kill(pid, signal.SIGKILL)  # a zombie at least: only this process reaps it
                return
            time.sleep(0.001)


def kill_supervisors(place: Path, tag: str, kills: int, random_: random.Random, *, durability: str) -> None:
    """Drive a store through that many kills of its supervisor, then to its end."""
    store = place / "x.db"
    reruns = Reruns(place)
    for kill in range(kills):
        # The batch gets longer with each run, so that no kill finds nothing to do.
        count = COUNT * (kill + 1) // kills
        with (
            pytest.raises(PoolStopped, match="SIGKILL"),
            Killer(place, random_),
            Pool(store, workers=WORKERS, durability=durability) as pool,  # type: ignore[arg-type]
        ):
            drive(pool, place, kill, count, PLAIN)
            for n in range(2 * COUNT):  # it came through before the kill
                submit(pool, place, 500_000_000 + 10_000 * kill + n, 1000)
        wait_gone(tag)
        assert reruns.check() <= kill * WORKERS
    with Pool(store, workers=WORKERS, durability=durability) as pool:  # type: ignore[arg-type]
        drive(pool, place, kills, COUNT, PLAIN)
        finish(pool)
    found = check(place, again_max=kills * WORKERS, ended=True)
    assert set(found.statuses) == {"succeeded"}
    assert all(task.charged == 1 for task in found.tasks.values())
    assert sum(task.interruptions for task in found.tasks.values()) >= found.again


@pytest.mark.parametrize("durability", ["power", "process"])
def test_kill_9_of_supervisors(place: Path, tag: str, durability: str) -> None:
    """26 kills in all, from the first moment of a start on."""
    kill_supervisors(place, tag, 13, chance(durability), durability=durability)


@pytest.mark.slow
def test_many_kills_of_supervisors(place: Path, tag: str) -> None:
    kill_supervisors(place, tag, 60, chance("many"), durability="process")


# ---- the script -----------------------------------------------------------------------------------------------------


def start_script(place: Path, run: int, count: int, plain: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, str(place), str(run), str(count), str(plain)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill_scripts(place: Path, tag: str, kills: int, random_: random.Random) -> None:
    """Kill the script again and again, the supervisor not: it records what is there, and ends."""
    reruns = Reruns(place)
    for kill in range(kills):
        before = len(read_evidence(place))
        wanted = before + random_.randrange(0, COUNT)
        script = start_script(place, kill, COUNT * (kill + 1) // kills, PLAIN)
        wait_until(lambda: len(read_evidence(place)) >= wanted or script.poll() is not None, "evidence")  # noqa: B023
        time.sleep(random_.uniform(0, 0.003))
        script.kill()
        _, errors = script.communicate(timeout=evidence.WAIT_S)
        wait_gone(tag)
        assert reruns.check() <= kill * WORKERS
        found = check(place)
        assert "running" not in found.statuses
        assert not any(task.interruptions for task in found.tasks.values()), "an orderly end is no interruption"
        assert errors == b""
    script = start_script(place, kills, COUNT, PLAIN)
    output, errors = script.communicate(timeout=evidence.WAIT_S)
    assert (output, errors, script.returncode) == (b"done\n", b"", 0)
    wait_gone(tag)
    found = check(place, again_max=kills * WORKERS, ended=True)
    assert set(found.statuses) == {"succeeded"}


def test_kill_9_of_scripts(place: Path, tag: str) -> None:
    kill_scripts(place, tag, 5, chance("scripts"))


@pytest.mark.slow
def test_many_kills_of_scripts(place: Path, tag: str) -> None:
    kill_scripts(place, tag, 20, chance("many scripts"))


# ---- workers, and the zygote ----------------------------------------------------------------------------------------


def kill_workers(place: Path, kills: int, random_: random.Random) -> None:
    """Kill workers at moments of chance while a batch runs: each time at most the one task that it had begun is charged."""
    count = kills * 150
    killed: list[int] = []
    with Pool(place / "x.db", workers=3, durability="process") as pool:
        view = pool.options(max_attempts=50, crash_limit=50, retry=RetryPolicy(initial_interval=0.001, maximum_interval=0.01))
        futures = view.submit_many(evidence.work_item, evidence.items(str(place), count))
        for kill in range(kills):
            evidence.wait_lines(place, 2 * count * kill // kills)
            workers = [worker.pid for worker in pool.stats().workers if worker.pid]
            if workers:
                killed.append(random_.choice(workers))
                os.kill(killed[-1], signal.SIGKILL)
        for n, future in enumerate(futures):
            assert future.result(evidence.WAIT_S)[0] == n
        finish(pool)
        restarts = pool.stats().restarts
    found = check(place, again_max=len(killed), ended=True)
    assert set(found.statuses) == {"succeeded"}
    assert restarts >= len(killed)
    last = {line.pid: line for line in read_evidence(place)}
    begun = {(line.task_id, line.attempt) for line in read_evidence(place)}
    charged: dict[int, list[tuple[int, int]]] = {pid: [] for pid in killed}
    for task in found.tasks.values():
        panics = [row for row in found.attempts[task.id] if row.error is not None]
        assert len(panics) == task.crashes
        assert task.charged == 1 + len(panics)
        for row in panics:
            assert row.error is not None
            assert row.error.kind == "panic"
            assert row.error.signal == signal.SIGKILL
            charged[row.pid].append((task.id, row.attempt))  # KeyError: charged with a death that was none of ours
    for pid, victims in charged.items():
        line = last.get(pid)
        if line is not None and line.kind == "begin":
            assert victims == [(line.task_id, line.attempt)], f"process {pid} died in {line}"
        elif victims:  # it had a result on its way into the ring, or arguments on their way to a body
            assert len(victims) == 1
            assert victims[0] not in begun or victims == [line and (line.task_id, line.attempt)]


def test_kill_9_of_workers(place: Path) -> None:
    kill_workers(place, 12, chance("workers"))


@pytest.mark.slow
def test_many_kills_of_workers(place: Path) -> None:
    kill_workers(place, 100, chance("many workers"))


def zygote_of(pool: Pool) -> int | None:
    """Return the process that forks the pool's workers."""
    return next((child.pid for child in psutil.Process(pool.pid).children() if child.name() == "tp-zygote"), None)


def test_kill_9_of_the_zygote(place: Path) -> None:
    """Nothing that runs notices; the workers that are needed later come from another one."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        futures = pool.submit_many(evidence.work_item, evidence.items(str(place), 600))
        for kill in range(4):
            zygote = wait_until(lambda: zygote_of(pool), "a zygote")
            os.kill(zygote, signal.SIGKILL)
            if kill % 2:  # and a worker, which is to be replaced
                with pytest.raises(TaskPanicked):
                    pool.submit(os._exit, 1).result(evidence.WAIT_S)
        for n, future in enumerate(futures):
            assert future.result(evidence.WAIT_S)[0] == n
        assert zygote_of(pool) != zygote
    with Reader(place / "x.db") as reader:
        assert reader.counts() == {"succeeded": 600, "failed": 2}
    assert Reruns(place).check() == 0


# ---- processes that stand still -------------------------------------------------------------------------------------


def test_a_supervisor_that_stands_still_goes_on(place: Path) -> None:
    """As under a debugger, or on a machine that is swapping: nothing is lost, nothing is taken for dead."""
    random_ = chance("stopped supervisor")
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        futures = pool.submit_many(evidence.work_item, evidence.items(str(place), 1000))
        for _ in range(6):
            time.sleep(random_.uniform(0, 0.03))
            os.kill(pool.pid, signal.SIGSTOP)
            time.sleep(random_.uniform(0, 0.15))
            os.kill(pool.pid, signal.SIGCONT)
        for n, future in enumerate(futures):
            assert future.result(evidence.WAIT_S)[0] == n
        assert pool.stats().restarts == 0
    found = check(place, again_max=0, ended=True)
    assert all(task.charged == 1 for task in found.tasks.values())


def test_a_worker_that_stands_still_goes_on(place: Path) -> None:
    """Without a limit nobody may guess that it is dead; the tasks in its mailbox go to others meanwhile."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        held = submit(pool, place, 0, fn=evidence.hold)
        futures = pool.submit_many(evidence.work_item, [(str(place), n, 0) for n in range(1, 400)])
        pids = wait_until(lambda: [line.pid for line in read_evidence(place) if line.task_id == held.id], "its begin")
        pid = pids[0]
        os.kill(pid, signal.SIGSTOP)
        for future in futures:
            future.result(evidence.WAIT_S)
        os.kill(pid, signal.SIGCONT)
        (place / "go").touch()
        assert held.result(evidence.WAIT_S) == (0, 1)
    check(place, again_max=0, ended=True)


def test_a_stopped_worker_is_killed_at_its_timeout(place: Path) -> None:
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        future = submit(pool, place, 0, fn=evidence.hold, timeout=0.4)
        lines = evidence.wait_lines(place, 1)
        os.kill(lines[0].pid, signal.SIGSTOP)
        with pytest.raises(TaskTimeout):
            future.result(evidence.WAIT_S)
        assert submit(pool, place, 1).result(evidence.WAIT_S) == (1, 1)
    (task,) = [task for task in check(place, ended=True).tasks.values() if task.id == future.id]
    assert task.finished_at is not None
    assert task.started_at is not None
    assert task.finished_at - task.started_at < 2_000_000
