"""Rows by their numbers: however many are wanted, they go in as one JSON list, so that a statement is prepared only once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

WANTED: Final = "FROM json_each(?) AS wanted CROSS JOIN"  # a table follows, and which of its columns is wanted.value
TASKS: Final = f"{WANTED} task ON task.id = wanted.value"


def numbers(wanted: Iterable[int]) -> str:
    """Return whole numbers as the list that json_each reads."""
    return f"[{','.join(map(str, wanted))}]"
