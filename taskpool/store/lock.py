"""The owner's lock: a POSIX record lock on a side file that nobody else opens.

Why not flock: it is inherited by forks, and a worker would hold it after the owner's death. A record lock belongs to the
process, dies with it, and its holder's pid can be asked for. Its two traps: any close of the file in the owning process drops it,
and it does not exclude a second lock by the same process. So the file is opened here only, and a table of this process's own locks
is asked first.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from taskpool.errors import StoreLocked, StoreUnusable

_FLOCK = "hhqqi4x"  # struct flock on 64-bit Linux: type, whence, start, len, pid
_ENDING = b" ending\n"
_held: dict[tuple[int, int], int] = {}  # (device, inode) → pid that took it; in a forked child that is not its own pid


class OwnerLock:
    """Held from construction until `release` or the death of the process."""

    def __init__(self, path: Path) -> None:
        """Take the lock; StoreLocked names the process that holds it."""
        self.path = path
        self._fd = -1
        try:
            found = os.stat(path)
        except FileNotFoundError:
            pass
        else:
            if _held.get((found.st_dev, found.st_ino)) == os.getpid():
                raise _locked(path, os.getpid())
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StoreUnusable(f"cannot open the lock file {path}: {error.strerror}") from error
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(self._fd)
            ending = os.pread(self._fd, 64, 0).endswith(_ENDING)
            os.close(self._fd)
            self._fd = -1
            raise _locked(path, holder, ending=ending) from error
        found = os.fstat(self._fd)
        self._key = (found.st_dev, found.st_ino)
        _held[self._key] = os.getpid()
        self._write(b"\n")

    def announce_end(self) -> None:
        """Tell those who ask for the lock that it will be free in a moment."""
        if self._fd >= 0:
            self._write(_ENDING)

    def _write(self, words: bytes) -> None:
        """Say who holds the lock, and what else is to be said. On a full disk nobody is told; the lock holds all the same."""
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d%b" % (os.getpid(), words), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Give the lock up; a second call does nothing. The file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            _held.pop(self._key, None)


def holder(path: Path) -> int:
    """Return the pid of the process that owns the store's lock, 0 if nobody does. Safe in the owner too."""
    try:
        found = os.stat(path)
        if _held.get((found.st_dev, found.st_ino)) == os.getpid():
            return os.getpid()
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        return _holder(fd)
    finally:
        os.close(fd)


def _holder(fd: int) -> int:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else pid


def _locked(path: Path, pid: int, *, ending: bool = False) -> StoreLocked:
    who = f"process {pid}" if pid > 0 else "another process"
    return StoreLocked(
        f"{str(path).removesuffix('.d/lock')} is owned by {who}", hint="taskpool.connect() works with a live store", ending=ending
    )
