"""What a host does to a pool: damage, other owners, one that sleeps through its end, places that take no writes, a deploy."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskpool import Pool, PoolStopped, StoreCorrupt, StoreLocked, StoreTooNew, StoreUnusable
from taskpool.store import schema
from tests.processes import evidence
from tests.processes.evidence import WAIT_S, check, finish, submit, wait_gone, wait_lines
from tests.waiting import state_of, wait_dead, wait_until


def killed(place: Path, tasks: int = 40) -> None:
    """Leave a store as a killed owner does: what it has done since its last checkpoint lies in the log."""
    with pytest.raises(PoolStopped), Pool(place / "x.db", workers=2, durability="process") as pool:
        futures = [submit(pool, place, n) for n in range(tasks)]
        for future in futures:
            future.result(WAIT_S)
        os.kill(pool.pid, signal.SIGKILL)
        wait_dead(pool.pid)
        pool.stats()


def by_hand(place: Path, sql: str) -> None:
    connection = sqlite3.connect(place / "x.db", isolation_level=None, timeout=WAIT_S)
    connection.execute(sql)
    connection.close()


# ---- damage ---------------------------------------------------------------------------------------------------------


def flip_a_bit_of_the_log(store: Path) -> None:
    log = Path(f"{store}-wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)


def cut_the_log(store: Path) -> None:
    log = Path(f"{store}-wal")
    os.truncate(log, log.stat().st_size // 2)


def remove_the_log(store: Path) -> None:
    Path(f"{store}-wal").unlink()


def zero_the_header(store: Path) -> None:
    with store.open("r+b") as file:
        file.write(bytes(100))
    Path(f"{store}-wal").unlink()


def empty_the_file(store: Path) -> None:
    os.truncate(store, 0)


def remove_the_file(store: Path) -> None:
    store.unlink()


DAMAGES = [flip_a_bit_of_the_log, cut_the_log, remove_the_log, zero_the_header, empty_the_file, remove_the_file]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_refused_and_left_as_it_is(place: Path, tag: str, damage: Callable[[Path], None]) -> None:
    """In one sentence that names the file and a way to rescue it; nothing is run, deleted or made anew."""
    store = place / "x.db"
    killed(place)
    wait_gone(tag)
    damage(store)
    files = [path for path in (store, Path(f"{store}-wal")) if path.exists()]
    before = [path.read_bytes() for path in files]
    for _ in range(2):
        with pytest.raises(StoreCorrupt) as told:
            Pool(store, workers=1, durability="process")
        assert str(store) in str(told.value)
        assert len(str(told.value).splitlines()) == 1
        assert told.value.hint
    assert [path.read_bytes() for path in files] == before
    assert store.exists() == (store in files)


def test_a_server_says_the_same_of_a_damaged_store(place: Path, tag: str) -> None:
    killed(place)
    wait_gone(tag)
    cut_the_log(place / "x.db")
    command = [sys.executable, "-m", "taskpool", "-C", str(place / "x.db"), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode > 0
    assert str(place / "x.db") in done.stderr
    assert "ledger" in done.stderr, "how to go on with what is left"
    assert "Traceback" not in done.stderr


def test_a_page_of_nonsense_is_found_by_the_check_and_stops_the_pool(place: Path, tag: str) -> None:
    """SQLite opens such a file; after an unclean end it is looked through beside the work."""
    store = place / "x.db"
    with Pool(store, workers=1, durability="process") as pool:
        list(pool.map(abs, range(3000)))
    killed(place, 20)
    wait_gone(tag)
    size = store.stat().st_size
    with store.open("r+b") as file:
        for page in range(20, size // 4096 - 2, 3):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises((StoreCorrupt, PoolStopped), match=r"damaged"):  # noqa: SIM117
        with Pool(store, workers=1, durability="process") as pool:
            pool.submit(time.sleep, WAIT_S).result(WAIT_S)
    wait_gone(tag)


def renamed(path: Path) -> None:
    path.rename(path.with_name("other"))


def copied_over(path: Path) -> None:
    """Put another file of the same contents into its place, as editors and backups do."""
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@pytest.mark.parametrize("name", ["x.db", "x.db-wal"])
@pytest.mark.parametrize("how", [Path.unlink, renamed, copied_over])
def test_a_store_that_is_taken_away_under_its_pool_ends_it(place: Path, tag: str, name: str, how: Callable[[Path], Any]) -> None:
    """SQLite would go on writing, and what it acknowledges would be lost."""
    with (
        pytest.raises(PoolStopped, match=rf"{name} was removed, moved or replaced"),
        Pool(place / "x.db", workers=1, durability="process") as pool,
    ):
        open_ = pool.submit(time.sleep, WAIT_S)
        how(place / name)
        open_.result(WAIT_S)
    wait_gone(tag)


def test_a_newer_store_is_refused(place: Path, tag: str) -> None:
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        submit(pool, place, 1).result(WAIT_S)
    by_hand(place, f"PRAGMA user_version = {schema.VERSION + 1}")
    before = (place / "x.db").read_bytes()
    with pytest.raises(StoreTooNew, match=f"schema {schema.VERSION + 1}"):
        Pool(place / "x.db", workers=1, durability="process")
    assert (place / "x.db").read_bytes() == before
    by_hand(place, f"PRAGMA user_version = {schema.VERSION}")
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        assert pool.count() == 1
    check(place, ended=True)


# ---- a place that takes no writes -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_place_that_cannot_be_written_is_refused_in_words(place: Path, tag: str) -> None:
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        submit(pool, place, 1).result(WAIT_S)
    mounted = place / "mounted"
    mounted.mkdir()
    if subprocess.run(["mount", "--bind", str(place), str(mounted)], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(mounted)], check=True)
        for name in ("x.db", "new.db"):
            with pytest.raises(StoreUnusable, match=r"read-only|Read-only"):
                Pool(mounted / name, workers=1, durability="process")
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)
    with Pool(place / "x.db", workers=1, durability="process") as pool:
        assert submit(pool, place, 2).result(WAIT_S) == (2, 1)
    check(place, ended=True)


def test_a_file_that_may_not_grow_ends_the_pool_and_costs_nothing(place: Path, tag: str) -> None:
    """A limit of the process, not the disk's room: it does not pass by itself, so the next owner goes on."""
    (place / "go").touch()
    with pytest.raises((PoolStopped, StoreUnusable)) as told:  # noqa: SIM117
        with Pool(place / "x.db", workers=2, durability="process") as pool:
            submit(pool, place, 0).result(WAIT_S)
            size = Path(f"{place / 'x.db'}-wal").stat().st_size
            resource.prlimit(pool.pid, resource.RLIMIT_FSIZE, (size + 50_000, resource.RLIM_INFINITY))
            for n in range(1, 2000):
                submit(pool, place, n)
    assert "x.db" in str(told.value)
    wait_gone(tag)
    check(place)
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        finish(pool)
    check(place, ended=True, again_max=2)


# ---- other owners ---------------------------------------------------------------------------------------------------

RACER = """
    import sys
    from taskpool import Pool, StoreLocked

    if __name__ == "__main__":
        try:
            with Pool(sys.argv[1], workers=1, durability="process") as pool:
                print("won", pool.pid, flush=True)
                sys.stdin.read()
        except StoreLocked as error:
            print("lost", error, flush=True)
"""


def test_of_owners_that_come_together_one_wins_and_is_named(place: Path, tag: str) -> None:
    script = place / "racer.py"
    script.write_text(textwrap.dedent(RACER))
    command = [sys.executable, str(script), str(place / "x.db")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    racers = [
        subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    said = [racer.stdout.readline().split(maxsplit=1) for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate(timeout=WAIT_S)
    winners = [rest.strip() for word, rest in said if word == "won"]
    assert len(winners) == 1, said
    assert all(f"process {winners[0]}" in rest for word, rest in said if word == "lost"), said
    check(place)


def test_an_owner_that_slept_through_its_end_writes_nothing_more(place: Path, tag: str) -> None:
    """While it stands still it owns the store; when another has, it must end, with all its workers, and change nothing."""
    with pytest.raises(PoolStopped, match="newer owner"):  # noqa: SIM117
        with Pool(place / "x.db", workers=2, durability="process") as pool:
            running = [submit(pool, place, n, fn=evidence.hold) for n in range(2)]
            wait_lines(place, 2)
            process = pool._supervisor.process
            os.kill(pool.pid, signal.SIGSTOP)
            wait_until(lambda: state_of(pool.pid) == "T", "the owner to stand still")
            with pytest.raises(StoreLocked, match=str(pool.pid)):
                Pool(place / "x.db", workers=1, durability="process")
            # No second owner is let in by the lock; what a file system that lies about locks would let happen is done by hand.
            by_hand(place, "UPDATE meta SET epoch = epoch + 1, turn = turn + 1")
            rows = dump(place)
            os.kill(pool.pid, signal.SIGCONT)
            (place / "go").touch()
            for future in running:
                future.result(WAIT_S)
    assert process.returncode not in (0, None)
    wait_gone(tag)
    assert dump(place) == rows


def dump(place: Path) -> list[str]:
    connection = sqlite3.connect(place / "x.db")
    try:
        return [line for line in connection.iterdump() if "sqlite_" not in line]
    finally:
        connection.close()


def test_the_next_owner_may_start_the_moment_the_last_is_killed(place: Path, tag: str) -> None:
    """No worker of the dead holds the lock, and none runs on beside those of the next."""
    (place / "go").touch()
    for life in range(4):
        try:
            with Pool(place / "x.db", workers=2, durability="process") as pool:
                for n in range(20):
                    submit(pool, place, 100 * life + n, 20_000)
                os.kill(pool.pid, signal.SIGKILL)
                wait_dead(pool.pid)
                pool.stats()
        except PoolStopped:
            continue
    with Pool(place / "x.db", workers=2, durability="process") as pool:
        finish(pool)
    check(place, ended=True, again_max=8)


# ---- deploys --------------------------------------------------------------------------------------------------------


def test_what_a_deploy_took_away_fails_in_words_and_can_be_retried(place: Path, tag: str) -> None:
    """The worker lives; when the code is back, one verb runs them all again."""
    module = place / "deployed.py"
    both = "from taskpool import task\n\n@task(name='kept')\ndef kept(n: int) -> int:\n    return n\n\n@task(name='gone')\n"
    both += "def gone(n: int) -> int:\n    return n\n"
    without = "from taskpool import task\n\n@task(name='kept')\ndef kept(n: int, *, unit: str) -> int:\n    return n\n"
    program = (
        "import sys\nfrom taskpool import Pool\nimport deployed\n\nif __name__ == '__main__':\n"
        "    with Pool(sys.argv[1], workers=1, durability='process', preload=['deployed']) as pool:\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{place}", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(body: str) -> list[str]:
        script = place / "program.py"
        script.write_text(program + textwrap.indent(textwrap.dedent(body), " " * 8))
        done = subprocess.run(
            [sys.executable, str(script), str(place / "x.db")], env=env, capture_output=True, text=True, timeout=WAIT_S, check=False
        )
        assert not done.returncode, done.stderr
        return done.stdout.splitlines()

    module.write_text(both)
    run("""
        from taskpool import Queue
        pool.register_queue(Queue("default", paused=True))
        for n in range(5):
            pool.submit("gone", n)
            pool.submit("kept", n)
        pool.stop()
    """)
    module.write_text(without)
    said = run("""
        import time
        pool.resume()
        while pool.count(status=("pending", "queued", "running")):
            time.sleep(0.01)
        print(sorted({(task.name, task.error.kind) for task in pool.list(status="failed")}))
        print(pool.stats().restarts)
    """)
    assert said == ["[('gone', 'unknown_handler'), ('kept', 'arg_count')]", "0"]
    module.write_text(both)
    said = run("""
        print(len(pool.retry(status="failed").ids))
        import time
        while pool.count(status=("pending", "queued", "running")):
            time.sleep(0.01)
        print(pool.stats().counts)
    """)
    assert said == ["10", "{'succeeded': 10}"]
