"""A guest, to be killed: PLACE RUN KIND. It stores orders with their tasks, over and over, each in a transaction of its own.

KIND `own` writes into the store's file, `outbox` into shop.db, from which it delivers now and then. Every third is rolled back.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import taskpool
from taskpool import Outbox
from tests.processes import evidence

ORDERS = "CREATE TABLE IF NOT EXISTS shop_order(n INTEGER PRIMARY KEY, uid TEXT NOT NULL)"


class Changed(Exception):
    """The customer has."""


def main(place: str, run: str, kind: str) -> None:
    """Store orders until it is killed."""
    path = Path(place, "x.db" if kind == "own" else "shop.db")
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    connection.execute(ORDERS)
    outbox = None if kind == "own" else Outbox(connection, Path(place, "x.db"))
    for n in range(int(run) * 1_000_000, (int(run) + 1) * 1_000_000):
        transaction = taskpool.transaction(connection) if outbox is None else outbox.transaction()
        try:
            with transaction as tx:
                task = tx.submit(evidence.work, place, n)
                connection.execute("INSERT INTO shop_order VALUES(?, ?)", (n, task.uid))
                if n % 3 == 2:
                    raise Changed
        except Changed:
            pass
        evidence.append(os.path.join(place, "orders"), str(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
