"""The log of `run --joblog`: a line per finished input, with the columns of GNU parallel."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from taskpool.cli.escape import one_line
from taskpool.cli.exits import CliError, Exit
from taskpool.cli.quantity import US

if TYPE_CHECKING:
    from taskpool.cli.shapes import RunLine
    from taskpool.doors.future import TaskFuture

COLUMNS = ("Seq", "Host", "Starttime", "JobRuntime", "Send", "Receive", "Exitval", "Signal", "Command")


class JobLog:
    """Writes the log, or nothing if there is no path for it. Lines come as inputs finish."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> JobLog:
        if self._path is not None:
            try:
                self._file = open(self._path, "w", encoding="utf-8", errors="surrogateescape", buffering=1)
            except OSError as error:
                raise CliError(f"cannot write {self._path}: {error.strerror}", Exit.REFUSED, "cannot_write") from error
            self._file.write("\t".join(COLUMNS) + "\n")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, seq: int, future: TaskFuture[Any], line: RunLine, command: str) -> None:
        """Add what became of an input; times are those of its last attempt."""
        if self._file is None:
            return
        attempts = future.attempts
        last = attempts[-1] if attempts else None
        exit_value, signal = _how_it_ended(future, line)
        received = len(value) if line.status == "succeeded" and isinstance(value := future.result(), bytes) else 0
        fields = (
            seq,
            ":",
            f"{last.started_at / US:.3f}" if last else "0.000",
            f"{last.duration_s:10.3f}" if last else "0.000",
            0,
            received,
            exit_value,
            signal,
            one_line(command),
        )
        self._file.write("\t".join(map(str, fields)) + "\n")


def _how_it_ended(future: TaskFuture[Any], line: RunLine) -> tuple[int, int]:
    """Return (exit value, signal) as of a command; a function that failed counts as exit value 1."""
    from taskpool.worker.shell import CommandFailed

    if line.status == "succeeded":
        return 0, 0
    if line.status != "cancelled":
        error = future.exception()
        if isinstance(error, CommandFailed):
            return (error.status, 0) if error.status >= 0 else (0, -error.status)
    if line.error is not None and line.error.signal is not None:
        return 0, line.error.signal
    return (line.error.exit_code if line.error is not None and line.error.exit_code else 1), 0
