"""A worker that gets no processor is not one whose body takes long: what it was sent is left with it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from taskpool.core import events as ev
from taskpool.engines import linux
from tests import engine_bodies as bodies
from tests.engine_rig import Rig
from tests.waiting import wait_until

MS = 1_000_000


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def hog() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Something that keeps one processor busy, and which."""
    where = min(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        os.sched_setaffinity(process.pid, {where})
        yield process, where
        process.kill()


def given_back(rig: Rig, last: int) -> list[int]:
    """The last numbers that a worker kept where it had to give back some, of jobs up to the last."""
    return [event.above for event in rig.events if isinstance(event, ev.TakenBack) and event.above < last]


def test_what_a_starving_worker_was_sent_is_left_with_it(rig: Rig, hog: tuple[subprocess.Popen[bytes], int]) -> None:
    worker = rig.ready(1)
    for _ in range(3):
        assert rig.call(worker, bodies.double, 1) == 2  # it knows the function now, and that takes no time
    pid = rig.engine.pids()[worker]
    busy, where = hog
    os.sched_setaffinity(pid, {where})
    os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))  # it runs when nobody else wants to
    numbers = rig.send(worker, *((bodies.double, x) for x in range(50)))
    for _ in range(5):
        rig.engine.take_back(worker, 0, running_ns=50 * MS)
        before = linux.processor_ns(busy.pid)
        wait_until(lambda had=before: linux.processor_ns(busy.pid) > had + 4 * MS, "the other to have the processor")
    assert not given_back(rig, numbers[-1])
    busy.kill()
    assert rig.report(worker, numbers[-1]).outcome == 0
    assert not given_back(rig, numbers[-1])


def test_what_stands_behind_a_body_that_computes_is_taken_back(rig: Rig) -> None:
    worker = rig.ready(1)
    for _ in range(3):
        assert rig.call(worker, bodies.double, 1) == 2  # so far its bodies were short
    first, last = rig.send(worker, (bodies.spin_in_c,), (bodies.double, 1))
    rig.begun(worker, first)

    def look() -> list[int]:
        rig.engine.take_back(worker, first, running_ns=2 * MS)
        return given_back(rig, last)

    assert rig.until(look) == [first]
    rig.engine.kill(worker, first, "cancel")


def test_what_stands_behind_a_body_that_sleeps_is_taken_back_at_the_first_look(rig: Rig) -> None:
    worker = rig.ready(1)
    first, last = rig.send(worker, (bodies.nap, 600), (bodies.double, 1))
    rig.begun(worker, first)
    pid = rig.engine.pids()[worker]
    wait_until(lambda: (found := linux.process(pid)) is not None and found.state == "S", "the body to sleep")
    rig.engine.take_back(worker, first, running_ns=1)
    assert given_back(rig, last) == [first]
    rig.engine.kill(worker, first, "cancel")


@pytest.mark.parametrize("source", ["process", "processor_ns"])
def test_a_machine_that_does_not_tell_of_processors_takes_back_by_the_clock_alone(
    rig: Rig, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> NoReturn:
        raise PermissionError(errno.EPERM, f"nobody may look at process {pid}")

    worker = rig.ready(1)
    first, last = rig.send(worker, (bodies.spin_in_c,), (bodies.double, 1))
    rig.begun(worker, first)
    pid = rig.engine.pids()[worker]
    wait_until(lambda: (found := linux.process(pid)) is not None and found.state == "R", "the body to compute")
    with monkeypatch.context() as patch:
        patch.setattr(linux, source, refuse)

        def look() -> list[int]:
            rig.engine.take_back(worker, first, running_ns=1)
            return given_back(rig, last)

        assert rig.until(look) == [first]
    rig.engine.kill(worker, first, "cancel")
