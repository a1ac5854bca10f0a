"""What an acknowledgement survives: kills at every moment, the loss of power, a disk that is full or fails."""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from taskpool.store import schema
from taskpool.store.store import Store
from tests.processes.crash_images import Call, Disk, record

HERE = Path(__file__).parent
COMMITTER = str(HERE / "store_committer.py")
MIGRATOR = str(HERE / "store_migrator.py")
KILLS = 12
IMAGES = 40
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def committer(path: Path, durability: str, turns: int, *checkpoint_commits: int) -> list[str]:
    return [sys.executable, COMMITTER, str(path), durability, str(turns), *map(str, checkpoint_commits)]


def faulty(fault: str) -> dict[str, str]:
    return {**os.environ, "TASKPOOL_FAULTS_ENABLED": "1", "TASKPOOL_FAULT": fault}


def acknowledged(output: bytes) -> int:
    """Return the last acknowledged turn (a torn last line is none)."""
    return max((int(line[4:]) for line in output.split(b"\n")[:-1] if line.startswith(b"ack ")), default=0)


def check(path: Path, acked: int, said: str) -> int:
    """Open what was left, and find every acknowledged turn whole; return the turns that are there."""
    store = Store.open(path)
    try:
        assert store._db.execute("PRAGMA quick_check").fetchall() == [("ok",)], said
        there = store.next_id() - 1
        assert there >= acked, f"{said}: {acked} turns were acknowledged, {there} are there"
        assert [row.id for row in store.running()] == ([there] if there else []), said
        ended = store._db.execute(
            "SELECT COUNT(*), SUM(result = CAST('result of ' || id AS BLOB)) FROM task WHERE status = 'succeeded'"
        )
        assert ended.fetchone() == (max(0, there - 1), there - 1 if there > 1 else None), said
        assert store._db.execute("SELECT COUNT(*) FROM attempt").fetchone() == (max(0, there - 1),), said
        assert store.counts_by_queue() == store.recount(), said
        return there
    finally:
        store.close(clean=False)


# ---- kills ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["power", "process"])
def test_kill_9_costs_no_acknowledged_turn(tmp_path: Path, durability: str) -> None:
    """In a loop over one store, at a moment of chance each, checkpoints of the log all the time."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    path = tmp_path / "x.db"
    acked = 0
    for kill in range(KILLS):
        process = subprocess.Popen(committer(path, durability, 1_000_000, 5), stdout=subprocess.PIPE)
        assert process.stdout is not None
        output = b""
        wanted = chance.randrange(0, 60)
        while output.count(b"ack") < wanted or b"open" not in output:
            output += os.read(process.stdout.fileno(), 4096)
        select.select([], [], [], chance.random() * 0.002)  # somewhere in the turn that follows
        process.kill()
        output += process.stdout.read()
        process.stdout.close()
        process.wait()
        acked = max(acked, acknowledged(output))
        there = check(path, acked, f"seed {seed} kill {kill}")
        assert there <= acked + 1
        acked = there  # the next may be killed before it has acknowledged anything


@pytest.mark.parametrize(
    "fault", ["commit.inside:1:kill", "commit.inside:4:kill", "checkpoint.inside:1:kill", "checkpoint.inside:3:kill"]
)
def test_killed_at_a_fault_point(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "x.db"
    subprocess.run(committer(path, "power", 3), stdout=subprocess.DEVNULL, check=True)
    done = subprocess.run(committer(path, "power", 50, 5), stdout=subprocess.PIPE, env=faulty(fault), check=False)
    assert done.returncode == -signal.SIGKILL
    acked = acknowledged(done.stdout)
    assert check(path, acked, fault) == max(acked, 3)
    subprocess.run(committer(path, "power", 3), stdout=subprocess.DEVNULL, check=True)


def test_killed_in_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    subprocess.run(committer(path, "power", 30), stdout=subprocess.DEVNULL, check=True)
    for _ in range(2):
        done = subprocess.run([sys.executable, MIGRATOR, str(path)], env=faulty("migrate.inside:1:kill"), check=False)
        assert done.returncode == -signal.SIGKILL
        assert check(path, 30, "killed in a migration") == 30
    done = subprocess.run([sys.executable, MIGRATOR, str(path)], stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"migrated\n"
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (schema.VERSION + 1,)
    assert connection.execute("SELECT DISTINCT note FROM task").fetchall() == [("jobs:price",)]
    connection.close()


def test_killed_somewhere_in_a_migration(tmp_path: Path) -> None:
    """At a moment of chance, the backup's included: it opens as it was, or as it shall be."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    first = tmp_path / "first.db"
    subprocess.run(committer(first, "process", 500), stdout=subprocess.DEVNULL, check=True)
    Store.open(first).close()
    for kill in range(4):
        path = tmp_path / f"{kill}.db"
        shutil.copy(first, path)
        process = subprocess.Popen([sys.executable, MIGRATOR, str(path)], stdout=subprocess.DEVNULL)
        try:
            process.wait(0.1 + chance.random() * 0.3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        connection = sqlite3.connect(path)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        columns = [row[1] for row in connection.execute("PRAGMA table_info(task)")]
        assert (version == schema.VERSION + 1) == ("note" in columns), f"seed {seed} kill {kill}"
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        connection.close()


# ---- power ----------------------------------------------------------------------------------------------------------


def turns(calls: list[Call]) -> list[list[Call]]:
    """Return the calls between the beginning of each turn and its acknowledgement."""
    found: list[list[Call]] = []
    for call in calls:
        if call.file == "out" and call.data.startswith(b"turn"):
            found.append([])
        elif found and not any(earlier.file == "out" for earlier in found[-1]):
            found[-1].append(call)  # the acknowledgement is the last
    return found


@needs_strace
@pytest.mark.parametrize("durability", ["power", "process"])
def test_each_turn_is_synced_before_it_is_acknowledged(tmp_path: Path, durability: str) -> None:
    """The proof by system calls: after the last write to the log, a sync of the log, then the acknowledgement."""
    path = tmp_path / "x.db"
    calls = record(committer(path, durability, 20), tmp_path / "calls")
    log = f"{path}-wal"
    seen = turns(calls)
    assert len(seen) == 20
    for turn in seen:
        kinds = [call.name for call in turn if call.file == log]
        assert "pwrite64" in kinds
        synced = kinds[-1] in ("fsync", "fdatasync")
        assert synced == (durability == "power"), kinds


@needs_strace
@pytest.mark.parametrize(("durability", "fresh"), [("power", False), ("power", True), ("process", False)])
def test_what_a_loss_of_power_leaves(tmp_path: Path, durability: str, fresh: bool) -> None:
    """Crash images: in each, every turn acknowledged by then (power); and that "process" loses some shows that this can fail."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    path = tmp_path / "x.db"
    before = {}
    if not fresh:
        Store.open(path).close()
        before = {str(path): path.read_bytes()}
    calls = record(committer(path, durability, 40, 11), tmp_path / "calls")
    assert sum(call.file == str(path) and call.name == "pwrite64" for call in calls) > 10, "no checkpoint was recorded"
    opened = next(number for number, call in enumerate(calls) if call.data == b"open\n")
    lost = 0
    for number, moment in enumerate(sorted(chance.sample(range(opened, len(calls)), IMAGES))):
        disk = Disk(before)
        for call in calls[:moment]:
            disk.apply(call)
        output = b"".join(call.data for call in calls[:moment] if call.file == "out")
        place = tmp_path / f"image{number}"
        place.mkdir()
        for name, data in disk.image(chance).items():
            if name in (str(path), f"{path}-wal"):
                (place / Path(name).name).write_bytes(data)
        acked = acknowledged(output)
        said = f"seed {seed} image {number} after call {moment} of {len(calls)}"
        if durability == "power":
            assert check(place / "x.db", acked, said) <= acked + 1
        else:
            lost += max(0, acked - check(place / "x.db", 0, said))
        shutil.rmtree(place)
    assert (lost > 0) == (durability == "process"), f"seed {seed}"


# ---- disks that are full, or fail -----------------------------------------------------------------------------------


def injected(injection: str, path: Path, command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a command whose calls on the store's files fail as told."""
    files = [argument for name in (str(path), f"{path}-wal") for argument in ("-P", name)]
    traced = [
        "strace",
        "-f",
        "-o",
        "/dev/null",
        *files,
        "-e",
        "trace=pwrite64,fdatasync,fsync",
        "-e",
        f"inject={injection}",
        *command,
    ]
    return subprocess.run(traced, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)


@needs_strace
def test_a_full_disk_loses_nothing_and_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    subprocess.run(committer(path, "power", 3), stdout=subprocess.DEVNULL, check=True)
    done = injected("pwrite64:error=ENOSPC:when=60..90", path, committer(path, "power", 20, 5))
    assert done.returncode == 0
    assert done.stdout.count(b"full\n") > 3
    assert acknowledged(done.stdout) == 23
    assert check(path, 23, "after a full disk") == 23


@needs_strace
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
def test_a_failing_disk_ends_the_process_and_loses_nothing(tmp_path: Path, call: str) -> None:
    """A write that failed is not tried again on the same connection; what had been acknowledged is there for the next.

    The n-th call of its kind fails, for some n of chance: in opening, in a turn, or in a checkpoint of the log.
    """
    seed = random.randrange(1 << 32)
    path = tmp_path / "x.db"
    subprocess.run(committer(path, "power", 3), stdout=subprocess.DEVNULL, check=True)
    acked = 3
    for number in random.Random(seed).sample(range(1, 40 if call == "fdatasync" else 150), 5):
        injection = f"{call}:error=EIO:when={number}"
        done = injected(injection, path, committer(path, "power", 40, 5))
        said = f"{injection} (seed {seed})"
        assert done.returncode in (1, 5), said  # 1: while opening
        assert done.returncode == 1 or done.stdout.endswith(b"io error\n"), said
        acked = max(acked, acknowledged(done.stdout))
        there = check(path, acked, said)
        assert there <= acked + 1, said
        acked = there
