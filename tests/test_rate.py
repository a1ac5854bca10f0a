"""Rates of queues: how many tasks may start in a time, and what is known of it after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpool import InvalidTask, Pool, Queue, QueueConfigConflict
from taskpool.clock import NS, US, Instant, ManualClock
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core.rate import Bucket, Rates, free_at
from tests.scheduler_rig import Rig, of, the

API = Queue("api", rate=2.0, burst=3)


def started(commands: list[cmd.Command]) -> list[int]:
    return [start.id for start in of(commands, cmd.Start)]


def rig(queue: Queue = API, full_at: int = 0) -> Rig:
    made = Rig(6)
    made.turn(ev.QueueSet(queue, full_at))
    made.learn()
    return made


def test_a_burst_then_one_after_the_other() -> None:
    world = rig()
    ids = world.submit(5, queue="api")
    assert world.row(ids[2]).status == "running"
    assert [world.row(task_id).status for task_id in ids[3:]] == ["queued", "queued"]
    assert world.scheduler.lines.next_token() == world.mono + NS // 2
    world.clock.advance(0.499)
    assert not started(world.turn())
    world.clock.advance(0.001)
    assert started(world.turn()) == [ids[3]]


def test_what_is_paused_or_waits_for_nothing_sets_no_timer() -> None:
    world = rig()
    world.submit(3, queue="api")
    assert world.scheduler.lines.next_token() is None
    world.submit(queue="api")
    assert world.scheduler.lines.next_token() is not None
    world.turn(ev.QueueSet(Queue("api", rate=2.0, burst=3, paused=True)))
    assert world.scheduler.lines.next_token() is None


def test_other_queues_are_not_held_up() -> None:
    world = rig(Queue("api", rate=0.001))
    world.submit(2, queue="api")
    assert started(world.turn(world.submitted(queue="other")))


def test_what_was_spent_is_stored_with_the_starts() -> None:
    world = rig()
    spent = the(world.turn(world.submitted(2, queue="api")), cmd.Spent)
    assert spent == cmd.Spent("api", world.wall + US)
    assert not of(world.turn(), cmd.Spent)


def test_a_new_owner_goes_on_where_the_last_one_was() -> None:
    before = rig()
    spent = the(before.turn(before.submitted(3, queue="api")), cmd.Spent)
    world = rig(API, spent.full_at)
    assert not started(world.turn(world.submitted(queue="api")))
    world.clock.advance(0.5)
    assert len(started(world.turn())) == 1


def test_a_clock_that_was_set_back_holds_nothing_up_for_long() -> None:
    now = Instant(10 * US, 5 * NS)
    rates = Rates()
    rates.set_rules(API, 10_000 * US, now)
    assert rates.buckets["api"].next_at() <= now.mono + NS // 2


def test_the_same_rules_again_grant_nothing() -> None:
    world = rig()
    world.submit(3, queue="api")
    world.turn(ev.QueueSet(API))
    assert not started(world.turn(world.submitted(queue="api")))


def test_another_rate_counts_at_once() -> None:
    world = rig(Queue("api", rate=0.001))
    world.submit(4, queue="api")
    world.turn(ev.QueueSet(Queue("api", rate=1000.0, burst=1)))
    world.clock.advance(0.001)
    assert len(started(world.turn())) == 1
    assert len(started(world.turn(ev.QueueSet(Queue("api"))))) == 2


def test_what_never_began_is_given_back() -> None:
    world = rig(Queue("api", rate=0.001, burst=2))
    first, second = world.submit(2, queue="api")
    assert not world.scheduler.lines.rates.buckets["api"].left(world.mono)
    (third,) = world.submit(queue="api")
    worker, n, _ = world.jobs[second]
    assert started(world.turn(ev.TakenBack(worker, n - 1), ev.Passed(worker, n))) == [second]
    assert (world.row(first).status, world.row(third).status) == ("running", "queued")
    rates = Rates()
    rates.set_rules(Queue("api", rate=1.0, burst=2), 0, world.clock.now())
    rates.take("api", world.clock.now())
    rates.give_back("api", world.wall)
    assert rates.buckets["api"].left(world.mono) == 2


def test_what_dripped_in_vain_is_not_given_back() -> None:
    """The bucket has run over since that start: it would be no fuller now without it."""
    rates, clock = Rates(), ManualClock()
    rates.set_rules(Queue("api", rate=1.0, burst=2), 0, clock.now())
    first = clock.now()
    rates.take("api", first)
    clock.advance(5)
    for _ in range(2):
        rates.take("api", clock.now())
    rates.give_back("api", first.wall)
    assert rates.buckets["api"].left(clock.now().mono) == 0
    rates.give_back("api", clock.now().wall)
    assert rates.buckets["api"].left(clock.now().mono) == 1


def test_what_a_dead_owner_had_sent_in_vain_is_given_back_to_the_next() -> None:
    before = rig(Queue("api", rate=0.001, burst=1))
    spent = the(before.turn(before.submitted(queue="api")), cmd.Spent)
    rates = Rates()
    rates.set_rules(Queue("api", rate=0.001, burst=1), spent.full_at, before.clock.now())
    assert rates.buckets["api"].left(before.mono) == 0
    rates.give_back("api", before.wall)
    assert rates.buckets["api"].left(before.mono) == 1


def test_a_caller_takes_a_token_too() -> None:
    world = Rig(1)
    world.turn(ev.QueueSet(Queue("api", rate=0.001, burst=2)))
    world.submit(name="ever")
    first, second = world.submit(2, queue="api")
    assert started(world.turn(ev.ExecuteAsked(5, 1, first, 1))) == [first]
    assert started(world.turn(ev.ExecuteAsked(5, 1, second, 1))) == [second]
    (third,) = world.submit(queue="api")
    assert "starts 0.001 tasks a second" in the(world.turn(ev.ExecuteAsked(5, 1, third, 1)), cmd.Agree).message


@pytest.mark.parametrize(("rate", "burst", "left"), [(1.0, None, 1), (7.9, None, 7), (0.1, None, 1), (0.1, 4, 4), (1e6, 3, 3)])
def test_a_bucket_that_rested_is_full(rate: float, burst: int | None, left: int) -> None:
    assert Bucket(Queue("q", rate=rate, burst=burst), 0, Instant(0, 0)).left(10**18) == left


def test_tokens_come_back_one_by_one() -> None:
    bucket = Bucket(API, 10 * NS, Instant(0, 0))  # full in 10 s
    assert [bucket.left(round(at * NS)) for at in (8.4, 8.5, 8.999, 9.0, 9.5, 10.0, 99.0)] == [0, 0, 0, 1, 2, 3, 3]
    assert bucket.next_at() == 9 * NS
    assert free_at(API, 10 * US) == 9 * US


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "5", True, 1e7])
def test_rates_that_make_no_sense(pool: Pool, rate: object) -> None:
    with pytest.raises(InvalidTask, match="rate of a queue must be a number of tasks a second"):
        pool.register_queue(Queue("bad", rate=rate))  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="burst of a queue says how a rate begins"):
        pool.register_queue(Queue("bad", burst=3))


def test_a_rate_is_part_of_a_queues_config(pool: Pool) -> None:
    pool.register_queue(Queue("api", rate=5.0, burst=2))
    assert not any(state.name == "bad" for state in pool.queues())
    with pytest.raises(QueueConfigConflict, match=r"rate 5 \(now 6\)"):
        pool.register_queue(Queue("api", rate=6.0, burst=2))


def test_a_rate_holds_across_owners(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1) as pool:
        pool.register_queue(Queue("slow", rate=0.001))
        assert pool.options(queue="slow").submit(abs, -1).result(30) == 1
        later = pool.options(queue="slow").submit(abs, -2)
        assert pool.get(later.id).wait_reason == "rate"
        later.cancel()
        again = pool.options(queue="slow").submit_many(abs, [-3, -4])
        ids = [future.id for future in again]
        pool.stop(0.0)
    with Pool(tmp_path / "x.db", workers=1) as pool:
        assert pool.options(queue="other").submit(abs, -5).result(30) == 5
        assert [pool.get(task_id).status for task_id in ids] == ["queued", "queued"]
        explanation = pool.explain(ids[0])
        assert (
            "starts 0.001 tasks a second at most: the next in 16 min" in explanation.sentence or "in 17 min" in explanation.sentence
        )
        pool.register_queue(Queue("slow", rate=1000.0), replace=True)
        pool.cancel(ids)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with Pool(tmp_path_factory.mktemp("rate") / "x.db", workers=1) as made:
        yield made
