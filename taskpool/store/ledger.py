"""A word beside the store that remembers how many turns were committed: what integrity checks cannot see.

A log that lost its tail (a flipped bit, a cut, a file put back from yesterday) opens without a complaint, and SQLite's checks call
it sound: rows that were acknowledged are simply gone. So each turn's transaction writes its number into `meta`, and after the
commit the same number goes into a file mapped here: one store of 8 bytes, no system call, kept by the page cache when the process
is killed. A store that comes back with a smaller number than its ledger has lost turns.

After a loss of power the ledger may be behind the store, never ahead of it, where each commit reached the disk (durability
"power"). Where it did not ("process"), nothing was promised across a reboot and nothing is concluded.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Final

_FORM: Final = struct.Struct("<32sQ")  # the store's mark, the number of its last turn


class Ledger:
    """The mapped file of one open store."""

    def __init__(self, path: Path, mark: str, turn: int) -> None:
        """Begin to keep a store's count, from the turn that it stands at."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.pwrite(fd, _FORM.pack(mark.encode(), turn), 0)
            self._map = mmap.mmap(fd, _FORM.size)
        finally:
            os.close(fd)
        self._view = memoryview(self._map)
        self._turn = self._view[32:40].cast("Q")

    def write(self, turn: int) -> None:
        """Remember that this turn is committed."""
        self._turn[0] = turn

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._turn.release()
        self._view.release()
        self._map.close()


def last_turn(path: Path, mark: str) -> int:
    """Return the last turn that is remembered for the store of that mark; 0 if nothing is."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    if len(data) != _FORM.size:
        return 0
    of, turn = _FORM.unpack(data)
    return int(turn) if of == mark.encode() else 0


def any_turn(path: Path) -> bool:
    """Return whether turns of any store are remembered there."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    return len(data) == _FORM.size and _FORM.unpack(data)[1] > 0
