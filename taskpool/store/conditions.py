"""What SQLite can answer instead of doing what it was asked, in our words."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from taskpool.errors import StoreCorrupt, StoreError, StoreUnusable, TaskpoolError


class StoreBusy(StoreError):
    """Another connection holds the write lock; nothing was changed. Call again soon."""

    code = "store_busy"


class StoreFull(StoreUnusable):
    """The disk is full; nothing was changed. Call again when there is room."""

    code = "store_full"


class StoreIOError(StoreUnusable):
    """The disk failed. What was being written may or may not be there: end this process and start anew, never go on."""

    code = "store_io"


class EffectChanged(StoreUnusable):
    """An effect that was tried with success fails now, after its success was decided upon: end, and let the next owner decide."""

    code = "effect_changed"


class StaleEpoch(StoreError):
    """A newer supervisor owns the store; this one must end without writing another word."""

    code = "stale_epoch"


class Refused(Exception):
    """A statement changed another number of rows than it was given, or met a row it may not meet twice."""


_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_PLACE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS}


def in_our_words(error: BaseException, path: object) -> TaskpoolError | None:
    """Return the exception that tells a caller what to do about an error of SQLite or the system; None: a bug of ours."""
    if isinstance(error, sqlite3.Error):
        extended = getattr(error, "sqlite_errorcode", 0)
    elif isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        extended = sqlite3.SQLITE_FULL if full else sqlite3.SQLITE_IOERR if error.errno == errno.EIO else sqlite3.SQLITE_CANTOPEN
    else:
        return None
    code = extended & 0xFF
    if code in _BUSY:
        return StoreBusy(f"{path}: another connection holds its write lock ({error})")
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"{path}: no room ({error})", hint="make room on the disk; nothing was lost")
    if extended == sqlite3.SQLITE_IOERR_SHMSIZE:  # frames of the log may have been written before it
        return StoreIOError(f"{path}: no room for its index ({error})", hint="make room on the disk; nothing was lost")
    if code == sqlite3.SQLITE_IOERR:
        return StoreIOError(f"{path}: {error}", hint="what was acknowledged is in it, for the next owner")
    if code in _DAMAGED:
        return damaged(path, str(error))
    if code in _PLACE:
        return StoreUnusable(f"{path}: {error}")
    return None


@contextmanager
def in_words(path: object) -> Iterator[None]:
    """Say in our words what SQLite says of what is read inside."""
    try:
        yield
    except sqlite3.Error as error:
        known = in_our_words(error, path)
        if known is None:
            raise
        raise known from error


def damaged(path: object, what: str) -> StoreCorrupt:
    """Return the error for a damaged file, with the way to rescue what is in it."""
    return StoreCorrupt(
        f"{path} is damaged: {what}",
        hint=f"nothing was changed; copy {path}, {path}-wal and {path}-shm away, then rescue into a new file: "
        f"sqlite3 {path} .recover | sqlite3 rescued.db",
    )
