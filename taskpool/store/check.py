"""SQLite's quick check beside the dispatch, in a process of its own (0.5 s per 170 MB that nobody should wait for).

This file is also that process: run by its path, it imports the standard library only.
"""

from __future__ import annotations

import select
import sqlite3
import subprocess
import sys

PROBLEMS_MAX = 20
WORDS_MAX = 4000
SOUND = "sound"
DAMAGED = "damaged: "


class Check:
    """A check under way, to be polled by the loop. `fileno` becomes readable when it ends.

    Its answer is what it prints, not its exit status: who reaps the supervisor's children may take that away.
    """

    def __init__(self, path: str) -> None:
        """Start checking the store at that path."""
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        self.pid = self._process.pid
        self._answer: str | None = None
        self._ended = False

    def fileno(self) -> int:
        """Return a descriptor that is readable from the end of the check on, until the answer is taken."""
        return self._out.fileno()

    def poll(self) -> str | None:
        """Return "" if the file is sound, else what is wrong with it; None while that is not known, or will not be. Never waits."""
        return self.wait(0)

    def wait(self, timeout_s: float | None = None) -> str | None:
        """Wait for the end, at most so long, and return what `poll` does then."""
        if not self._ended:
            waiting = select.poll()
            waiting.register(self._out, select.POLLIN)
            if waiting.poll(None if timeout_s is None else timeout_s * 1000):
                self._end()
        return self._answer

    def kill(self) -> None:
        """End it, whatever it might have found. A second call does nothing."""
        if not self._ended:
            self._process.kill()
            self._end()

    def _end(self) -> None:
        """Take the answer: it is written in one piece, as the last that the process does."""
        self._ended = True
        with self._out:
            words = self._out.read().decode(errors="replace").strip()
        self._process.wait()
        if words == SOUND:
            self._answer = ""
        elif words.startswith(DAMAGED):
            self._answer = words


def problems(path: str) -> list[str]:
    """Return what SQLite finds wrong with the file, in lines; none if it is sound."""
    from urllib.parse import quote

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
    print((DAMAGED + "; ".join(found))[:WORDS_MAX] if found else SOUND)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
