"""The log of transitions: what each turn changed, packed in one row that is written in the turn's own transaction.

A turn's row lists its stages in order, each as groups of tasks that moved alike: [code of (from, to), ids] and, where they are not
what one would guess, the numbers of their attempts. Names and queues are not in it: a reader finds them with the task. So a
transition costs the bytes of its id, and a turn one small insert, however many tasks it moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from taskpool.core.lifecycle import MOVES, RUNNING
from taskpool.errors import InvalidTask
from taskpool.model import Status

if TYPE_CHECKING:
    from taskpool.store.reading import Reading
    from taskpool.store.stages import Stage

Place = tuple[int, int]  # (turn, index in it)
START: Final[Place] = (0, -1)  # before all
WRITE: Final = "INSERT INTO event(turn, at, data) VALUES(?, ?, ?)"
OLDEST: Final = "SELECT at FROM event ORDER BY turn LIMIT 1"
TRIM: Final = (  # the oldest rows, up to the first that is young enough: turns rise, clocks may be set back
    "DELETE FROM event WHERE turn < MIN("
    "COALESCE((SELECT turn FROM (SELECT turn, at FROM event ORDER BY turn LIMIT :slice) WHERE at >= :horizon LIMIT 1), :end), "
    "COALESCE((SELECT turn FROM event ORDER BY turn LIMIT 1 OFFSET :slice), :end))"
)
ROWS: Final = 256  # rows of one reading
NAMES: Final = 500  # tasks whose names are looked up at once

_STATUSES: Final = ("", "pending", "queued", "running", "retrying", "succeeded", "failed", "cancelled", "interrupted")
_CODES: Final = {
    (before, after): (number << 4) | _STATUSES.index(after) for number, before in enumerate(_STATUSES) for after in MOVES[before]
}
_PAIRS: Final = {code: pair for pair, code in _CODES.items()}

_Group = tuple[int, list[int], dict[int, int]]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[_Group]).decode


class TaskEvent(msgspec.Struct, frozen=True, gc=False):
    """One transition of a task. seq: its place in the log; at: wall µs; before: None for a new task.

    attempt: the number of its last, 0 if there was none; name and queue are "" where the task is no longer stored.
    """

    seq: Place
    at: int
    id: int
    before: Status | None
    status: Status
    attempt: int
    name: str
    queue: str


def pack(stages: Iterable[Stage]) -> bytes:
    """Return a turn's transitions, b"" if there are none."""
    groups = []
    for stage in stages:
        attempts = stage.attempts
        for pair, ids in stage.changes.items():
            groups.append((_CODES[pair], ids, {one: attempts[one] for one in ids if one in attempts} if attempts else {}))
    return _encode(groups) if groups else b""


def unpack(data: bytes) -> Iterator[tuple[int, str, str, int]]:
    """Yield a turn's transitions in order: (id, from, to, attempt); from "" is a new task."""
    for code, ids, attempts in _decode(data):
        pair = before, after = _PAIRS[code]
        usual = 1 if RUNNING in pair else 0
        for task_id in ids:
            yield task_id, before, after, attempts.get(task_id, usual)


def walk(reading: Reading, after: Place) -> Iterator[TaskEvent]:
    """Yield what the log has behind a place, oldest first, to its present end; each look at the file is a short one."""
    turn, index = after
    while True:
        rows = reading.log_rows(turn, ROWS)
        for number, at, data in rows:
            first = index + 1 if number == after[0] else 0
            moves = islice(enumerate(unpack(data)), first, None)
            while part := list(islice(moves, NAMES)):
                named = reading.names([move[0] for _, move in part])
                for place, (task_id, before, status, attempt) in part:
                    name, queue = named.get(task_id, ("", ""))
                    was = Status(before) if before else None
                    yield TaskEvent((number, place), at, task_id, was, Status(status), attempt, name, queue)
        if len(rows) < ROWS:
            return
        turn = rows[-1][0] + 1


def place_of(since: object) -> Place:
    """Return the place that is meant: (turn, index), "turn.index", a turn (all of it is behind one), or None for the beginning.

    InvalidTask for anything else.
    """
    parts: Sequence[object] = since if isinstance(since, tuple | list) else ()
    if since is None:
        return START
    if isinstance(since, str):
        words = since.split(".")
        parts = [int(word) for word in words] if all(word.isascii() and word.isdigit() and len(word) < 19 for word in words) else ()
    elif isinstance(since, int) and not isinstance(since, bool):
        parts = (since,)
    match parts:
        case [int(turn)] if 0 <= turn < 1 << 62:
            return (turn, 1 << 62)
        case [int(turn), int(index)] if 0 <= turn < 1 << 62 and -1 <= index <= 1 << 62:
            return (turn, index)
    raise InvalidTask(f"{since!r:.80} is no place in the log", hint="as event.seq says it: (turn, index), or 'turn.index'")


def text_of(place: Place) -> str:
    """Return a place as people write it."""
    return f"{place[0]}.{place[1]}"
