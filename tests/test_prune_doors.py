"""Pruning as people ask for it: through a live supervisor, by a verb, on a file that nobody owns; and what dies in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from taskpool import Pool, PoolStopped, connect, task
from taskpool.cli.serve import parse_retention
from taskpool.errors import InvalidSettings, InvalidTask, NotFound
from taskpool.model import Filter
from taskpool.retention import Retention
from taskpool.store.reading import Reader
from taskpool.store.store import Store
from taskpool.testing import planted_fault
from tests.store_rig import end, insert, rows, start


@task
def double(n: int) -> int:
    return 2 * n


@task
def fail() -> None:
    raise ValueError("no")


def run(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "taskpool", "-C", str(path), "prune", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_live_pool_prunes_what_it_is_told_to(tmp_path: Path) -> None:
    """By hand, by status; what runs or waits is left alone, and the next id is a new one."""
    with Pool(tmp_path / "x.db", workers=1, durability="process", retention={"failed": "forever"}) as pool:
        futures = [double.submit(n) for n in range(5)]
        bad = fail.submit()
        kept = double.options(retention=3600).submit(9)
        assert [future.result(60) for future in futures] == [0, 2, 4, 6, 8]
        assert bad.exception(60) is not None
        assert kept.result(60) == 18
        waiting = double.options(delay=3600).submit(1)
        assert pool.prune() == {}
        assert pool.prune(0, dry_run=True) == {"succeeded": 5, "failed": 1}
        with connect(tmp_path / "x.db") as client:
            assert client.prune(0, statuses="succeeded") == {"succeeded": 5}
        assert [one.id for one in pool.list()] == [waiting.id, kept.id, bad.id]
        with pytest.raises(NotFound):
            pool.get(futures[0].id)
        assert pool.stats().counts == {"failed": 1, "succeeded": 1, "pending": 1}
        assert double.submit(4).id == waiting.id + 1
        pool.stop()


def test_what_makes_no_sense_is_said(tmp_path: Path) -> None:
    with Pool(tmp_path / "x.db", workers=1, durability="process") as pool:
        with pytest.raises(InvalidTask, match="running"):
            pool.prune(0, statuses=["running"])
        with pytest.raises(InvalidSettings, match="older"):
            pool.prune(-1)
    with pytest.raises(InvalidSettings, match="retention"):
        Pool(tmp_path / "x.db", retention="soon")


def test_the_verb_goes_through_the_server_and_without_one_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with Pool(path, workers=1, durability="process"):
        assert [double.submit(n).result(60) for n in range(3)] == [0, 2, 4]
        fail.submit().exception(60)
        counted = json.loads(run(path, "--older", "0s", "--dry-run", "--json").stdout)
        assert counted["dry_run"]
        live = json.loads(run(path, "--older", "0s", "--status", "failed", "--json").stdout)
        assert live == {"pruned": {"failed": 1}, "dry_run": False, "schema": "taskpool.prune/1"}
    assert run(path).stdout == "pruned 0\n"
    dry = run(path, "--older", "0s", "--dry-run")
    assert (dry.returncode, dry.stdout.split(":")[0]) == (0, f"would prune {counted['pruned']['succeeded']}")
    dead = run(path, "--older", "0s")
    assert (dead.returncode, dead.stdout) == (0, dry.stdout.replace("would prune", "pruned"))
    with Reader(path) as reader:
        assert reader.match(Filter()) == []
        assert reader.meta()["clean"] == 1


@pytest.mark.parametrize(
    ("args", "code"), [(("--older", "soon"), 2), (("--status", "running"), 2), (("--dry-run",), 3), ((), 3), (("7",), 2)]
)
def test_how_the_verb_ends_when_it_cannot(tmp_path: Path, args: tuple[str, ...], code: int) -> None:
    """There is no such store, or no such words."""
    found = run(tmp_path / "none.db", *args)
    assert found.returncode == code, found.stderr
    assert not (tmp_path / "none.db").exists()


def test_the_file_of_another_owner_is_left_alone(tmp_path: Path) -> None:
    """One that serves nobody, such as a RecordStore."""
    store = Store.open(tmp_path / "x.db")
    found = run(tmp_path / "x.db", "--older", "0s")
    store.close()
    assert found.returncode == 5


def test_a_supervisor_that_dies_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """A slice is gone whole or not at all; the next owner goes on, counts what is left, and gives no id twice."""
    path, many = tmp_path / "x.db", 700
    store = Store.open(path, durability="process")
    store.commit([save for task_id in range(1, many + 1) for save in (insert(task_id), start(task_id), end(task_id))])
    store.commit([insert(many + 1, "pending", at=4_000_000_000_000_000)])
    store.close()
    with planted_fault("prune.inside", nth=2), Pool(path, workers=1, durability="process") as pool, pytest.raises(PoolStopped):
        pool.prune(0)
    ids = [task_id for (task_id,) in rows(path, "SELECT id FROM task ORDER BY id")]
    assert ids == [*range(1, len(ids)), many + 1]
    assert 0 < len(ids) < many
    assert rows(path, "SELECT COUNT(*) FROM attempt") == [(len(ids) - 1,)]
    with Reader(path) as reader:
        assert reader.counts_by_queue() == reader.recount()
        assert reader.pruned() == {"succeeded": many + 1 - len(ids)}
    with Pool(path, workers=1, durability="process") as pool:
        assert pool.prune(0) == {"succeeded": len(ids) - 1}
        assert [one.id for one in pool.list()] == [many + 1]
        assert double.submit(1).id == many + 2
        pool.stop()


def test_what_the_server_is_told() -> None:
    """A period for all, and others by status, in any order."""
    assert parse_retention(()) is None
    assert parse_retention(("12h",)) == Retention(43_200.0, 43_200.0, 43_200.0)
    kept: Any = parse_retention(("failed=90d", "1h", "interrupted=2d", "cancelled=forever"))
    assert kept == Retention(3600.0, float("inf"), 90 * 86_400.0, 2 * 86_400.0)
