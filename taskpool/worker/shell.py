"""A shell command as a task: what `taskpool run -- CMD` sends. An ordinary function, importable by name like any other.

What the command prints on stdout is the task's result and also goes to the task's log as it comes; stderr goes to the log alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

STDOUT_BYTES_MAX = 8 << 20  # kept as the result; what comes after it is in the log alone
TERMINATE_S = 2.0  # between asking the command to end and killing it, when its task is cancelled


class CommandFailed(Exception):
    """A command ended with another exit status than 0. status: as subprocess has it, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status

    def __str__(self) -> str:
        if self.status >= 0:
            return f"exit status {self.status}"
        try:
            return f"killed by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"killed by signal {-self.status}"


def run_command(command: str | Sequence[str]) -> bytes:
    """Run a command (a list: its words; a text: a line for /bin/sh) and return its stdout. Raises CommandFailed, OSError."""
    process = subprocess.Popen(
        command,
        shell=isinstance(command, str),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        process_group=0,  # so that a cancel reaches all that the command started
    )
    try:
        kept = _pass_on(process)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status:
        raise CommandFailed(status)
    return kept


def _pass_on(process: subprocess.Popen[bytes]) -> bytes:
    """Copy the command's stdout to the log until it ends, and return what is kept of it."""
    assert process.stdout is not None
    kept = bytearray()
    cut = False
    with process.stdout as stream:
        while part := stream.read1(1 << 16):  # type: ignore[attr-defined]  # a BufferedReader, which IO does not say
            _write_all(1, part)
            room = STDOUT_BYTES_MAX - len(kept)
            kept += part[:room]
            cut = cut or len(part) > room
    if cut:
        _write_all(2, b"taskpool: only the first %d bytes of stdout are kept as the result\n" % STDOUT_BYTES_MAX)
    return bytes(kept)


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
