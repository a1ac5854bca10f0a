"""Watching live tasks: what they print, how far they are, how they end, as one stream of events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from taskpool.doors.client import Client


class Line(NamedTuple):
    """One line that a task printed. at: wall µs."""

    task_id: int
    attempt: int | None
    text: str
    at: int | None


def follow_live(client: Client, ids: Sequence[int]) -> Iterator[Line]:
    """Yield what happens to the tasks until all have ended."""
    raise NotImplementedError
