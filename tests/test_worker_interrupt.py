"""Cancelled and SoftTimeout reach the body that is meant, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_rig import Rig

import taskpool.worker.controller as controllers
from taskpool.errors import Cancelled, SoftTimeout
from taskpool.wire.jobs import CANCELLED, OK, SOFT_TIMEOUT, Report
from taskpool.wire.page import CANCEL, CANCEL_REQUEST, CANCEL_SOFT_TIMEOUT, CURRENT
from taskpool.worker.interrupt import INTERRUPT_SIGNAL

SIGNALS = 1600


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.stop()


def interrupt_until_ended(rig: Rig, n: int, kind: int = CANCEL_REQUEST) -> Report:
    """Signal as the engine does: again and again until there is a report."""
    rig.begun(n)

    def again() -> bool:
        rig.interrupt(n, kind)
        return any(isinstance(record, Report) and record.n == n for record in rig.records)

    rig.until(again)
    return rig.report(n)


# ---- bodies ---------------------------------------------------------------------------------------------------------


def short() -> str:
    until = time.perf_counter() + 0.0006
    while time.perf_counter() < until:
        pass
    return "done"


def forever() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(1000)


def locked() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def reading() -> None:
    os.read(os.pipe()[0], 1)


def in_a_generator() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    for _ in endless():
        pass


def deep_down(levels: int = 500) -> None:
    if levels:
        deep_down(levels - 1)
    else:
        forever()


def swallowing_at_first() -> str:
    for _ in range(3):
        try:
            forever()
        except BaseException:
            pass
    forever()
    return "never"


def cleaning_up(path: str) -> None:
    """Once it is cancelled it must be left alone to clean up, whatever is signalled meanwhile."""
    try:
        forever()
    finally:
        Path(path + ".cleaning").touch()
        while not os.path.exists(path + ".go"):
            pass
        try:
            raise KeyError("in between")
        except KeyError:
            while not os.path.exists(path + ".on"):
                pass
        Path(path).touch()


@contextlib.contextmanager
def managed(path: str) -> Iterator[None]:
    try:
        yield
    finally:
        Path(path + ".cleaning").touch()
        while not os.path.exists(path + ".go"):
            pass
        while not os.path.exists(path + ".on"):
            pass
        Path(path).touch()


def cleaning_by_context(path: str) -> None:
    with managed(path):
        forever()


def ending_in_good_order() -> str:
    try:
        forever()
    except SoftTimeout:
        for _ in range(200_000):
            pass
        return "saved"
    return "never"


def polite() -> str:
    controller = controllers.current()
    while not controller.cancelled:
        pass
    try:
        controller.raise_if_cancelled()
    except Cancelled:
        return "asked to end"
    return "never"


def waits_for(path: str) -> str:
    while not os.path.exists(path):
        pass
    return "went on"


# ---- one at a time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [forever, sleep, locked, reading, in_a_generator, deep_down, swallowing_at_first])
def test_a_body_is_cancelled_wherever_it_is(rig: Rig, fn: Any) -> None:
    job = rig.job(fn)
    rig.send(job)
    report = interrupt_until_ended(rig, job.n)
    assert report.outcome == CANCELLED
    assert (report.error.kind, report.error.retryable) == ("cancelled", False)
    assert rig.value(short) == "done"


@pytest.mark.parametrize("fn", [cleaning_up, cleaning_by_context])
def test_a_body_that_cleans_up_is_not_interrupted_again(rig: Rig, tmp_path: Path, fn: Any) -> None:
    path = str(tmp_path / "cleaned")
    job = rig.job(fn, path)
    rig.send(job)
    rig.begun(job.n)

    def cleaning() -> bool:
        rig.interrupt(job.n)
        return os.path.exists(path + ".cleaning")

    rig.until(cleaning)
    for step in (".go", ".on"):
        rig.interrupt(job.n, times=20)
        Path(path + step).touch()
    assert rig.report(job.n).outcome == CANCELLED
    assert os.path.exists(path)


def test_a_soft_timeout_is_raised_once(rig: Rig) -> None:
    job = rig.job(ending_in_good_order)
    rig.send(job)
    report = interrupt_until_ended(rig, job.n, CANCEL_SOFT_TIMEOUT)
    assert report.outcome == OK
    job = rig.job(forever)
    rig.send(job)
    report = interrupt_until_ended(rig, job.n, CANCEL_SOFT_TIMEOUT)
    assert (report.outcome, report.error.kind) == (SOFT_TIMEOUT, "timeout")


def test_a_cancel_after_a_soft_timeout_still_comes(rig: Rig, tmp_path: Path) -> None:
    def stubborn(path: str) -> None:
        try:
            forever()
        except SoftTimeout:
            Path(path).touch()
        forever()

    path = str(tmp_path / "softened")
    job = rig.job(stubborn, path)
    rig.send(job)
    rig.begun(job.n)

    def softened() -> bool:
        rig.interrupt(job.n, CANCEL_SOFT_TIMEOUT)
        return os.path.exists(path)

    rig.until(softened)
    assert interrupt_until_ended(rig, job.n).outcome == CANCELLED


def test_a_handler_may_ask_instead_of_being_interrupted(rig: Rig) -> None:
    job = rig.job(polite)
    rig.send(job)
    rig.begun(job.n)
    rig.page.words[CANCEL], rig.page.words[CANCEL + 1] = job.n, CANCEL_REQUEST  # without a signal
    report = rig.report(job.n)
    assert report.outcome == OK


def test_a_signal_for_another_job_is_ignored(rig: Rig, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    job = rig.job(waits_for, path)
    rig.send(job)
    rig.begun(job.n)
    for other in (0, job.n - 1, job.n + 1):
        rig.interrupt(other, times=50)
    rig.page.words[CANCEL] = 0
    Path(path).touch()
    assert rig.report(job.n).outcome == OK


def test_an_idle_worker_ignores_the_signal(rig: Rig) -> None:
    rig.value(short)
    rig.interrupt(1, times=100)
    rig.interrupt(0, times=100)
    assert rig.value(short) == "done"


def test_a_thread_of_the_body_may_take_the_signal(rig: Rig, tmp_path: Path) -> None:
    """Python runs handlers in the main thread, whichever thread the kernel chose."""

    def threaded(path: str) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, [INTERRUPT_SIGNAL])
            Path(path).touch()
            forever()
        finally:
            stop.set()
            thread.join()

    path = str(tmp_path / "blocked")
    job = rig.job(threaded, path)
    rig.send(job)
    rig.until(lambda: os.path.exists(path))
    report = interrupt_until_ended(rig, job.n)
    assert (report.outcome, report.dirty) == (CANCELLED, False)
    assert rig.value(short) == "done"


# ---- the race -------------------------------------------------------------------------------------------------------


def test_signals_that_race_with_the_end_of_a_body_never_escape(rig: Rig) -> None:
    """Each signal is aimed at the job that runs, around the moment of its end: it lands there or nowhere."""
    dice = random.Random(11)
    words = rig.page.words
    aimed: set[int] = set()
    while len(aimed) < SIGNALS:
        rig.send(*(rig.job(short) for _ in range(50)))
        last = rig.n
        seen = 0
        while seen < last:
            n = words[CURRENT]
            if n <= seen:
                rig.collect()
                if rig.records and rig.records[-1].n == last:
                    break
                continue
            seen = n
            until = time.perf_counter() + dice.uniform(0.0, 0.0009)
            while time.perf_counter() < until:
                pass
            aimed.add(n)
            rig.interrupt(n)
        rig.report(last)
    reports = rig.of(Report)
    assert [report.n for report in reports] == list(range(1, rig.n + 1)), "the worker lived, and lost nothing"
    hit = {report.n for report in reports if report.outcome == CANCELLED}
    assert hit <= aimed, "no job was cancelled that was not meant"
    assert {report.outcome for report in reports} == {OK, CANCELLED}
    assert 0 < len(hit) < len(aimed), "some signals came in time, and some too late"
