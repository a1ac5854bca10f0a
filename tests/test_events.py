"""Transitions as callers meet them: `events`, hooks, and the verb."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskpool import (
    InvalidHandler,
    InvalidTask,
    Pool,
    PoolStopped,
    Queue,
    StoreUnusable,
    TaskEvent,
    TaskFailed,
    connect,
    stored_events,
    task,
)
from taskpool.cli.main import main
from taskpool.doors.eventstream import Stopper

WAIT_S = 30


@task
def half(n: int) -> int:
    if n % 2:
        raise ValueError("odd")
    return n // 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def pool(path: Path) -> Iterator[Pool]:
    with Pool(path, workers=1, durability="process") as pool:
        yield pool


def fate(events: list[TaskEvent], task_id: int) -> list[str]:
    """The statuses of a task, in order; what a task was sent ahead for, and taken back from, does not count."""
    return [event.status.value for event in events if event.id == task_id if event.status.is_terminal or event.before is None]


def test_all_that_happened_is_told_and_again_from_a_place(pool: Pool) -> None:
    good, bad = pool.submit(half, 4), pool.submit(half, 3)
    assert good.result() == 2
    with pytest.raises(ValueError, match="odd"):
        bad.result()
    events = list(pool.events())
    assert fate(events, good.id)[-1] == "succeeded"
    assert fate(events, bad.id)[-1] == "failed"
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert list(pool.events(events[2].seq)) == events[3:]
    assert [event.id for event in pool.events(status="failed")] == [bad.id]
    assert {event.id for event in pool.events(id=good.id)} == {good.id}
    assert list(pool.events(queue="elsewhere")) == []
    assert list(pool.events(name=events[0].name)) == events


def test_following_tells_what_comes_while_it_comes(pool: Pool) -> None:
    stream = pool.events(follow=True, status=["succeeded", "failed"])
    for number in (2, 3, 4):
        future = pool.submit(half, number)
        event = next(stream)
        assert (event.id, event.status) == (future.id, "failed" if number % 2 else "succeeded")


def test_following_ends_with_the_pool_and_has_all_of_it(path: Path) -> None:
    got: list[TaskEvent] = []
    with Pool(path, workers=1, durability="process") as pool:
        stream = pool.events(follow=True)
        reader = threading.Thread(target=lambda: got.extend(stream))
        reader.start()
        futures = [pool.submit(half, 2 * number) for number in range(50)]
    reader.join(WAIT_S)
    assert got == list(stored_events(path))
    assert {event.id for event in got if event.status == "succeeded"} == {future.id for future in futures}


def test_a_hook_sees_every_transition_in_order_also_those_of_the_end(path: Path) -> None:
    seen: list[TaskEvent] = []
    with Pool(path, workers=2, durability="process") as pool:
        pool.on(seen.append)
        futures = [pool.submit(half, 2 * number) for number in range(100)]
    assert seen == list(stored_events(path))
    assert sum(event.status == "succeeded" for event in seen) == len(futures)


def test_a_slow_hook_stalls_nobody_and_misses_nothing(path: Path) -> None:
    may_go = threading.Event()
    seen: list[int] = []
    with Pool(path, workers=1, durability="process") as pool:

        @pool.hook(status="succeeded")
        def slow(event: TaskEvent) -> None:
            assert may_go.wait(WAIT_S)
            seen.append(event.id)

        futures = [pool.submit(half, 2 * number) for number in range(20)]
        assert [future.result(WAIT_S) for future in futures] == list(range(20)), "the tasks do not wait for it"
        assert seen == []
        may_go.set()
    assert seen == [future.id for future in futures]


@pytest.mark.parametrize("mistake", [RuntimeError, SystemExit])
def test_a_hook_that_raises_is_told_of_and_goes_on(
    path: Path, capsys: pytest.CaptureFixture[str], mistake: type[BaseException]
) -> None:
    seen: list[int] = []
    with Pool(path, workers=1, durability="process") as pool:

        @pool.hook(status="succeeded")
        def fragile(event: TaskEvent) -> None:
            seen.append(event.id)
            raise mistake("a hook's own mistake")

        ids = [pool.submit(half, 2).id, pool.submit(half, 4).id]
    assert seen == ids
    said = capsys.readouterr().err
    assert said.count(f"{mistake.__name__}: a hook's own mistake") == 2
    assert "fragile failed at" in said


def test_a_hook_that_is_stopped_is_called_no_more(pool: Pool) -> None:
    called = threading.Semaphore(0)
    seen: list[int] = []

    def note(event: TaskEvent) -> None:
        seen.append(event.id)
        called.release()

    hook = pool.on(note, status="succeeded")
    first = pool.submit(half, 2)
    assert called.acquire(timeout=WAIT_S)
    hook.stop()
    pool.submit(half, 4).result()
    assert hook.finish(WAIT_S)
    assert seen == [first.id]


def test_a_hook_that_waits_for_news_ends_at_once_when_it_is_stopped(pool: Pool) -> None:
    hooks = [pool.on(print) for _ in range(3)]
    pool.submit(half, 2).result()
    for hook in hooks:
        hook.stop()  # nothing happens in this pool from here on that could wake it
        assert hook.finish(WAIT_S)
    assert pool.submit(half, 4).result() == 2, "an answer that comes late finds nobody, and harms nobody"


def test_stopping_reaches_a_wait_that_is_about_to_begin(pool: Pool) -> None:
    stopper = Stopper(pool._link)
    stopper.stop()
    with pytest.raises(PoolStopped):
        stopper.heed(1 << 40)
    assert pool.submit(half, 2).result() == 1


def test_a_hook_takes_up_where_another_left_off(path: Path) -> None:
    with Pool(path, workers=1, durability="process") as pool:
        first = pool.submit(half, 2)
        first.result()
        place = list(pool.events())[-1].seq
    seen: list[TaskEvent] = []
    with Pool(path, workers=1, durability="process") as pool:
        second = pool.submit(half, 4)
        second.result()
        pool.on(seen.append, since=place)
    assert {event.id for event in seen} == {second.id}
    assert fate(seen, second.id)[-1] == "succeeded"


def test_a_hook_may_use_the_pool(path: Path) -> None:
    names: list[Any] = []
    with Pool(path, workers=1, durability="process") as pool:
        done = threading.Event()

        @pool.hook(status="failed")
        def look(event: TaskEvent) -> None:
            names.append(pool.get(event.id).error)
            done.set()

        with pytest.raises((ValueError, TaskFailed)):
            pool.submit(half, 1).result()
        assert done.wait(WAIT_S)
    assert "odd" in str(names[0])


def test_a_client_of_another_pool_follows_too(pool: Pool, path: Path) -> None:
    seen: list[int] = []
    heard = threading.Event()
    with connect(path) as client:

        @client.hook(status="succeeded")
        def note(event: TaskEvent) -> None:
            seen.append(event.id)
            heard.set()

        future = pool.submit(half, 8)
        assert heard.wait(WAIT_S)
    assert seen == [future.id]


def test_queues_that_change_are_no_news(pool: Pool) -> None:
    """Turns without transitions neither wake a follower in vain nor make it miss what comes after them."""
    stream = pool.events(follow=True, status="succeeded")
    pool.register_queue(Queue("q"))
    pool.pause("q")
    future = pool.submit(half, 2)
    assert next(stream).id == future.id
    pool.resume("q")
    assert next(iter([pool.submit(half, 4).id])) == next(stream).id


@pytest.mark.parametrize(
    ("fields", "words"), [({"status": "odd"}, "no status 'odd'"), ({"tag": "x"}, "no 'tag'"), ({"since": "x"}, "no place")]
)
def test_what_cannot_be_meant_is_refused_at_once(pool: Pool, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        pool.events(**fields)
    with pytest.raises(InvalidTask, match=words):
        pool.on(print, **fields)
    with pytest.raises(InvalidHandler, match="cannot be"):
        pool.on(None)  # type: ignore[arg-type]


def test_no_store_has_no_events(path: Path) -> None:
    with pytest.raises(StoreUnusable):
        list(stored_events(path))


# ---- the verb -----------------------------------------------------------------------------------------------------------


def test_the_verb_shows_the_log_without_a_server(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Pool(path, workers=1, durability="process") as pool:
        ids = [pool.submit(half, 2).id, pool.submit(half, 3).id]

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["-C", str(path), "events", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    code, out, _ = run("--json")
    docs = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(docs) == len(list(stored_events(path)))
    assert {doc["schema"] for doc in docs} == {"taskpool.event/1"}
    assert (docs[0]["id"], docs[0]["from"]) == (ids[0], None)
    code, out, _ = run("--status", "failed")
    assert (code, "running → failed" in out, out.count("\n")) == (0, True, 1)
    assert json.loads(run("--since", docs[0]["seq"], "--limit", "1", "--json")[1]) == docs[1]
    assert run("--since", "1h", "--json")[1] == run("--json")[1]
    assert run("--since", "in 1h") == (0, "", "nothing of that is in the log\n")
    assert run("--since", "sometimes")[0] == 2
    assert run("--id", str(ids[1]), "--status", "succeeded")[1] == ""
    assert run("--follow")[0] == 4, "nobody serves it"


def test_the_verb_follows(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    first = pool.submit(half, 2)
    first.result()
    assert main(["-C", pool.store, "events", "--follow", "--since", "0", "-n", "1", "--status", "succeeded", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == first.id
