"""INSERTs of many rows by one execution: each execution opens a cursor on the table and all its indexes (4.9 µs a row, so 3.3).

What all rows say is bound once, for binding is half of what is left (so 2.0).
"""

from __future__ import annotations

import sqlite3
from functools import cache
from itertools import chain
from typing import Any, Final

WIDE: Final = 25  # rows of one INSERT, where there are so many


def insert(db: sqlite3.Connection, statement: str, rows: list[tuple[Any, ...]]) -> int:
    """Insert rows by a statement that ends with VALUES(…); return how many those are."""
    done, count = 0, len(rows)
    while count - done >= WIDE:
        columns = list(zip(*rows[done : done + WIDE], strict=True))
        shared = tuple([column.count(column[0]) == WIDE for column in columns])
        params = [column[0] for column, same in zip(columns, shared, strict=True) if same]
        varying = [column for column, same in zip(columns, shared, strict=True) if not same]
        params += chain.from_iterable(zip(*varying, strict=True))
        db.execute(widened(statement, WIDE, shared), params)
        done += WIDE
    if done < count:
        db.executemany(statement, rows[done:] if done else rows)
    return count


@cache
def widened(statement: str, count: int, shared: tuple[bool, ...]) -> str:
    """Return an INSERT for `count` rows at once. shared: which parameters are the same for all: these are bound once, first."""
    head, values = statement.split("VALUES")
    said = iter(shared)
    varying = shared.count(False)
    numbers = iter(range(1, varying + 1))
    columns = [
        item if item != "?" or next(said) else f"column{next(numbers)}"  # as SQLite calls the columns of VALUES
        for item in values.strip("() ").split(", ")
    ]
    row = f"({', '.join('?' * varying)})"
    return f"{head}SELECT {', '.join(columns)} FROM (VALUES{', '.join([row] * count)})"
