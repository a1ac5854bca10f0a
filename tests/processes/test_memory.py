"""What tasks say that they need: those over their memory are killed, alone; sums that do not fit wait, and say what for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskpool import InvalidTask, Pool, RetryPolicy, TaskMemory
from taskpool.config import usable_cpus
from taskpool.memory import usable_memory
from tests.processes import evidence
from tests.processes.evidence import check, submit

WAIT_S = 30.0
MB = 1 << 20


def eat(megabytes: int) -> int:
    held = bytearray(megabytes * MB)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(WAIT_S)
    return len(held)


def eat_in_a_child(megabytes: int) -> None:
    text = f"held = b'x' * ({megabytes} << 20); import time; time.sleep({WAIT_S})"
    subprocess.run([sys.executable, "-c", text], check=True)


@pytest.mark.parametrize("body", [eat, eat_in_a_child])
def test_a_task_over_its_memory_is_killed_alone(place: Path, body: object) -> None:
    """The error says what was allowed and what was used; all that it started counts, and dies with it."""
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        neighbour = submit(pool, place, 1, fn=evidence.hold)
        future = pool.options(memory="150M").submit(body, 400)  # type: ignore[arg-type]
        with pytest.raises(TaskMemory, match=r"over its memory limit of 157 MB: it and its processes held \d+ MB") as caught:
            future.result(WAIT_S)
        assert isinstance(caught.value, MemoryError)
        task = pool.get(future.id)
        assert task.error is not None
        assert (task.error.kind, task.charged, task.crashes) == ("memory", 1, 0)
        (place / "go").touch()
        assert neighbour.result(WAIT_S) == (1, 1)


def test_a_pool_bounds_tasks_that_say_nothing(place: Path) -> None:
    with Pool(place / "x.db", workers=1, durability="process", memory_limit="150M") as pool:
        with pytest.raises(TaskMemory):
            pool.submit(eat, 400).result(WAIT_S)
        assert pool.submit(abs, -1).result(WAIT_S) == 1


def test_a_kill_over_memory_may_be_retried(place: Path) -> None:
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        policy = RetryPolicy(maximum_attempts=2, initial_interval=0.01)
        future = pool.options(memory="150M", retry=policy).submit(eat, 400)
        with pytest.raises(TaskMemory):
            future.result(WAIT_S)
        assert [attempt.outcome for attempt in future.attempts] == ["retrying", "failed"]


def test_what_does_not_fit_waits_and_says_what_for(place: Path) -> None:
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        whole = pool.options(cpus=max(2, usable_cpus()))
        first = submit(whole, place, 1, fn=evidence.hold)  # type: ignore[arg-type]
        evidence.wait_lines(place, 1)
        second = submit(whole, place, 2)  # type: ignore[arg-type]
        third = submit(pool, place, 3)
        assert "waits for processors" in second.explain().sentence
        assert "waits for processors" in third.explain().sentence
        (place / "go").touch()
        assert [future.result(WAIT_S) for future in (first, second, third)] == [(1, 1), (2, 1), (3, 1)]
    check(place, ended=True, again_max=0)


def test_what_can_never_fit_is_refused(place: Path) -> None:
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        with pytest.raises(InvalidTask, match=r"needs 5000 cpus; this pool has \d+"):
            pool.options(cpus=5000).submit(abs, 1)
        with pytest.raises(InvalidTask, match="of memory; this machine has"):
            pool.options(memory=usable_memory() + 1).submit(abs, 1)
        with pytest.raises(InvalidTask, match="memory: 'much' is not a size"):
            pool.options(memory="much")
        with pytest.raises(InvalidTask, match="cpus must be a number above 0"):
            pool.options(cpus=0)
        assert pool.count() == 0
