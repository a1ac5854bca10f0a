"""From an older schema to this one: a backup, then every step in one transaction.

A step is a function of a sqlite-utils Database; it is registered under the version that it leads to. sqlite-utils is loaded only
here, when a file is really older (its import costs more than opening a store). A fresh store is made by `schema.create` in its
newest form, so each change of the schema is written twice, and a test compares the two.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from taskpool import faults
from taskpool.errors import StoreCorrupt

Step = Callable[[Any], None]

STEPS: Final[Mapping[int, Step]] = {}  # version → the step that leads to it from the one before


def migrate(
    connection: sqlite3.Connection, path: Path | None, have: int, want: int, steps: Mapping[int, Step] | None = None
) -> Path | None:
    """Bring a file from schema `have` to `want`, all or nothing, and return the backup made before (None in memory)."""
    from sqlite_utils import Database, Migrations

    steps = STEPS if steps is None else steps
    missing = [number for number in range(have + 1, want + 1) if number not in steps]
    if missing:
        raise StoreCorrupt(f"{path} has schema {have}, from which no way leads to {want}", hint="nothing was changed")
    kept = None if path is None else backup(connection, path, have)
    migrations = Migrations("taskpool")
    for number in range(have + 1, want + 1):
        migrations(name=f"schema_{number}")(steps[number])
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(Database(connection, execute_plugins=False))
        faults.point("migrate.inside")
        connection.execute(f"PRAGMA user_version = {want}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return kept


def backup(connection: sqlite3.Connection, path: Path, have: int) -> Path:
    """Copy the store beside itself as `x.db.schema-N.backup` and return that path; a complete one that is there already stays.

    VACUUM INTO reads through SQLite, so no descriptor of the file is opened and closed under the owner's locks.
    """
    target = Path(f"{path}.schema-{have}.backup")
    if target.exists():
        return target
    half = Path(f"{target}.half")
    half.unlink(missing_ok=True)  # our own, from a migration that was killed
    os.close(os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection.execute("VACUUM INTO ?", (str(half),))
    half.rename(target)
    return target
