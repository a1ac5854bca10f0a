"""Opening a store: who may, what is refused and left as it was, damages, and migrations."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from taskpool.clock import ManualClock
from taskpool.errors import InvalidTask, StoreCorrupt, StoreLocked, StoreTooNew, StoreUnusable
from taskpool.store import migrations, places, schema
from taskpool.store.conditions import StoreBusy
from taskpool.store.lock import OwnerLock, holder
from taskpool.store.migrations import migrate
from taskpool.store.places import Places, file_system, file_system_in
from taskpool.store.store import Store
from tests.store_rig import by_hand, insert, rows, start


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def contents(path: Path) -> dict[str, bytes]:
    """All that lies at a store's path (read while nobody has it open), but for the empty log that any look at the file leaves."""
    found = {place.name: place.read_bytes() for place in path.parent.glob("x.db*") if place.is_file()}
    return {name: data for name, data in found.items() if data and name != "x.db-shm"}


# ---- places ---------------------------------------------------------------------------------------------------------


def test_everything_lies_at_its_place_for_its_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store.open(path)
        store.commit([insert(1)])
        modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.rglob("*")}
        store.close()
    finally:
        os.umask(before)
    assert modes == {
        "x.db": 0o600,
        "x.db-wal": 0o600,
        "x.db-shm": 0o600,
        "x.db.d": 0o700,
        "run": 0o700,
        "logs": 0o700,
        "blobs": 0o700,
        "lock": 0o600,
        "ledger": 0o600,
    }


def test_a_wider_mode_is_noticed_and_not_changed(path: Path) -> None:
    Store.open(path).close()
    path.chmod(0o664)
    store = Store.open(path)
    assert any("chmod 600" in notice for notice in store.notices)
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_two_names_of_one_file_are_one_store(path: Path) -> None:
    store = Store.open(path)
    path.with_name("link.db").symlink_to(path)
    with pytest.raises(StoreLocked):
        Store.open(path.with_name("link.db"))
    store.close()
    path.with_name("hard.db").hardlink_to(path)
    with pytest.raises(StoreUnusable, match="2 names"):
        Store.open(path)


def test_a_place_that_cannot_serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreUnusable, match="no directory"):
        Store.open(path / "deeper" / "x.db")
    with pytest.raises(StoreUnusable, match="not a regular file"):
        Store.open(path.parent)
    path.with_name("x.db.d").symlink_to("/tmp")
    with pytest.raises(StoreUnusable, match="in the way"):
        Store.open(path)
    path.with_name("x.db.d").unlink()
    monkeypatch.setattr(places, "file_system", lambda directory: "nfs4")
    with pytest.raises(StoreUnusable, match="network file system"):
        Store.open(path)
    assert list(path.parent.iterdir()) == []


def test_a_read_only_directory() -> None:
    """As somebody who is not root, in a child."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o555)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                Store.open(Path(place) / "x.db")
            except StoreUnusable as error:
                code = 0 if "is read-only" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_read_only_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path).close()
    for denied in (path.parent, path):
        monkeypatch.setattr("os.access", lambda what, mode, denied=denied: Path(what) != denied)
        with pytest.raises(StoreUnusable, match="read-only"):
            Store.open(path)


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:45 / /mnt/my\\040share rw,relatime - nfs4 server:/export rw
31 22 0:46 / /home rw - fuse.sshfs me@there: rw
32 22 0:47 / /home rw - tmpfs tmpfs rw
33 22 0:48 / /data rw - btrfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("directory", "device", "kind"),
    [
        ("/var/lib", "254:0", "ext4"),
        ("/mnt/my share/deep", "0:45", "nfs4"),
        ("/mnt/my sharepoint", "254:0", "ext4"),
        ("/home/me", "0:47", "tmpfs"),
        ("/home/me", "0:46", "fuse.sshfs"),
        ("/data/x", "0:99", "btrfs"),
        ("/", "254:0", "ext4"),
    ],
)
def test_the_kind_of_a_file_system(directory: str, device: str, kind: str) -> None:
    assert file_system_in(MOUNTS, directory, device) == kind


def test_the_kind_of_this_file_system(tmp_path: Path) -> None:
    assert file_system(tmp_path) not in ("", *places.NETWORK_FILE_SYSTEMS)


# ---- one owner ------------------------------------------------------------------------------------------------------


def test_a_second_owner_is_refused_by_name(path: Path) -> None:
    store = Store.open(path)
    with pytest.raises(StoreLocked, match=f"owned by process {os.getpid()}"):
        Store.open(path)
    assert store.commit([insert(1)]) == []
    script = f"from taskpool.store.store import Store; Store.open({str(path)!r})"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"owned by process {os.getpid()}" in other.stderr
    assert holder(store.places.lock) == os.getpid()
    store.close()
    assert holder(store.places.lock) == 0
    Store.open(path).close()


def test_asking_for_the_lock_does_not_lose_it(path: Path) -> None:
    """Any close of the file in the owning process would drop it: nothing of ours closes it by accident."""
    store = Store.open(path)
    for _ in range(3):
        with pytest.raises(StoreLocked):
            OwnerLock(store.places.lock)
        assert holder(store.places.lock) == os.getpid()
    script = f"from taskpool.store.lock import holder; from pathlib import Path; print(holder(Path({str(store.places.lock)!r})))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == f"{os.getpid()}\n"
    store.close()


def test_a_forked_child_does_not_hold_the_lock(path: Path) -> None:
    store = Store.open(path)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:  # it lives on with a copy of every descriptor, and the lock is not its own
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
    store.close()
    Store.open(path).close()
    os.close(reads)
    os.close(writes)
    os.waitpid(child, 0)


def test_an_owner_that_ends_says_so(path: Path) -> None:
    store = Store.open(path)
    store.announce_end()
    script = f"from taskpool.store.store import Store\ntry: Store.open({str(path)!r})\nexcept Exception as e: print(e.ending)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "True\n"
    store.close()


def test_each_owner_has_an_epoch(path: Path) -> None:
    for epoch in (1, 2, 3):
        store = Store.open(path)
        assert store.epoch == epoch
        store.close()
        store.close()


def test_an_unclean_end_is_known(path: Path) -> None:
    clock = ManualClock()
    store = Store.open(path, clock=clock)
    assert (store.unclean, store.rebooted, store.meta()["opened_at"]) == (False, False, clock.now().wall)
    mark = store.mark
    store.close(clean=False)
    store = Store.open(path)
    assert (store.unclean, store.rebooted, store.mark) == (True, False, mark)
    store.close(clean=False)
    by_hand(path, "UPDATE meta SET boot_id = 'another'")
    store = Store.open(path)
    assert (store.unclean, store.rebooted) == (True, True)
    store.close()


def test_a_clean_end_leaves_one_file(path: Path) -> None:
    store = Store.open(path)
    store.commit([insert(1)])
    store.close()
    assert sorted(found.name for found in path.parent.iterdir()) == ["x.db", "x.db.d"]


def test_a_guest_does_not_keep_an_owner_from_closing(path: Path) -> None:
    store = Store.open(path)
    store.commit([insert(1)])
    guest = sqlite3.connect(path, isolation_level=None)
    guest.execute("BEGIN IMMEDIATE")
    store.close()
    guest.execute("ROLLBACK")
    guest.close()
    store = Store.open(path)
    assert store.unclean
    assert store.counts() == {"queued": 1}
    store.close()


def test_a_guest_with_the_lock_keeps_an_owner_from_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(path).close()
    monkeypatch.setattr("taskpool.store.connection.PATIENCE_S", 0.05)
    guest = sqlite3.connect(path, isolation_level=None)
    guest.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreBusy):
        Store.open(path)
    guest.execute("ROLLBACK")
    guest.close()
    store = Store.open(path)
    assert store.epoch == 2
    store.close()


def test_an_unknown_durability(path: Path) -> None:
    with pytest.raises(InvalidTask, match="power, process"):
        Store.open(path, durability="none")


# ---- files that are not ours, or damaged: refused, and left as they are ---------------------------------------------


def refused(path: Path, error: type[Exception], match: str) -> None:
    before = contents(path)
    for _ in range(2):
        with pytest.raises(error, match=match):
            Store.open(path)
    assert contents(path) == before


def test_a_newer_schema(path: Path) -> None:
    Store.open(path).close()
    by_hand(path, f"PRAGMA user_version = {schema.VERSION + 1}")
    refused(path, StoreTooNew, f"schema {schema.VERSION + 1}")


def test_a_file_of_another_program(path: Path) -> None:
    by_hand(path, "CREATE TABLE theirs(x)")
    refused(path, StoreCorrupt, "another program")


def test_a_file_that_lacks_a_table(path: Path) -> None:
    Store.open(path).close()
    by_hand(path, "DROP TABLE queue")
    refused(path, StoreCorrupt, "has no table queue")


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"\x00\x01 no database" * 500)
    refused(path, StoreCorrupt, rf"damaged.*sqlite3 {path} \.recover")


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    store = Store.open(path)
    assert store.commit([insert(1)]) == []
    store.close()


def crashed(path: Path, turns: int = 200) -> int:
    """A store left by a kill in the middle of its work, with most of its rows in the log only; return their number."""
    store = Store.open(path)
    for n in range(1, turns + 1):
        store.commit([insert(n), start(n)])
    store.close(clean=False)
    return turns


def test_damage_a_bit_in_the_log(path: Path) -> None:
    """SQLite drops all that follows and calls the rest sound: the ledger knows better."""
    crashed(path)
    log = path.with_name("x.db-wal")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    refused(path, StoreCorrupt, "200 were committed")


def test_damage_a_log_cut_short(path: Path) -> None:
    crashed(path)
    log = path.with_name("x.db-wal")
    os.truncate(log, log.stat().st_size // 2)
    refused(path, StoreCorrupt, "200 were committed")


def test_damage_a_log_taken_away(path: Path) -> None:
    crashed(path)
    path.with_name("x.db-wal").unlink()
    refused(path, StoreCorrupt, "ends at turn 0, but 200 were committed")


def test_damage_a_file_taken_away(path: Path) -> None:
    crashed(path)
    path.unlink()
    refused(path, StoreCorrupt, "it is gone, but its log")


def test_damage_a_header_of_zeros(path: Path) -> None:
    crashed(path)
    with path.open("r+b") as file:
        file.write(bytes(100))
    path.with_name("x.db-wal").unlink()
    refused(path, StoreCorrupt, "damaged|another program")


def test_damage_an_emptied_file(path: Path) -> None:
    crashed(path)
    os.truncate(path, 0)
    refused(path, StoreCorrupt, "it is empty, but its log")
    path.with_name("x.db-wal").unlink()
    refused(path, StoreCorrupt, "remembers committed turns")


def test_damage_a_file_put_back(path: Path) -> None:
    store = Store.open(path)
    store.commit([insert(1)])
    store.close()
    shutil.copy(path, path.with_name("yesterday"))
    store = Store.open(path)
    store.commit([insert(2)])
    store.close()
    shutil.copy(path.with_name("yesterday"), path)
    refused(path, StoreCorrupt, "ends at turn 1, but 2 were committed")
    Places(path).ledger.unlink()  # as the message says
    store = Store.open(path)
    assert store.counts() == {"queued": 1}
    store.close()


def test_a_store_made_anew_has_no_past(path: Path) -> None:
    crashed(path)
    for found in path.parent.glob("x.db*"):
        if found.is_file():
            found.unlink()
    store = Store.open(path)
    assert (store.epoch, store.counts()) == (1, {})
    store.close()


def test_what_a_reboot_may_cost(path: Path) -> None:
    """With durability "process" the log's end may be lost with the machine, and that is no damage."""
    store = Store.open(path, durability="process")
    store.commit([insert(1)])
    store.checkpoint_wal()
    for n in range(2, 10):
        store.commit([insert(n)])
    store.close(clean=False)
    path.with_name("x.db-wal").unlink()
    refused(path, StoreCorrupt, "9 were committed")
    by_hand(path, "UPDATE meta SET boot_id = 'another'")
    store = Store.open(path, durability="process")
    assert store.rebooted
    assert store.counts() == {"queued": 1}
    store.close()


def test_damage_a_page_of_zeros_is_found_by_the_check(path: Path) -> None:
    store = Store.open(path)
    store.commit([insert(n, payload=b"x" * 500) for n in range(1, 2000)])
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(bytes(4096))
    store = Store.open(path)
    check = store.start_check()
    assert check is not None
    found = check.wait(30)
    assert found is not None
    assert found.startswith("damaged: ")
    assert check.poll() == check.wait() == found
    store.close()
    store = Store.open(path)
    assert store.unclean
    store.close(clean=False)


def test_the_check_of_a_sound_store(path: Path) -> None:
    store = Store.open(path)
    store.commit([insert(n) for n in range(1, 500)])
    check = store.start_check()
    assert check is not None
    store.commit([insert(1000)])  # beside it
    assert check.wait(30) == ""
    stopped = store.start_check()
    assert stopped is not None
    stopped.kill()
    stopped.kill()
    assert stopped.poll() is None
    store.close()


def test_an_unclean_end_is_forgotten_when_a_check_has_passed(path: Path) -> None:
    Store.open(path).close(clean=False)
    for checked in (False, True):
        store = Store.open(path)
        assert store.unclean
        if checked:
            check = store.start_check()
            assert check is not None
            assert check.wait(30) == ""
        store.close()
    store = Store.open(path)
    assert not store.unclean
    store.close()


# ---- migrations -----------------------------------------------------------------------------------------------------


def add_note(db: Any) -> None:
    db["task"].add_column("note", str)


def fill_note(db: Any) -> None:
    db.execute("UPDATE task SET note = 'old'")


def break_off(db: Any) -> None:
    db.execute("UPDATE task SET note = 'half'")
    raise RuntimeError("a step that fails")


@pytest.fixture
def old(path: Path) -> sqlite3.Connection:
    """A store of this version, opened as one that a later version finds."""
    store = Store.open(path)
    store.commit([insert(1), insert(2)])
    store.close()
    return sqlite3.connect(path, isolation_level=None)


def test_steps_are_taken_together_after_a_backup(path: Path, old: sqlite3.Connection) -> None:
    now = schema.VERSION
    kept = migrate(old, path, now, now + 2, {now + 1: add_note, now + 2: fill_note})
    assert old.execute("SELECT id, note FROM task").fetchall() == [(1, "old"), (2, "old")]
    assert old.execute("PRAGMA user_version").fetchone() == (now + 2,)
    old.close()
    assert kept is not None
    assert kept == path.with_name(f"x.db.schema-{now}.backup")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert rows(kept, "SELECT COUNT(*), (SELECT user_version FROM pragma_user_version) FROM task") == [(2, now)]


def test_a_step_that_fails_undoes_all(path: Path, old: sqlite3.Connection) -> None:
    now = schema.VERSION
    with pytest.raises(RuntimeError):
        migrate(old, path, now, now + 2, {now + 1: add_note, now + 2: break_off})
    assert old.execute("PRAGMA user_version").fetchone() == (now,)
    assert "note" not in [row[1] for row in old.execute("PRAGMA table_info(task)")]
    kept = migrate(old, path, now, now + 2, {now + 1: add_note, now + 2: fill_note})
    assert old.execute("SELECT DISTINCT note FROM task").fetchall() == [("old",)]
    assert kept is not None
    old.close()


def test_no_way_from_there(path: Path, old: sqlite3.Connection) -> None:
    with pytest.raises(StoreCorrupt, match="no way leads"):
        migrate(old, path, schema.VERSION, schema.VERSION + 1, {})
    old.close()


def test_an_older_store_is_migrated_as_it_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(path)
    store.commit([insert(1)])
    store.close()
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setattr(migrations, "STEPS", {schema.VERSION: add_note})
    store = Store.open(path)
    assert any("migrated" in notice and "backup" in notice for notice in store.notices)
    assert store.counts() == {"queued": 1}
    store.close()
    store = Store.open(path)
    assert store.notices == []
    store.close()


def test_every_version_can_be_reached() -> None:
    assert sorted(migrations.STEPS) == list(range(2, schema.VERSION + 1))


def test_a_fresh_store_loads_nothing_for_migrations(path: Path) -> None:
    script = f"import sys; from taskpool.store.store import Store; Store.open({str(path)!r}); print('sqlite_utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
