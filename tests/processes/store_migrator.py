"""A process that migrates a store by a step of its own: PATH. A fault point may kill it inside."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

from taskpool.store import schema
from taskpool.store.migrations import migrate


def add_note(db: Any) -> None:
    """The step."""
    db["task"].add_column("note", str)
    db.execute("UPDATE task SET note = name")


def main(path: str) -> None:
    """Take the step, and end without closing anything."""
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, Path(path), schema.VERSION, schema.VERSION + 1, {schema.VERSION + 1: add_note})
    print("migrated")


if __name__ == "__main__":
    main(sys.argv[1])
