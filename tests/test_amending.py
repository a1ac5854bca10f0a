"""Changing what waits, by version; moving it by hand as far as the table lets people; reading it by its time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from taskpool import (
    IllegalTransition,
    InvalidTask,
    NotCancellable,
    NotFound,
    Pool,
    RetryPolicy,
    StaleVersion,
    Task,
    controller,
)
from taskpool.core.lifecycle import MOVES

HOUR = 3600.0


def add(a: int, b: int = 0) -> int:
    return a + b


def tags() -> list[str]:
    return list(controller().task.tags)


def fail() -> None:
    raise ValueError("no")


def note(path: str, text: str) -> None:
    with open(path, "a") as lines:
        lines.write(f"{text}\n")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("amending") / "x.db", workers=1, durability="process") as pool:
        yield pool


def later(pool: Pool) -> int:
    return pool.options(delay=HOUR).submit(add, 1, 2).id


def test_an_update_writes_what_is_said_and_raises_the_version(pool: Pool) -> None:
    before = pool.get(later(pool))
    after = pool.update(before.id, priority=5, timeout=7, tags=["a"], owner_id="ann")
    assert (after.version, after.priority, after.options.timeout_s) == (before.version + 1, 5, 7.0)
    assert (after.options.tags, after.options.owner_id, after.options.label) == (("a",), "ann", before.options.label)
    assert after.scheduled_at == before.scheduled_at
    pool.cancel(before.id)


def test_a_stale_version_is_refused(pool: Pool) -> None:
    before = pool.get(later(pool))
    pool.update(before.id, priority=1)
    with pytest.raises(StaleVersion):
        pool.update(before.id, version=before.version, priority=2)
    with pytest.raises(StaleVersion):
        pool.update(before)
    with pytest.raises(StaleVersion):
        pool.update_status(before.id, "queued", version=before.version)
    assert pool.get(before.id).priority == 1
    pool.cancel(before.id)


def test_a_changed_task_is_written_whole(pool: Pool) -> None:
    before = pool.get(later(pool))
    options = msgspec.structs.replace(before.options, tags=("b",), max_attempts=3)
    changed = msgspec.structs.replace(before, priority=-1, options=options, name="nobody cares")
    after = pool.update(changed)
    assert (after.priority, after.options, after.max_attempts) == (-1, options, 3)
    assert after.name == before.name, "what a task is cannot be changed"
    with pytest.raises(InvalidTask):
        pool.update(after, priority=3)
    pool.cancel(before.id)


def test_what_is_updated_to_be_due_runs_and_with_its_new_options(pool: Pool) -> None:
    task_id = pool.options(delay=HOUR, tags=["old"]).submit(tags).id
    future = pool.future(task_id)
    pool.update(task_id, tags=["new"])
    pool.update(task_id, delay=0)
    assert future.result(60) == ["new"]


def test_what_is_queued_can_be_put_off_and_overtaken(pool: Pool, tmp_path: Path) -> None:
    """Order follows the new priority and the new time."""
    lines = str(tmp_path / "lines")
    pool.pause("default")
    first, second, third = (pool.submit(note, lines, text) for text in ("first", "second", "third"))
    assert pool.update(first.id, delay=HOUR).status == "pending"
    assert pool.update(third.id, priority=9).status == "queued"
    pool.resume("default")
    third.result(60), second.result(60)
    assert pool.get(first.id).status == "pending"
    assert pool.update_status(first.id, "queued").status in ("queued", "running", "succeeded")
    first.result(60)
    assert Path(lines).read_text().split() == ["third", "second", "first"]


def test_only_what_waits_can_be_changed(pool: Pool) -> None:
    done = pool.submit(add, 1)
    done.result(60)
    with pytest.raises(IllegalTransition, match="is succeeded"):
        pool.update(done.id, priority=1)
    with pytest.raises(NotFound):
        pool.update(10_000_000, priority=1)
    with pytest.raises(NotFound):
        pool.update_status(10_000_000, "cancelled")


def test_what_makes_no_sense_is_refused(pool: Pool) -> None:
    task_id = later(pool)
    with pytest.raises(InvalidTask, match="stays in its queue"):
        pool.update(task_id, queue="other")
    with pytest.raises(InvalidTask, match="priority"):
        pool.update(task_id, priority="high")  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="parent_id"):
        pool.update(task_id, parent_id=3)
    with pytest.raises(InvalidTask, match="no status"):
        pool.update_status(task_id, "done")
    pool.cancel(task_id)


def test_a_new_policy_brings_its_own_number_of_attempts(pool: Pool) -> None:
    """As it does in a submit: what was said before it says no more."""
    waits = pool.options(delay=HOUR, max_attempts=2).submit(add, 1)
    assert pool.update(waits.id, retry=RetryPolicy(maximum_attempts=7)).max_attempts == 7
    assert pool.update(waits.id, max_attempts=3).max_attempts == 3
    assert pool.update(waits.id, retry=None).max_attempts == 3
    assert pool.update(waits.id, retry=RetryPolicy(maximum_attempts=7), max_attempts=4).max_attempts == 4
    pool.cancel(waits.id)


def test_fewer_attempts_than_were_charged_are_refused(pool: Pool) -> None:
    slow = RetryPolicy(initial_interval=HOUR, maximum_interval=HOUR, maximum_attempts=3)
    future = pool.options(retry=slow).submit(fail)
    while pool.get(future.id).status != "retrying":
        pool.explain(future.id)
    with pytest.raises(InvalidTask, match="tried 1 times"):
        pool.update(future.id, max_attempts=1)
    assert pool.update(future.id, max_attempts=2).max_attempts == 2
    stored = pool.get(future.id)
    assert (stored.failed_attempts, stored.next_attempt_at) == (1, stored.scheduled_at)
    assert "no" in stored.last_error
    assert pool.update_status(future.id, "queued").version > stored.version
    with pytest.raises(ValueError, match="no"):
        future.result(60)


def test_it_may_be_too_late_to_run_at_most_once(pool: Pool) -> None:
    slow = RetryPolicy(initial_interval=HOUR, maximum_interval=HOUR, maximum_attempts=3)
    task_id = pool.options(retry=slow).submit(fail).id
    while pool.get(task_id).status != "retrying":
        pool.explain(task_id)
    with pytest.raises(InvalidTask, match="too late"):
        pool.update(task_id, at_most_once=True, retry=None)
    pool.cancel(task_id)
    fresh = later(pool)
    once = pool.update(fresh, at_most_once=True).options
    assert (once.at_most_once, once.on_interrupt) == (True, "hold")
    pool.cancel(fresh)


def test_what_runs_at_most_once_cannot_be_given_more_attempts(pool: Pool) -> None:
    """They would never be made, whichever of the two was said last, and however it is said."""
    once = pool.get(pool.options(delay=HOUR, at_most_once=True).submit(add, 1).id)
    for said in ({"retry": RetryPolicy(maximum_attempts=3)}, {"retry": RetryPolicy(maximum_attempts=0)}, {"max_attempts": 2}):
        with pytest.raises(InvalidTask, match="runs at most once, it cannot be retried"):
            pool.update(once.id, **said)  # type: ignore[arg-type]
    with pytest.raises(InvalidTask, match="on_interrupt='rerun'"):
        pool.update(once.id, on_interrupt="rerun")
    with pytest.raises(InvalidTask, match="cannot be retried"):
        pool.update(msgspec.structs.replace(once, options=msgspec.structs.replace(once.options, max_attempts=5)))
    assert pool.get(once.id) == once
    assert pool.update(once.id, max_attempts=1, retry=RetryPolicy(maximum_attempts=1)).max_attempts == 1
    assert pool.update(once.id, at_most_once=False, max_attempts=2).max_attempts == 2
    with pytest.raises(InvalidTask, match="cannot be retried"):
        pool.update(once.id, at_most_once=True)
    pool.cancel(once.id)


def test_a_new_deadline_counts(pool: Pool) -> None:
    task_id = later(pool)
    future = pool.future(task_id)
    pool.update(task_id, deadline=0.05)
    with pytest.raises(TimeoutError):
        future.result(60)
    assert pool.get(task_id).status == "failed"


def test_a_task_that_ends_before_its_cancel_is_recorded_cannot_be_cancelled(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`update_status` looks at the task first, and asks then: in between, the task ends."""
    task_id = later(pool)
    look = pool._at_version

    def look_and_let_it_end(number: int, version: int | None) -> Task:
        monkeypatch.undo()
        found = look(number, version)
        pool.update(number, delay=0)
        pool.wait(number, 60)
        return found

    monkeypatch.setattr(pool, "_at_version", look_and_let_it_end)
    with pytest.raises(NotCancellable, match=f"task {task_id} had ended"):
        pool.update_status(task_id, "cancelled")
    assert pool.get(task_id).status == "succeeded"


def test_status_by_hand_is_a_legal_move_or_refused(pool: Pool) -> None:
    task_id = later(pool)
    for status in ("running", "failed"):
        with pytest.raises(IllegalTransition, match="by itself"):
            pool.update_status(task_id, status)
    for status in ("succeeded", "retrying", "interrupted", "pending"):
        assert status not in MOVES["pending"]
        with pytest.raises(IllegalTransition, match="it may to"):
            pool.update_status(task_id, status)
    cancelled = pool.update_status(task_id, "cancelled", reason="no need")
    assert (cancelled.status, cancelled.cancelled_at) == ("cancelled", cancelled.finished_at)
    assert cancelled.error is not None
    assert cancelled.error.message == "no need"
    assert pool.update_status(task_id, "pending").round == 1
    assert pool.wait(task_id, 60).status == "succeeded"
    with pytest.raises(IllegalTransition, match="force"):
        pool.update_status(task_id, "pending")
    assert pool.update_status(task_id, "pending", force=True).round == 2
    pool.wait(task_id, 60)


def test_what_is_ready_comes_in_the_order_of_its_time_page_by_page(pool: Pool) -> None:
    now = datetime.now(UTC)
    ids = [pool.options(at=now + timedelta(hours=hours)).submit(add, hours).id for hours in (3, 1, 2)]
    third, first, second = ids
    as_of = now + timedelta(hours=2.5)
    assert [task.id for task in pool.ready("pending", as_of=as_of)] == [first, second]
    (page,) = pool.ready(as_of=as_of, limit=1)
    assert [task.id for task in pool.ready(as_of=as_of, after=page)] == [second]
    assert [task.id for task in pool.ready(["pending", "retrying"], as_of=as_of, descending=True)] == [second, first]
    assert [task.id for task in pool.ready(as_of=now + timedelta(hours=4), descending=True, limit=1)] == [third]
    assert pool.ready(as_of=now) == []
    assert pool.count(status="pending") == 3
    with pytest.raises(InvalidTask):
        pool.ready("waiting")
    for no_moment in (datetime.now(), 5, "now"):
        with pytest.raises(InvalidTask, match="as_of must be a datetime"):
            pool.ready(as_of=no_moment)  # type: ignore[arg-type]
    pool.cancel(ids)


def test_lists_are_filtered_by_whose_they_are_and_paged_by_offset(pool: Pool) -> None:
    mine = pool.options(owner_type="user", owner_id="9", source="test", reference_id="r", delay=HOUR)
    ids = [mine.submit(add, n).id for n in range(4)]
    child = mine.options(parent_id=ids[0]).submit(add, 5).id
    assert [task.id for task in pool.list(owner_type="user", owner_id="9")] == [child, *reversed(ids)]
    assert [task.id for task in pool.list(owner_id="9", limit=2, offset=1)] == [ids[3], ids[2]]
    assert [task.id for task in pool.list(parent_id=ids[0])] == [child]
    assert pool.count(source="test", reference_id="r") == 5
    assert pool.list(owner_type="team", owner_id="9") == []
    assert len(pool.cancel(owner_id="9").ids) == 5


def test_who_waited_for_room_and_is_changed_holds_up_nobody(tmp_path: Path) -> None:
    """A task that found no memory is held on to; changed to need none, it makes way at once."""
    from taskpool.core.admission import Room
    from taskpool.core.events import UpdateAsked
    from taskpool.model import Options
    from tests.scheduler_rig import Rig

    rig = Rig(2, room=Room(0, 100))
    (first,) = rig.submit(options=Options(memory=80))
    (second,) = rig.submit(options=Options(memory=50))
    (third,) = rig.submit(options=Options(memory=10), queue="other")
    assert set(rig.jobs) == {first}, "the third waits behind the second"
    rig.turn(UpdateAsked(1, 1, second, rig.row(second).version, None, None, rig.wall + 3_600_000_000))
    assert set(rig.jobs) == {first, third}
