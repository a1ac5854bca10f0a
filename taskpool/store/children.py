"""Which tasks a task has made, as its children say it in their options. No index: that would cost all tasks what few have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from taskpool.model import encode
from taskpool.store import records

SCAN_MAX: Final = 1_000_000  # tasks stored after the parent that are looked at
_PAGE: Final = 100


def word(parent_id: int) -> bytes:
    """Return what the packed options of a task's children contain, and hardly any others."""
    return encode("parent_id") + encode(parent_id)


class ChildReading:
    """The part of the reading verbs that finds children."""

    def _read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        raise NotImplementedError

    def children(self, task_id: int, limit: int) -> list[int]:
        """Return the first tasks that a task has made, oldest first, among the SCAN_MAX stored after it."""
        found: list[int] = []
        after, end = task_id, task_id + SCAN_MAX
        sql = "SELECT id, options FROM task WHERE id > ? AND id <= ? AND instr(options, ?) > 0 ORDER BY id LIMIT ?"
        while len(found) < limit and (page := self._read(sql, (after, end, word(task_id), _PAGE))):
            found += [child for child, options in page if records.options(options).parent_id == task_id]
            after = page[-1][0]
        return found[:limit]
