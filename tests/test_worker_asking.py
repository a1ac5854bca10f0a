"""A body that waits for an answer of the supervisor: work that comes meanwhile is kept, and Cancelled breaks nothing off."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig

from taskpool.errors import QueueFull
from taskpool.wire.jobs import CANCELLED, OK, ChildAnswered, ChildAsked, Job
from taskpool.wire.messages import encoder
from taskpool.worker.controller import current
from taskpool.worker.interrupt import whole


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def asking(count: int = 1) -> list[int]:
    return [current().spawn_now(quick, n).id for n in range(count)]


def asking_a_full_queue() -> str:
    try:
        current().spawn_now(quick, 1)
    except QueueFull as error:
        return str(error)
    return "taken"


def quick(n: int = 0) -> int:
    return n


def undisturbed(place: str) -> str:
    done = Path(place, "done")

    def deed() -> None:
        Path(place, "begun").touch()
        while not Path(place, "go").exists():
            pass
        done.touch()

    try:
        whole(deed)
    finally:
        Path(place, "after" if done.exists() else "broken off").touch()
    while True:  # for an interrupt that comes later
        pass


def frame(message: Any) -> bytes:
    body = encoder.encode(message)
    return struct.pack("<I", len(body)) + body


def asked(rig: Rig, count: int) -> ChildAsked:
    """Wait for so many questions, and return the last."""

    def found() -> list[ChildAsked]:
        return [record for record in rig.records if isinstance(record, ChildAsked)]

    rig.until(lambda: len(found()) >= count)
    return found()[-1]


def test_the_answer_is_the_id_of_what_was_stored(rig: Rig) -> None:
    rig.send(rig.job(asking, 2))
    for number in (1, 2):
        question = asked(rig, number)
        assert (question.n, question.task_id, question.attempt, question.seq) == (1, 101, 1, number)
        assert question.spec.name.endswith(":quick")
        rig.conn.sendall(frame(ChildAnswered(question.seq, 40 + number)))
    assert rig.report(1).outcome == OK
    assert rig.value(quick, 5) == 5


def test_a_refusal_is_the_error_that_it_stands_for(rig: Rig) -> None:
    job = rig.job(asking_a_full_queue)
    rig.send(job)
    rig.conn.sendall(frame(ChildAnswered(asked(rig, 1).seq, 0, "queue_full", "9 wait", "later")))
    report = rig.report(job.n)
    assert report.value is not None
    assert b"9 wait (later)" in report.value


def test_work_that_comes_meanwhile_is_done_after_it(rig: Rig) -> None:
    first, *others = [rig.job(asking), *(rig.job(quick, n) for n in range(50))]
    rig.send(first)
    question = asked(rig, 1)
    for other in others[:25]:
        rig.send(other)
    rig.conn.sendall(frame(ChildAnswered(question.seq, 7)) + frame(others[25:]))
    assert [rig.report(job.n).outcome for job in (first, *others)] == [OK] * 51


def test_an_answer_that_nobody_waits_for_any_more_is_passed_over(rig: Rig) -> None:
    first, second = rig.job(asking), rig.job(asking)
    rig.send(first, second)
    stale = asked(rig, 1)
    rig.interrupt(first.n)
    assert rig.report(first.n).outcome == CANCELLED
    fresh = asked(rig, 2)
    assert fresh.seq != stale.seq
    rig.conn.sendall(frame(ChildAnswered(stale.seq, 1)) + frame(ChildAnswered(fresh.seq, 2)))
    assert rig.report(second.n).outcome == OK


def test_cancels_at_any_moment_lose_no_work(rig: Rig) -> None:
    """A frame half read, or read and forgotten, would be the end of all that follows."""
    random_ = random.Random(4711)
    quicks: list[Job] = []
    for number in range(1, 150):
        job = rig.job(asking)
        rig.send(job)
        question = asked(rig, number)
        more = [rig.job(quick, n) for n in range(3)]
        data = frame(ChildAnswered(question.seq, number)) + frame(more[:2]) + frame(more[2:])
        cut = random_.randrange(len(data))
        rig.conn.sendall(data[:cut])
        rig.interrupt(job.n, times=random_.choice((0, 1, 3)))
        rig.conn.sendall(data[cut:])
        quicks += more
        assert rig.report(job.n).outcome in (OK, CANCELLED)
    assert [rig.report(job.n).outcome for job in quicks] == [OK] * len(quicks)


def test_what_must_not_be_broken_off_is_done_before_cancelled_comes(rig: Rig, tmp_path: Path) -> None:
    job = rig.job(undisturbed, str(tmp_path))
    rig.send(job)
    rig.until((tmp_path / "begun").exists)
    rig.interrupt(job.n, times=3)
    (tmp_path / "go").touch()
    assert rig.report(job.n).outcome == CANCELLED  # by the signal that came too early
    assert sorted(os.listdir(tmp_path)) == ["after", "begun", "done", "go", "w1.page"]
