"""Rules of docs/rules.md that no other room proves: what outlives interruptions, batches, and the script that owns a pool."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from taskpool import Controller, Flow, Pool, PoolStopped, Queue, QueueFull, Step, TaskCancelled, task
from taskpool.testing import planted_fault
from tests.waiting import wait_file

ROOT = Path(__file__).parents[1]
WAIT_S = 30


def count_up(ctl: Controller, place: str) -> int:
    """Save a step; the first attempt then waits for its end."""
    step = (ctl.last_checkpoint or 0) + 1
    ctl.checkpoint(step)
    if step == 1:
        Path(place, "saved").touch()
        while True:
            time.sleep(0.01)
    return step


def note(job: tuple[str, int]) -> int:
    """Write down that it ran; item 1 fails, and item 2 hangs, until they need not."""
    place, n = job
    with (Path(place) / "log").open("a") as log:
        log.write(f"{n}\n")
    if n == 1 and not Path(place, "repaired").exists():
        raise ValueError("not yet repaired")
    if n == 2 and not Path(place, "repaired").exists():
        Path(place, "hangs").touch()
        while True:
            time.sleep(0.01)
    return n * n


@task(queue="narrow")
def narrow(n: int) -> int:
    return n


def test_a_checkpoint_is_found_by_the_attempt_after_an_interruption(tmp_path: Path) -> None:
    """It was durable when `checkpoint` returned: the kill of the supervisor does not take it."""
    store = tmp_path / "x.db"
    with pytest.raises(PoolStopped), Pool(store, workers=1) as pool:
        future = pool.submit(count_up, str(tmp_path))
        wait_file(tmp_path / "saved")
        os.kill(pool.pid, signal.SIGKILL)
        future.result(WAIT_S)
    with Pool(store, workers=1) as pool:
        assert pool.future(1).result(WAIT_S) == 2
        task = pool.get(1)
        assert (task.charged, task.interruptions, task.attempt) == (1, 1, 2)


def test_what_did_not_succeed_of_a_batch_gets_another_round(tmp_path: Path) -> None:
    """The same call again: a stored result for what succeeded, a new round for what failed or was cancelled."""
    jobs = [(str(tmp_path), n) for n in range(4)]
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        results = pool.map(note, jobs, batch="notes", return_exceptions=True)
        wait_file(tmp_path / "hangs")
        assert pool.cancel(3).ids == [3], "the one that hangs"
        found = list(results)
        assert (found[0], str(found[1])) == (0, "not yet repaired")
        assert isinstance(found[2], TaskCancelled)
        (tmp_path / "repaired").touch()
        assert list(pool.map(note, jobs, batch="notes")) == [0, 1, 4, 9]
        assert [(pool.get(n).round, str(pool.get(n).status)) for n in (1, 2, 3)] == [
            (0, "succeeded"),
            (1, "succeeded"),
            (1, "succeeded"),
        ]
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "1", "2", "2", "3"]


def test_what_lives_of_a_batch_is_attached_to(tmp_path: Path) -> None:
    """A second call while the first one's items run waits for them, and begins nothing twice."""
    jobs = [(str(tmp_path), n) for n in (0, 2, 3)]
    with Pool(tmp_path / "x.db", workers=2, durability="process") as pool:
        first = pool.map(note, jobs, batch="notes", return_exceptions=True)
        wait_file(tmp_path / "hangs")
        second = pool.map(note, jobs, batch="notes", return_exceptions=True)
        assert next(second) == 0
        pool.cancel(2)
        found = list(second)
        assert isinstance(found[0], TaskCancelled)
        assert found[1] == 9
        assert [type(value) for value in first] == [int, TaskCancelled, int]
        assert pool.count() == 3
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "2", "3"]


def test_a_flow_of_which_one_step_is_refused_is_not_stored(tmp_path: Path) -> None:
    """The others went to queues with room: none of them is there."""
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        pool.register_queue(Queue("narrow", max_backlog=1, paused=True))
        flow = Flow("too much")
        first = flow.submit(len, "abc")
        for _ in range(2):
            flow.submit(narrow, first)
        with pytest.raises(QueueFull, match="narrow"):
            pool.submit_flow(flow)
        assert (pool.count(), list(pool.flows())) == (0, [])


def test_a_flow_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    """Its supervisor is killed inside each of its first commits: one of them is the flow's."""
    seen = set()
    for nth in range(1, 5):
        store = tmp_path / f"{nth}.db"
        flow = Flow("line")
        step: Step[int] = flow.submit(abs, -1)
        for _ in range(49):
            step = flow.submit(abs, step)
        with planted_fault("commit.inside", nth), pytest.raises(PoolStopped), Pool(store, workers=1, durability="process") as pool:
            pool.submit_flow(flow)
            step.result(WAIT_S)
        with Pool(store, workers=1, durability="process") as pool:
            seen.add(pool.count())
            assert [sum(state.counts.values()) for state in pool.flows()] == ([50] if pool.count() else [])
    assert seen == {0, 50}


OWNER = """
    import sys, time
    from pathlib import Path
    from taskpool import Pool

    def slow(place):
        Path(place, "begun").touch()
        while not Path(place, "go").exists():
            time.sleep(0.005)
        return "done"

    if __name__ == "__main__":
        place = sys.argv[1]
        with Pool(Path(place, "x.db"), workers=1) as pool:
            if not pool.count():
                pool.submit(slow, place).result()
            Path(place, "go").touch()
            pool.wait(1)
            task = pool.get(1)
            print(task.status, task.charged, task.interruptions, *(attempt.outcome for attempt in pool.attempts(1)))
"""


def test_a_new_pool_waits_for_the_supervisor_of_a_script_that_was_killed(tmp_path: Path) -> None:
    """Whoever opens the store at once is not refused; what ran is stopped in good order: uncharged, and no interruption."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(OWNER))
    command, environment = [sys.executable, str(program), str(tmp_path)], {**os.environ, "PYTHONPATH": str(ROOT)}
    script = subprocess.Popen(command, env=environment)
    wait_file(tmp_path / "begun")
    script.kill()
    script.wait(WAIT_S)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert again.stdout == "succeeded 1 0 stopped succeeded\n", again.stderr
