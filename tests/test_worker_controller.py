"""The controller: what a handler can say and ask while it runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig

from taskpool.errors import InvalidPayload
from taskpool.model import Controller, Options, Progress, Running
from taskpool.wire.codec import decode_result, loads
from taskpool.wire.jobs import CANCELLED, ERROR, Checkpointed, Report
from taskpool.wire.page import PROGRESS_TEXT_BYTES, STOPPING, Page
from taskpool.worker.controller import current, track


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def facts(ctl: Controller) -> tuple[Any, ...]:
    return ctl.task, ctl.attempt, ctl.cancelled, ctl.stopping, ctl.last_checkpoint, ctl.deadline_left()


def given_first(ctl: Controller, a: int, *, b: int = 0) -> tuple[str, int, int]:
    return type(ctl).__name__, a, b


def test_a_handler_that_asks_for_it_is_given_its_controller_first(rig: Rig) -> None:
    assert rig.value(given_first, 1, b=2) == ("PageController", 1, 2)

    def by_value(ctl: Controller, a: int) -> tuple[bool, int]:
        return ctl is current(), a

    assert rig.value(by_value, 7) == (True, 7)


def test_it_knows_its_task(rig: Rig) -> None:
    deadline = time.time_ns() // 1000 + 60_000_000
    options = Options(tags=("a",), headers={"h": "1"}, deadline_at=deadline, timeout_s=5.0)
    report = rig.run(facts, options=options)
    task, attempt, cancelled, stopping, checkpoint, left = decode_result(report.codec, report.value)
    assert task == Running(101, 1, "test_worker_controller:facts", ("a",), {"h": "1"}, {}, deadline, 5.0, options)
    assert (attempt, cancelled, stopping, checkpoint) == (1, False, False, None)
    assert 0 < left <= 60
    rig.page.words[STOPPING] = 1
    report = rig.run(facts)
    _, _, _, stopping, _, left = decode_result(report.codec, report.value)
    assert (stopping, left) == (True, None)


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        pass


def test_progress_is_seen_while_it_runs_and_kept_when_it_ends(rig: Rig, tmp_path: Path) -> None:
    def advance(path: str) -> None:
        for i in range(100_000):
            current().progress(i, 100_000)
        current().progress(5, 10, "ä" * 300)
        wait_for(path)
        current().progress(10, 10)

    path = str(tmp_path / "go")
    rig.send(rig.job(advance, path))
    rig.until(lambda: (found := rig.page.progress()) is not None and found[1].done == 5)
    n, progress = rig.page.progress()
    assert (n, progress.total, progress.text) == (1, 10, "ä" * (PROGRESS_TEXT_BYTES // 2))
    Path(path).touch()
    assert rig.report(1).progress.fraction == 1.0
    assert rig.run(wait_for, path).progress is None


@pytest.mark.parametrize("wrong", ["a", None, object])
def test_progress_that_is_no_number_fails_and_leaves_the_page_readable(rig: Rig, wrong: Any) -> None:
    report = rig.run(lambda value: current().progress(value), wrong)
    assert report.outcome == ERROR
    rig.run(lambda: current().progress(1, 2))
    assert rig.page.progress() == (2, Progress(1.0, 2.0))


def test_a_checkpoint_is_handed_over_at_once_and_given_to_the_next_attempt(rig: Rig, tmp_path: Path) -> None:
    def saving(path: str) -> list[Any]:
        seen = [current().last_checkpoint]
        for i in range(3):
            current().checkpoint({"step": i, "data": bytes(40_000 * i)})
            seen.append(current().last_checkpoint["step"])
        wait_for(path)
        return seen

    path = str(tmp_path / "go")
    rig.send(rig.job(saving, path))
    rig.until(lambda: len(rig.of(Checkpointed)) == 3)
    assert not rig.of(Report)
    assert [(saved.n, saved.task_id, saved.attempt) for saved in rig.of(Checkpointed)] == [(1, 101, 1)] * 3
    Path(path).touch()
    report = rig.report(1)
    assert decode_result(report.codec, report.value) == [None, 0, 1, 2]
    saved = rig.of(Checkpointed)[-1].data
    assert loads(saved)["step"] == 2
    job = rig.job(facts)
    job.checkpoint = saved
    rig.send(job)
    report = rig.report(2)
    assert decode_result(report.codec, report.value)[4] == {"step": 2, "data": bytes(80_000)}


def test_a_checkpoint_that_cannot_be_saved_is_the_handlers_error(rig: Rig) -> None:
    def hopeless() -> None:
        current().checkpoint(i for i in range(3))

    def huge() -> None:
        current().checkpoint(bytes(17 << 20))

    for fn in (hopeless, huge):
        report = rig.run(fn)
        assert report.error.type_name == f"taskpool.errors.{InvalidPayload.__name__}"
    assert not rig.of(Checkpointed)


def test_the_timeout_is_extended_for_this_attempt(rig: Rig) -> None:
    def longer() -> None:
        current().extend_timeout(1.5)
        current().extend_timeout(0.5)

    assert rig.page.extended_ns(1) == 0
    rig.run(longer)
    assert rig.page.extended_ns(1) == 2_000_000_000
    assert rig.page.extended_ns(2) == 0
    rig.run(longer)
    assert rig.page.extended_ns(2) == 2_000_000_000
    assert rig.run(lambda: current().extend_timeout(-1)).outcome == ERROR


def test_a_controller_is_deaf_after_its_attempt(rig: Rig) -> None:
    kept: list[Controller] = []

    def keep() -> None:
        sys_modules_holder().append(current())
        current().progress(1, 2)

    def misuse() -> str:
        old = sys_modules_holder().pop()
        old.progress(99)
        old.extend_timeout(5)
        assert not old.cancelled
        try:
            old.checkpoint(1)
        except RuntimeError:
            return "refused"
        return "saved"

    assert not kept
    rig.run(keep)
    assert rig.value(misuse) == "refused"
    assert rig.page.progress() == (1, Progress(1.0, 2.0))
    assert rig.page.extended_ns(2) == 0


def sys_modules_holder() -> list[Controller]:
    return _held


_held: list[Controller] = []


def test_a_process_that_a_task_forked_cannot_write_into_the_ring(rig: Rig) -> None:
    def forking() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                current().progress(3)
                current().checkpoint(1)
                os._exit(1)
            except RuntimeError:
                os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert rig.value(forking) == 7
    assert rig.page.progress() == (1, Progress(3.0))
    assert not rig.of(Checkpointed)


def test_threads_of_one_task_may_save_at_the_same_time(rig: Rig) -> None:
    def crowd() -> None:
        def save() -> None:
            for i in range(50):
                current().checkpoint(bytes(i * 100))

        threads = [threading.Thread(target=save) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    report = rig.run(crowd)
    assert (report.error, report.dirty) == (None, False)
    assert len(rig.of(Checkpointed)) == 200


def test_track_reports_and_lets_itself_be_cancelled(rig: Rig) -> None:
    def counting() -> int:
        return sum(track(range(10)))

    assert rig.value(counting) == 45
    assert rig.report(1).progress == Progress(10.0, 10.0, "", rig.report(1).progress.at)

    def endless() -> None:
        def numbers() -> Iterator[int]:
            while True:
                yield 1

        for _ in track(numbers(), total=5):
            pass

    job = rig.job(endless)
    rig.send(job)
    rig.begun(job.n)
    rig.interrupt(job.n, times=0)
    assert rig.report(job.n).outcome == CANCELLED


def test_outside_of_a_task_all_of_it_does_nothing() -> None:
    assert list(track([1, 2, 3])) == [1, 2, 3]
    ctl = current()
    ctl.progress(1, 2, "x")
    ctl.raise_if_cancelled()
    ctl.extend_timeout(1)
    ctl.checkpoint({"a": 1})
    assert (ctl.last_checkpoint, ctl.cancelled, ctl.stopping, ctl.deadline_left()) == ({"a": 1}, False, False, None)
    assert given_first(ctl, 1) == ("Detached", 1, 0)


def test_a_page_in_memory_serves_too() -> None:
    page = Page.anonymous(worker=4)
    assert page.current() == (0, 0, 0)
    page.close()
