"""A store that fails: the disk, its room, its lock, its owner. What was acknowledged stays, and everybody is told the cause."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from taskpool import Pool, PoolStopped, StoreUnusable
from taskpool.testing import planted_fault
from tests.processes import evidence
from tests.processes.evidence import check, finish, submit, wait_gone

WAIT_S = evidence.WAIT_S


def goes_on(place: Path, tag: str, **checks: object) -> evidence.Checked:
    """Let the next owner end all that waits, and check everything."""
    wait_gone(tag)
    check(place)
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        finish(pool)
    return check(place, ended=True, **checks)  # type: ignore[arg-type]


# ---- input and output errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_an_io_error_in_a_commit_ends_the_supervisor(
    place: Path, tag: str, nth: int, capfd: pytest.CaptureFixture[str]
) -> None:
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
