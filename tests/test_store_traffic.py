"""Random traffic: whatever is asked for in whatever grouping, rows, tally and refusals are those of a model of forty lines."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from taskpool.core.commands import Checkpoint, Extras, Save
from taskpool.core.lifecycle import MOVES, QUEUED, RUNNING, SUCCEEDED, TERMINAL
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from tests.store_rig import T0, end, insert, move, start

QUEUES = ("default", "cpu", "mail")


class Believed:
    """What a scheduler believes of one task."""

    def __init__(self, status: str, queue: str) -> None:
        self.status, self.queue = status, queue
        self.version, self.attempt, self.attempts, self.state = 1, 0, 0, b""


class Traffic:
    """Makes turns. Some saves of a turn are wrong on purpose; after those nothing more is said of their task in that turn."""

    def __init__(self, seed: int, queues: int) -> None:
        self.random = random.Random(seed)
        self.queues = QUEUES[:queues]
        self.tasks: dict[int, Believed] = {}
        self.next_id = 1

    def turn(self) -> tuple[list[Save], list[int]]:
        saves: list[Save] = []
        wrong: list[int] = []
        for _ in range(self.random.choice((1, 3, 10, 60, 200))):
            known = [task_id for task_id in self.tasks if task_id not in wrong]
            if not known or self.random.random() < 0.35:
                self.new(saves, wrong)
            else:
                task_id = self.random.choice(known[-60:])
                self.change(task_id, saves, wrong)
        return saves, wrong

    def new(self, saves: list[Save], wrong: list[int]) -> None:
        task_id, self.next_id = self.next_id, self.next_id + 1
        queue, status = self.random.choice(self.queues), self.random.choice(sorted(MOVES[""].keys() - {RUNNING} - TERMINAL))
        payload = self.random.randbytes(self.random.choice((5, 1024, 1025, 20_000)))
        taken = self.random.choice(list(self.tasks)) if self.tasks and self.random.random() < 0.02 else None
        saves.append(insert(task_id, status, queue=queue, payload=payload, uid=taken))
        if taken is None:
            self.tasks[task_id] = Believed(status, queue)
        else:
            wrong.append(task_id)

    def change(self, task_id: int, saves: list[Save], wrong: list[int]) -> None:
        task = self.tasks[task_id]
        if task.status == RUNNING and self.random.random() < 0.2:
            task.state = self.random.randbytes(9)
            saves.append(Checkpoint(task_id, task.attempt, task.state))
            return
        to = self.random.choice(list(MOVES[task.status]))
        version = task.version
        if self.random.random() < 0.03:
            version += self.random.choice((-1, 1))
            wrong.append(task_id)
        attempt = task.attempt + 1 if to == RUNNING else task.attempt
        if to == RUNNING:
            saves.append(start(task_id, version, task.status, attempt))
        elif task.status == RUNNING:
            charged = min(attempt, 1)
            saves.append(end(task_id, to, version, attempt, charged, extras=Extras(crashes=attempt), scheduled_at=T0 + version))
        else:
            saves.append(move(task_id, task.status, to, version, clear_error=task.status in TERMINAL, charged=0))
        if task_id in wrong:
            return
        if task.status == RUNNING:
            task.attempts += 1
            if to == SUCCEEDED:
                task.state = b""
        task.status, task.version, task.attempt = to, version + 1, attempt


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_what_the_scheduler_believes(tmp_path: Path, seed: int, queues: int) -> None:
    traffic = Traffic(seed, queues)
    store = Store.open(tmp_path / "x.db", durability="process")
    for turn in range(60):
        saves, wrong = traffic.turn()
        assert sorted(store.commit(saves)) == sorted(wrong), f"seed {seed} turn {turn}"
        if turn % 7 == 0:
            store.tidy()
        if turn % 20 == 19:
            store.close(clean=self_closes(turn))
            store = Store.open(tmp_path / "x.db", durability="process")
            assert store.next_id() <= traffic.next_id
    with Reader(tmp_path / "x.db") as reader:
        assert reader.counts_by_queue() == reader.recount() == store.counts_by_queue()
        assert store._db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        found = {row.id: row for row in reader.rows(range(traffic.next_id))}
        assert found.keys() == traffic.tasks.keys()
        waiting: dict[str, list[int]] = {}
        for task_id, task in traffic.tasks.items():
            row = found[task_id]
            assert (row.status, row.version, row.attempt, row.queue) == (task.status, task.version, task.attempt, task.queue)
            assert len(reader.attempts(task_id)) == task.attempts
            whole = reader.task(task_id)
            assert (whole.finished_at is None) == (task.status not in TERMINAL), "the indexes of keys go by it"
            if task.status == SUCCEEDED:
                assert whole.result == b"result"
            assert (reader.payloads([task_id])[task_id][4] or b"") == task.state
            if task.status == QUEUED:
                waiting.setdefault(task.queue, []).append(task_id)
        assert reader.queues_waiting() == sorted(waiting)
        for queue, ids in waiting.items():
            line = sorted(ids, key=lambda task_id: (found[task_id].rank, found[task_id].scheduled_at, task_id))
            assert [row.id for row in reader.refill(queue, None, 10_000)[0]] == line
    store.close()


def self_closes(turn: int) -> bool:
    """Every other end is a clean one."""
    return turn % 40 == 19
