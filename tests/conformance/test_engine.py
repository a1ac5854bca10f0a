"""What every engine promises, whatever it is made of: runs, order, take-back, cancel, kill, limits, deaths, the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskpool.clock import US
from taskpool.core import events as ev
from taskpool.engines.engine import Limits
from taskpool.wire.jobs import CANCELLED, ERROR
from tests import engine_bodies as bodies
from tests.engine_rig import Rig
from tests.waiting import wait_file


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


# ---- runs -----------------------------------------------------------------------------------------------------------


def test_a_worker_runs_what_it_is_sent(rig: Rig) -> None:
    worker = rig.ready(1)
    assert rig.call(worker, bodies.double, 21) == 42


def test_a_mailbox_is_worked_off_in_order_and_each_report_says_whose_it_is(rig: Rig) -> None:
    worker = rig.ready(1)
    numbers = rig.send(worker, *((bodies.double, x) for x in range(100)))
    rig.report(worker, numbers[-1])
    reports = [report for event in rig.events if isinstance(event, ev.Reported) for report in event.reports]
    assert [(report.n, report.task_id, report.attempt) for report in reports] == [(n, 1000 + n, 1) for n in numbers]


def test_a_result_of_megabytes_arrives_whole(rig: Rig) -> None:
    worker = rig.ready(1)
    assert rig.call(worker, bodies.big, 5_000_000) == b"x" * 5_000_000


def test_many_jobs_with_large_arguments_are_sent_without_blocking(rig: Rig) -> None:
    worker = rig.ready(1)
    argument = "y" * 4_000_000
    numbers = rig.send(worker, (bodies.nap, 0.05), *((bodies.say, argument) for _ in range(10)))
    assert rig.report(worker, numbers[-1]).outcome == 0


def test_what_a_body_prints_comes_with_its_report_and_as_news(rig: Rig) -> None:
    worker = rig.ready(1)
    first, second, third = rig.send(worker, (bodies.say, "one"), (bodies.nap, 0.0), (bodies.say, "three"))
    assert [rig.output(worker, n) for n in (first, second, third)] == ["one\n", "", "three\n"]
    assert rig.engine.output_news() == [(1000 + first, b"one\n"), (1000 + third, b"three\n")]
    assert rig.engine.output_news() == []


def test_what_a_body_has_printed_so_far_can_be_asked_for_and_stays_its_own(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.say_and_wait, "so far", str(tmp_path / "gate")))
    rig.until(lambda: rig.engine.printed(1000 + n) == "so far\n", "what was printed")
    (tmp_path / "gate").touch()
    assert rig.output(worker, n) == "so far\n"
    assert rig.engine.printed(1000 + n) == ""


def test_progress_is_told_once_per_change(rig: Rig) -> None:
    worker = rig.ready(1)
    rig.send(worker, (bodies.fall_silent,))
    ((task_id, progress),) = rig.until(rig.engine.progress)
    assert (task_id, progress.done, progress.total, progress.text) == (1001, 1.0, 2.0, "last words")
    assert progress.at > 0
    assert rig.engine.progress() == []


def test_a_checkpoint_is_delivered_while_the_body_runs(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.save_and_wait, 7, str(tmp_path / "saved")))
    saved = rig.wait(ev.Saved)
    assert (saved.worker, saved.checkpoint.n, saved.checkpoint.task_id) == (worker, n, 1001)


def test_handlers_see_that_the_pool_stops(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.see_stopping, str(tmp_path / "started")))
    rig.until_file(tmp_path / "started")
    rig.engine.stopping()
    assert rig.result(worker, n) == "seen"


# ---- take-back ------------------------------------------------------------------------------------------------------


def test_jobs_behind_a_long_one_are_taken_back_and_never_begin(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    started, marks = tmp_path / "started", [tmp_path / f"ran{i}" for i in range(3)]
    long = (bodies.note_cancel, str(started), str(tmp_path / "noted"))
    first, *rest = rig.send(worker, long, *((bodies.write, str(mark)) for mark in marks))
    rig.until_file(started)
    rig.engine.take_back(worker, first)
    assert rig.wait(ev.TakenBack) == ev.TakenBack(worker, first)
    rig.engine.signal(worker, first, 60.0)
    assert rig.report(worker, first).outcome == CANCELLED
    assert rig.wait(ev.Passed) == ev.Passed(worker, rest[-1])
    assert not any(mark.exists() for mark in marks)
    assert rig.call(worker, bodies.double, 4) == 8


def test_what_has_ended_before_the_take_back_is_reported_and_not_taken(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    numbers = rig.send(worker, *((bodies.double, x) for x in range(20)), (bodies.write, str(tmp_path / "last")))
    wait_file(tmp_path / "last")  # all have ended or are ending; nothing was collected meanwhile
    rig.engine.take_back(worker, numbers[0])
    taken = rig.wait(ev.TakenBack)
    reported = [report.n for event in rig.events if isinstance(event, ev.Reported) for report in event.reports]
    assert reported == numbers[: len(reported)]
    assert taken.above >= reported[-1]
    rig.wait(ev.Passed)
    assert rig.call(worker, bodies.double, 4) == 8


def test_take_back_never_loses_or_doubles_a_job(rig: Rig) -> None:
    """The race between a worker that begins and a supervisor that takes back, many times over."""
    worker = rig.ready(1)
    for _ in range(300):
        rig.events.clear()
        numbers = rig.send(worker, *((bodies.double, x) for x in range(8)))
        rig.turn(0.0005)
        rig.engine.take_back(worker, numbers[0])
        above = next(event.above for event in rig.events if isinstance(event, ev.TakenBack))
        rig.wait(ev.Passed, lambda event, last=numbers[-1]: event.n == last)
        begun = [n for n in numbers if n <= above]
        if begun:
            rig.report(worker, begun[-1])
        reported = [report.n for event in rig.events if isinstance(event, ev.Reported) for report in event.reports]
        assert reported == begun


# ---- cancel and kill ------------------------------------------------------------------------------------------------


def test_a_cancel_is_raised_in_the_body_and_the_worker_lives(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    started, noted = tmp_path / "started", tmp_path / "noted"
    (n,) = rig.send(worker, (bodies.note_cancel, str(started), str(noted)))
    rig.until_file(started)
    rig.engine.signal(worker, n, 60.0)
    assert rig.report(worker, n).outcome == CANCELLED
    assert noted.read_text() == "cancelled"
    assert rig.call(worker, bodies.double, 4) == 8


def test_a_job_that_is_cancelled_in_the_mailbox_does_not_begin(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    first, second = rig.send(worker, (bodies.nap, 0.1), (bodies.write, str(tmp_path / "ran")))
    rig.engine.signal(worker, second, 60.0)
    assert rig.report(worker, first).outcome == 0
    assert rig.report(worker, second).outcome == CANCELLED
    assert not (tmp_path / "ran").exists()


def test_a_cancel_that_is_ignored_ends_in_a_kill(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.swallow_cancel, str(tmp_path / "started")))
    rig.until_file(tmp_path / "started")
    rig.engine.signal(worker, n, 0.5)
    death = rig.death(worker)
    assert (death.begun, death.why, death.error.kind) == (n, "cancel", "cancelled")


def test_a_kill_names_its_reason_and_only_the_one_that_ran(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    first, _, _ = rig.send(worker, (bodies.spin_in_python, str(tmp_path / "started")), (bodies.double, 1), (bodies.double, 2))
    rig.until_file(tmp_path / "started")
    rig.engine.kill(worker, first, "cancel")
    death = rig.death(worker)
    assert (death.begun, death.why) == (first, "cancel")
    assert not [event for event in rig.events if isinstance(event, ev.Reported)]


def test_a_kill_of_a_job_that_does_not_run_hits_nobody(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    (first,) = rig.send(worker, (bodies.double, 1))
    rig.report(worker, first)
    rig.engine.kill(worker, first, "cancel")
    rig.engine.kill(worker, first + 1, "cancel")
    assert rig.call(worker, bodies.double, 4) == 8


def test_an_idle_worker_can_be_retired(rig: Rig) -> None:
    worker = rig.ready(1)
    rig.engine.kill(worker, 0, "retire")
    death = rig.death(worker)
    assert (death.begun, death.why, death.error.kind) == (0, "retire", "interrupted")


def test_a_worker_can_be_killed_before_it_lives(rig: Rig) -> None:
    rig.numbers[1] = 0
    rig.engine.spawn(1)
    rig.engine.kill(1, 0, "retire")
    assert rig.death(1).why == "retire"


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_timeout_kills_c_code_that_holds_the_interpreter(rig: Rig) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.spin_in_c,), limits=[Limits(1, timeout_s=0.2)])
    death = rig.death(worker)
    assert (death.begun, death.why, death.error.kind, death.error.retryable) == (n, "timeout", "timeout", True)
    assert "timeout of 0.2 s" in death.error.message
    assert death.cpu_user_us > 0


def test_a_timeout_counts_from_the_begin_of_the_body_not_from_the_mailbox(rig: Rig) -> None:
    worker = rig.ready(1)
    limits = [Limits(n, timeout_s=0.4) for n in (1, 2, 3)]
    numbers = rig.send(worker, *((bodies.nap, 0.25) for _ in range(3)), limits=limits)
    assert [rig.report(worker, n).outcome for n in numbers] == [0, 0, 0]


def test_a_timeout_in_a_mailbox_kills_the_one_that_has_begun(rig: Rig, tmp_path: Path) -> None:
    worker = rig.ready(1)
    limits = [Limits(n, timeout_s=0.3) for n in (1, 2, 3)]
    numbers = rig.send(worker, (bodies.nap, 0.2), (bodies.nap, 3600.0), (bodies.write, str(tmp_path / "ran")), limits=limits)
    death = rig.death(worker)
    assert (death.begun, death.why) == (numbers[1], "timeout")
    assert rig.report(worker, numbers[0]).outcome == 0
    assert not (tmp_path / "ran").exists()


def test_a_task_may_extend_its_timeout(rig: Rig) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.extend, 60.0, 0.5), limits=[Limits(1, timeout_s=0.2)])
    assert rig.result(worker, n) == "extended"


def test_a_timeout_is_not_extended_past_the_deadline(rig: Rig) -> None:
    worker = rig.ready(1)
    deadline = time.time_ns() // 1000 + US // 2
    rig.send(worker, (bodies.extend, 60.0, 3600.0), limits=[Limits(1, timeout_s=0.2, deadline_at=deadline)])
    death = rig.death(worker)
    assert (death.why, death.error.kind, death.error.retryable) == ("deadline", "deadline", False)


def test_a_soft_timeout_is_raised_before_the_kill(rig: Rig) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.note_soft_timeout,), limits=[Limits(1, timeout_s=60.0, soft_timeout_s=0.1)])
    assert rig.result(worker, n) == "soft"


def test_silence_is_a_missed_heartbeat_and_progress_is_none(rig: Rig) -> None:
    worker = rig.ready(1)
    limits = [Limits(1, heartbeat_s=0.4), Limits(2, heartbeat_s=0.4)]
    first, second = rig.send(worker, (bodies.beat, 10, 0.1), (bodies.fall_silent,), limits=limits)
    death = rig.death(worker)
    assert rig.result(worker, first) == "beaten"
    assert (death.begun, death.why, death.error.kind) == (second, "heartbeat", "heartbeat")
    assert "no sign of life for 0.4 s" in death.error.message


@pytest.mark.parametrize("body", [bodies.stop_yourself, bodies.ignore_all_signals])
def test_a_timeout_kills_what_is_stopped_or_deaf(rig: Rig, body: object) -> None:
    worker = rig.ready(1)
    rig.send(worker, (body,), limits=[Limits(1, timeout_s=0.2)])
    death = rig.death(worker)
    assert (death.begun, death.why, death.error.signal) == (1, "timeout", signal.SIGKILL)


# ---- deaths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words", "code", "number"),
    [
        ((bodies.die_by_signal, signal.SIGKILL), "killed by SIGKILL, not by us; peak RSS", None, signal.SIGKILL),
        ((bodies.die_by_signal, signal.SIGTERM), "killed by SIGTERM", None, signal.SIGTERM),
        ((bodies.die_by_null,), "killed by SIGSEGV", None, signal.SIGSEGV),
        ((bodies.die_by_recursion,), "killed by SIGSEGV", None, signal.SIGSEGV),
        ((bodies.die_by_abort,), "killed by SIGABRT", None, signal.SIGABRT),
        ((bodies.die_by_exit, 3), "exited with code 3", 3, None),
        ((bodies.die_by_exit, 0), "exited with code 0", 0, None),
        ((bodies.die_by_closing,), "closed our file descriptors", 70, None),
    ],
    ids=["sigkill", "sigterm", "segv", "recursion", "abort", "exit-3", "exit-0", "closerange"],
)
def test_a_death_says_how_and_is_charged_to_the_one_that_ran(
    rig: Rig, call: tuple[object, ...], words: str, code: int | None, number: int | None
) -> None:
    worker = rig.ready(1)
    before, dying, _ = rig.send(worker, (bodies.double, 1), call, (bodies.double, 2))
    death = rig.death(worker)
    assert (death.begun, death.why, death.error.kind, death.error.retryable) == (dying, "", "panic", True)
    assert words in death.error.message
    assert (death.error.exit_code, death.error.signal) == (code, number)
    assert death.error.peak_rss_bytes > 1_000_000
    assert death.began_ns > 0
    assert rig.result(worker, before) == 2  # whole in the ring, so it wins


def test_the_last_words_and_the_stack_of_the_dead_are_kept(rig: Rig) -> None:
    worker = rig.ready(1, 2)
    rig.send(1, (bodies.die_by_exit, 3))
    death = rig.death(worker)
    assert death.output == death.error.output_tail == "last words\n"
    rig.send(2, (bodies.die_by_null,))
    death = rig.death(2)
    assert "Segmentation fault" in death.stack
    assert "die_by_null" in death.error.traceback


def test_a_kill_tells_where_the_body_was(rig: Rig) -> None:
    """The stack is asked for 3 ms before the kill, which a busy machine may not grant each time."""
    for worker in range(1, 20):
        rig.ready(worker)
        rig.send(worker, (bodies.spin_in_c,), limits=[Limits(1, timeout_s=0.05)])
        death = rig.death(worker)
        if "spin_in_c" in death.stack:
            assert "spin_in_c" in death.error.traceback
            assert "zygote" not in death.stack
            return
    pytest.fail("not one stack in 20 kills")


def test_an_idle_death_charges_nobody(rig: Rig) -> None:
    worker = rig.ready(1)
    rig.call(worker, bodies.double, 1)
    import os

    os.kill(rig.engine.pids()[worker], signal.SIGKILL)
    death = rig.death(worker)
    assert (death.begun, death.why) == (0, "")


def test_a_failing_body_is_a_report_and_no_death(rig: Rig) -> None:
    worker = rig.ready(1)
    (n,) = rig.send(worker, (bodies.fail, "no"))
    assert rig.report(worker, n).outcome == ERROR
    assert rig.call(worker, bodies.double, 4) == 8


def test_orders_to_the_dead_are_passed_over(rig: Rig) -> None:
    worker = rig.ready(1)
    rig.engine.kill(worker, 0, "retire")
    rig.send(worker, (bodies.double, 1))
    rig.engine.take_back(worker, 0)
    death = rig.death(worker)
    assert death.begun == 0
    rig.send(worker, (bodies.double, 1))
    rig.engine.take_back(worker, 0)
    rig.engine.signal(worker, 1, 1.0)
    rig.engine.kill(worker, 1, "cancel")
    assert rig.engine.current(worker) == (0, 0)


# ---- the end --------------------------------------------------------------------------------------------------------


def test_stop_ends_running_and_idle_workers_and_those_that_are_asked_for(rig: Rig, tmp_path: Path) -> None:
    rig.ready(1, 2)
    rig.send(1, (bodies.write_and_wait, str(tmp_path / "started")))
    rig.until_file(tmp_path / "started")
    rig.engine.spawn(3)  # the fixture stops, and asserts that nothing is left


def test_stop_at_once_leaves_nothing(rig: Rig) -> None:
    rig.engine.spawn(1)


def test_a_worker_that_gets_on_is_left_alone(rig: Rig) -> None:
    """What looks stuck from afar may have ended long ago: a conditional take-back hears it out instead."""
    worker = rig.ready(1)
    first, _second = rig.send(worker, (bodies.nap, 60.0), (bodies.double, 3))
    rig.begun(worker, first)
    rig.events.clear()
    rig.engine.take_back(worker, first, 3600 * 10**9)
    assert rig.events == []

    def look() -> bool:
        rig.engine.take_back(worker, first, 1)
        return ev.TakenBack(worker, first) in rig.events

    rig.until(look)  # not at the first look, if it has begun, and does not sleep yet
    rig.engine.kill(worker, first, "cancel")
    assert rig.death(worker).begun == first
