"""A store that fails: the disk, its room, its lock, its owner. What was acknowledged stays, and everybody is told the cause."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskpool import Pool, PoolStopped, StoreError, StoreUnusable, TaskTimeout
from taskpool.testing import planted_fault
from tests.processes import evidence
from tests.processes.evidence import Reruns, check, finish, submit, wait_gone
from tests.waiting import wait_dead, wait_until

WAIT_S = evidence.WAIT_S
SCRIPT = str(Path(__file__).with_name("batch_script.py"))


def goes_on(place: Path, tag: str, **checks: object) -> evidence.Checked:
    """Let the next owner end all that waits, and check everything."""
    wait_gone(tag)
    check(place)
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        finish(pool)
    return check(place, ended=True, **checks)  # type: ignore[arg-type]


# ---- input and output errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_an_io_error_in_a_commit_ends_the_supervisor(place: Path, tag: str, nth: int, capfd: pytest.CaptureFixture[str]) -> None:
    """It is not tried again on that connection: everybody is told the cause, nothing runs on, the next owner has it all."""
    (place / "go").touch()
    with planted_fault("commit.inside", nth, "error"), pytest.raises(PoolStopped, match="injected"):  # noqa: SIM117
        with Pool(place / "x.db", workers=2, durability="process") as pool:
            process = pool._supervisor.process
            futures = []
            try:
                for n in range(100):
                    futures.append(submit(pool, place, n, fn=evidence.hold))
                for future in futures:
                    future.result(WAIT_S)
            finally:
                assert pool._link.wait_gone(WAIT_S)
                for words in evidence.stopped(*(future for future in futures if not future.done() or future._exception)):
                    assert "injected" in words
                    assert "x.db" in words
    assert process.returncode not in (0, None)
    assert capfd.readouterr().err == ""
    goes_on(place, tag, again_max=2)


def test_an_io_error_of_the_last_checkpoint_is_passed_over(place: Path, tag: str, capfd: pytest.CaptureFixture[str]) -> None:
    """At the end of a pool all is stored already; the next owner finds it as after a crash."""
    with planted_fault("checkpoint.inside", 1, "error"), Pool(place / "x.db", workers=1, durability="process") as pool:
        assert submit(pool, place, 1).result(WAIT_S) == (1, 1)
        process = pool._supervisor.process
    assert (process.returncode, capfd.readouterr().err) == (0, "")
    goes_on(place, tag, again_max=0)


def test_an_io_error_at_the_start_is_told(place: Path, tag: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The new owner cannot store what became of the tasks that ran: it says so, and the next one goes on."""
    with pytest.raises(PoolStopped), Pool(place / "x.db", workers=1, durability="process") as pool:
        submit(pool, place, 1, fn=evidence.hold)
        evidence.wait_lines(place, 1)
        os.kill(pool.pid, signal.SIGKILL)
        pool.stats()
    with planted_fault("commit.inside", 1, "error"), pytest.raises(StoreUnusable, match="injected"):
        Pool(place / "x.db", workers=1, durability="process")
    assert capfd.readouterr().err == ""
    (place / "go").touch()
    found = goes_on(place, tag, again_max=1)
    assert [task.interruptions for task in found.tasks.values()] == [1]


# ---- somebody else holds the write lock -----------------------------------------------------------------------------


class Guest:
    """Another program's transaction on the same file. Its connection belongs to a process of its own."""

    CODE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for line in sys.stdin:
    db.execute(line)
    print("done", flush=True)
"""

    def __init__(self, place: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(place / "x.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Guest:
        self.say("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *exc: object) -> None:
        self.say("ROLLBACK")
        self._process.communicate(timeout=WAIT_S)

    def say(self, sql: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{sql}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


def test_while_a_guest_writes_nothing_is_acknowledged_and_kills_go_on(
    place: Path, tag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        done = submit(pool, place, 1)
        assert done.result(WAIT_S) == (1, 1)
        hanging = submit(pool, place, 2, fn=evidence.hold, timeout=0.5)
        pid = evidence.wait_lines(place, 3)[-1].pid
        with Guest(place):
            late = pool.submit_nowait(evidence.work, str(place), 3)
            wait_dead(pid)
            assert pool.get(done.id).status == "succeeded"  # what only reads goes on
            assert pool.get(hanging.id).status == "running"  # as far as anybody may know
            assert pool.stats().pid == pool.pid
            assert pool.count() == 2
            wait_until(lambda: "write lock" in capfd.readouterr().err, "a word about it")
            assert not late._id
            assert not hanging.done()
        assert late.result(WAIT_S) == (3, 1)
        with pytest.raises(TaskTimeout):
            hanging.result(WAIT_S)
        assert "takes writes again" in capfd.readouterr().err
    check(place, ended=True, again_max=0)


def test_cancels_wait_for_the_guest_and_then_hold(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A cancel is stored before anything follows from it. What had ended by then cannot be cancelled any more."""
    with Pool(place / "x.db", workers=2, durability="process") as pool, ThreadPoolExecutor() as threads:
        held = [submit(pool, place, n, fn=evidence.hold) for n in range(2)]
        evidence.wait_lines(place, 2)
        with Guest(place):
            (place / "go").touch()
            evidence.wait_lines(place, 4)
            late = pool.submit_nowait(evidence.work, str(place), 9)
            cancels = [threads.submit(future.cancel) for future in [*held, late]]
            wait_until(lambda: "write lock" in capfd.readouterr().err, "a word about the guest")
            assert not any(cancel.done() for cancel in cancels)
        assert [cancel.result(WAIT_S) for cancel in cancels[:2]] == [False, False]
        assert [future.result(WAIT_S) for future in held] == [(0, 1), (1, 1)]
        accepted = cancels[2].result(WAIT_S)
        late._wait(WAIT_S)
        assert late.status == "succeeded" or (accepted and late.status == "cancelled")  # a success that comes after it stays one
    check(place, ended=True, again_max=0)


def test_a_script_that_dies_while_a_guest_writes_costs_nothing(place: Path, tag: str) -> None:
    """Its supervisor cannot store what is there and does not wait for it: the next owner finds it in the pages."""
    script = subprocess.Popen([sys.executable, SCRIPT, str(place), "0", "1000", "20"], stderr=subprocess.PIPE)
    evidence.wait_lines(place, 60)
    (supervisor,) = map(int, (place / "supervisors").read_text().split())
    with Guest(place):
        script.kill()
        script.communicate(timeout=WAIT_S)
        wait_dead(supervisor, 2 * evidence.GONE_S)
    goes_on(place, tag, again_max=2)


def test_a_pool_can_be_stopped_while_a_guest_writes(place: Path, tag: str) -> None:
    pool = Pool(place / "x.db", workers=2, durability="process")
    futures = [submit(pool, place, n, 200_000) for n in range(4)]
    evidence.wait_lines(place, 2)
    with Guest(place):
        evidence.wait_lines(place, 4)
        pool.stop()
        wait_dead(pool.pid, 2 * evidence.GONE_S)
    for words in evidence.stopped(*futures):
        assert "write lock" in words or "stopped" in words or "closed" in words
    goes_on(place, tag, again_max=2)


def test_a_guest_that_writes_for_ever_lets_nobody_start(place: Path, tag: str) -> None:
    with Pool(place / "x.db", workers=1, durability="process"):
        pass
    with Guest(place), pytest.raises(StoreError, match="write lock"):
        Pool(place / "x.db", workers=1, durability="process")
    goes_on(place, tag)


# ---- no room on the disk --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path, tag: str) -> Iterator[Path]:
    """A file system of 6 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.decode().strip()}")
    try:
        yield mount
        wait_gone(tag)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room; return the file that takes it."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


def keep(place: str, n: int, data: bytes) -> tuple[int, int]:
    """A body whose arguments take room."""
    return evidence.work(place, n)


def hold_much(place: str, n: int) -> bytes:
    """A body whose result takes room."""
    evidence.hold(place, n)
    return b"x" * 200_000


def test_a_full_disk_loses_nothing_and_is_waited_for(small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is new is refused in words; what was computed is kept; when there is room again, everything goes on."""
    with Pool(small_disk / "x.db", workers=2, durability="process") as pool:
        held = [pool.submit(evidence.hold, str(tmp_path), 1), pool.submit(hold_much, str(tmp_path), 2)]
        waiting = pool.submit(evidence.work, str(tmp_path), 3)
        evidence.wait_lines(tmp_path, 2)
        filler = fill(small_disk)
        accepted = []
        with pytest.raises(StoreUnusable, match="no room"):
            for n in range(1000):
                accepted.append(pool.submit(keep, str(tmp_path), 100 + n, os.urandom(50_000)))
        assert pool.count() == 3 + len(accepted)
        assert pool.stats().pid == pool.pid
        (tmp_path / "go").touch()
        evidence.wait_lines(tmp_path, 4)
        wait_until(lambda: "no room" in capfd.readouterr().err, "a word about it")
        with pytest.raises(StoreUnusable, match="no room"):
            pool.submit(evidence.work, str(tmp_path), 4)
        filler.unlink()
        assert held[0].result(WAIT_S) == (1, 1)
        assert held[1].result(WAIT_S) == b"x" * 200_000
        assert waiting.result(WAIT_S) == (3, 1)
        assert [future.result(WAIT_S)[0] for future in accepted] == [100 + n for n in range(len(accepted))]
        assert pool.submit(evidence.work, str(tmp_path), 5).result(WAIT_S) == (5, 1)
        assert pool.stats().restarts == 0
        store = small_disk / "x.db"
        assert "takes writes again" in capfd.readouterr().err
    evidence.check_file(store)
    assert Reruns(tmp_path).check() == 0


def test_the_end_of_a_pool_on_a_full_disk(small_disk: Path, tmp_path: Path, tag: str) -> None:
    """It ends in time, and what it could not store is found in the pages."""
    pool = Pool(small_disk / "x.db", workers=2, durability="process")
    futures = [pool.submit(evidence.hold, str(tmp_path), n) for n in range(2)]
    evidence.wait_lines(tmp_path, 2)
    filler = fill(small_disk)
    with pytest.raises(StoreUnusable, match="no room"):
        for n in range(1000):
            pool.submit(keep, str(tmp_path), 100 + n, os.urandom(50_000))
    (tmp_path / "go").touch()
    evidence.wait_lines(tmp_path, 4)
    pool.stop()
    wait_gone(tag)
    filler.unlink()
    with Pool(small_disk / "x.db", workers=2, durability="process") as pool:
        for n, future in enumerate(futures):
            assert pool.future(future.id).result(WAIT_S) == (n, 1)
        finish(pool)
    evidence.check_file(small_disk / "x.db")
    assert Reruns(tmp_path).check() == 0


def test_a_pool_is_not_opened_on_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """The refusal is a sentence, and with room it opens."""
    with Pool(small_disk / "x.db", workers=1) as pool:
        pool.submit(evidence.work, str(tmp_path), 1).result(WAIT_S)
    filler = fill(small_disk)
    with pytest.raises(StoreUnusable, match=r"no room|No space"):
        Pool(small_disk / "x.db", workers=1)
    with pytest.raises(StoreUnusable, match=r"no room|No space"):
        Pool(small_disk / "new.db", workers=1)
    filler.unlink()
    with Pool(small_disk / "x.db", workers=1) as pool:
        assert pool.submit(evidence.work, str(tmp_path), 2).result(WAIT_S) == (2, 1)
