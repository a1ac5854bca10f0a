"""SQLite's quick check beside the dispatch, in a process of its own (0.5 s per 170 MB that nobody should wait for).

This file is also that process: run by its path, it imports the standard library only.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from urllib.parse import quote

PROBLEMS_MAX = 20
DAMAGED = 3


class Check:
    """A check under way, to be polled by the loop. `fileno` becomes readable when it ends."""

    def __init__(self, path: str) -> None:
        """Start checking the store at that path."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.pid = self._process.pid
        self._words: str | None = None

    def fileno(self) -> int:
        """Return a descriptor that is readable from the end of the check on."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def poll(self) -> str | None:
        """Return None while the check runs; then "" if the file is sound, else what is wrong with it. Never waits."""
        if self._words is None and self._process.poll() is not None:
            self._words = self._read()
        return self._words

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait for the end and return what `poll` would; subprocess.TimeoutExpired."""
        self._process.wait(timeout_s)
        return self.poll() or ""

    def kill(self) -> None:
        """End it early; `poll` then finds nothing wrong. A second call does nothing."""
        if self._words is None:
            self._process.kill()
            self._process.wait()
            self._read()
            self._words = ""

    def _read(self) -> str:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            words = stream.read().decode(errors="replace").strip()
        if self._process.returncode == DAMAGED:
            return words or "the check found damage"
        return ""


def problems(path: str) -> list[str]:
    """Return what SQLite finds wrong with the file, in lines; none if it is sound."""
    connection = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=10, isolation_level=None)
    try:
        found = [line for (line,) in connection.execute(f"PRAGMA quick_check({PROBLEMS_MAX})")]
    except sqlite3.DatabaseError as error:
        if (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return [str(error)]
        raise
    finally:
        connection.close()
    return [] if found == ["ok"] else found


def main(path: str) -> int:
    """Check a store at a low priority, and never longer than the process that asked lives."""
    import ctypes
    import os
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.nice(10)
    found = problems(path)
    print("\n".join(found)[:4000])
    return DAMAGED if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
