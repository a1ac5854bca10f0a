"""What is looked at before a store is opened for writing: read-only, so that a refusal leaves everything as it was found."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from taskpool.errors import StoreCorrupt
from taskpool.store import connection
from taskpool.store.conditions import damaged
from taskpool.store.ledger import any_turn, last_turn
from taskpool.store.places import Places


class Found(msgspec.Struct, frozen=True):
    """What a store's file says of itself."""

    version: int
    mark: str
    epoch: int
    turn: int
    clean: bool
    boot_id: str
    durability: str


def inspect(places: Places) -> Found | None:
    """Return what lies at a store's path, None if a store is to be made there. StoreCorrupt, StoreTooNew: it cannot be opened."""
    try:
        size = os.stat(places.db).st_size
    except FileNotFoundError:
        if _size(places.wal):
            raise damaged(places.db, f"it is gone, but its log {places.wal} is there") from None
        return None
    if size == 0 and _size(places.wal):
        raise damaged(places.db, f"it is empty, but its log {places.wal} is not")  # SQLite would delete such a log
    # A rollback journal can only be left by a death while the file was made; reading past it takes a connection that may write.
    half_made = Path(f"{places.db}-journal").exists()
    db = connection.connect_owner(places.db, "power") if half_made else connection.connect_read_only(places.db)
    try:
        have = connection.version(db, places.db)
        if have is None:
            if any_turn(places.ledger):
                raise damaged(places.db, f"it is empty, but {places.ledger} remembers committed turns")
            return None
        row = db.execute("SELECT mark, epoch, turn, clean, boot_id, durability FROM meta").fetchone()
    finally:
        db.close()
    if row is None:
        raise damaged(places.db, "its meta table is empty")
    mark, epoch, turn, clean, boot, durability = row
    found = Found(have, mark, epoch, turn, bool(clean), boot, durability)
    _check_ledger(places, found)
    return found


def _check_ledger(places: Places, found: Found) -> None:
    remembered = last_turn(places.ledger, found.mark)
    if remembered <= found.turn:
        return
    if found.durability == "process" and found.boot_id != boot_id():
        return  # the machine went down, and only the death of processes was to be survived
    raise StoreCorrupt(
        f"{places.db} ends at turn {found.turn}, but {remembered} were committed: its log was damaged, cut or taken away, "
        "or the file was put back from a copy",
        hint=f"nothing was changed; keep copies of {places.db}*; to go on with what the file still has, remove {places.ledger}",
    )


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def boot_id() -> str:
    """Return the kernel's name for this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
