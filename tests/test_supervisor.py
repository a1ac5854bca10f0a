"""What the supervisor does beside the scheduler's decisions."""

from __future__ import annotations

import resource
import socket
import time
from pathlib import Path

import pytest

from taskpool import Pool, track
from taskpool.supervisor import server
from taskpool.wire.poller import Poller
from tests.waiting import wait_until

WAIT_S = 30.0


def _count(steps: int, pause: float) -> int:
    for _ in track(range(steps)):
        time.sleep(pause)
    return steps


def test_the_last_progress_of_an_ended_task_stays(tmp_path: Path) -> None:
    """What was seen of a body while it ran is not saved over what its report said."""
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        pool.follow(lambda news: None)  # looked at ten times a second, saved once
        other = pool.submit(_count, 600, 0.05)
        ends = [pool.submit(_count, 10 + n, 0.03) for n in range(3)]
        assert [future.result(WAIT_S) for future in ends] == [10, 11, 12]

        def saved() -> float:
            progress = pool.get(other.id).progress
            return progress.done if progress else 0.0

        first = wait_until(saved, "a saving")
        wait_until(lambda: saved() != first, "another saving")
        for future in ends:
            progress = pool.get(future.id).progress
            assert progress is not None
            assert progress.fraction == 1.0
        other.cancel()


def test_a_task_of_next_year_waits_for_it(tmp_path: Path) -> None:
    """Longer than epoll can count; others do not notice."""
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        later = pool.options(delay=400 * 86400.0).submit(_count, 1, 0.0)
        assert pool.submit(_count, 2, 0.0).result(WAIT_S) == 2
        assert later.cancel()


def test_without_a_descriptor_clients_wait_and_nothing_spins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listening socket with somebody before it is ready all the time."""
    monkeypatch.setattr(server, "STARVED_S", 0.0)
    served = server.Server(poller := Poller(), lambda connection, request: None, lambda connection: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        try:
            served.listen(tmp_path / "run" / "socket")
            client.connect(str(tmp_path / "run" / "socket"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            poller.wait(WAIT_S)
            assert served.starved
            served.starved = False
            poller.wait(0)
            assert not served.starved, "it was asked again"
            served.starved = True
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            served.listen_again()
            poller.wait(WAIT_S)
            assert len(served.connections) == 1
            assert not served.starved
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            served.close("bye")
            poller.close()
