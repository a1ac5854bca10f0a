"""Serialization keys as the scheduler decides them: who starts, who waits, and when a key is free again."""

from __future__ import annotations

import msgspec

from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.lifecycle import QUEUED, RETRYING
from taskpool.model import Options, Queue, RetryPolicy
from taskpool.wire import jobs
from tests.scheduler_rig import PLAIN, Rig, of, the

RETRIED = Options(max_attempts=3, retry=RetryPolicy(initial_interval=10.0, maximum_attempts=3))
YIELDS = msgspec.structs.replace(RETRIED, key_on_retry="yield")


def started(commands: list[cmd.Command]) -> list[int]:
    """Return the tasks that were started, in order."""
    return [start.id for start in of(commands, cmd.Start)]


def test_one_of_a_key_runs_and_others_pass_those_that_wait_for_it() -> None:
    rig = Rig(2)
    first, second, third = rig.submit(3, key="k")
    (other,) = rig.submit()
    assert sorted(rig.jobs) == [first, other]
    assert started(rig.turn(rig.report(other))) == []
    assert started(rig.turn(rig.report(first))) == [second]
    assert started(rig.turn(rig.report(second))) == [third]


def test_a_key_limit_lets_so_many_run() -> None:
    rig = Rig(3)
    ids = rig.submit(4, Options(key_limit=2), key="k")
    assert sorted(rig.jobs) == ids[:2]
    assert started(rig.turn(rig.report(ids[1]))) == [ids[2]]


def test_the_limit_counts_those_of_other_queues() -> None:
    rig = Rig(2)
    (first,) = rig.submit(key="k", queue="a")
    (second,) = rig.submit(key="k", queue="b")
    assert sorted(rig.jobs) == [first]
    assert started(rig.turn(rig.report(first))) == [second]


def test_tasks_of_one_key_never_share_a_mailbox() -> None:
    rig = Rig(1)
    rig.learn()
    first, *_ = rig.submit(3, key="k")
    assert list(rig.scheduler.workers[1].sent.values()) == [rig.row(first)]


def test_the_order_of_a_key_is_that_of_its_queue() -> None:
    rig = Rig(1)
    (first,) = rig.submit(key="k")
    low, high = rig.submit(key="k")[0], rig.submit(key="k", priority=5)[0]
    assert started(rig.turn(rig.report(first))) == [high]
    assert started(rig.turn(rig.report(high))) == [low]


def test_a_task_that_is_not_due_does_not_hold_the_line() -> None:
    rig = Rig(1)
    (later,) = rig.submit(key="k", at=rig.wall + 60_000_000, priority=9)
    (now,) = rig.submit(key="k")
    assert rig.jobs.keys() == {now}
    rig.turn(rig.report(now))
    rig.clock.advance(61)
    assert started(rig.turn()) == [later]


def test_the_line_waits_while_its_head_waits_for_a_retry() -> None:
    rig = Rig(2)
    head, behind = rig.submit(2, RETRIED, key="k")
    assert started(rig.turn(rig.failure(head))) == []
    assert rig.row(head).status == RETRYING
    rig.clock.advance(10.01)
    assert started(rig.turn()) == [head]
    assert started(rig.turn(rig.report(head))) == [behind]


def test_the_line_passes_a_head_that_yields() -> None:
    rig = Rig(2)
    head, behind = rig.submit(2, YIELDS, key="k")
    assert started(rig.turn(rig.failure(head))) == [behind]
    rig.clock.advance(10.01)
    assert started(rig.turn()) == []
    assert started(rig.turn(rig.report(behind))) == [head]


def test_a_head_that_failed_and_snoozed_keeps_its_key_from_when_it_is_due_though_it_stands_aside() -> None:
    """Its worker is busy just then, and the row does not say yet that it is queued."""
    rig = Rig(2, labels={"gpu": 1})
    (head,) = rig.submit(1, msgspec.structs.replace(RETRIED, target="gpu"), key="k")
    rig.turn(rig.failure(head))
    rig.clock.advance(10.01)
    assert started(rig.turn()) == [head]
    rig.turn(rig.report(head, jobs.SNOOZED, snooze_s=10.0))
    (other,) = rig.submit(1, msgspec.structs.replace(PLAIN, target="gpu"))
    assert other in rig.jobs, "the worker is busy"
    (behind,) = rig.submit(key="k", at=rig.wall + 10_000_000)
    rig.clock.advance(10.01)
    assert started(rig.turn()) == []
    assert started(rig.turn(rig.report(other))) == [head]
    assert started(rig.turn(rig.report(head))) == [behind]


def test_a_head_that_was_to_be_tried_again_and_is_cancelled_frees_its_key() -> None:
    rig = Rig(1)
    head, behind = rig.submit(2, RETRIED, key="k")
    rig.turn(rig.failure(head))
    assert started(rig.turn(rig.cancel(head))) == [behind]


def test_a_death_frees_the_key_and_keeps_the_order() -> None:
    rig = Rig(1)
    head, behind = rig.submit(2, key="k")
    rig.turn(rig.death(begun=head, why="stop"))
    (worker,) = rig.scheduler.workers
    assert started(rig.turn(ev.WorkerReady(worker, 77))) == [head]
    assert started(rig.turn(rig.report(head))) == [behind]


def test_a_paused_queue_keeps_the_order_of_its_keys() -> None:
    rig = Rig(2)
    first, second, third = rig.submit(3, key="k")
    rig.turn(ev.QueueSet(Queue("default", paused=True)))
    assert started(rig.turn(rig.report(first))) == []
    (ahead,) = rig.submit(key="k", priority=1)
    assert started(rig.turn(ev.QueueSet(Queue("default")))) == [ahead]
    assert started(rig.turn(rig.report(ahead))) == [second]
    assert started(rig.turn(rig.report(second))) == [third]


def test_what_waits_in_a_paused_queue_costs_no_more_however_often_its_key_is_taken_elsewhere() -> None:
    rig = Rig(1)
    (first,) = rig.submit(key="k", queue="b")
    (behind,) = rig.submit(key="k", queue="a")
    (other,) = rig.submit(queue="b")
    rig.turn(ev.QueueSet(Queue("a", paused=True)))
    assert started(rig.turn(rig.report(first))) == [other]
    rig.turn(rig.report(other))
    for _ in range(20):
        (task_id,) = rig.submit(key="k", queue="b")
        rig.turn(rig.report(task_id))
    assert rig.scheduler.lines.keys.open("a") == 1
    assert started(rig.turn(ev.QueueSet(Queue("a")))) == [behind]


def test_a_new_owner_lets_nobody_pass_who_waits_for_a_retry() -> None:
    rig = Rig(1)
    (behind,) = rig.submit(key="k", at=rig.wall + 1_000_000)
    head = ev.TaskRow(90, "f", "default", 0, RETRYING, 3, 1, 1, rig.wall + 60_000_000, rig.wall, RETRIED)
    head.key = "k"
    rig.turn(ev.KeysKept([head]))
    rig.clock.advance(2)
    assert started(rig.turn()) == []
    assert rig.row(behind).status == QUEUED


def test_memory_holds_the_beginning_of_a_long_key_and_asks_for_the_rest() -> None:
    rig = Rig(1, line_max=4)
    first, *rest = rig.submit(9, key="k")
    assert len(rig.scheduler.tasks) <= 1 + 2 * 4, "of the nine"
    done, asked = [first], []
    commands = rig.turn(rig.report(first))
    while now := started(commands):
        done += now
        events: list[ev.Event] = [rig.report(now[0])]
        for refill in of(commands, cmd.Refill):
            asked.append(refill.key)
            after = refill.after[2] if refill.after else 0
            rows = [
                ev.TaskRow(n, "f", "default", 0, QUEUED, 1, 0, 0, rig.wall, rig.wall, PLAIN, key="k") for n in rest if n > after
            ]
            events.insert(0, ev.Refilled(refill.queue, rows[: refill.n], len(rows) > refill.n, refill.key))
        commands = rig.turn(*events)
    assert done == [first, *rest]
    assert "k" in asked


# ---- writes that the store refuses ------------------------------------------------------------------------------------


def test_a_start_that_the_store_refused_frees_its_key() -> None:
    rig = Rig(2)
    first, second = rig.submit(2, key="k")
    commands = rig.turn(ev.Dropped([first]))
    assert not of(commands, cmd.Kill), "it was never sent"
    assert started(commands) == [second]


def test_a_body_that_the_store_disowns_keeps_its_key_until_it_is_dead() -> None:
    """Somebody wrote to its row by hand: the task is forgotten and its worker killed, but until then the body runs."""
    rig = Rig(2)
    first, second = rig.submit(2, key="k")
    commands = rig.turn(ev.Dropped([first], sent=[first]))
    assert the(commands, cmd.Kill) == cmd.Kill(rig.jobs[first][0], 0, "retire")
    assert started(commands) == []
    assert started(rig.turn(rig.report(first))) == [], "what it reports matches nothing"
    assert started(rig.turn(rig.death(rig.jobs[first][0], why="retire"))) == [second]


def test_a_body_that_the_store_disowns_keeps_its_place_in_its_queue_until_it_is_dead() -> None:
    rig = Rig(2)
    rig.turn(ev.QueueSet(Queue("default", concurrency=1)))
    first, second = rig.submit(2)
    assert started(rig.turn(ev.Dropped([first], sent=[first]))) == []
    assert started(rig.turn(rig.death(rig.jobs[first][0], why="retire"))) == [second]
