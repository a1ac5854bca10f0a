"""A shell command as a task: what `taskpool run -- CMD` sends. An ordinary function, importable by name like any other.

What the command prints on stdout is the task's result and also goes to the task's log as it comes; stderr goes to the log alone,
and its last line into the error of a command that fails.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Sequence

STDOUT_BYTES_MAX = 8 << 20  # kept as the result; what comes after it is in the log alone
PIPE_BYTES = 1 << 16  # what a pipe holds
STDERR_BYTES_MAX = 1 << 12  # of its end: where the last line is looked for
TERMINATE_S = 2.0  # between asking the command to end and killing it, when its task is cancelled


class CommandFailed(Exception):
    """A command ended with another exit status than 0.

    status: as subprocess has it, negative for a signal; last_words: the last line it wrote to stderr.
    """

    def __init__(self, status: int, last_words: str = "") -> None:
        super().__init__(status, last_words)
        self.status = status
        self.last_words = last_words

    def __str__(self) -> str:
        how = f"exit status {self.status}" if self.status >= 0 else f"killed by {_signal_name(-self.status)}"
        return f"{how}: {self.last_words}" if self.last_words else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def run_command(command: str | Sequence[str]) -> bytes:
    """Run a command (a list: its words; a text: a line for /bin/sh) and return its stdout. Raises CommandFailed, OSError."""
    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # so that a cancel reaches all that the command started
    )
    try:
        kept, last_words = _pass_on(process)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status:
        raise CommandFailed(status, last_words)
    return kept


def _pass_on(process: subprocess.Popen[bytes]) -> tuple[bytes, str]:
    """Copy what the command prints to the log, and return what is kept of its stdout, and its last line of stderr.

    Over with the command and its stdout; what it left in the background may go on holding its stderr.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    kept, end, cut = bytearray(), b"", False
    ended = os.pidfd_open(process.pid)
    try:
        with process.stdout as stdout, process.stderr as stderr:
            poll = select.poll()
            awaited = {ended, stdout.fileno()}
            for fd in (*awaited, stderr.fileno()):
                poll.register(fd, select.POLLIN)
            over = False
            while not over:
                over = not awaited  # then once more, for what is left in the pipe of stderr
                for fd, _ in poll.poll(0 if over else None):
                    part = b"" if fd == ended else os.read(fd, PIPE_BYTES)
                    if not part:
                        poll.unregister(fd)
                        awaited.discard(fd)
                    elif fd == stderr.fileno():
                        _write_all(2, part)
                        end = (end + part)[-STDERR_BYTES_MAX:]
                    else:
                        _write_all(1, part)
                        room = STDOUT_BYTES_MAX - len(kept)
                        kept += part[:room]
                        cut = cut or len(part) > room
    finally:
        os.close(ended)
    if cut:
        _write_all(2, b"taskpool: only the first %d bytes of stdout are kept as the result\n" % STDOUT_BYTES_MAX)
    return bytes(kept), _last_line(end.decode(errors="replace"))


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command whose task is cancelled, and all in its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(TERMINATE_S)
        except subprocess.TimeoutExpired:
            continue
