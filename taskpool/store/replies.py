"""Mailboxes as the store keeps them: a row for each response, until somebody acknowledges it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from taskpool.store import records
from taskpool.store.wanted import numbers
from taskpool.wire.messages import Replied


def lying(db: sqlite3.Connection, mailbox: str, after: int, limit: int) -> list[Replied]:
    """Return up to `limit` responses of a mailbox, oldest first, with numbers above `after`."""
    found = db.execute(
        "SELECT seq, mailbox, task_id, name, status, attempts, codec, result, error, completed_at FROM reply "
        "WHERE mailbox = ? AND seq > ? ORDER BY seq LIMIT ?",
        (mailbox, after, limit),
    ).fetchall()
    return [
        Replied(seq, mailbox, task_id, name, status, attempts, codec, result, records.error(error), at)
        for seq, mailbox, task_id, name, status, attempts, codec, result, error, at in found
    ]


def counts(db: sqlite3.Connection) -> dict[str, int]:
    """Return the mailboxes in which something lies, by name, and how much."""
    return dict(db.execute("SELECT mailbox, COUNT(*) FROM reply GROUP BY mailbox ORDER BY mailbox"))


def take_out(db: sqlite3.Connection, mailbox: str, seqs: Sequence[int]) -> list[int]:
    """Delete responses of a mailbox, and return the numbers of those that were in it."""
    mine = "mailbox = ? AND seq IN (SELECT value FROM json_each(?))"
    wanted = (mailbox, numbers(seqs))
    found = db.execute(f"SELECT seq FROM reply WHERE {mine} ORDER BY seq", wanted).fetchall()
    db.execute(f"DELETE FROM reply WHERE {mine}", wanted)
    return [seq for (seq,) in found]
