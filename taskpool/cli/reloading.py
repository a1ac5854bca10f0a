"""`serve --reload`: a server that is started anew whenever a Python file of the application changes. For development.

This process serves nothing. It starts the server as a child and looks at the files; a change is a SIGTERM to the child, which lets
running tasks end, and another child after it. After one that cannot start, as a file is half written, the next change is awaited.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Final

from taskpool.engines.linux import on_parent_death

LOOK_S: Final = 0.5
FILES_MAX: Final = 5_000  # that are looked at
_PASSED_OVER: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


def watched(directory: str) -> Iterator[tuple[str, int, int]]:
    """Yield (path, mtime in ns, size) of the Python files below a directory, hidden and foreign ones left out."""
    count = 0
    for place, directories, files in os.walk(directory):
        directories[:] = sorted(one for one in directories if not one.startswith(".") and one not in _PASSED_OVER)
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            path = os.path.join(place, name)
            try:
                found = os.stat(path)
            except OSError:
                continue  # it went away meanwhile, which is a change
            yield path, found.st_mtime_ns, found.st_size
            count += 1
            if count == FILES_MAX:
                return


def serve_again(arguments: Sequence[str], directory: str, log: Callable[[str], None]) -> int:
    """Run `taskpool ARGUMENTS` as a child, and anew after each change below a directory; return the exit code of the last.

    SIGTERM and SIGINT are passed on, and end this after the child has ended. SIGUSR1 and SIGUSR2 are passed on.
    """
    reloading = Reloading([sys.executable, "-m", "taskpool", *arguments], directory, log)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, reloading.on_signal)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, reloading.pass_on)
    return reloading.run()


def _end_with(parent: int) -> None:
    """Have this process be told to stop when its parent ends, which it may have done since the fork."""
    on_parent_death(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(0)


class Reloading:
    """The child, and what it was started from."""

    def __init__(self, command: Sequence[str], directory: str, log: Callable[[str], None]) -> None:
        self._command = command
        self._directory = directory
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None
        self._ends = False

    def run(self) -> int:
        """Go on until a signal."""
        code = 0
        while not self._is_ending():
            files = list(watched(self._directory))
            self._child = child = self._start()
            if self._is_ending():  # the signal came while it was started
                child.terminate()
            while child.poll() is None and (self._is_ending() or list(watched(self._directory)) == files):
                self._rest(child)
            if child.poll() is None:
                self._log("a file has changed: running tasks may end, then it starts anew")
                child.terminate()
            code = child.wait()
            if code and not self._is_ending():
                self._log(f"the server ended with code {code}: waiting for a change")
                while not self._is_ending() and list(watched(self._directory)) == files:
                    self._rest(None)
            elif not self._is_ending() and list(watched(self._directory)) == files:
                return code  # it has ended by itself, or somebody has stopped it
        return code

    def _is_ending(self) -> bool:
        return self._ends  # a signal changes it between any two lines

    def _start(self) -> subprocess.Popen[bytes]:
        """Start the child in a session of its own, so that Ctrl-C reaches it through this process alone, once."""
        # Only the child itself can ask for the signal. No other thread is here that could hold a lock at the fork.
        return subprocess.Popen(self._command, start_new_session=True, preexec_fn=partial(_end_with, os.getpid()))  # noqa: PLW1509

    def _rest(self, child: subprocess.Popen[bytes] | None) -> None:
        """Wait a little, shorter if the child ends."""
        try:
            if child is not None:
                child.wait(LOOK_S)
            else:
                signal.sigtimedwait([], LOOK_S)
        except (subprocess.TimeoutExpired, InterruptedError):
            pass

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on, and start none anew."""
        self._ends = True
        self.pass_on(number, frame)

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """Send a signal to the child, if it lives."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)
