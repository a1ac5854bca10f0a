"""Queues as callers meet them: in a pool, and on the command line."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskpool import (
    InvalidQueueName,
    Pool,
    Queue,
    QueueConfigConflict,
    QueueFull,
    QueueNotRegistered,
    TaskFailed,
    wait,
)
from taskpool.worker.controller import current
from tests.waiting import wait_file


def note(file: str) -> None:
    """Write when the body began and ended."""
    began = time.monotonic()
    time.sleep(0.05)
    with open(file, "a") as lines:
        lines.write(f"{began} {time.monotonic()}\n")


def hold(gate: str) -> str:
    wait_file(gate)
    return "let go"


def fail_until(attempt: int) -> int:
    if current().attempt < attempt:
        raise ValueError("not yet")
    return current().attempt


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(tmp_path_factory.mktemp("queues") / "x.db", workers=3, durability="process") as pool:
        yield pool


def test_bodies_of_a_queue_of_one_never_overlap(pool: Pool, tmp_path: Path) -> None:
    one = pool.queue("one", concurrency=1)
    wait(one.submit_many(note, [str(tmp_path / "lines")] * 8))
    lines = sorted(tuple(map(float, line.split())) for line in (tmp_path / "lines").read_text().splitlines())
    assert len(lines) == 8
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(lines))


def test_a_paused_queue_waits_and_says_so(pool: Pool, tmp_path: Path) -> None:
    mail = pool.queue("mail", paused=True)
    future = mail.submit(str, 1)
    assert future.task().wait_reason == "paused"
    assert future.explain().sentence == f"task {future.id} waits because queue 'mail' is paused"
    assert pool.explain(future.id).reasons[0].code == "paused"
    assert pool.submit(str, 2).result(20) == "2"
    assert not next(state for state in pool.resume("mail") if state.name == "mail").paused
    assert future.result(20) == "1"
    assert pool.explain(future.id).sentence == f"task {future.id} has ended succeeded"


def test_a_queue_can_be_paused_before_its_first_task_comes(pool: Pool) -> None:
    with pytest.raises(InvalidQueueName):
        pool.pause("early", "late ")
    assert "early" not in [state.name for state in pool.queues()], "all or none"
    (early,) = [state for state in pool.pause("early") if state.name == "early"]
    assert (early.paused, early.registered, early.counts) == (True, False, {})
    future = pool.options(queue="early").submit(str, 1)
    assert future.task().wait_reason == "paused"
    assert pool.register_queue(Queue("early", concurrency=1)).paused
    pool.resume("early")
    assert future.result(20) == "1"


def test_whoever_pauses_a_new_queue_sees_that_it_is_new(pool: Pool) -> None:
    pool.register_queue(Queue("letters"))
    paused = taskpool(pool.store, "pause", "leters")
    words = "queue 'leters' is new: nobody has registered it, and it has had no task yet (did you mean 'letters'?)\n"
    assert (paused.returncode, paused.stderr) == (0, words)
    assert "leters" in paused.stdout
    (document,) = json.loads(taskpool(pool.store, "pause", "leters", "--json").stdout)["items"]
    assert (document["new"], document["paused"]) == (False, True), "it is known now"
    documents = taskpool(pool.store, "pause", "xyzzy", "letters", "--json")
    assert [(one["name"], one["new"]) for one in json.loads(documents.stdout)["items"]] == [("letters", False), ("xyzzy", True)]
    assert documents.stderr == "queue 'xyzzy' is new: nobody has registered it, and it has had no task yet\n"
    assert taskpool(pool.store, "pause", " bad").returncode == 2
    pool.resume("leters", "letters", "xyzzy")


def test_registering(pool: Pool) -> None:
    state = pool.register_queue(Queue("reg", concurrency=2, retry_delay=1.0))
    assert state.registered
    assert pool.register_queue(Queue("reg", concurrency=2, retry_delay=1.0)) == state
    with pytest.raises(QueueConfigConflict, match=r"concurrency 2 \(now 4\)"):
        pool.queue("reg", concurrency=4, retry_delay=1.0)
    assert pool.register_queue(Queue("reg", concurrency=4), replace=True).config == Queue("reg", concurrency=4)
    with pytest.raises(InvalidQueueName):
        pool.queue(" reg")
    with pytest.raises(QueueNotRegistered, match="there is no queue 'nowhere'"):
        pool.resume("nowhere")
    assert "reg" in [state.name for state in pool.queues()]


def test_retries_of_a_queue(pool: Pool) -> None:
    again = pool.queue("again", max_retry=2, retry_delay=0.01)
    assert again.submit(fail_until, 3).result(20) == 3
    with pytest.raises((TaskFailed, ValueError)):
        again.options(max_attempts=1).submit(fail_until, 2).result(20)


def test_a_full_backlog_refuses_all_of_a_submit(pool: Pool) -> None:
    full = pool.queue("full", max_backlog=3, paused=True)
    first = full.submit_many(str, [1, 2])
    with pytest.raises(QueueFull, match="2 tasks wait in queue 'full', 2 more were to come; max_backlog is 3"):
        full.submit_many(str, [3, 4])
    assert pool.count(queue="full") == 2
    last = full.submit(str, 3)
    with pytest.raises(QueueFull):
        full.submit_nowait(str, 4).result(20)
    pool.resume()
    assert [future.result(20) for future in [*first, last]] == ["1", "2", "3"]


def test_limits_and_pauses_hold_for_the_next_owner(tmp_path: Path) -> None:
    store = tmp_path / "x.db"
    with Pool(store, workers=2, durability="process") as pool:
        one = pool.queue("one", concurrency=1)
        pool.pause("one")
        one.submit(str, 1)
        pool.stop()
    with Pool(store, workers=2, durability="process") as pool:
        (state,) = (state for state in pool.queues() if state.name == "one")
        assert (state.paused, state.config.concurrency, state.counts) == (True, 1, {"queued": 1})
        (waits,) = pool.list(queue="one")
        assert waits.wait_reason == "paused"
        pool.resume("one")
        assert pool.wait(waits.id, 20).status == "succeeded"


def test_a_pause_waits_for_a_guest_that_holds_the_write_lock(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        pool.queue("mail", concurrency=2)
        guest = sqlite3.connect(pool.store, isolation_level=None)
        guest.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as threads:
            paused = threads.submit(pool.pause, "mail")
            assert not paused.done()
            assert not next(iter(pool.queues())).paused, "readers are answered meanwhile"
            guest.execute("ROLLBACK")
            assert next(iter(paused.result(20))).paused
        guest.close()


# ---- the command line -----------------------------------------------------------------------------------------------


def taskpool(store: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "taskpool", "-C", store, *words], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_verbs(tmp_path: Path) -> None:
    """queues, pause, resume, explain: words, documents and exit codes."""
    gate = tmp_path / "gate"
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        one = pool.queue("one", concurrency=1)
        first, second = one.submit(hold, str(gate)), one.submit(str, 2)
        (document,) = json.loads(taskpool(pool.store, "queues", "--json").stdout)["items"]
        assert (document["name"], document["concurrency"], document["paused"]) == ("one", 1, False)
        shown = taskpool(pool.store, "explain", str(second.id))
        assert (shown.returncode, shown.stdout.splitlines()[0]) == (
            0,
            f"task {second.id} waits for queue 'one', of which 1 of at most 1 tasks run: {first.id}",
        )
        paused = taskpool(pool.store, "pause", "one")
        assert paused.returncode == 0
        assert "paused" in paused.stdout
        codes = [
            reason["code"] for reason in json.loads(taskpool(pool.store, "explain", str(second.id), "--json").stdout)["reasons"]
        ]
        assert codes == ["paused", "queue limit", "worker"]
        assert "paused" in taskpool(pool.store, "show", str(second.id)).stdout
        assert taskpool(pool.store, "resume", "nowhere").returncode == 3
        assert taskpool(pool.store, "explain", "99").returncode == 3
        gate.touch()
        assert first.result(20) == "let go"
        assert not json.loads(taskpool(pool.store, "resume", "--json").stdout)["items"][0]["paused"]
        assert second.result(20) == "2"
        pool.pause("one")
        left = one.submit(str, 3)
        pool.stop()
    assert taskpool(str(tmp_path / "x.db"), "pause", "one").returncode == 4
    shown = taskpool(str(tmp_path / "x.db"), "explain", str(left.id))
    assert shown.stdout.startswith(f"task {left.id} waits for a server")
