"""The scheduler by scenario: events in, commands out. Each test is a promise of the specification; its docstring states it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from taskpool.clock import NS, US
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.fleet import BOOT_FAILURES_MAX, SPAWNS_PER_S_MAX
from taskpool.core.lifecycle import (
    CANCELLED,
    FAILED,
    INTERRUPTED,
    PENDING,
    QUEUED,
    RETRYING,
    RUNNING,
    SUCCEEDED,
)
from taskpool.core.mailbox import STUCK_IDLE_NS, STUCK_NS
from taskpool.core.scheduler import Scheduler
from taskpool.model import Options, RetryPolicy, TaskError
from taskpool.wire import jobs
from tests.scheduler_rig import CLIENT, MS, Rig, of, the

RETRY = Options(retry=RetryPolicy(maximum_attempts=5))
HOLD = Options(on_interrupt="hold")
FAIL = Options(on_interrupt="fail")
ONCE = Options(at_most_once=True)


def running(options: Options, **how: Any) -> ev.TaskRow:
    """Return a row that a dead owner left running."""
    how = {"attempt": 1, "charged": 0, "scheduled_at": 5, "created_at": 5, **how}
    return ev.TaskRow(1, "f", "default", 0, RUNNING, 2, options=options, started_at=7, **how)


# ---- coming in ------------------------------------------------------------------------------------------------------


def test_a_submit_is_stored_started_and_acknowledged_in_one_turn() -> None:
    """A start is recorded (Start is a save) before anything of it can be sent, and the client hears of stored tasks only."""
    rig = Rig()
    commands = rig.turn(rig.submitted(2))
    inserts, start = of(commands, cmd.Insert), the(commands, cmd.Start)
    assert [(insert.id, insert.status) for insert in inserts] == [(1, QUEUED), (2, QUEUED)]
    assert (start.id, start.version, start.status, start.attempt, start.worker, start.n) == (1, 1, QUEUED, 1, 1, 1)
    assert the(commands, cmd.Accept) == cmd.Accept(CLIENT, 1, [1, 2])
    assert commands.index(inserts[0]) < commands.index(start)
    assert rig.row(2).status == QUEUED


def test_a_task_for_later_waits_for_its_time() -> None:
    rig = Rig()
    at = rig.wall + 3 * US
    commands = rig.turn(rig.submitted(at=at))
    assert the(commands, cmd.Insert).status == PENDING
    assert not of(commands, cmd.Start)
    assert rig.scheduler.next_timer(rig.clock.now()) == 3.0
    rig.clock.advance(3)
    start = the(rig.turn(), cmd.Start)
    assert (start.status, start.version) == (PENDING, 1)


def test_what_is_due_and_finds_no_worker_is_stored_as_queued() -> None:
    rig = Rig(ready=False)
    rig.submit(at=rig.wall + US)
    rig.clock.advance(1)
    move = the(rig.turn(), cmd.Move)
    assert (move.status, move.to) == (PENDING, QUEUED)


# ---- order and fairness ---------------------------------------------------------------------------------------------


def test_dispatch_is_strict_by_priority_then_time_then_id() -> None:
    rig = Rig()
    (busy,) = rig.submit()
    past = rig.wall - 10 * US
    expected = [
        *rig.submit(priority=2),
        *rig.submit(priority=1, at=past),
        *rig.submit(priority=1, at=past + 1),
        *rig.submit(2, at=past),
        *rig.submit(2),
        *rig.submit(priority=-1),
    ]
    for task_id in (busy, *expected[:-1]):
        rig.turn(rig.failure(task_id))
    assert sorted(rig.jobs, key=lambda task_id: rig.jobs[task_id][1]) == [busy, *expected]


def test_queues_take_turns() -> None:
    rig = Rig()
    first = rig.submit(3, queue="a")
    second = rig.submit(3, queue="b")
    order = [first[0], second[0], first[1], second[1], first[2], second[2]]
    for task_id in order:
        assert task_id in rig.jobs
        rig.turn(rig.failure(task_id))


def test_a_queue_of_long_tasks_is_not_passed_for_ever_by_one_of_short_tasks() -> None:
    """A task that does not fit into a mailbox waits for an idle worker; until then its queue stays the next to be served."""
    rig = Rig()
    rig.learn("short")
    (long,) = rig.submit(name="long", queue="long")
    short = rig.submit(4, name="short", queue="short")
    rig.turn(rig.failure(long))
    (longer,) = rig.submit(name="longer", queue="long")
    short += rig.submit(4, name="short", queue="short")
    for _ in range(len(short)):
        if longer in rig.jobs:
            break
        n, row = next(iter(rig.scheduler.workers[1].sent.items()))
        assert n
        rig.turn(rig.report(row.id, duration_ns=100_000))
        short += rig.submit(2, name="short", queue="short")
    assert longer in rig.jobs


# ---- mailboxes ------------------------------------------------------------------------------------------------------


def test_short_tasks_lie_ahead_in_the_mailbox_and_unknown_ones_do_not() -> None:
    rig = Rig()
    ids = rig.submit(3)
    assert list(rig.jobs) == ids[:1], "nobody knows yet how long they take"
    rig.turn(rig.report(ids[0], duration_ns=MS))
    assert list(rig.jobs) == ids


def test_the_last_tasks_are_dealt_out_evenly() -> None:
    rig = Rig(size=2)
    rig.learn()
    ids = rig.submit(8)
    per_worker = [sum(rig.jobs[task_id][0] == worker for task_id in ids) for worker in (1, 2)]
    assert per_worker == [4, 4]


def test_at_most_once_tasks_are_sent_alone() -> None:
    rig = Rig()
    rig.learn()
    ids = rig.submit(3, ONCE)
    assert [task_id in rig.jobs for task_id in ids] == [True, False, False]


def test_what_is_stuck_behind_a_long_body_is_taken_back() -> None:
    """Sooner while another worker is idle, later while none is; the engine leaves alone who gets on."""
    rig = Rig()
    ids = rig.filled(3)
    wait = rig.scheduler.next_timer(rig.clock.now())
    assert wait is not None
    assert wait == STUCK_NS / NS
    rig.clock.advance(wait)
    assert the(rig.turn(), cmd.TakeBack) == cmd.TakeBack(1, rig.jobs[ids[0]][1], STUCK_NS)
    rig.turn(ev.WorkerFailed(99, "nobody"))  # whatever wakes it
    idle = Rig(size=2)
    ids = idle.filled(1) + idle.submit(1) + idle.submit(1)
    other = next(task_id for task_id in ids if idle.jobs[task_id][0] == 2)
    idle.turn(idle.report(other, duration_ns=100_000))
    assert idle.scheduler.next_timer(idle.clock.now()) == STUCK_IDLE_NS / NS


def test_a_worker_gets_nothing_until_it_has_passed_what_was_taken_back() -> None:
    """Else it would pass over the new work too, unheard."""
    rig = Rig()
    ids = rig.filled(3)
    numbers = [rig.jobs[task_id][1] for task_id in ids]
    commands = rig.turn(ev.TakenBack(1, numbers[0]))
    assert [(end.id, end.to, end.closed.outcome) for end in of(commands, cmd.End)] == [
        (ids[1], QUEUED, "returned"),
        (ids[2], QUEUED, "returned"),
    ]
    assert not of(commands, cmd.Start)
    assert not of(rig.turn(rig.report(ids[0])), cmd.Start)
    assert not of(rig.turn(ev.Passed(1, numbers[1])), cmd.Start), "it has not passed the last of them"
    starts = of(rig.turn(ev.Passed(1, numbers[2])), cmd.Start)
    assert [(start.id, start.attempt) for start in starts] == [(ids[1], 2), (ids[2], 2)]
    assert all(start.n > numbers[2] for start in starts)


# ---- §5: attempts, crashes, interruptions ---------------------------------------------------------------------------


def test_sent_is_not_begun() -> None:
    """What was sent and never begun goes back to queued, uncharged, to its place, its attempt closed as returned."""
    rig = Rig()
    ids = rig.filled(2)
    at = rig.row(ids[1]).scheduled_at
    commands = rig.turn(rig.death(begun=None))
    ends = of(commands, cmd.End)
    assert [(end.id, end.to, end.charged, end.closed.outcome) for end in ends] == [
        (ids[0], QUEUED, 0, "returned"),
        (ids[1], QUEUED, 0, "returned"),
    ]
    assert (rig.row(ids[1]).attempt, rig.row(ids[1]).scheduled_at, rig.row(ids[1]).crashes) == (1, at, 0)


def test_no_attempt_number_begins_twice() -> None:
    """A number that was sent and returned is spent: the next start has the next one."""
    rig = Rig()
    ids = rig.filled(2)
    rig.turn(rig.death())
    rig.turn(ev.WorkerReady(2, 102))
    assert [rig.jobs[task_id][2] for task_id in ids] == [2, 2]


def test_a_whole_result_wins_over_the_death_of_its_worker() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    commands = rig.turn(rig.report(task_id), rig.death())
    end = the(commands, cmd.End)
    assert (end.to, end.charged) == (SUCCEEDED, 1)


def test_a_panic_is_charged_and_retried_by_policy() -> None:
    rig = Rig()
    (task_id,) = rig.submit(options=RETRY)
    end = the(rig.turn(rig.death(begun=task_id)), cmd.End)
    assert (end.to, end.charged, end.closed.outcome) == (RETRYING, 1, "retrying")
    assert end.error is not None
    assert end.error.kind == "panic"
    assert end.extras is not None
    assert end.extras.crashes == 1
    assert end.scheduled_at == rig.wall + US


def test_the_crash_limit_fails_a_task_even_if_attempts_remain() -> None:
    rig = Rig()
    (task_id,) = rig.submit(options=Options(max_attempts=9, retry=RetryPolicy(initial_interval=0.0, maximum_attempts=9)))
    for crash in (1, 2, 3):
        worker = rig.jobs[task_id][0]
        end = the(rig.turn(rig.death(worker, begun=task_id)), cmd.End)
        assert (end.to, end.charged) == (FAILED if crash == 3 else RETRYING, crash)
        rig.turn(ev.WorkerReady(worker + 1, 103))


def test_exactly_the_one_task_that_had_begun_is_charged() -> None:
    rig = Rig()
    ids = rig.filled(3)
    rig.turn(rig.report(ids[0]))
    ends = {end.id: end for end in of(rig.turn(rig.death(begun=ids[1])), cmd.End)}
    assert (ends[ids[1]].to, ends[ids[1]].charged) == (FAILED, 1)
    assert (ends[ids[2]].to, ends[ids[2]].charged) == (QUEUED, 0)


@pytest.mark.parametrize("why", ["timeout", "deadline", "heartbeat"])
def test_a_worker_that_we_killed_charges_nobody_else(why: str) -> None:
    """The one that ran out of its time is charged, by kind; it is no crash; what lay behind it is returned."""
    rig = Rig()
    ids = rig.filled(2, Options(max_attempts=3))
    ends = {end.id: end for end in of(rig.turn(rig.death(begun=ids[0], why=why, kind=why)), cmd.End)}
    first, second = ends[ids[0]], ends[ids[1]]
    assert (first.to, first.charged) == (FAILED if why == "deadline" else RETRYING, 1)
    assert first.error is not None
    assert first.error.kind == why
    assert first.extras is None or first.extras.crashes == 0
    assert (second.to, second.charged) == (QUEUED, 0)


def test_a_rescued_task_runs_again_at_its_old_place_uncharged() -> None:
    rig = Rig()
    end = the(rig.turn(ev.Recovered(running(Options()), begun=True)), cmd.End)
    assert (end.to, end.charged, end.scheduled_at, end.closed.outcome) == (PENDING, 0, None, "interrupted")
    assert end.extras is not None
    assert end.extras.interruptions == 1


@pytest.mark.parametrize(("options", "to"), [(HOLD, INTERRUPTED), (ONCE, INTERRUPTED), (FAIL, FAILED)])
def test_a_rescued_task_goes_on_by_its_policy(options: Options, to: str) -> None:
    """hold, and at_most_once: interrupted; fail: failed with kind interrupted; never charged."""
    end = the(Rig().turn(ev.Recovered(running(options), begun=True)), cmd.End)
    assert (end.to, end.charged) == (to, 0)
    assert end.error is not None
    assert end.error.kind == "interrupted"


def test_too_many_interruptions_hold_a_task() -> None:
    """max_interruptions (20): a task that takes its supervisor with it each time does not do so for ever."""
    rig = Rig()
    assert the(rig.turn(ev.Recovered(running(Options(), interruptions=18), begun=True)), cmd.End).to == PENDING
    assert the(rig.turn(ev.Recovered(running(Options(), interruptions=19), begun=True)), cmd.End).to == INTERRUPTED


def test_a_result_in_the_ring_is_recovered_as_a_result() -> None:
    report = jobs.Report(1, 1, 1, jobs.OK, 5, 5, value=b"42")
    end = the(Rig().turn(ev.Recovered(running(ONCE), begun=True, report=report)), cmd.End)
    assert (end.to, end.report) == (SUCCEEDED, report)


def test_a_report_of_an_older_attempt_is_not_the_result_of_this_one() -> None:
    report = jobs.Report(1, 1, 1, jobs.OK, 5, 5, value=b"42")
    end = the(Rig().turn(ev.Recovered(running(Options(), attempt=2), begun=True, report=report)), cmd.End)
    assert (end.to, end.closed.outcome) == (PENDING, "interrupted")


def test_what_a_dead_owner_had_sent_and_nobody_begun_is_returned() -> None:
    """At-most-once tasks too: sent is not begun."""
    end = the(Rig().turn(ev.Recovered(running(ONCE), begun=False)), cmd.End)
    assert (end.to, end.charged, end.closed.outcome) == (QUEUED, 0, "returned")


def test_a_returned_task_is_found_again_though_its_queue_was_empty_when_the_store_was_opened() -> None:
    rig = Rig(ready=False)
    scheduler = Scheduler(1)
    rig.scheduler = scheduler
    row = running(Options())
    commands = rig.turn(ev.Recovered(row, begun=False), ev.Opened(2, []))
    assert "default" in [refill.queue for refill in of(commands, cmd.Refill)]


def test_charged_counts_against_max_attempts() -> None:
    """The default is one attempt; with more, a failure is retried until they are used up."""
    rig = Rig()
    (one,) = rig.submit()
    assert the(rig.turn(rig.failure(one)), cmd.End).to == FAILED
    (three,) = rig.submit(options=Options(max_attempts=3))
    outcomes = []
    for _ in range(3):
        end = the(rig.turn(rig.failure(three, backoff_s=0.0)), cmd.End)
        outcomes.append((end.to, end.charged))
        rig.turn()
    assert outcomes == [(RETRYING, 1), (RETRYING, 2), (FAILED, 3)]


def test_next_delay_sees_charged_and_not_the_number_of_the_attempt() -> None:
    """Returned, snoozed and interrupted attempts make no delay longer."""
    rig = Rig()
    (task_id,) = rig.submit(options=RETRY)
    rig.turn(rig.report(task_id, jobs.SNOOZED))
    rig.turn(rig.death())
    rig.turn(ev.WorkerReady(2, 102))
    assert rig.row(task_id).attempt == 3
    end = the(rig.turn(rig.failure(task_id)), cmd.End)
    assert end.scheduled_at == rig.wall + US, "the first delay of the policy"


def test_a_snooze_is_not_charged_and_keeps_the_priority() -> None:
    rig = Rig()
    (task_id,) = rig.submit(priority=7)
    end = the(rig.turn(rig.report(task_id, jobs.SNOOZED, snooze_s=30.0)), cmd.End)
    assert (end.to, end.charged, end.scheduled_at) == (PENDING, 0, rig.wall + 30 * US)
    assert end.extras is not None
    assert end.extras.snoozes == 1
    assert rig.row(task_id).rank == -7


def test_a_snooze_is_bounded_by_the_deadline() -> None:
    rig = Rig()
    (task_id,) = rig.submit(options=Options(deadline_at=rig.wall + 10 * US))
    end = the(rig.turn(rig.report(task_id, jobs.SNOOZED, snooze_s=30.0)), cmd.End)
    assert end.to == FAILED
    assert end.error is not None
    assert end.error.kind == "deadline"


def test_a_snooze_is_refused_in_an_at_most_once_task() -> None:
    rig = Rig()
    (task_id,) = rig.submit(options=ONCE)
    end = the(rig.turn(rig.report(task_id, jobs.SNOOZED, snooze_s=1.0)), cmd.End)
    assert (end.to, end.charged) == (FAILED, 1)


# ---- stopping -------------------------------------------------------------------------------------------------------


def test_a_stop_begins_no_more_and_waits_for_what_runs() -> None:
    rig = Rig()
    ids = rig.filled(2)
    (later,) = rig.submit(options=ONCE)
    commands = rig.turn(ev.StopAsked(30.0))
    assert the(commands, cmd.TakeBack).above == rig.jobs[ids[0]][1]
    assert not of(commands, cmd.Halted)
    rig.turn(ev.TakenBack(1, rig.jobs[ids[0]][1]))
    commands = rig.turn(rig.report(ids[0]))
    assert not of(commands, cmd.Start)
    assert the(commands, cmd.Halted).reason == ""
    assert later not in rig.jobs


@pytest.mark.parametrize(("options", "to"), [(Options(), PENDING), (HOLD, INTERRUPTED), (ONCE, INTERRUPTED), (FAIL, FAILED)])
def test_after_the_grace_what_runs_is_stopped_uncharged_by_its_policy(options: Options, to: str) -> None:
    """First Cancelled is raised in it; its end is a stop, and an orderly stop is no interruption."""
    rig = Rig()
    (task_id,) = rig.submit(options=options)
    assert not of(rig.turn(ev.StopAsked(30.0)), cmd.Signal)
    assert rig.scheduler.next_timer(rig.clock.now()) == 30.0
    rig.clock.advance(30)
    signal = the(rig.turn(), cmd.Signal)
    assert (signal.worker, signal.n, signal.why) == (1, 1, "stop")
    assert not of(rig.turn(), cmd.Signal), "once is enough: the engine repeats it"
    commands = rig.turn(rig.report(task_id, jobs.CANCELLED, TaskError("cancelled", "", False)))
    end = the(commands, cmd.End)
    assert (end.to, end.charged, end.closed.outcome) == (to, 0, "stopped")
    assert end.extras is None or end.extras.interruptions == 0
    assert of(commands, cmd.Halted)


def test_who_swallows_the_stop_is_killed_and_stays_uncharged() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    rig.turn(ev.StopAsked(0.5))
    rig.clock.advance(0.5)
    rig.turn()
    end = the(rig.turn(rig.death(begun=task_id, why="stop")), cmd.End)
    assert (end.to, end.charged) == (PENDING, 0)


def test_a_second_stop_means_now() -> None:
    rig = Rig()
    rig.submit()
    rig.turn(ev.StopAsked(None))
    assert rig.scheduler.next_timer(rig.clock.now()) is None
    assert the(rig.turn(ev.StopAsked(0.0)), cmd.Kill) == cmd.Kill(1, 0, "stop")


def test_a_second_stop_may_only_shorten_the_grace() -> None:
    rig = Rig()
    rig.submit()
    rig.turn(ev.StopAsked(5.0))
    rig.turn(ev.StopAsked(50.0))
    assert rig.scheduler.next_timer(rig.clock.now()) == 5.0
    kills = Rig()
    kills.submit()
    assert of(kills.turn(ev.StopAsked(0.0), ev.StopAsked(50.0)), cmd.Kill)


def test_a_stop_reaches_the_body_that_began_behind_one_whose_report_is_unread() -> None:
    rig = Rig()
    ids = rig.filled(2)
    rig.turn(ev.StopAsked(0.001))
    rig.clock.advance(0.001)
    first = the(rig.turn(ev.TakenBack(1, rig.jobs[ids[1]][1])), cmd.Signal)
    assert first.n == rig.jobs[ids[0]][1]
    second = the(rig.turn(rig.report(ids[0])), cmd.Signal)
    assert second.n == rig.jobs[ids[1]][1]


def test_what_was_told_to_stop_before_it_began_is_returned() -> None:
    """Sent is not begun, also at a stop: not even a task that is held is interrupted then."""
    rig = Rig()
    (task_id,) = rig.submit(options=ONCE)
    rig.turn(ev.StopAsked(0.001))
    rig.clock.advance(0.001)
    rig.turn()
    end = the(rig.turn(rig.report(task_id, jobs.CANCELLED, TaskError("cancelled", "", False), duration_ns=0)), cmd.End)
    assert (end.to, end.closed.outcome) == (QUEUED, "returned")


def test_a_stopped_task_whose_owner_was_killed_meanwhile_is_not_lost() -> None:
    """Its Cancelled was asked for by nobody but the stop: it goes on by its policy."""
    report = jobs.Report(1, 1, 1, jobs.CANCELLED, 5, 5, error=TaskError("cancelled", "", False))
    end = the(Rig().turn(ev.Recovered(running(Options()), begun=True, report=report)), cmd.End)
    assert (end.to, end.charged) == (PENDING, 0)


# ---- §6, §7: clocks and retries -------------------------------------------------------------------------------------


def test_waiting_consumes_the_deadline() -> None:
    rig = Rig(ready=False)
    (task_id,) = rig.submit(options=Options(deadline_at=rig.wall + 2 * US))
    assert rig.scheduler.next_timer(rig.clock.now()) == 2.0
    rig.clock.advance(2)
    move = the(rig.turn(), cmd.Move)
    assert (move.id, move.to) == (task_id, FAILED)
    assert move.error is not None
    assert move.error.kind == "deadline"


def test_a_task_that_had_not_started_when_it_expired_is_cancelled() -> None:
    rig = Rig(ready=False)
    rig.submit(options=Options(expires_at=rig.wall + 2 * US))
    rig.clock.advance(2)
    move = the(rig.turn(), cmd.Move)
    assert move.to == CANCELLED
    assert move.extras is not None
    assert move.extras.finish_reason == "expired"


def test_expiry_does_not_end_what_had_started() -> None:
    """It must have *started* by then; its retry may come later, up to the deadline."""
    rig = Rig()
    options = Options(max_attempts=2, expires_at=rig.wall + 2 * US, deadline_at=rig.wall + 900 * US)
    (task_id,) = rig.submit(options=options)
    rig.turn(rig.failure(task_id, backoff_s=5.0))
    rig.clock.advance(2)
    assert not rig.turn()
    assert rig.scheduler.next_timer(rig.clock.now()) == 3.0
    rig.clock.advance(3)
    assert the(rig.turn(), cmd.Start).id == task_id


def test_expiry_does_not_end_what_was_stopped_or_retried_by_hand_after_it_had_started() -> None:
    """Neither an orderly stop nor a new round makes a task one that never started."""
    rig = Rig()
    (task_id,) = rig.submit(options=Options(expires_at=rig.wall + 2 * US))
    rig.turn(ev.StopAsked(0.0))
    end = the(rig.turn(rig.death(begun=task_id, why="stop")), cmd.End)
    assert end.extras is not None
    assert end.extras.begun
    for status in (FAILED, CANCELLED):
        late = Rig()
        charged = int(status == FAILED)
        row = ev.TaskRow(1, "f", "default", 0, status, 3, 1, charged, 1, 1, Options(expires_at=late.wall - 1))
        moves = [move.to for move in of(late.turn(late.retry(row)), cmd.Move)]
        assert moves == ([PENDING] if charged else [PENDING, CANCELLED])


def test_expiry_counts_what_was_sent_and_never_begun_as_not_started() -> None:
    rig = Rig()
    rig.submit(options=Options(expires_at=rig.wall + 2 * US))
    rig.turn(rig.death())
    rig.clock.advance(2)
    assert the(rig.turn(), cmd.Move).to == CANCELLED


def test_a_retry_that_could_only_start_after_the_deadline_is_not_scheduled() -> None:
    """failed, kind deadline, with the last real error chained."""
    rig = Rig()
    (task_id,) = rig.submit(options=Options(max_attempts=3, deadline_at=rig.wall + 5 * US))
    end = the(rig.turn(rig.failure(task_id, backoff_s=5.0)), cmd.End)
    assert (end.to, end.charged) == (FAILED, 1)
    assert end.error is not None
    assert end.error.kind == "deadline"
    assert end.error.cause is not None
    assert end.error.cause.kind == "handler"


def test_a_set_clock_moves_what_is_scheduled_and_no_timeout() -> None:
    """Wall time for what is scheduled, the monotonic clock for everything that lasts."""
    rig = Rig()
    (task_id,) = rig.submit(options=ONCE)
    (later,) = rig.submit(at=rig.wall + 3600 * US)
    rig.clock.jump_wall(3600)
    assert [move.id for move in of(rig.turn(), cmd.Move)] == [later]
    rig.turn(ev.StopAsked(9.0))
    rig.clock.jump_wall(-86_400)
    assert rig.scheduler.next_timer(rig.clock.now()) == 9.0
    assert rig.row(task_id).status == RUNNING


# ---- §15: cancel ----------------------------------------------------------------------------------------------------


def test_the_cancel_of_a_waiting_task_is_one_write() -> None:
    rig = Rig(ready=False)
    (task_id,) = rig.submit()
    commands = rig.turn(rig.cancel(task_id))
    move = the(commands, cmd.Move)
    assert (move.status, move.to) == (QUEUED, CANCELLED)
    assert move.error is not None
    assert (move.error.kind, move.error.message) == ("cancelled", "enough")
    assert the(commands, cmd.Respond) == cmd.Respond(CLIENT, 1, [task_id], [])


def test_the_cancel_of_a_running_task_is_stored_and_then_signalled() -> None:
    rig = Rig(grace_s=5.0)
    (task_id,) = rig.submit()
    commands = rig.turn(rig.cancel(task_id))
    move, signal = the(commands, cmd.Move), the(commands, cmd.Signal)
    assert (move.status, move.to) == (RUNNING, RUNNING)
    assert move.extras is not None
    assert move.extras.cancel_requested_at == rig.wall
    assert signal == cmd.Signal(1, 1, 5.0, "cancel")
    end = the(rig.turn(rig.report(task_id, jobs.CANCELLED, TaskError("cancelled", "", False))), cmd.End)
    assert (end.to, end.charged) == (CANCELLED, 0)


@pytest.mark.parametrize("how", [{"force": True}, {"grace_s": 0.0}])
def test_force_begins_with_the_kill(how: dict[str, Any]) -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    assert the(rig.turn(rig.cancel(task_id, **how)), cmd.Signal).grace_s == 0.0
    end = the(rig.turn(rig.death(begun=task_id, why="cancel")), cmd.End)
    assert (end.to, end.charged) == (CANCELLED, 0)


def test_the_cancel_of_a_task_in_a_mailbox_takes_it_back_and_signals_it_in_case_it_began() -> None:
    rig = Rig()
    ids = rig.filled(3)
    n = rig.jobs[ids[1]][1]
    commands = rig.turn(rig.cancel(ids[1], grace_s=0.5))
    assert the(commands, cmd.TakeBack) == cmd.TakeBack(1, n - 1)
    assert the(commands, cmd.Signal) == cmd.Signal(1, n, 0.5, "cancel")
    ends = {end.id: end.to for end in of(rig.turn(ev.TakenBack(1, n - 1)), cmd.End)}
    assert ends == {ids[1]: CANCELLED, ids[2]: QUEUED}


def test_a_success_that_arrives_after_a_cancel_stays_a_success() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    rig.turn(rig.cancel(task_id))
    assert the(rig.turn(rig.report(task_id)), cmd.End).to == SUCCEEDED


def test_anything_else_after_a_cancel_is_cancelled_and_never_retried() -> None:
    for number in range(5):
        rig = Rig()
        (task_id,) = rig.submit(options=RETRY)
        rig.turn(rig.cancel(task_id))
        ends: list[ev.Event] = [
            rig.failure(task_id),
            rig.report(task_id, jobs.SNOOZED),
            rig.death(begun=task_id),
            rig.death(),
            rig.death(begun=task_id, why="timeout", kind="timeout"),
        ]
        assert the(rig.turn(ends[number]), cmd.End).to == CANCELLED


def test_order_is_the_order_of_commits() -> None:
    """A success that was read first stays, and the caller hears that the task was not cancelled."""
    rig = Rig()
    (task_id,) = rig.submit()
    stale = copy.copy(rig.row(task_id))
    commands = rig.turn(rig.report(task_id), rig.cancel(task_id, rows=[stale]))
    assert [type(command) for command in commands] == [cmd.End, cmd.Respond]
    assert the(commands, cmd.Respond).refused == [task_id]


def test_a_cancel_finds_a_task_that_left_memory_in_the_same_turn() -> None:
    rig = Rig(line_max=2)
    (busy,) = rig.submit(options=Options(max_attempts=2))
    rig.submit(5, at=rig.wall + 900 * US)
    commands = rig.turn(rig.failure(busy, backoff_s=3600.0), rig.cancel(busy))
    assert the(commands, cmd.Respond).ids == [busy]
    assert [move.to for move in of(commands, cmd.Move) if move.id == busy] == [CANCELLED]


def test_what_has_ended_cannot_be_cancelled() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    row = copy.copy(rig.row(task_id))
    rig.turn(rig.report(task_id))
    row.status = SUCCEEDED
    assert the(rig.turn(rig.cancel(task_id, 77, rows=[row])), cmd.Respond).refused == [task_id, 77]


# ---- retry by hand --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, CANCELLED, INTERRUPTED])
def test_a_retry_by_hand_begins_a_new_round(status: str) -> None:
    """round+1, charged 0, the attempt goes on rising."""
    rig = Rig()
    row = ev.TaskRow(9, "f", "default", 0, status, 8, 4, 3, 1, 1, Options(max_attempts=3), crashes=1, interruptions=2)
    commands = rig.turn(rig.retry(row))
    move, start = the(commands, cmd.Move), the(commands, cmd.Start)
    assert (move.status, move.to, move.charged, move.clear_error) == (status, PENDING, 0, True)
    assert move.extras is not None
    assert (move.extras.round, move.extras.crashes, move.extras.interruptions) == (1, 0, 0)
    assert (start.attempt, start.status) == (5, PENDING)
    assert the(commands, cmd.Respond).ids == [9]


def test_a_success_is_retried_only_with_force() -> None:
    row = ev.TaskRow(9, "f", "default", 0, SUCCEEDED, 8, 4, 3, 1, 1, Options())
    assert the(Rig().turn(Rig().retry(copy.copy(row))), cmd.Respond).refused == [9]
    assert the(Rig().turn(Rig().retry(copy.copy(row), force=True)), cmd.Move).to == PENDING


def test_retry_now_hastens_what_waits_for_its_backoff_also_beyond_the_mark() -> None:
    rig = Rig()
    (task_id,) = rig.submit(options=RETRY)
    rig.turn(rig.failure(task_id, backoff_s=3600.0))
    commands = rig.turn(rig.retry(copy.copy(rig.row(task_id))))
    assert the(commands, cmd.Move).to == QUEUED
    assert the(commands, cmd.Start).id == task_id
    unknown = ev.TaskRow(50, "f", "default", 0, RETRYING, 3, 1, 1, rig.wall + 3600 * US, 1, RETRY)
    assert the(rig.turn(rig.retry(unknown)), cmd.Move).to == QUEUED


def test_what_runs_or_is_queued_cannot_be_retried() -> None:
    rig = Rig()
    ids = rig.submit(2)
    rows = [copy.copy(rig.row(task_id)) for task_id in ids]
    assert the(rig.turn(rig.retry(*rows)), cmd.Respond).refused == ids


# ---- messages that are late or double -------------------------------------------------------------------------------


def test_a_report_that_comes_twice_changes_nothing() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    report = rig.report(task_id)
    rig.turn(report)
    assert not rig.turn(report)


def test_a_report_of_an_attempt_that_was_given_up_changes_nothing() -> None:
    """The number of the attempt is the fencing token: the same worker number and task do not do."""
    rig = Rig()
    (task_id,) = rig.submit()
    worker, n, attempt = rig.jobs[task_id]
    for stale in ((n, task_id, attempt + 1), (n, task_id + 1, attempt), (n + 1, task_id, attempt)):
        report = jobs.Report(*stale, jobs.OK, 1, 1)
        assert not rig.turn(ev.Reported(worker, 101, [report]))
    assert rig.row(task_id).status == RUNNING


def test_words_of_workers_that_are_gone_change_nothing() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    report, saved = rig.report(task_id), rig.saved(task_id, b"s")
    rig.turn(rig.death(begun=task_id))
    for late in (report, saved, ev.TakenBack(1, 0), ev.Passed(1, 1), ev.WorkerReady(1, 101), rig.death()):
        assert not rig.turn(late)


def test_a_checkpoint_is_stored_for_the_attempt_that_runs() -> None:
    rig = Rig()
    (task_id,) = rig.submit()
    assert the(rig.turn(rig.saved(task_id, b"half")), cmd.Checkpoint) == cmd.Checkpoint(task_id, 1, b"half")


# ---- what the store refuses -----------------------------------------------------------------------------------------


def test_a_refused_start_is_forgotten_and_costs_no_worker() -> None:
    """The worker was never sent it: it goes on, also after something was taken back from it."""
    rig = Rig()
    rig.learn()
    (first,) = rig.submit()
    (refused,) = the(rig.turn(rig.submitted()), cmd.Accept).ids
    commands = rig.turn(ev.Dropped([refused]))
    assert not of(commands, cmd.Kill)
    assert refused not in rig.scheduler.tasks
    rig.turn(rig.report(first))
    (later,) = rig.submit()
    assert rig.jobs[later][0] == 1


# ---- lines longer than memory ---------------------------------------------------------------------------------------


def test_memory_holds_the_beginning_of_a_line_and_asks_for_more() -> None:
    rig = Rig(ready=False, line_max=4)
    ids = rig.submit(6)
    held = [task_id for task_id in ids if rig.scheduler.knows(task_id)]
    assert held == ids[:3]
    mark = rig.scheduler.lines.ready["default"].mark
    assert mark is not None
    assert mark[2] == ids[2]
    (late,) = rig.submit()
    assert not rig.scheduler.knows(late), "it stands behind the mark"
    (urgent,) = rig.submit(priority=1)
    assert rig.scheduler.knows(urgent)
    rig.turn(rig.cancel(*ids[:3]), rig.cancel(urgent))
    commands = rig.turn(*(ev.WorkerReady(worker, 101) for worker in rig.scheduler.workers))
    assert the(commands, cmd.Refill) == cmd.Refill("default", mark, 2)
    assert not of(rig.turn(), cmd.Refill), "it is on its way"
    rows = [ev.TaskRow(task_id, "f", "default", 0, QUEUED, 1, 0, 0, mark[1], mark[1], Options()) for task_id in (*ids[3:], late)]
    start = the(rig.turn(ev.Refilled("default", rows, more=False)), cmd.Start)
    assert start.id == ids[3]
    assert rig.scheduler.lines.ready["default"].mark is None


def test_a_line_sheds_by_where_its_tasks_stand_now() -> None:
    """A task that was hastened leaves an old key behind; the shedding of that key is not the task's."""
    rig = Rig(ready=False, line_max=4)
    (task_id,) = rig.submit(options=Options(max_attempts=2), at=rig.wall + 3000 * US)
    rig.turn(rig.cancel(task_id))
    row = ev.TaskRow(task_id, "f", "default", 0, CANCELLED, 2, 0, 0, rig.wall + 3000 * US, 1, Options())
    rig.turn(rig.retry(row))
    rig.submit(5, at=rig.wall + 100 * US)
    assert rig.scheduler.knows(task_id)
    assert rig.row(task_id).status == QUEUED


# ---- workers --------------------------------------------------------------------------------------------------------


def test_the_spare_comes_when_all_others_are_there() -> None:
    rig = Rig(size=2, spares=1, ready=False)
    assert list(rig.scheduler.workers) == [1, 2]
    assert not of(rig.turn(ev.WorkerReady(1, 101)), cmd.Spawn)
    assert the(rig.turn(ev.WorkerReady(2, 102)), cmd.Spawn).worker == 3
    rig.turn(ev.WorkerReady(3, 103))
    ids = rig.submit(3)
    assert {rig.jobs[task_id][0] for task_id in ids if task_id in rig.jobs} == {1, 2}, "a spare stands by"


def test_a_spare_takes_the_place_of_the_dead_in_the_same_turn() -> None:
    rig = Rig(size=1, spares=1)
    rig.turn(*(ev.WorkerReady(worker, 100 + worker) for worker in rig.scheduler.workers))
    ids = rig.submit(2)
    commands = rig.turn(rig.death(begun=ids[0]))
    assert the(commands, cmd.Start).worker == 2
    assert the(commands, cmd.Spawn).worker == 3


def test_a_worker_that_cannot_be_started_is_tried_again_later_and_later() -> None:
    rig = Rig(ready=False)
    waits = []
    for worker in (1, 2, 3):
        assert not of(rig.turn(ev.WorkerFailed(worker, "EAGAIN")), cmd.Spawn)
        wait = rig.scheduler.next_timer(rig.clock.now())
        assert wait is not None
        waits.append(wait)
        rig.clock.advance(wait)
        assert of(rig.turn(), cmd.Spawn)
    assert waits == [0.1, 0.2, 0.4]


def test_a_death_makes_room_for_a_worker_that_could_not_be_started() -> None:
    """However long the others had been refused: what the dead one held is free."""
    rig = Rig(size=2, ready=False)
    rig.turn(ev.WorkerReady(1, 101))
    worker = 2
    for _ in range(8):
        rig.turn(ev.WorkerFailed(worker, "EMFILE"))
        wait = rig.scheduler.next_timer(rig.clock.now())
        assert wait is not None
        rig.clock.advance(wait)
        worker = the(rig.turn(), cmd.Spawn).worker
    rig.turn(ev.WorkerFailed(worker, "EMFILE"))
    rig.turn(rig.death(1))
    rig.clock.advance(0.1)
    assert len(of(rig.turn(), cmd.Spawn)) == 2


def test_time_that_passes_between_turn_and_timer_loses_no_spawn() -> None:
    """The wait may be over before the loop asks for it."""
    rig = Rig(ready=False)
    rig.turn(ev.WorkerFailed(1, "EAGAIN"))
    rig.clock.advance(5)
    assert rig.scheduler.next_timer(rig.clock.now()) == 0.0
    assert of(rig.turn(), cmd.Spawn)
    assert rig.scheduler.next_timer(rig.clock.now()) is None


def test_workers_that_die_before_they_are_ready_end_the_pool() -> None:
    rig = Rig(ready=False)
    reasons = []
    for worker in range(1, BOOT_FAILURES_MAX + 1):
        commands = rig.turn(rig.death(worker))
        reasons += [halted.reason for halted in of(commands, cmd.Halted)]
        rig.clock.advance(rig.scheduler.next_timer(rig.clock.now()) or 0.0)
        rig.turn()
    assert len(reasons) == 1
    assert "before they are ready" in reasons[0]


def test_workers_that_keep_dying_are_replaced_at_a_bounded_rate() -> None:
    """A storm of crashes, or workers that die idle, must not become a storm of forks."""
    rig = Rig(ready=False)
    began = rig.mono
    spawned = 1
    for worker in range(1, 3 * SPAWNS_PER_S_MAX):
        rig.turn(ev.WorkerReady(worker, 100))
        if not of(rig.turn(rig.death(worker)), cmd.Spawn):
            wait = rig.scheduler.next_timer(rig.clock.now())
            assert wait
            rig.clock.advance(wait)
            the(rig.turn(), cmd.Spawn)
        spawned += 1
        assert spawned <= SPAWNS_PER_S_MAX * (1 + (rig.mono - began) // NS)


def test_a_dirty_worker_is_replaced_after_its_report() -> None:
    rig = Rig()
    ids = rig.filled(2)
    commands = rig.turn(rig.report(ids[0], dirty=True))
    assert the(commands, cmd.End).to == SUCCEEDED
    assert the(commands, cmd.Kill) == cmd.Kill(1, 0, "retire")
    assert of(commands, cmd.Spawn)
    end = the(rig.turn(rig.death(why="retire")), cmd.End)
    assert (end.id, end.to, end.charged) == (ids[1], QUEUED, 0)
