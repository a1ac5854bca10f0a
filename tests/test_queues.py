"""Queues: settings, limits, pausing, retries and backlog, from the pure decisions to the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskpool.clock import Instant
from taskpool.core import commands as cmd
from taskpool.core import events as ev
from taskpool.core import queues, retry, waiting
from taskpool.core.lines import Lines
from taskpool.errors import InvalidQueueName, InvalidTask, QueueConfigConflict, QueueNotRegistered
from taskpool.model import Options, Queue, RetryPolicy, Status, Task, TaskError
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from taskpool.store.writing import MANY_COUNTS
from tests.scheduler_rig import Rig, of
from tests.store_rig import T0, end, insert, move, start

FAILURE = TaskError("handler", "why")


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", " a", "a\n", "x" * 101, None, 7])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidQueueName):
        queues.check(Queue(name))


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 0},
        {"concurrency": True},
        {"max_retry": -1},
        {"buffer_size": 0},
        {"max_backlog": 1.5},
        {"retry_delay": -0.1},
        {"retry_delay": float("nan")},
        {"retry_delay": "soon"},
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask, match=next(iter(settings))):
        queues.check(Queue("q", **settings))


def test_a_conflict_shows_both_sides() -> None:
    error = queues.conflict(Queue("q", concurrency=2), Queue("q", concurrency=4, retry_delay=1.5))
    assert "concurrency 2 (now 4), retry_delay none (now 1.5)" in str(error)


def test_where_a_queue_begins_is_no_part_of_what_it_is() -> None:
    assert queues.same(Queue("q", concurrency=2, paused=True), Queue("q", concurrency=2))
    assert not queues.same(Queue("q", concurrency=2), Queue("q", concurrency=3))


# ---- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "attempts"),
    [
        (Options(), 3),
        (Options(max_attempts=5), 5),
        (Options(retry=RetryPolicy(maximum_attempts=4)), 4),
        (Options(at_most_once=True), 1),
    ],
)
def test_what_the_task_says_goes_before_its_queue(options: Options, attempts: int) -> None:
    assert retry.max_attempts(options, Queue("q", max_retry=2)) == attempts
    assert retry.max_attempts(Options(), Queue("q")) == 1


def test_the_delay_is_the_queues_unless_a_policy_or_the_handler_says_otherwise() -> None:
    queue = Queue("q", max_retry=2, retry_delay=3.0)
    assert retry.after_failure(Options(), FAILURE, 1, 0, 1, 0, queue) == 3_000_000
    assert retry.after_failure(Options(max_attempts=2), FAILURE, 1, 0, 1, 0, queue) == 3_000_000
    assert retry.after_failure(Options(retry=RetryPolicy(initial_interval=7.0)), FAILURE, 1, 0, 1, 0, queue) == 7_000_000
    asked = TaskError("handler", "why", backoff_s=1.0)
    assert retry.after_failure(Options(), asked, 1, 0, 1, 0, queue) == 1_000_000
    assert retry.after_failure(Options(), FAILURE, 3, 0, 1, 0, queue) is None


# ---- the scheduler --------------------------------------------------------------------------------------------------


def starts(commands: list[cmd.Command]) -> list[int]:
    return [command.id for command in of(commands, cmd.Start)]


def test_no_more_than_the_limit_are_with_workers() -> None:
    """What lies in a mailbox counts; the end of one lets the next start."""
    rig = Rig(3)
    rig.learn()
    rig.turn(ev.QueueSet(Queue("q", concurrency=2)))
    first, second, third = rig.submit(3, queue="q")
    assert {row.id for box in rig.scheduler.workers.values() for row in box.sent.values()} == {first, second}
    assert starts(rig.turn(rig.report(first))) == [third]


def test_a_full_queue_holds_up_no_other() -> None:
    rig = Rig(2)
    rig.turn(ev.QueueSet(Queue("q", concurrency=1)))
    rig.submit(5, queue="q")
    (other,) = rig.submit(1, queue="other")
    assert rig.row(other).status == "running"


def test_a_paused_queue_starts_nothing_and_lets_go_on_what_runs() -> None:
    rig = Rig(2)
    (running,) = rig.submit(1, queue="q")
    rig.turn(ev.QueueSet(Queue("q", paused=True)))
    (waits,) = rig.submit(1, queue="q")
    rig.turn(rig.report(running))
    assert rig.row(waits).status == "queued"
    assert starts(rig.turn(ev.QueueSet(Queue("q")))) == [waits]


def test_a_failure_is_retried_as_the_queue_says() -> None:
    rig = Rig()
    rig.turn(ev.QueueSet(Queue("q", max_retry=1, retry_delay=2.0)))
    (task_id,) = rig.submit(1, queue="q")
    rig.turn(rig.failure(task_id))
    assert rig.row(task_id).status == "retrying"
    assert rig.row(task_id).scheduled_at == rig.wall + 2_000_000
    rig.clock.advance(2.1)
    rig.turn()
    (failed,) = of(rig.turn(rig.failure(task_id)), cmd.End)
    assert failed.to == "failed"


def test_the_buffer_bounds_what_is_held_in_memory() -> None:
    rig = Rig()
    rig.turn(ev.QueueSet(Queue("q", buffer_size=4, paused=True)))
    rig.submit(9, queue="q")
    assert 0 < len(rig.scheduler.tasks) <= 4
    (refill,) = of(rig.turn(ev.QueueSet(Queue("q", buffer_size=4))), cmd.Refill)
    assert refill.queue == "q", "what was left in the file is asked for as soon as the others leave"


def test_without_rules_nothing_is_kept_of_a_queue() -> None:
    rig = Rig()
    rig.turn(ev.QueueSet(Queue("q", paused=True)), ev.QueueSet(Queue("q")))
    rig.submit(1, queue="q")
    assert not rig.scheduler.lines.queues
    assert not rig.scheduler.lines._room


# ---- why a task waits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "snoozes", "queue", "running", "reason"),
    [
        ("queued", 0, None, 0, "worker"),
        ("queued", 0, Queue("q", concurrency=2), 1, "worker"),
        ("queued", 0, Queue("q", concurrency=2), 2, "queue limit"),
        ("queued", 0, Queue("q", concurrency=2, paused=True), 2, "paused"),
        ("pending", 0, None, 0, "time"),
        ("pending", 1, None, 0, "snooze"),
        ("retrying", 0, None, 0, "retry"),
        ("running", 0, None, 1, None),
        ("failed", 0, None, 0, None),
    ],
)
def test_the_reason_in_a_word(status: str, snoozes: int, queue: Queue | None, running: int, reason: str | None) -> None:
    assert waiting.reason(status, snoozes, queue, running) == reason


def a_task(status: str, **fields: Any) -> Task:
    return Task(id=7, uid="u", name="f", queue="q", priority=0, status=Status(status), version=1, **fields)


def explained(task: Task, queue: Queue = Queue("q"), **place: Any) -> list[tuple[str, str]]:  # noqa: B008  # frozen
    found = waiting.explain(task, waiting.Place(queue, **place), T0)
    assert found.sentence == f"task 7 {found.reasons[0].detail}"
    return [(reason.code, reason.detail) for reason in found.reasons]


def test_an_explanation_says_all_that_a_task_waits_for() -> None:
    paused = Queue("q", concurrency=1, paused=True)
    assert explained(a_task("queued"), paused, running=1, holders=(3,), ahead=1) == [
        ("paused", "waits because queue 'q' is paused"),
        ("queue limit", "waits for queue 'q', of which 1 of at most 1 tasks run: 3"),
        ("worker", "waits for a worker; 1 task stands before it in queue 'q'"),
    ]
    late = a_task("pending", scheduled_at=T0 + 41_000_000, options=Options(deadline_at=T0 + 7_200_000_000))
    assert explained(late) == [
        ("time", "waits for its time: due in 41 s"),
        ("worker", "waits for a worker; no tasks stand before it in queue 'q'"),
        ("deadline", "must have ended in 2 h"),
    ]


def test_an_explanation_of_what_does_not_wait() -> None:
    failed = a_task("retrying", scheduled_at=T0 + 500_000, charged=1, max_attempts=3, error=FAILURE)
    assert explained(failed)[0] == ("retry", "failed ([handler] why); attempt 2 of 3 is due in 0.5 s")
    assert explained(a_task("running", worker_id=2, started_at=T0 - 12_000_000, attempt=1)) == [
        ("running", "runs on worker 2 for 12 s, attempt 1")
    ]
    assert explained(a_task("failed", error=FAILURE)) == [("failed", "has ended failed: [handler] why")]


# ---- the store ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Any:
    found = Store.open(tmp_path / "x.db", durability="process")
    yield found
    found.close()


def test_the_same_registration_changes_nothing_and_another_is_a_conflict(store: Store) -> None:
    queue = Queue("q", concurrency=2, paused=True)
    assert store.register_queue(queue) == queue
    store.pause_queues(["q"], False)
    assert store.register_queue(queue).paused is False, "where it begins says nothing of where it is"
    with pytest.raises(QueueConfigConflict, match=r"concurrency 2 \(now 3\)"):
        store.register_queue(Queue("q", concurrency=3))
    assert store.register_queue(Queue("q", concurrency=3), replace=True).concurrency == 3
    assert [state.config.concurrency for state in store.queues()] == [3]


def test_rules_outlive_their_owner(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "x.db", durability="process")
    store.register_queue(Queue("q", max_retry=3))
    store.register_queue(Queue("plain"))
    store.pause_queues(["q"], True)
    store.close(clean=False)
    again = Store.open(tmp_path / "x.db", durability="process")
    assert again.queue_rules() == [Queue("q", max_retry=3, paused=True)]
    again.close()


def test_a_queue_that_nobody_registered_can_be_paused(store: Store) -> None:
    """Before its first task, and after; what is not known cannot be resumed."""
    with pytest.raises(QueueNotRegistered):
        store.pause_queues(["post"], False)
    with pytest.raises(InvalidQueueName):
        store.pause_queues(["post", ""], True)
    assert store.queues() == []
    assert store.pause_queues(["post"], True) == store.queue_rules() == [Queue("post", paused=True)]
    assert [(state.name, state.registered, state.paused) for state in store.queues()] == [("post", False, True)]
    store.pause_queues(["post"], False)
    store.commit([insert(1, queue="mail")], T0)
    assert store.pause_queues(["mail"], True) == [Queue("mail", paused=True)]
    assert store.register_queue(Queue("mail", concurrency=1)).paused
    assert [queue.name for queue in store.pause_queues([], False)] == ["mail", "post"]
    assert not store.queues()[0].paused


def test_readers_say_why_a_task_waits(store: Store) -> None:
    store.register_queue(Queue("q", concurrency=1, max_retry=4))
    store.commit([insert(1, queue="q"), insert(2, queue="q"), insert(3), insert(4, "pending"), start(1)], T0)
    with Reader(store.path) as reader:
        found = {task.id: task.wait_reason for task in reader.tasks()}
        assert found == {1: None, 2: "queue limit", 3: "worker", 4: "time"}
        assert reader.task(2).max_attempts == 5
        assert reader.explain(2, T0).sentence == "task 2 waits for queue 'q', of which 1 of at most 1 tasks run: 1"
    store.commit([end(1)], T0)
    assert store.task(2).wait_reason == "worker"
    store.pause_queues(["q"], True)
    assert store.task(2).wait_reason == "paused"
    store.commit([move(2, "queued", "cancelled", error=FAILURE)], T0)
    assert store.task(2).wait_reason is None


# ---- many queues ------------------------------------------------------------------------------------------------------------


def _lines(*names: str) -> Lines:
    """Lines in which each name stands for a task of that queue, by id from 1."""
    lines = Lines({}, 1000)
    for task_id, name in enumerate(names, 1):
        lines.put(ev.TaskRow(task_id, "f", name, 0, "queued", 1, 0, 0, T0, T0, Options()))
    return lines


def _served(lines: Lines) -> str:
    """Take what may start, in order, and return the queues."""
    lines.measure_room([], Instant(T0, 0))
    found = []
    while (row := lines.next()) is not None:
        lines.started(row, Instant(T0, 0))
        found.append(row.queue)
    return "".join(found)


def test_queues_that_have_nothing_are_not_looked_at() -> None:
    """Of a thousand that stand empty a turn knows nothing, and all of them come back with their next task."""
    lines = _lines(*(str(n) for n in range(1000)))
    assert _served(lines) == "".join(str(n) for n in range(1000))
    assert not lines._order
    lines.shed()
    assert not lines._grown
    assert lines.startable(10) == 0
    lines.put(ev.TaskRow(2000, "f", "7", 0, "queued", 1, 0, 0, T0, T0, Options()))
    assert list(lines._order) == ["7"]
    assert lines.startable(10) == 1
    assert _served(lines) == "7"


def test_a_queue_that_is_closed_keeps_its_turn() -> None:
    """Passed over while it is paused, it is the first when it is open again; what comes to it meanwhile changes nothing."""
    lines = _lines(*"abcabcabc")
    lines.set_rules(Queue("b", paused=True), 0, Instant(T0, 0))
    assert _served(lines) == "acacac"
    lines.put(ev.TaskRow(10, "f", "a", 0, "queued", 1, 0, 0, T0, T0, Options()))
    lines.put(ev.TaskRow(11, "f", "b", 0, "queued", 1, 0, 0, T0, T0, Options()))
    lines.set_rules(Queue("b"), 0, Instant(T0, 0))
    assert _served(lines) == "babbb"


def test_what_may_start_is_counted_up_to_what_is_enough() -> None:
    lines = _lines(*"aaabbbccc")
    assert [lines.startable(enough) for enough in (1, 4, 100)] == [3, 6, 9]
    lines.set_rules(Queue("a", concurrency=1), 0, Instant(T0, 0))
    lines.measure_room([], Instant(T0, 0))
    assert lines.startable(100) == 7


def test_tasks_of_many_queues_are_counted_right(tmp_path: Path) -> None:
    """In one turn, over several turns, by an owner that has not seen them before, and when one write of a turn is refused."""
    path, many = tmp_path / "x.db", 10 * MANY_COUNTS
    store = Store.open(path, durability="process")
    ids = range(1, many + 1)
    store.commit([insert(n, queue=f'"q\\ü{n % 55}') for n in ids])
    store.commit([start(n) for n in ids])
    assert store.counts_by_queue() == store.recount()
    store.close()
    store = Store.open(path, durability="process")
    assert store.commit([*(end(n) for n in ids), insert(many + 1, queue="new"), insert(many + 2, uid=1, queue='"q\\ü1')]) == [
        many + 2
    ]
    store.commit([move(1, "succeeded", "pending", version=3, charged=0, clear_error=True)])
    assert store.counts_by_queue() == store.recount()
    assert store.counts() == {"pending": 1, "queued": 1, "succeeded": many - 1}
    store.close()
